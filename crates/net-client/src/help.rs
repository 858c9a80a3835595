//! What `-netdev help` and `-netdev KIND,help` print.

use keyval::help::is_help;
use keyval::{OptionInfo, Options};

use crate::netdev::{NetClients, NetdevError};

/// The options of a kind of netdev, for [`NetClients::describe`].
#[derive(Clone, Copy, Debug, Default)]
pub struct KindHelp {
    /// Those that QEMU's kind of this name has too, by name, but for `id`.
    pub options: &'static [OptionInfo<'static>],
    /// Those that it has not, by name.
    pub our_own: &'static [OptionInfo<'static>],
}

impl NetClients {
    /// What `-netdev` prints with these options, if they ask for help: of a kind, its options; else the
    /// kinds. `None` if they ask for a netdev.
    ///
    /// # Errors
    /// [`NetdevError::UnknownKind`].
    #[doc(alias = "show_netdevs")]
    pub fn help(&self, options: &Options) -> Result<Option<String>, NetdevError> {
        let kind = options.get("type");
        let asks = options.wants_help();
        match kind.filter(|kind| !is_help(kind)) {
            Some(_) if !asks => Ok(None),
            Some(kind) => self.kind_help(kind).map(Some),
            None if asks || kind.is_some() => {
                let lines = self.kinds().join("\n");
                Ok(Some(format!("Available netdev backend types:\n{lines}\n")))
            }
            None => Ok(None),
        }
    }

    fn kind_help(&self, kind: &str) -> Result<String, NetdevError> {
        let unknown = || NetdevError::UnknownKind(kind.to_owned());
        let KindHelp { options, our_own } = self.description(kind).ok_or_else(unknown)?;
        let mut all = vec![ID];
        all.extend(options);
        all.sort_by_key(|option| option.name);
        let lines = |options: &[OptionInfo<'_>]| -> String {
            options.iter().map(|option| format!("{option}\n")).collect()
        };
        let mut text = format!("{kind} options:\n{}", lines(&all));
        if !our_own.is_empty() {
            let ours = lines(our_own);
            text.push_str(&format!(
                "\n{kind} options that QEMU does not have:\n{ours}"
            ));
        }
        Ok(text)
    }
}

const ID: OptionInfo<'_> = OptionInfo::new("id", "str").describe("Name for a device's netdev=");
