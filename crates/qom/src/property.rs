//! Properties as a class declares them: kinds, values, defaults, and what is declared but not built.
//!
//! A new kind of value that several crates need is an arm of [`Kind`]; one with a notation of its own is a
//! [`CustomKind`] where it is used.

use std::borrow::Cow;
use std::fmt;

use crate::{Object, PropertyError};

/// The value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// A switch.
    Bool(bool),
    /// An integer of whatever width and sign; the property's [`Kind`] says which fit.
    Int(i128),
    /// A text.
    Str(Cow<'static, str>),
    /// One word of the few that an enumeration has.
    Choice(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Str(value) => f.write_str(value),
            Self::Choice(value) => f.write_str(value),
        }
    }
}

impl Value {
    /// The value as JSON has it, which is how `qom-get` and help print it: texts are quoted.
    pub fn json(&self) -> impl fmt::Display {
        let text: Cow<'_, str> = match self {
            Self::Bool(_) | Self::Int(_) => return Json(self.to_string()),
            Self::Str(text) => text.as_ref().into(),
            Self::Choice(word) => (*word).into(),
        };
        let mut quoted = String::from("\"");
        for char in text.chars() {
            match char {
                '"' | '\\' => quoted.extend(['\\', char]),
                '\n' => quoted.push_str("\\n"),
                _ if char.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(char))),
                _ => quoted.push(char),
            }
        }
        quoted.push('"');
        Json(quoted)
    }
}

struct Json(String);

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What values a property takes.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Kind {
    /// A switch.
    Bool,
    /// 0 to 2^8 - 1.
    U8,
    /// 0 to 2^16 - 1.
    U16,
    /// 0 to 2^32 - 1.
    U32,
    /// 0 to 2^64 - 1.
    U64,
    /// -2^31 to 2^31 - 1.
    I32,
    /// -2^63 to 2^63 - 1.
    I64,
    /// Bytes, 0 to 2^64 - 1; text may have a suffix such as `k`.
    Size,
    /// A text.
    Str,
    /// One word of a few.
    Choice(&'static Choices),
    /// A notation of its own, stored as one of the values above.
    Custom(&'static CustomKind),
}

/// The words of an enumeration.
#[derive(Debug)]
pub struct Choices {
    /// Name of the type, such as `OnOffAuto`.
    pub type_name: &'static str,
    /// The words.
    pub words: &'static [&'static str],
}

/// A notation of its own, such as `06.0` for a PCI slot and function.
pub struct CustomKind {
    /// Name of the type that help prints, such as `int32`.
    pub type_name: &'static str,
    /// Reads the text; `None` if it is not in the notation.
    pub parse: fn(&str) -> Option<Value>,
    /// Whether a value that was set as such, not as text, belongs to the property.
    pub accepts: fn(&Value) -> bool,
}

impl fmt::Debug for CustomKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomKind")
            .field("type_name", &self.type_name)
            .finish_non_exhaustive()
    }
}

impl Kind {
    /// `on`, `off` or `auto`.
    pub const ON_OFF_AUTO: Self = Self::Choice(&OnOffAuto::CHOICES);

    /// The name that help prints between angle brackets, such as `uint16`.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::Size => "size",
            Self::Str => "str",
            Self::Choice(choices) => choices.type_name,
            Self::Custom(kind) => kind.type_name,
        }
    }

    /// Turns a value into one that a property of this kind stores: checks type and range, and finds
    /// the word of an enumeration or reads the text of a custom notation. `type_name` and `name`
    /// are for the error.
    ///
    /// # Errors
    /// [`PropertyError::WrongType`], [`PropertyError::Expects`], [`PropertyError::NotAChoice`],
    /// [`PropertyError::BadValue`].
    pub fn admit(&self, value: Value, type_name: &str, name: &str) -> Result<Value, PropertyError> {
        let wrong_type = |expected| PropertyError::WrongType {
            name: name.to_owned(),
            expected,
        };
        match (self, value) {
            (Self::Bool, value @ Value::Bool(_)) | (Self::Str, value @ Value::Str(_)) => Ok(value),
            (Self::Bool, _) => Err(wrong_type("boolean")),
            (Self::Str, _) => Err(wrong_type("string")),
            (Self::Choice(choices), Value::Choice(word)) => choices.find(word, name),
            (Self::Choice(choices), Value::Str(word)) => choices.find(&word, name),
            (Self::Choice(_), _) => Err(wrong_type("string")),
            (Self::Custom(kind), value) if (kind.accepts)(&value) => Ok(value),
            (Self::Custom(kind), value) => {
                let parsed = if let Value::Str(text) = &value {
                    (kind.parse)(text)
                } else {
                    None
                };
                parsed.ok_or_else(|| PropertyError::BadValue {
                    type_name: type_name.to_owned(),
                    name: name.to_owned(),
                    value: value.to_string(),
                })
            }
            (_, Value::Int(value)) => self.admit_integer(value, name),
            (_, _) => Err(wrong_type("integer")),
        }
    }

    fn admit_integer(&self, value: i128, name: &str) -> Result<Value, PropertyError> {
        let (fits, expected) = match self {
            Self::U8 => (u8::try_from(value).is_ok(), "uint8_t"),
            Self::U16 => (u16::try_from(value).is_ok(), "uint16_t"),
            Self::U32 => (u32::try_from(value).is_ok(), "uint32_t"),
            Self::U64 => (u64::try_from(value).is_ok(), "uint64_t"),
            Self::Size => (u64::try_from(value).is_ok(), "size"),
            Self::I32 => (i32::try_from(value).is_ok(), "int32_t"),
            Self::I64 => (i64::try_from(value).is_ok(), "int64_t"),
            Self::Bool | Self::Str | Self::Choice(_) | Self::Custom(_) => (false, "integer"),
        };
        if fits {
            Ok(Value::Int(value))
        } else {
            Err(PropertyError::Expects {
                name: name.to_owned(),
                expected,
            })
        }
    }
}

impl Choices {
    fn find(&self, text: &str, name: &str) -> Result<Value, PropertyError> {
        let refused = || PropertyError::NotAChoice {
            name: name.to_owned(),
            value: text.to_owned(),
        };
        let word = self.words.iter().copied().find(|word| *word == text);
        word.map(Value::Choice).ok_or_else(refused)
    }
}

/// A check of its own that a property makes of each value; the error is the end of a sentence that
/// begins with the property's name, such as `is not supported`.
pub type Check = fn(&Value) -> Result<(), String>;

/// Makes what an object has become in realizing follow a property that was set afterwards.
pub type Changed = fn(&Object);

/// What stands in place of something that a property names and that is not built. Other values are refused by
/// name, rather than taken and ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbuilt {
    /// The property has no value, and takes none; the empty text says so too.
    NoValue,
    /// The property has this value, whatever its default, and takes no other.
    Only(&'static Value),
    /// The property takes these values, which come to the same; the first is the one that it has.
    OneOf(&'static [Value]),
}

impl Unbuilt {
    /// The values that are taken, as a user writes them; `None` where there is none.
    #[must_use]
    pub fn values(self) -> Option<Vec<String>> {
        let values = match self {
            Self::NoValue => return None,
            Self::Only(value) => std::slice::from_ref(value),
            Self::OneOf(values) => values,
        };
        let text = |value: &Value| match value {
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            value => value.to_string(),
        };
        Some(values.iter().map(text).collect())
    }

    /// Whether the value says what is so anyway.
    fn admits(self, value: &Value) -> bool {
        match self {
            Self::NoValue => matches!(value, Value::Str(text) if text.is_empty()),
            Self::Only(only) => only == value,
            Self::OneOf(values) => values.contains(value),
        }
    }

    /// Why another value is refused, as the end of a sentence.
    fn refusal(self) -> String {
        match self.values() {
            None => "is not supported".to_owned(),
            Some(values) => {
                let values = values.join("' or '");
                format!("is not supported with any value but '{values}'")
            }
        }
    }
}

/// A property that each object of a class has. Tables of these are constants:
///
/// ```
/// use qom::PropertyInfo;
///
/// const PROPERTIES: &[PropertyInfo] = &[
///     PropertyInfo::bool("mq", false).describe("on/off"),
///     PropertyInfo::u16("rx_queue_size", 256),
///     PropertyInfo::on_off_auto("disable-legacy").describe("on/off/auto"),
///     PropertyInfo::str("netdev").describe("ID of a netdev to use as a backend"),
/// ];
/// ```
#[derive(Debug, Clone)]
pub struct PropertyInfo {
    /// The name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The value of an object on which it was not set; `None` if it then has none. What help prints.
    pub default: Option<Value>,
    /// What help prints of it; may be empty.
    pub description: &'static str,
    /// What it switches is not built; `default` is only what it is where it is built.
    pub unbuilt: Option<Unbuilt>,
    /// QEMU has no property of this name on such an object; help lists it apart.
    pub is_our_own: bool,
    /// Judges a value of the right kind.
    pub check: Option<Check>,
    /// May be set while the object is frozen, see [`Object::freeze`](crate::Object::freeze).
    pub settable_when_frozen: bool,
    /// Called when a value was set while the object is frozen, with no lock held.
    pub changed: Option<Changed>,
}

impl PropertyInfo {
    /// A property with no default.
    #[must_use]
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            default: None,
            description: "",
            unbuilt: None,
            is_our_own: false,
            check: None,
            settable_when_frozen: false,
            changed: None,
        }
    }

    const fn with(name: &'static str, kind: Kind, default: Value) -> Self {
        Self {
            name,
            kind,
            default: Some(default),
            description: "",
            unbuilt: None,
            is_our_own: false,
            check: None,
            settable_when_frozen: false,
            changed: None,
        }
    }

    /// A switch.
    #[must_use]
    pub const fn bool(name: &'static str, default: bool) -> Self {
        Self::with(name, Kind::Bool, Value::Bool(default))
    }

    /// An unsigned integer of 8 bits.
    #[must_use]
    pub const fn u8(name: &'static str, default: u8) -> Self {
        Self::with(name, Kind::U8, Value::Int(default as i128))
    }

    /// An unsigned integer of 16 bits.
    #[must_use]
    pub const fn u16(name: &'static str, default: u16) -> Self {
        Self::with(name, Kind::U16, Value::Int(default as i128))
    }

    /// An unsigned integer of 32 bits.
    #[must_use]
    pub const fn u32(name: &'static str, default: u32) -> Self {
        Self::with(name, Kind::U32, Value::Int(default as i128))
    }

    /// An unsigned integer of 64 bits.
    #[must_use]
    pub const fn u64(name: &'static str, default: u64) -> Self {
        Self::with(name, Kind::U64, Value::Int(default as i128))
    }

    /// A signed integer of 32 bits.
    #[must_use]
    pub const fn i32(name: &'static str, default: i32) -> Self {
        Self::with(name, Kind::I32, Value::Int(default as i128))
    }

    /// A size in bytes.
    #[must_use]
    pub const fn size(name: &'static str, default: u64) -> Self {
        Self::with(name, Kind::Size, Value::Int(default as i128))
    }

    /// A text, with no default.
    #[must_use]
    pub const fn str(name: &'static str) -> Self {
        Self::new(name, Kind::Str)
    }

    /// `on`, `off` or `auto`, by default the last.
    #[must_use]
    pub const fn on_off_auto(name: &'static str) -> Self {
        Self::with(
            name,
            Kind::ON_OFF_AUTO,
            Value::Choice(OnOffAuto::Auto.as_str()),
        )
    }

    /// A notation of its own, with no default.
    #[must_use]
    pub const fn custom(name: &'static str, kind: &'static CustomKind) -> Self {
        Self::new(name, Kind::Custom(kind))
    }

    /// A notation of its own, with a default.
    #[must_use]
    pub const fn custom_with(
        name: &'static str,
        kind: &'static CustomKind,
        default: Value,
    ) -> Self {
        Self::with(name, Kind::Custom(kind), default)
    }

    /// With a description.
    #[must_use]
    pub const fn describe(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// Named as QEMU names it, and not built.
    #[must_use]
    pub const fn unbuilt(mut self, stands_in: Unbuilt) -> Self {
        self.unbuilt = Some(stands_in);
        self
    }

    /// Unknown to QEMU.
    #[must_use]
    pub const fn our_own(mut self) -> Self {
        self.is_our_own = true;
        self
    }

    /// With a check of its own.
    #[must_use]
    pub const fn check(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    /// The value of an object on which it was not set.
    #[must_use]
    pub fn initial(&self) -> Option<&Value> {
        match self.unbuilt {
            None => self.default.as_ref(),
            Some(Unbuilt::NoValue) => None,
            Some(Unbuilt::Only(value)) => Some(value),
            Some(Unbuilt::OneOf(values)) => values.first(),
        }
    }

    /// Judges a value of the right kind; the error is the end of a sentence.
    pub(crate) fn judge(&self, value: &Value) -> Result<(), String> {
        if let Some(unbuilt) = self.unbuilt
            && !unbuilt.admits(value)
        {
            return Err(unbuilt.refusal());
        }
        self.check.map_or(Ok(()), |check| check(value))
    }

    /// May be set while the object is frozen.
    #[must_use]
    pub const fn settable_when_frozen(mut self) -> Self {
        self.settable_when_frozen = true;
        self
    }

    /// May be set while the object is frozen, which `changed` is then told.
    #[must_use]
    pub const fn changeable(mut self, changed: Changed) -> Self {
        self.changed = Some(changed);
        self.settable_when_frozen()
    }
}

/// A switch that may also be left to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnOffAuto {
    /// The device decides.
    #[default]
    Auto,
    /// Switched on.
    On,
    /// Switched off.
    Off,
}

impl OnOffAuto {
    const CHOICES: Choices = Choices {
        type_name: "OnOffAuto",
        words: &["auto", "on", "off"],
    };

    /// The word for this value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// A Rust type that properties can be read as.
pub trait PropertyType: Sized {
    /// Reads the value, `None` being that of a property that has none; `None` if it is of another
    /// type.
    fn from_value(value: Option<&Value>) -> Option<Self>;
}

impl<T: PropertyType> PropertyType for Option<T> {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        match value {
            None => Some(None),
            some => T::from_value(some).map(Some),
        }
    }
}

impl PropertyType for Value {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        value.cloned()
    }
}

impl PropertyType for bool {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        if let Some(Value::Bool(value)) = value {
            Some(*value)
        } else {
            None
        }
    }
}

impl PropertyType for String {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        if let Some(Value::Str(value)) = value {
            Some(value.clone().into_owned())
        } else {
            None
        }
    }
}

impl PropertyType for OnOffAuto {
    fn from_value(value: Option<&Value>) -> Option<Self> {
        let Some(Value::Choice(word)) = value else {
            return None;
        };
        [Self::Auto, Self::On, Self::Off]
            .into_iter()
            .find(|value| value.as_str() == *word)
    }
}

macro_rules! integer_properties {
    ($($integer:ty)*) => {$(
        impl PropertyType for $integer {
            fn from_value(value: Option<&Value>) -> Option<Self> {
                if let Some(Value::Int(value)) = value { Self::try_from(*value).ok() } else { None }
            }
        }

        impl From<$integer> for Value {
            fn from(value: $integer) -> Self {
                Self::Int(i128::from(value))
            }
        }
    )*};
}

integer_properties!(u8 u16 u32 u64 i32 i64);

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Str(Cow::Owned(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Str(Cow::Owned(value))
    }
}

impl From<OnOffAuto> for Value {
    fn from(value: OnOffAuto) -> Self {
        Self::Choice(value.as_str())
    }
}
