//! A machine with a PCI bus, guest memory, interrupts, a context and the netdev kind `loopback`.

use std::sync::Arc;

use iothread::{AioContext, EventLoop};
use keyval::Options;
use net_client::{Loopback, NetClients};
use qdev::{DeviceLevel, Error, Machine, add_level};
use qom::{Object, Recorder, TypeInfo, TypeRegistry};
use virtio_bus::{KickBinder, NoKickBinder};
use virtio_pci_proxies::object::{VIRTIO_NET_PCI, register_all};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vm_pci::test_utils::{RecordingIrqLines, RecordingMsiSink};
use vm_pci::{DevFn, MsiSink, PciHost, PciHostConfig};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

pub(crate) struct Rig {
    pub(crate) machine: Arc<Machine>,
    pub(crate) host: PciHost,
    pub(crate) msi: Arc<RecordingMsiSink>,
    pub(crate) netdevs: Arc<NetClients>,
    pub(crate) memory: Memory,
    pub(crate) context: Arc<EventLoop>,
    pub(crate) recorder: Arc<Recorder>,
}

/// A level that fails when its device is otherwise complete.
struct Failing;

#[derive(Debug, thiserror::Error)]
#[error("this device always fails")]
struct AlwaysFails;

impl DeviceLevel for Failing {
    fn realize(&self, _: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        Err(Error::other(AlwaysFails))
    }
}

/// What a rig goes without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Without {
    pub(crate) memory: bool,
    pub(crate) msi: bool,
    pub(crate) kicks: bool,
    pub(crate) netdevs: bool,
    pub(crate) context: bool,
    /// Vectors that the machine can make.
    pub(crate) vectors_beyond: Option<usize>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::without(Without::default())
    }

    pub(crate) fn without(without: Without) -> Self {
        let mut registry = TypeRegistry::new();
        register_all::<Memory>(&mut registry).unwrap();
        registry
            .register(
                TypeInfo::new("failing-net-pci", VIRTIO_NET_PCI)
                    .class_init(|class| add_level(class, Failing)),
            )
            .unwrap();
        let recorder = Arc::new(Recorder::default());
        registry.set_observer(recorder.clone());
        let machine = Machine::new(registry.share()).unwrap();

        let ranges = [(GuestAddress(0), 0x10_0000)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let msi = RecordingMsiSink::with_limit(without.vectors_beyond.unwrap_or(usize::MAX));
        let netdevs = Arc::new(NetClients::new());
        let loopback = |_: &mut Options| -> Result<net_client::Opener, net_client::OpenError> {
            Ok(Box::new(|id| Ok(Loopback::new(id))))
        };
        netdevs.register("loopback", Box::new(loopback));
        let context = EventLoop::new().unwrap();
        if !without.memory {
            machine.provide(Arc::new(memory.clone()));
        }
        if !without.msi {
            machine.provide::<dyn MsiSink>(msi.clone());
        }
        if !without.kicks {
            machine.provide::<dyn KickBinder>(Arc::new(NoKickBinder));
        }
        if !without.netdevs {
            machine.provide(netdevs.clone());
        }
        if !without.context {
            machine.provide::<dyn AioContext>(context.clone());
        }

        let host = PciHost::new(PciHostConfig::default(), RecordingIrqLines::new()).unwrap();
        let owner = machine.object();
        vm_pci::object::add_bus(&machine, owner, "pci.0", host.bus().clone()).unwrap();
        recorder.take();
        Self {
            machine,
            host,
            msi,
            netdevs,
            memory,
            context,
            recorder,
        }
    }

    pub(crate) fn netdev(&self, text: &str) {
        self.netdevs.add(text).unwrap();
    }

    pub(crate) fn device(&self, text: &str) -> Result<Arc<Object>, Error> {
        self.machine
            .device_add(Options::parse(text, Some("driver")))
    }

    /// What a function offers to legacy drivers.
    pub(crate) fn legacy_features(&self, at: DevFn) -> u32 {
        self.host.assign_resources().unwrap();
        let port = u16::from_le_bytes(self.config(at, 0x10)) & !3;
        let mut features = [0; 4];
        assert!(self.host.port_read(port, &mut features));
        u32::from_le_bytes(features)
    }

    pub(crate) fn config<const N: usize>(&self, devfn: DevFn, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.host.config_read(0, devfn, offset, &mut data);
        data
    }

    pub(crate) fn slots(&self) -> Vec<DevFn> {
        let slots = self.host.bus().slots();
        slots.into_iter().map(|(devfn, _)| devfn).collect()
    }

    pub(crate) fn in_use(&self, netdev: &str) -> bool {
        self.netdevs.find(netdev).unwrap().is_in_use()
    }

    /// What must be as before a device that did not come, or went.
    pub(crate) fn assert_empty(&self, case: &str) {
        assert_eq!(self.machine.devices(), [], "{case}: devices");
        assert_eq!(self.slots(), [DevFn::from_byte(0)], "{case}: slots");
        assert_eq!(self.msi.held(), 0, "{case}: vectors");
        for id in self.netdevs.ids() {
            assert!(!self.in_use(&id), "{case}: {id} in use");
        }
        // Work that was scheduled on the context may hold something until its next turn.
        let _ = self.context.turn(Some(std::time::Duration::ZERO));
        assert!(
            Arc::strong_count(&self.memory) <= 2,
            "{case}: guest memory is held"
        );
    }
}

pub(crate) fn devfn(device: u8) -> DevFn {
    DevFn::new(device, 0).unwrap()
}
