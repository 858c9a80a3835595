//! What `help` in place of options prints of one option.
//!
//! ```
//! use keyval::OptionInfo;
//!
//! const IFNAME: OptionInfo<'_> = OptionInfo::new("ifname", "str").describe("interface name");
//! const QUEUES: OptionInfo<'_> = OptionInfo::new("queues", "uint32").default("1");
//!
//! assert_eq!(IFNAME.to_string(), "  ifname=<str>           - interface name");
//! assert_eq!(QUEUES.to_string(), "  queues=<uint32>        -  (default: 1)");
//! ```

use std::fmt;

/// An option as help lists it: its `Display` is the line, in QEMU's layout, without a newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionInfo<'a> {
    /// The key.
    pub name: &'a str,
    /// The type of its value, which stands between angle brackets.
    pub type_name: &'a str,
    /// What it is for; may be empty.
    pub description: &'a str,
    /// Its value where none is given, a text in quotes.
    pub default: Option<&'a str>,
}

impl<'a> OptionInfo<'a> {
    /// An option of which nothing but the type is told.
    #[must_use]
    pub const fn new(name: &'a str, type_name: &'a str) -> Self {
        Self {
            name,
            type_name,
            description: "",
            default: None,
        }
    }

    /// With a description.
    #[must_use]
    pub const fn describe(self, description: &'a str) -> Self {
        Self {
            description,
            ..self
        }
    }

    /// With a default, as it is to be printed.
    #[must_use]
    pub const fn default(self, default: &'a str) -> Self {
        Self {
            default: Some(default),
            ..self
        }
    }
}

impl fmt::Display for OptionInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = format!("{}=<{}>", self.name, self.type_name);
        if self.description.is_empty() && self.default.is_none() {
            return write!(f, "  {option}");
        }
        write!(f, "  {option:<22} - {}", self.description)?;
        match self.default {
            Some(default) => write!(f, " (default: {default})"),
            None => Ok(()),
        }
    }
}

/// Whether a word asks for help in place of a value: `help`, or `?`.
#[doc(alias = "is_help_option")]
#[must_use]
pub fn is_help(word: &str) -> bool {
    matches!(word, "help" | "?")
}
