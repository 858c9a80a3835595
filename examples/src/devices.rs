//! The creation way: network backends and devices from QEMU's option strings.

use std::io;
use std::sync::Arc;

use iothread::{AioContext, IoThread};
use keyval::Options;
use net_client::{NetClients, NetdevError};
use qom::{Object, TypeRegistry};
use virtio_bus::KickBinder;
use vm_pci::MsiSink;

use crate::machine::{Machine, Memory};

/// The netdevs and devices of one machine, and the thread that moves their frames. Dropping it takes
/// all of them down, devices first.
#[derive(Debug)]
pub struct Devices {
    // In the order in which they are dropped.
    machine: Arc<qdev::Machine>,
    netdevs: Arc<NetClients>,
    _iothread: IoThread,
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
    /// A `-device` option.
    #[error("-device {text}: {source}")]
    Device {
        /// The option's value.
        text: String,
        /// What is wrong with it.
        source: qdev::Error,
    },
}

impl Devices {
    /// No devices yet, for `machine`.
    ///
    /// # Errors
    /// When the host has no thread to spare.
    pub fn new(machine: &Machine) -> Result<Self, DeviceError> {
        let tree = qdev::Machine::new(types()?).map_err(DeviceError::Machine)?;
        let bus = machine.pci().bus().clone();
        vm_pci::object::add_bus(&tree, tree.object(), "pci.0", bus)
            .map_err(DeviceError::Machine)?;
        let netdevs = netdevs();
        let iothread = IoThread::new("io").map_err(DeviceError::IoThread)?;

        let interrupts = machine.interrupts();
        tree.provide::<Memory>(Arc::new(machine.memory().clone()));
        tree.provide::<dyn MsiSink>(interrupts.msi.clone());
        tree.provide::<dyn KickBinder>(interrupts.kicks.clone());
        tree.provide::<dyn AioContext>(iothread.context());
        tree.provide(netdevs.clone());
        Ok(Self {
            machine: tree,
            netdevs,
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
        self.machine
            .device_add(Options::parse(text, Some("driver")))
            .map_err(|source| DeviceError::Device {
                text: text.to_owned(),
                source,
            })
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
        let devices = self.machine.devices();
        let nics = devices.iter().filter(|device| {
            // The model inside of a proxy has the same netdev, and is not what the user asked for.
            let inside = devices.iter().any(|other| {
                (device.path.strip_prefix(&other.path)).is_some_and(|rest| rest.starts_with('/'))
            });
            let object = self.machine.resolve(&device.path);
            !inside
                && object.is_some_and(|nic| matches!(nic.get::<Option<String>>("netdev"), Ok(None)))
        });
        let named = nics.map(|nic| format!("nic {}", nic.id.as_deref().unwrap_or(&nic.path)));
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
