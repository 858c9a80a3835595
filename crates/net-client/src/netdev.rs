//! The netdev table: what `-netdev` made, by id.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyval::Options;

use crate::dump::Dumps;
use crate::help::KindHelp;
use crate::port::Port;

/// A network backend as `-netdev` makes it: its queues' ports, and what it says of itself.
pub trait Netdev: Send + Sync + fmt::Debug {
    /// The kind it was made by: `tap`.
    fn kind(&self) -> &str;

    /// One port per queue pair. The netdev owns its clients, so it lives while they are used.
    fn ports(&self) -> &[Arc<Port>];

    /// What it is made of, as `info network` prints it after the kind: `ifname=tap0`.
    fn info(&self) -> String;

    /// Whether a device has taken it.
    fn is_in_use(&self) -> bool {
        self.ports().iter().any(|port| port.peer().is_some())
    }
}

/// What a backend says when it cannot be opened.
pub type OpenError = Box<dyn Error + Send + Sync>;

/// Opens a backend whose options were all understood; called once, with its id.
pub type Opener = Box<dyn FnOnce(&str) -> Result<Arc<dyn Netdev>, OpenError>>;

/// Takes a kind's options out of an option string, and says how to open the backend that they
/// describe. Nothing is opened before the table has seen that no option is left over.
pub type Constructor = Box<dyn Fn(&mut Options) -> Result<Opener, OpenError> + Send + Sync>;

/// Why a netdev was not added or removed, in QEMU's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetdevError {
    /// No kind of that name is registered.
    #[error("Parameter 'type' does not accept value '{0}'")]
    UnknownKind(String),
    /// The id is taken.
    #[error("Duplicate ID '{0}' for netdev")]
    DuplicateId(String),
    /// No netdev has that id.
    #[error("Device '{0}' not found")]
    NotFound(String),
    /// An option is missing, unknown, or has a value that it does not take.
    #[error(transparent)]
    Option(#[from] keyval::Error),
    /// The kind's constructor refused its options, or the backend could not be opened.
    #[error(transparent)]
    Backend(OpenError),
}

/// The kinds of netdev that there are, and the netdevs made of them. An ordinary value: each
/// machine has its own.
#[derive(Default)]
pub struct NetClients {
    kinds: Mutex<BTreeMap<String, Arc<Constructor>>>,
    descriptions: Mutex<BTreeMap<String, KindHelp>>,
    /// A leaf lock: no backend is called while it is held. `None` keeps an id while its netdev opens.
    netdevs: Mutex<HashMap<String, Option<Arc<dyn Netdev>>>>,
    pub(crate) dumps: Dumps,
}

impl NetClients {
    /// A table with no kinds and no netdevs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `kind` known; a kind that is known already is replaced.
    pub fn register(&self, kind: impl Into<String>, constructor: Constructor) {
        lock(&self.kinds).insert(kind.into(), Arc::new(constructor));
    }

    /// Says which options a kind has, for [`help`](Self::help). A kind without this has `id` alone there.
    pub fn describe(&self, kind: impl Into<String>, help: KindHelp) {
        lock(&self.descriptions).insert(kind.into(), help);
    }

    /// What help says of a kind, if there is such a kind.
    pub(crate) fn description(&self, kind: &str) -> Option<KindHelp> {
        let described = lock(&self.descriptions).get(kind).copied();
        lock(&self.kinds)
            .contains_key(kind)
            .then(|| described.unwrap_or_default())
    }

    /// The kinds, sorted.
    pub fn kinds(&self) -> Vec<String> {
        lock(&self.kinds).keys().cloned().collect()
    }

    /// Makes a netdev of what `-netdev` was given: `tap,id=tap0`.
    ///
    /// # Errors
    /// See [`NetdevError`]; nothing is left behind then.
    #[doc(alias = "netdev_add")]
    pub fn add(&self, text: &str) -> Result<Arc<dyn Netdev>, NetdevError> {
        self.add_options(Options::parse(text, Some("type")))
    }

    /// As [`add`](Self::add), of options that are split already.
    ///
    /// # Errors
    /// See [`NetdevError`]; nothing is left behind then.
    #[doc(alias = "net_client_init")]
    pub fn add_options(&self, mut options: Options) -> Result<Arc<dyn Netdev>, NetdevError> {
        for warning in options.short_forms() {
            tracing::warn!("-netdev: {warning}");
        }
        let id = options
            .take_id()?
            .ok_or_else(|| keyval::Error::Missing("id".into()))?;
        let kind = options.take_required("type")?;
        let constructor = lock(&self.kinds).get(&kind).cloned();
        let constructor = constructor.ok_or(NetdevError::UnknownKind(kind))?;
        let opener = constructor(&mut options).map_err(backend_error)?;
        options.finish()?;

        let reservation = Reservation::new(self, &id)?;
        let netdev = opener(&id).map_err(backend_error)?;
        reservation.fill(netdev.clone());
        Ok(netdev)
    }

    /// Puts a netdev into the table that was made without an option string.
    ///
    /// # Errors
    /// [`NetdevError::DuplicateId`].
    pub fn insert(&self, id: &str, netdev: Arc<dyn Netdev>) -> Result<(), NetdevError> {
        Reservation::new(self, id)?.fill(netdev);
        Ok(())
    }

    /// Removes a netdev: what it and its peers had lent to each other comes back first, and the
    /// device that had taken it is left without a peer. See [`Port::disconnect`] for where this may
    /// be called.
    ///
    /// # Errors
    /// [`NetdevError::NotFound`].
    #[doc(alias = "netdev_del")]
    #[doc(alias = "qmp_netdev_del")]
    pub fn remove(&self, id: &str) -> Result<(), NetdevError> {
        let netdev = self
            .find(id)
            .ok_or_else(|| NetdevError::NotFound(id.into()))?;
        for port in netdev.ports() {
            port.disconnect();
        }
        self.dumps.remove_of(id);
        lock(&self.netdevs).remove(id);
        Ok(())
    }

    /// Sets the link of a netdev up or down, on any thread: of all its ports. See
    /// [`Port::set_link`].
    ///
    /// # Errors
    /// [`NetdevError::NotFound`].
    #[doc(alias = "qmp_set_link")]
    pub fn set_link(&self, id: &str, up: bool) -> Result<(), NetdevError> {
        let netdev = self
            .find(id)
            .ok_or_else(|| NetdevError::NotFound(id.into()))?;
        for port in netdev.ports() {
            port.set_link(up);
        }
        Ok(())
    }

    /// The netdev of that id.
    #[doc(alias = "qemu_find_netdev")]
    pub fn find(&self, id: &str) -> Option<Arc<dyn Netdev>> {
        lock(&self.netdevs).get(id).cloned().flatten()
    }

    /// The ids of all netdevs, sorted.
    pub fn ids(&self) -> Vec<String> {
        let netdevs = lock(&self.netdevs);
        let opened = netdevs.iter().filter(|(_, netdev)| netdev.is_some());
        let mut ids: Vec<String> = opened.map(|(id, _)| id.clone()).collect();
        ids.sort();
        ids
    }
}

impl fmt::Debug for NetClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetClients")
            .field("kinds", &self.kinds())
            .field("ids", &self.ids())
            .finish()
    }
}

/// An id that is taken while its netdev opens, and free again should that fail.
struct Reservation<'a> {
    table: &'a NetClients,
    id: &'a str,
    filled: bool,
}

impl<'a> Reservation<'a> {
    fn new(table: &'a NetClients, id: &'a str) -> Result<Self, NetdevError> {
        let mut netdevs = lock(&table.netdevs);
        if netdevs.contains_key(id) {
            return Err(NetdevError::DuplicateId(id.into()));
        }
        netdevs.insert(id.into(), None);
        Ok(Self {
            table,
            id,
            filled: false,
        })
    }

    fn fill(mut self, netdev: Arc<dyn Netdev>) {
        lock(&self.table.netdevs).insert(self.id.into(), Some(netdev));
        self.filled = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.table.netdevs).remove(self.id);
        }
    }
}

/// An option's error keeps its type through a constructor.
fn backend_error(error: OpenError) -> NetdevError {
    match error.downcast::<keyval::Error>() {
        Ok(option) => NetdevError::Option(*option),
        Err(other) => NetdevError::Backend(other),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
