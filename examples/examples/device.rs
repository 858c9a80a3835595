//! A device from a `-device` string, with its place in the tree and its properties printed.
//!
//! ```text
//! cargo run --example device -- virtio-net-pci,id=net0,mac=52:54:00:00:00:01,mrg_rxbuf=off
//! ```
//!
//! The machine around it has memory, a PCI bus and interrupts, and no processor. `-device`'s `netdev` may
//! be `peer`, which sends each frame back.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use iothread::{AioContext, EventLoop};
use keyval::Options;
use net_client::{Loopback, NetClients};
use qdev::Machine;
use qom::TypeRegistry;
use virtio_bus::{KickBinder, NoKickBinder};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vm_pci::{MsiSink, PciHost, PciHostConfig};

use examples::machine::ManualInterrupts;
use examples::output::{print, say};

type Memory = Arc<GuestMemoryMmap<()>>;

fn main() -> ExitCode {
    let asked = std::env::args_os().nth(1);
    let asked = asked.unwrap_or_else(|| "virtio-net-pci,id=net0,netdev=peer".into());
    // What is not UTF-8 in it names no type, property or value.
    let asked = asked.to_string_lossy();
    match show(&asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("device: {asked}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(asked: &str) -> Result<(), Box<dyn Error>> {
    // The types, and a machine that has what its devices ask for.
    let mut types = TypeRegistry::new();
    virtio_pci_proxies::object::register_all::<Memory>(&mut types)?;
    let machine = Machine::new(types.share())?;

    let ram = [(GuestAddress(0), 1 << 20)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ram)?);
    machine.provide(Arc::new(memory));
    let interrupts = ManualInterrupts::new().interrupts();
    machine.provide::<dyn MsiSink>(interrupts.msi);
    machine.provide::<dyn KickBinder>(Arc::new(NoKickBinder));
    machine.provide::<dyn AioContext>(EventLoop::new()?);
    let host = PciHost::new(PciHostConfig::default(), interrupts.lines)?;
    vm_pci::object::add_bus(&machine, machine.object(), "pci.0", host.bus().clone())?;

    // One netdev, as `-netdev` would make it.
    let netdevs = Arc::new(NetClients::new());
    netdevs.register(
        "loopback",
        Box::new(|_| Ok(Box::new(|id| Ok(Loopback::new(id))))),
    );
    netdevs.add("loopback,id=peer")?;
    machine.provide(netdevs);

    // `-device help` and `-device TYPE,help`.
    let options = Options::parse(asked, Some("driver"));
    if let Some(help) = qdev::help::help(machine.registry(), &options)? {
        print(&help);
        return Ok(());
    }

    // The device, from its string to its place on the bus; then what `info qom-tree`, `qom-list` and
    // `qom-get` of QEMU print of it.
    let device = machine.device_add(options)?;
    let path = device.path().unwrap_or_default();
    print(&machine.qom_tree("/machine")?);
    say(format_args!("\n{path}:"));
    for property in machine.qom_list(&path)? {
        let value = machine.qom_get(&path, &property.name)?;
        say(format_args!("  {property} = {}", value.json()));
    }
    Ok(())
}

#[cfg(test)]
#[test]
fn a_device_is_made_and_shown() {
    show("virtio-net-pci,id=net0,netdev=peer").unwrap();
}
