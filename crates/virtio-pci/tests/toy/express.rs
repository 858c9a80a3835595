//! Function-level reset and power states of a function whose device is at work.

use virtio_pci::VirtioPciConfig;
use virtqueue::mock::Buffer;
use vm_pci::Express;

use crate::driver::{Driver, IO_MEMORY_MASTER};
use crate::machine::Machine;
use crate::transfer::sent;

const CONTROL: u16 = 0x48;
const POWER: u16 = 0x80;

fn express() -> Machine {
    Machine::with(VirtioPciConfig {
        express: Some(Express::default()),
        ..VirtioPciConfig::default()
    })
}

#[test]
fn capabilities_are_where_qemu_has_them_behind_a_root_port() {
    let machine = express();
    let driver = Driver::find(&machine);
    assert_eq!(driver.config::<1>(0x34), [0xdc]);
    assert_eq!(driver.others, [(0x11, 0xdc), (1, 0x7c), (0x10, 0x40)]);
    let at: Vec<_> = driver
        .structures
        .iter()
        .map(|structure| structure.at)
        .collect();
    assert_eq!(at, [0xc8, 0xb4, 0xa4, 0x94, 0x84]);
}

/// Guest bug class 18: a function-level reset with I/O in flight.
#[test]
fn a_function_level_reset_takes_the_queues_back_and_all_that_was_set() {
    let machine = express();
    let driver = Driver::find(&machine);
    let [mut fill, _] = driver.start();
    fill.add(&[Buffer::writable(0x8000, 4)]);
    machine.toy.call(0).notify();
    let bar = driver.bar(4);
    driver.set_config(CONTROL, [0, 0x80]);
    assert_eq!(machine.toy.lent(), 0);
    assert_eq!(machine.toy.turn(), 0, "nothing is served any more");
    assert!(machine.binder.addresses().is_empty());
    assert!(
        machine
            .msi
            .deliver()
            .iter()
            .all(|message| message.data == 1)
    );
    assert!(
        machine
            .msi
            .vectors()
            .iter()
            .all(|vector| vector.routed().is_none())
    );
    assert!(!machine.host.mmio_read(bar, &mut [0; 4]), "BARs are gone");
    assert_eq!(driver.config::<2>(4), [0, 0]);
    assert_eq!(driver.bar(4), 0);
    assert_eq!(driver.config::<4>(CONTROL), [0; 4]);
    machine.host.assign_resources().unwrap();
    driver.start();
    assert_eq!(machine.toy.lent(), 2);
    machine.toy.turn();
    assert!(!machine.toy.is_paused());
}

/// Guest bug class 18: D3hot with I/O in flight.
#[test]
fn a_device_in_d3hot_does_nothing_and_goes_on_in_d0() {
    let machine = express();
    let driver = Driver::find(&machine);
    let [mut fill, _] = driver.start();
    machine.toy.turn();
    let bound = machine.binder.addresses();
    fill.add(&[Buffer::writable(0x8000, 4)]);
    driver.set_config(POWER, [3]);
    assert!(machine.toy.is_paused());
    assert_eq!(machine.toy.turn(), 0);
    assert!(machine.binder.addresses().is_empty());
    machine.toy.call(0).notify();
    assert!(machine.msi.deliver().is_empty(), "no message");
    let status = driver.structure(1) + 0x14;
    assert!(!machine.host.mmio_read(status, &mut [0]), "no register");
    driver.set_config(POWER, [0]);
    assert!(!machine.toy.is_paused());
    assert_eq!(machine.binder.addresses(), bound);
    assert_eq!(sent(&machine), [1], "what was pending");
    assert_eq!(driver.status(), 0xf, "no soft reset");
    assert_eq!(machine.toy.turn(), 1, "the kick that came with the binding");
}

#[test]
fn bus_mastering_power_and_the_vmm_each_hold_the_device() {
    let machine = express();
    let driver = Driver::find(&machine);
    driver.start();
    driver.set_config(POWER, [3]);
    driver.command(3);
    machine.pci.pause();
    for release in 0..3 {
        assert!(machine.toy.is_paused(), "{release}");
        match release {
            0 => driver.set_config(POWER, [0]),
            1 => driver.command(IO_MEMORY_MASTER),
            _ => machine.pci.resume(),
        }
    }
    assert!(!machine.toy.is_paused());
    driver.set_config(POWER, [3]);
    driver.set_config(CONTROL + 1, [0x80]);
    assert!(!machine.toy.is_paused(), "a reset ends D3hot");
    assert_eq!(driver.config::<1>(POWER), [8]);
}
