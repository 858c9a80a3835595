//! What must hold of every option string.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use iothread::{AioContext, EventLoop};
use keyval::Options;
use net_client::{Loopback, NetClients};
use qdev::Machine;
use qom::TypeRegistry;
use virtio_bus::{KickBinder, NoKickBinder};
use virtio_pci_proxies::object::register_all;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vm_pci::test_utils::{RecordingIrqLines, RecordingMsiSink};
use vm_pci::{MsiSink, PciHost, PciHostConfig};

use crate::rig::Memory;

/// Pairs that are written with their commas doubled are parsed as the same pairs. Keys that came from
/// a bare word may have commas or `=`, which no written pair can have.
pub fn check_round_trip(options: &Options) {
    let pairs: Vec<_> = options
        .iter()
        .filter(|(key, _)| !key.contains([',', '=']))
        .collect();
    let text: Vec<_> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={}", value.replace(',', ",,")))
        .collect();
    let again = Options::parse(&text.join(","), None);
    assert_eq!(again.iter().collect::<Vec<_>>(), pairs, "{text:?}");
    assert!(!again.wants_help() && again.short_forms().count() == 0);
}

/// Each typed take ends in a value or an error and leaves nothing of its key; what is left is what
/// `finish` refuses.
pub fn check_takes(mut options: Options) {
    let keys: Vec<_> = options.iter().map(|(key, _)| key.to_owned()).collect();
    for (n, key) in keys.iter().enumerate() {
        // Every pair but every fifth is taken in some way.
        match n % 8 {
            0 => drop(options.take_bool(key)),
            1 => drop(options.take_u16(key)),
            2 => drop(options.take_u32(key)),
            3 => drop(options.take_u64(key)),
            4 => drop(options.take_size(key)),
            5 => drop(options.take_choice(key, &["on", "off", "auto"])),
            6 => drop(options.take_required(key)),
            _ => continue,
        }
        assert_eq!(options.get(key), None);
    }
    drop(options.take_id());
    let left = options.iter().next().map(|(key, _)| key.to_owned());
    match (left, options.finish()) {
        (None, Ok(())) => {}
        (Some(key), Err(keyval::Error::Unknown(refused))) => assert_eq!(key, refused),
        (left, finished) => panic!("{left:?} is left, but finish says {finished:?}"),
    }
}

/// A device from this text is in the machine and can be removed, or there is none.
pub fn check_device_add(text: &str) {
    MACHINE.with(|board| {
        let board = board.get_or_init(Board::new);
        let machine = &board.machine;
        match machine.device_add(Options::parse(text, Some("driver"))) {
            Ok(device) => {
                assert_eq!(board.host.bus().slots().len(), 2, "{text:?}");
                machine
                    .request_unplug(&device)
                    .expect("a device that was added can be removed");
            }
            // An error can be put into words.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        let _ = board.context.turn(Some(Duration::ZERO));
        assert_eq!(machine.devices(), [], "{text:?}");
        assert_eq!(machine.buses().len(), 1, "{text:?}");
        assert_eq!(board.host.bus().slots().len(), 1, "{text:?}");
        assert_eq!(board.msi.held(), 0, "{text:?}");
        let netdev = board.netdevs.find("lo").expect("it stays");
        assert!(!netdev.is_in_use(), "{text:?}");
    });
}

thread_local! {
    static MACHINE: OnceCell<Board> = const { OnceCell::new() };
}

/// A machine with a PCI bus and all types, and the netdev `lo`.
struct Board {
    machine: Arc<Machine>,
    host: PciHost,
    msi: Arc<RecordingMsiSink>,
    netdevs: Arc<NetClients>,
    context: Arc<EventLoop>,
}

impl Board {
    fn new() -> Self {
        let mut registry = TypeRegistry::new();
        register_all::<Memory>(&mut registry).expect("the first types");
        let machine = Machine::new(registry.share()).expect("a machine");
        let memory: Memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)])
            .expect("memory")
            .into();
        let msi = RecordingMsiSink::new();
        let netdevs = Arc::new(NetClients::new());
        let context = EventLoop::new().expect("an event loop");
        netdevs
            .insert("lo", Loopback::new("lo"))
            .expect("the first netdev");
        machine.provide(Arc::new(memory));
        machine.provide::<dyn MsiSink>(msi.clone());
        machine.provide::<dyn KickBinder>(Arc::new(NoKickBinder));
        machine.provide(netdevs.clone());
        machine.provide::<dyn AioContext>(context.clone());
        let host =
            PciHost::new(PciHostConfig::default(), RecordingIrqLines::new()).expect("a host");
        vm_pci::object::add_bus(&machine, machine.object(), "pci.0", host.bus().clone())
            .expect("the first bus");
        Self {
            machine,
            host,
            msi,
            netdevs,
            context,
        }
    }
}
