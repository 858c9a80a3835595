//! A driver that suspends its device and has it resume (virtio 1.4, 3.4).

use virtio::F;
use virtio_pci::VirtioPciConfig;
use virtqueue::mock::Buffer;

use crate::driver::Driver;
use crate::machine::Machine;
use crate::transfer::sent;

fn machine() -> Machine {
    Machine::with(VirtioPciConfig {
        suspend: true,
        ..VirtioPciConfig::default()
    })
}

#[test]
fn a_suspended_device_does_nothing_and_a_resumed_one_goes_on() {
    let machine = machine();
    let driver = Driver::find(&machine);
    let [mut fill, _] = driver.start_with(F::SUSPEND);
    machine.toy.turn();
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0x1b, "SUSPEND is set, DRIVER_OK is not");
    assert!(machine.toy.is_paused());
    assert_eq!(machine.toy.lent(), 2, "queues stay with the device");
    fill.add(&[Buffer::writable(0x8000, 4)]);
    driver.set_common(0x16, 0_u16.to_le_bytes());
    driver.notify(0);
    assert_eq!(machine.toy.turn(), 0);
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0xf);
    assert_eq!(machine.toy.turn(), 1);
    assert_eq!(sent(&machine), [1]);
}

#[test]
fn the_bit_is_ignored_before_driver_ok_and_where_it_was_not_negotiated() {
    let machine = machine();
    let driver = Driver::find(&machine);
    driver.negotiate(F::SUSPEND);
    driver.set_status(0x1b);
    assert_eq!(driver.status(), 0xb);
    driver.start();
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0xf);
    assert!(!machine.toy.is_paused());
}

#[test]
fn configuration_stands_still_and_its_change_is_told_of_at_the_end() {
    let machine = machine();
    let driver = Driver::find(&machine);
    driver.start_with(F::SUSPEND | F::RING_RESET);
    let device = driver.structure(4);
    *machine.toy.config.lock().unwrap() = [1, 2, 3, 4, 5];
    let generation = driver.common::<1>(0x15);
    driver.set_status(0x1f);
    *machine.toy.config.lock().unwrap() = [9; 5];
    machine.toy.transport().config_changed();
    assert_eq!(driver.read::<5>(device), [1, 2, 3, 4, 5]);
    assert_eq!(driver.common::<1>(0x15), generation);
    assert!(sent(&machine).is_empty());

    driver.write(device, [7]);
    driver.set_common(0x16, 0_u16.to_le_bytes());
    driver.set_common(0x1a, 0_u16.to_le_bytes());
    driver.set_common(0x10, 2_u16.to_le_bytes());
    driver.set_common(0x3a, 1_u16.to_le_bytes());
    assert_eq!(*machine.toy.config.lock().unwrap(), [9; 5]);
    assert_eq!(driver.common::<2>(0x1a), [1, 0], "vector of the queue");
    assert_eq!(driver.common::<2>(0x10), [0, 0], "vector of changes");
    assert_eq!(machine.toy.lent(), 2, "no ring was reset");

    driver.set_status(0xf);
    assert_eq!(driver.read::<5>(device), [9; 5]);
    assert_ne!(driver.common::<1>(0x15), generation);
    assert_eq!(sent(&machine), [0], "told once");
}

#[test]
fn a_suspended_device_that_is_reset_starts_anew() {
    let machine = machine();
    let driver = Driver::find(&machine);
    driver.start_with(F::SUSPEND);
    driver.set_status(0x1f);
    driver.set_status(0x9b);
    assert_eq!(driver.status(), 0x9b, "a driver may give up");
    driver.set_status(0);
    assert_eq!((driver.status(), machine.toy.lent()), (0, 0));
    assert!(!machine.toy.is_paused());
    driver.start();
    assert_eq!(machine.toy.lent(), 2);
}

#[test]
fn a_device_that_broke_is_not_suspended_and_one_that_breaks_says_so_at_the_end() {
    let machine = machine();
    let driver = Driver::find(&machine);
    driver.start_with(F::SUSPEND);
    driver.set_status(0x1f);
    machine.toy.transport().needs_reset("test");
    assert_eq!(driver.status(), 0x5b);
    assert!(sent(&machine).is_empty());
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(sent(&machine), [0]);
    driver.set_status(0x1f);
    assert_eq!(driver.status(), 0x4f);
}
