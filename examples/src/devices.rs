//! The creation way: network backends and devices from QEMU's option strings.

mod saved;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iothread::{AioContext, AioContexts, IoThread, IoThreads};
use keyval::Options;
use keyval::help::is_help;
use net_client::{CAPTURE_MAX_LEN, FilterError, NetClients, NetdevError, Port};
use qdev::MacAddr;
use qom::{Object, TypeRegistry};
use virtio_bus::KickBinder;
use virtio_net::object::NicAddress;
use virtio_net::{AnnounceParameters, VirtioNet};
use virtio_pci::VirtioPci;
use vm_pci::MsiSink;

use crate::machine::{Machine, Memory};

pub use saved::CannotSave;

/// The netdevs and devices of one machine, and the thread that moves their frames. Dropping it takes
/// all of them down, devices first.
#[derive(Debug)]
pub struct Devices {
    // In the order in which they are dropped.
    machine: Arc<qdev::Machine>,
    netdevs: Arc<NetClients>,
    /// What `-object` made, in that order. A leaf lock.
    filters: Mutex<Vec<FilterInfo>>,
    /// What devices were made of. A leaf lock.
    made: Mutex<saved::Made>,
    _iothread: IoThread,
}

/// A network card: the model, under the name that its user knows it by.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Its id, or its type with a number.
    pub name: String,
    /// The type that the user asked for.
    pub model: Arc<str>,
    /// Its address.
    pub mac: MacAddr,
    /// A port a queue pair.
    pub ports: Vec<Arc<Port>>,
    device: Arc<VirtioNet<Memory>>,
    /// The device that the user asked for.
    asked: Arc<Object>,
}

/// A filter as `info network` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterInfo {
    /// Its id.
    pub id: String,
    /// The netdev that it stands at.
    pub netdev: String,
    file: String,
    maxlen: String,
    position: String,
    queue: String,
}

impl fmt::Display for FilterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            netdev,
            file,
            maxlen,
            position,
            queue,
        } = self;
        write!(
            f,
            "{id}: type=filter-dump,file={file},maxlen={maxlen},position={position},status=on,\
             insert=behind,netdev={netdev},queue={queue}"
        )
    }
}

/// Why a netdev or device was not made, worded as QEMU does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The types do not fit together.
    #[error(transparent)]
    Types(#[from] qom::Error),
    /// The machine cannot have devices.
    #[error(transparent)]
    Machine(qdev::Error),
    /// There is no thread for their data.
    #[error("cannot make the I/O thread: {0}")]
    IoThread(io::Error),
    /// A `-netdev` option.
    #[error("-netdev {text}: {source}")]
    Netdev {
        /// The option's value.
        text: String,
        /// What is wrong with it.
        source: NetdevError,
    },
    /// An `-object` option.
    #[error("-object {text}: {source}")]
    Filter {
        /// The option's value.
        text: String,
        /// What is wrong with it.
        source: FilterError,
    },
    /// A `-device` option.
    #[error("-device {text}: {source}")]
    Device {
        /// The option's value.
        text: String,
        /// What is wrong with it.
        source: qdev::Error,
    },
}

impl DeviceError {
    /// What is wrong, without the option that it is wrong with.
    pub fn without_option(&self) -> String {
        match self {
            Self::Netdev { source, .. } => source.to_string(),
            Self::Filter { source, .. } => source.to_string(),
            Self::Device { source, .. } => source.to_string(),
            other => other.to_string(),
        }
    }
}

impl Devices {
    /// No devices yet, for `machine`.
    ///
    /// # Errors
    /// When the host has no thread to spare.
    pub fn new(machine: &Machine) -> Result<Self, DeviceError> {
        let tree = qdev::Machine::new(types()?).map_err(DeviceError::Machine)?;
        let bus = machine.pci().bus().clone();
        // Nothing of this machine would tell its guest of a card that comes or goes.
        vm_pci::object::add_fixed_bus(&tree, tree.object(), "pci.0", bus)
            .map_err(DeviceError::Machine)?;
        let netdevs = netdevs();
        let iothread = IoThread::new("io").map_err(DeviceError::IoThread)?;

        let interrupts = machine.interrupts();
        tree.provide::<Memory>(Arc::new(machine.memory().clone()));
        tree.provide::<dyn MsiSink>(interrupts.msi.clone());
        tree.provide::<dyn KickBinder>(interrupts.kicks.clone());
        tree.provide::<dyn AioContext>(iothread.context());
        tree.provide::<dyn AioContexts>(Arc::new(IoThreads));
        tree.provide(netdevs.clone());
        Ok(Self {
            machine: tree,
            netdevs,
            filters: Mutex::default(),
            made: Mutex::default(),
            _iothread: iothread,
        })
    }

    /// Makes what `-netdev` asks for.
    ///
    /// # Errors
    /// [`DeviceError::Netdev`]; nothing is left behind then.
    pub fn netdev_add(&self, text: &str) -> Result<(), DeviceError> {
        self.netdevs
            .add(text)
            .map(drop)
            .map_err(|source| DeviceError::Netdev {
                text: text.to_owned(),
                source,
            })
    }

    /// Makes what `-device` asks for.
    ///
    /// # Errors
    /// [`DeviceError::Device`]; nothing is left behind then.
    pub fn device_add(&self, text: &str) -> Result<Arc<Object>, DeviceError> {
        self.plug(text).map_err(|source| DeviceError::Device {
            text: text.to_owned(),
            source,
        })
    }

    /// Makes what `-object` asks for: `filter-dump,id=f0,netdev=tap0,file=tap0.pcap`.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn object_add(&self, text: &str) -> Result<(), FilterError> {
        self.netdevs.add_filter(text)?;
        let mut options = Options::parse(text, Some("qom-type"));
        let mut take = |key, default: &str| options.take(key).unwrap_or_else(|| default.into());
        let info = FilterInfo {
            id: take("id", ""),
            netdev: take("netdev", ""),
            file: take("file", ""),
            maxlen: take("maxlen", &CAPTURE_MAX_LEN.to_string()),
            position: take("position", "tail"),
            queue: take("queue", "all"),
        };
        let mut filters = lock(&self.filters);
        filters.retain(|filter| filter.id != info.id);
        filters.push(info);
        Ok(())
    }

    /// Removes what `-object` made.
    ///
    /// # Errors
    /// [`FilterError::NotFound`].
    pub fn object_del(&self, id: &str) -> Result<(), FilterError> {
        self.netdevs.remove_filter(id)
    }

    /// The filters that stand, in the order in which they were made: some go with their netdev.
    pub fn filters(&self) -> Vec<FilterInfo> {
        let mut filters = lock(&self.filters);
        filters.retain(|filter| self.netdevs.filter(&filter.id).is_some());
        filters.clone()
    }

    /// All network cards.
    pub fn nics(&self) -> Vec<Nic> {
        let mut nics = Vec::new();
        for device in self.machine.devices() {
            let Some(object) = self.machine.resolve(&device.path) else {
                continue;
            };
            let (Some(model), Some(address)) = (
                object.part::<VirtioNet<Memory>>(),
                object.part::<NicAddress>(),
            ) else {
                continue;
            };
            // The user asked for the proxy, if there is one, and named it.
            let proxy = object.parent().filter(|owner| owner.is_a(qdev::DEVICE));
            let asked = proxy.unwrap_or(object);
            let id = qdev::DeviceState::of(&asked)
                .ok()
                .and_then(|state| state.id());
            let type_name = asked.type_name().clone();
            let anonymous = || {
                let others = nics.iter().filter(|nic: &&Nic| nic.model == type_name);
                format!("{type_name}.{}", others.count())
            };
            nics.push(Nic {
                name: id.map_or_else(anonymous, |id| id.to_string()),
                mac: address.0,
                ports: model.ports(),
                model: type_name,
                device: model,
                asked,
            });
        }
        nics
    }

    /// Sets a link up or down: of a netdev, or of a network card. Says whether there is one of that name.
    #[doc(alias = "qmp_set_link")]
    pub fn set_link(&self, name: &str, up: bool) -> bool {
        if self.netdevs.set_link(name, up).is_ok() {
            return true;
        }
        let nics = self.nics();
        let nic = nics.iter().find(|nic| nic.name == name);
        for port in nic.iter().flat_map(|nic| &nic.ports) {
            port.set_link(up);
        }
        nic.is_some()
    }

    /// Asks the guest to announce itself on the links of the network cards that are named, or of all, in the
    /// rounds that QEMU has by default. Names of nothing are passed over.
    #[doc(alias = "qmp_announce_self")]
    pub fn announce_self(&self, names: Option<&[&str]>) {
        for nic in self.nics() {
            if names.is_none_or(|names| names.contains(&&*nic.name)) {
                nic.device.announce_self(AnnounceParameters::default());
            }
        }
    }

    /// Stops the data of all devices, and waits for what is in flight. The processors are at rest.
    pub fn pause(&self) {
        for function in self.functions() {
            function.pause();
        }
    }

    /// Goes on after [`pause`](Self::pause); else does nothing.
    pub fn resume(&self) {
        for function in self.functions() {
            function.resume();
        }
    }

    fn functions(&self) -> Vec<Arc<VirtioPci<Memory>>> {
        let devices = self.machine.devices();
        let objects = devices
            .iter()
            .filter_map(|device| self.machine.resolve(&device.path));
        objects.filter_map(|object| object.part()).collect()
    }

    /// The tree of devices and buses.
    pub fn tree(&self) -> &Arc<qdev::Machine> {
        &self.machine
    }

    /// The netdevs.
    pub fn netdevs(&self) -> &Arc<NetClients> {
        &self.netdevs
    }

    /// The netdevs that no NIC uses, and the NICs that have no netdev, in QEMU's words: most likely an
    /// option was forgotten.
    pub fn without_peer(&self) -> Vec<String> {
        let netdevs = self.netdevs.ids().into_iter().filter(|id| {
            let netdev = self.netdevs.find(id);
            netdev.is_some_and(|netdev| netdev.ports().iter().all(|port| port.peer().is_none()))
        });
        let nics = self.nics().into_iter();
        let alone = nics.filter(|nic| nic.ports.iter().all(|port| port.peer().is_none()));
        let named = alone.map(|nic| format!("nic {}", nic.name));
        netdevs
            .map(|id| format!("netdev {id}"))
            .chain(named)
            .collect()
    }

    /// All devices are made: what comes later is plugged into a running machine.
    pub fn complete(&self) {
        self.machine.set_running();
    }

    /// Resets all devices, children before parents, and then what else is on the PCI bus.
    pub fn reset(&self) {
        self.machine.reset();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `-device` prints where its value asks for help.
///
/// # Errors
/// [`DeviceError::Device`] where there is no such type.
pub fn device_help(text: &str) -> Result<String, DeviceError> {
    let options = Options::parse(text, Some("driver"));
    match qdev::help::help(&types()?, &options) {
        Ok(help) => Ok(help.unwrap_or_default()),
        Err(source) => Err(DeviceError::Device {
            text: text.to_owned(),
            source,
        }),
    }
}

/// What `-netdev` prints where its value asks for help.
///
/// # Errors
/// [`DeviceError::Netdev`] where there is no such kind.
pub fn netdev_help(text: &str) -> Result<String, DeviceError> {
    let options = Options::parse(text, Some("type"));
    match netdevs().help(&options) {
        Ok(help) => Ok(help.unwrap_or_default()),
        Err(source) => Err(DeviceError::Netdev {
            text: text.to_owned(),
            source,
        }),
    }
}

/// What `-object` prints where its value asks for help.
///
/// # Errors
/// [`DeviceError::Filter`] where there is no such type.
pub fn object_help(text: &str) -> Result<String, DeviceError> {
    let options = Options::parse(text, Some("qom-type"));
    match options.get("qom-type") {
        Some("filter-dump") => Ok(FILTER_DUMP_HELP.into()),
        Some(kind) if !is_help(kind) => Err(DeviceError::Filter {
            text: text.to_owned(),
            source: FilterError::UnknownKind(kind.to_owned()),
        }),
        _ => Ok("List of user creatable objects:\n  filter-dump\n".into()),
    }
}

const FILTER_DUMP_HELP: &str = "\
filter-dump options:
  file=<string>
  maxlen=<uint32>
  netdev=<string>
  position=<string>
  queue=<NetFilterDirection>

filter-dump options that are not built and take nothing else than:
  insert=behind
  status=on
";

/// The types that there are.
fn types() -> Result<Arc<TypeRegistry>, qom::Error> {
    let mut types = TypeRegistry::new();
    virtio_pci_proxies::object::register_all::<Memory>(&mut types)?;
    Ok(types.share())
}

/// A netdev table with the kinds that there are.
fn netdevs() -> Arc<NetClients> {
    let netdevs = Arc::new(NetClients::new());
    net_tap::register(&netdevs);
    netdevs
}
