//! `-object filter-dump`: captures of netdevs' traffic, by id.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyval::Options;

use crate::capture::{CAPTURE_MAX_LEN, Capture};
use crate::filter::{Directions, FilterId, Position};
use crate::netdev::NetClients;
use crate::port::Port;

/// Why a filter was not added or removed, in QEMU's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// Not a kind of filter that there is.
    #[error("Parameter 'qom-type' does not accept value '{0}'")]
    UnknownKind(String),
    /// The id is taken.
    #[error("Duplicate ID '{0}' for object")]
    DuplicateId(String),
    /// No filter has that id.
    #[error("object '{0}' not found")]
    NotFound(String),
    /// No netdev has the id that `netdev=` names.
    #[error("Parameter 'netdev' expects a network backend id")]
    NoNetdev,
    /// `maxlen=0`, or one that no record can say.
    #[error("Property 'filter-dump.maxlen' doesn't take value '{0}'")]
    MaxLen(u64),
    /// `position=` was neither of the two that are built.
    #[error("Parameter 'position' expects 'head' or 'tail'")]
    Position,
    /// An option of QEMU's that is not built.
    #[error("Parameter '{0}' is not supported by this filter")]
    NotSupported(&'static str),
    /// The file cannot be made.
    #[error("net dump: can't open {file}: {source}")]
    Open {
        /// The file.
        file: String,
        /// What the host said.
        source: io::Error,
    },
    /// An option is missing, unknown, or has a value that it does not take.
    #[error(transparent)]
    Option(#[from] keyval::Error),
}

/// The filters that were added, by id; `None` while one is being made.
///
/// A leaf lock: no port is called while it is held.
#[derive(Debug, Default)]
pub(crate) struct Dumps(Mutex<HashMap<String, Option<Dump>>>);

#[derive(Debug)]
struct Dump {
    netdev: String,
    capture: Arc<Capture>,
    standing: Vec<(Arc<Port>, FilterId)>,
}

impl NetClients {
    /// Makes a filter of what `-object` was given:
    /// `filter-dump,id=f0,netdev=tap0,file=tap0.pcap[,maxlen=65536][,queue=all|rx|tx]`
    /// `[,position=head|tail]`. It stands at all ports of the netdev, for which `rx` are the frames that
    /// the device sends. Called as [`Port::add_filter`] is.
    ///
    /// # Errors
    /// See [`FilterError`]; nothing is left behind then.
    #[doc(alias = "object_add")]
    pub fn add_filter(&self, text: &str) -> Result<Arc<Capture>, FilterError> {
        let mut options = Options::parse(text, Some("qom-type"));
        let kind = options.take_required("qom-type")?;
        if kind != "filter-dump" {
            return Err(FilterError::UnknownKind(kind));
        }
        let id = options
            .take_id()?
            .ok_or_else(|| keyval::Error::Missing("id".into()))?;
        // What is so anyway.
        for (key, only) in [("insert", "behind"), ("status", "on")] {
            if options.take(key).is_some_and(|value| value != only) {
                return Err(FilterError::NotSupported(key));
            }
        }
        let netdev_id = options.take_required("netdev")?;
        let file = options.take_required("file")?;
        let max_len = match options.take_u64("maxlen")? {
            None => CAPTURE_MAX_LEN,
            Some(len) => u32::try_from(len)
                .ok()
                .filter(|len| *len > 0)
                .ok_or(FilterError::MaxLen(len))?,
        };
        let directions = match options.take("queue").as_deref() {
            None | Some("all") => Directions::All,
            Some("rx") => Directions::Rx,
            Some("tx") => Directions::Tx,
            Some(other) => {
                return Err(FilterError::Option(keyval::Error::NotAChoice {
                    key: "queue".into(),
                    value: other.into(),
                }));
            }
        };
        let position = match options.take("position").as_deref() {
            None | Some("tail") => Position::Tail,
            Some("head") => Position::Head,
            Some(_) => return Err(FilterError::Position),
        };
        options.finish()?;
        let netdev = self.find(&netdev_id).ok_or(FilterError::NoNetdev)?;

        self.dumps.reserve(&id)?;
        let capture = match Capture::create(&file, max_len) {
            Ok(capture) => capture,
            Err(source) => {
                self.dumps.lock().remove(&id);
                return Err(FilterError::Open { file, source });
            }
        };
        let stand = |port: &Arc<Port>| {
            let filter = port.add_filter(capture.clone(), directions, position);
            (port.clone(), filter)
        };
        let dump = Dump {
            netdev: netdev_id,
            capture: capture.clone(),
            standing: netdev.ports().iter().map(stand).collect(),
        };
        self.dumps.lock().insert(id, Some(dump));
        Ok(capture)
    }

    /// Takes a filter away. Called as [`Port::add_filter`] is.
    ///
    /// # Errors
    /// [`FilterError::NotFound`].
    #[doc(alias = "object_del")]
    pub fn remove_filter(&self, id: &str) -> Result<(), FilterError> {
        let dump = match self.dumps.lock().get_mut(id) {
            Some(dump) => dump.take(),
            None => None,
        };
        let dump = dump.ok_or_else(|| FilterError::NotFound(id.into()))?;
        dump.withdraw();
        self.dumps.lock().remove(id);
        Ok(())
    }

    /// The capture of that id.
    pub fn filter(&self, id: &str) -> Option<Arc<Capture>> {
        let dumps = self.dumps.lock();
        let dump = dumps.get(id)?.as_ref()?;
        Some(dump.capture.clone())
    }
}

impl Dumps {
    /// The filters of a netdev go with it.
    pub(crate) fn remove_of(&self, netdev: &str) {
        let gone: Vec<Dump> = {
            let mut dumps = self.lock();
            let of = |(_, dump): &(&String, &Option<Dump>)| {
                dump.as_ref().is_some_and(|dump| dump.netdev == netdev)
            };
            let ids: Vec<String> = dumps.iter().filter(of).map(|(id, _)| id.clone()).collect();
            ids.iter().filter_map(|id| dumps.remove(id)?).collect()
        };
        for dump in gone {
            dump.withdraw();
        }
    }

    fn reserve(&self, id: &str) -> Result<(), FilterError> {
        let mut dumps = self.lock();
        if dumps.contains_key(id) {
            return Err(FilterError::DuplicateId(id.into()));
        }
        dumps.insert(id.into(), None);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Dump>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dump {
    fn withdraw(self) {
        for (port, filter) in self.standing {
            port.remove_filter(filter);
        }
    }
}
