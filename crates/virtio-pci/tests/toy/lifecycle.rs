//! Reset, pause, removal, and who is left.

use std::sync::Arc;

use virtio::F;
use virtio_bus::VirtioDevice;
use virtio_pci::VirtioPciConfig;
use virtqueue::mock::Buffer;
use vm_pci::{BarIndex, DevFn};

use crate::driver::{Driver, IO_MEMORY_MASTER};
use crate::machine::{Binder, DEVFN, GSI, Machine};
use crate::transfer::sent;

#[test]
fn a_reset_by_status_hands_everything_back() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    assert_eq!(machine.toy.lent(), 2);
    driver.set_status(0);
    assert_eq!((driver.status(), machine.toy.lent()), (0, 0));
    for queue in [0_u16, 1] {
        driver.set_common(0x16, queue.to_le_bytes());
        assert_eq!(driver.common::<2>(0x1a), [0xff; 2], "vector of {queue}");
        assert_eq!(driver.common::<2>(0x1c), [0; 2], "enable of {queue}");
        assert_eq!(driver.common::<8>(0x20), [0; 8], "rings of {queue}");
    }
    assert_eq!(driver.common::<2>(0x10), [0xff; 2]);
    driver.start();
    assert_eq!(machine.toy.lent(), 2, "a driver may come again");
}

#[test]
fn what_was_queued_before_a_ring_is_enabled_anew_is_served_without_a_notification() {
    for ioeventfd in [false, true] {
        let config = VirtioPciConfig {
            ioeventfd,
            ..VirtioPciConfig::default()
        };
        let machine = Machine::new(config, Binder::default());
        let driver = Driver::find(&machine);
        driver.start_with(F::RING_RESET);
        machine.toy.turn();
        driver.set_common(0x16, 0_u16.to_le_bytes());
        driver.set_common(0x3a, 1_u16.to_le_bytes());
        assert_eq!(machine.toy.lent(), 1);
        let mut fill = driver.arrange(0, 0x1_0000, 1);
        fill.add(&[Buffer::writable(0x8000, 4)]);
        driver.set_common(0x1c, 1_u16.to_le_bytes());
        assert_eq!(machine.toy.turn(), 1, "ioeventfd {ioeventfd}");
    }
}

#[test]
fn a_ring_reset_unmaps_the_vector_of_its_queue_alone_and_only_if_it_was_negotiated() {
    for (features, vector) in [(F::RING_RESET, 0xffff), (F::empty(), 1)] {
        let machine = Machine::usual();
        let driver = Driver::find(&machine);
        driver.start_with(features);
        driver.set_common(0x16, 0_u16.to_le_bytes());
        driver.set_common(0x3a, 1_u16.to_le_bytes());
        assert_eq!(u16::from_le_bytes(driver.common(0x1a)), vector);
        driver.set_common(0x16, 1_u16.to_le_bytes());
        assert_eq!(u16::from_le_bytes(driver.common(0x1a)), 2);
    }
}

#[test]
fn a_reset_of_the_host_takes_bars_vectors_and_queues() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    machine.host.reset();
    assert_eq!(machine.toy.lent(), 0);
    assert!(machine.binder.addresses().is_empty());
    assert_eq!(driver.config::<2>(4), [0, 0]);
    assert_eq!(driver.bar(4), 0);
    assert!(!machine.lines.level(GSI));
    machine.host.assign_resources().unwrap();
    driver.start();
    assert_eq!(machine.toy.lent(), 2);
}

#[test]
fn the_device_is_held_while_bus_mastering_was_taken_away() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    let [mut fill, _] = driver.start();
    machine.toy.turn();
    driver.command(IO_MEMORY_MASTER & !4);
    fill.add(&[Buffer::writable(0x8000, 4)]);
    driver.set_common(0x16, 0_u16.to_le_bytes());
    driver.notify(0);
    assert!(machine.toy.is_paused());
    assert_eq!(machine.toy.turn(), 0);
    driver.command(IO_MEMORY_MASTER);
    assert_eq!(machine.toy.turn(), 1);
}

#[test]
fn a_driver_that_never_switches_bus_mastering_on_is_served() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(2);
    driver.negotiate(F::empty());
    let mut fill = driver.set_up(0, 0x1_0000, 0xffff);
    driver.set_status(0xf);
    fill.add(&[Buffer::writable(0x8000, 4)]);
    driver.notify(0);
    assert_eq!(machine.toy.turn(), 1);
}

#[test]
fn a_paused_device_stays_paused_over_a_reset_and_a_start() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    machine.pci.pause();
    machine.pci.pause();
    driver.start();
    driver.command(2);
    driver.command(IO_MEMORY_MASTER);
    assert!(machine.toy.is_paused());
    machine.pci.resume();
    assert!(!machine.toy.is_paused());
}

#[test]
fn a_function_without_a_device_is_not_there() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let bar = driver.bar(4);
    let is_decoded = || machine.host.mmio_read(bar, &mut [0; 4]);
    assert!(is_decoded());
    let toy = machine.pci.bus().unplug().unwrap();
    assert_eq!(machine.toy.lent(), 0);
    assert!(machine.binder.addresses().is_empty());
    assert_eq!(driver.config::<4>(0), [0xff; 4]);
    assert!(!is_decoded(), "its windows are left");
    machine.pci.bus().plug(toy).unwrap();
    assert_eq!(driver.config::<4>(0), [0xf4, 0x1a, 0x05, 0x10]);
    assert!(!is_decoded(), "a fresh function decodes nothing");
    machine.host.assign_resources().unwrap();
    driver.start();
    machine.toy.call(1).notify();
    assert_eq!(machine.msi.deliver().len(), 1);
}

#[test]
fn a_function_that_leaves_its_bus_has_reset_its_device_and_let_go_of_the_kicks() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let devfn = DevFn::new(DEVFN.0, DEVFN.1).unwrap();
    drop(machine.host.bus().detach(devfn).unwrap());
    assert_eq!(machine.toy.lent(), 0);
    assert!(machine.binder.addresses().is_empty());
    assert_eq!(driver.config::<4>(0), [0xff; 4]);
}

#[test]
fn a_function_that_comes_back_is_as_after_power_on_and_sends_its_messages() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    driver.command(IO_MEMORY_MASTER & !4);
    let devfn = DevFn::new(DEVFN.0, DEVFN.1).unwrap();
    let function = machine.host.bus().detach(devfn).unwrap();
    assert_eq!(machine.msi.held(), 0, "vectors of the place it left");
    // Writes that were on their way when it left.
    function.bar_write(BarIndex::new(4).unwrap(), 0x10, &[0, 0]);
    let _ = function.config_write(4, &[7]);
    machine.host.bus().attach(devfn, function).unwrap();
    assert_eq!(driver.config::<2>(4), [0, 0], "command");
    assert_eq!(driver.bar(4), 0);
    assert!(!machine.toy.is_paused());
    machine.host.assign_resources().unwrap();
    driver.command(2);
    assert_eq!(driver.common::<2>(0x10), [0xff; 2]);
    driver.start();
    for queue in [0, 1] {
        machine.toy.call(queue).notify();
        assert_eq!(sent(&machine), [u32::from(queue) + 1]);
    }
    machine.toy.transport().config_changed();
    assert_eq!(sent(&machine), [0]);
    assert_eq!(machine.msi.held(), 3);
}

#[test]
fn nothing_is_left_of_an_active_device_when_its_owner_goes() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let call = Arc::downgrade(&machine.toy.call(0));
    let kick = Arc::downgrade(&machine.toy.kick(0));
    let Machine {
        host,
        pci,
        toy,
        msi,
        binder,
        memory,
        lines: _,
    } = machine;
    drop(host);
    assert_eq!(toy.lent(), 2, "still active");
    let weak = Arc::downgrade(&pci);
    drop(pci);
    assert!(weak.upgrade().is_none());
    assert_eq!(toy.lent(), 0);
    assert!(toy.reset().is_empty());
    assert!(call.upgrade().is_none(), "the way to the guest is left");
    assert!(kick.upgrade().is_none(), "a kick is left");
    assert!(binder.addresses().is_empty());
    assert_eq!(msi.held(), 0, "vectors are left");
    assert_eq!(Arc::strong_count(&toy), 1);
    assert_eq!(Arc::strong_count(&memory), 1);
}
