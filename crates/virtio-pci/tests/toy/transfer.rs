//! Buffers, notifications and interrupts.

use virtio_pci::VirtioPciConfig;
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{Driver, IO_MEMORY_MASTER, format};
use crate::machine::{Binder, GSI, Machine};

fn filled(machine: &Machine) -> [u8; 4] {
    let mut data = [0; 4];
    let at = GuestAddress(0x8000);
    machine.memory.read_slice(&mut data, at).unwrap();
    data
}

pub(crate) fn sent(machine: &Machine) -> Vec<u32> {
    let messages = machine.msi.deliver();
    messages.into_iter().map(|message| message.data).collect()
}

#[test]
fn a_buffer_goes_there_and_back_with_one_message_of_its_queue() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    let [mut fill, mut choose] = driver.start();
    machine.toy.turn();

    machine
        .memory
        .write_slice(&[0x5a], GuestAddress(0x9000))
        .unwrap();
    choose.add(&[Buffer::readable(0x9000, 1)]);
    driver.set_common(0x16, 1_u16.to_le_bytes());
    driver.notify(1);
    assert_eq!(machine.toy.turn(), 1);
    assert_eq!(sent(&machine), [2]);

    fill.add(&[Buffer::writable(0x8000, 4)]);
    driver.set_common(0x16, 0_u16.to_le_bytes());
    driver.notify(0);
    assert_eq!(machine.toy.turn(), 1);
    assert_eq!(sent(&machine), [1]);
    assert_eq!(filled(&machine), [0x5a; 4]);
    assert_eq!(choose.take_used(), Some((0, 0)));
    assert_eq!(fill.take_used(), Some((0, 4)));
}

#[test]
fn what_was_queued_before_driver_ok_is_served_without_a_notification() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(IO_MEMORY_MASTER);
    driver.negotiate(virtio::F::empty());
    let mut fill = driver.set_up(0, 0x1_0000, 0xffff);
    fill.add(&[Buffer::writable(0x8000, 4)]);
    assert_eq!(machine.toy.turn(), 0, "before DRIVER_OK");
    driver.set_status(0xf);
    assert_eq!(machine.toy.turn(), 1);
}

#[test]
fn without_msix_the_pin_is_asserted_until_isr_is_read() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(IO_MEMORY_MASTER);
    driver.negotiate(virtio::F::empty());
    let mut fill = driver.set_up(0, 0x1_0000, 0xffff);
    driver.set_status(0xf);
    fill.add(&[Buffer::writable(0x8000, 4)]);
    driver.notify(0);
    machine.toy.turn();
    assert!(machine.lines.level(GSI));
    assert_eq!(driver.config::<1>(6)[0] & 8, 8, "interrupt status");
    machine.toy.transport().config_changed();
    assert_eq!(driver.isr(), 3);
    assert!(!machine.lines.level(GSI));
    assert_eq!(driver.isr(), 0);
    assert_eq!(driver.config::<1>(6)[0] & 8, 0);
    assert!(machine.msi.deliver().is_empty());
}

#[test]
fn the_isr_comes_in_the_first_byte_of_a_wider_read_and_not_behind_it() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    machine.toy.transport().config_changed();
    let isr = driver.structure(3);
    assert_eq!(driver.read::<2>(isr + 1), [0, 0]);
    assert_eq!(driver.read::<4>(isr), [2, 0, 0, 0]);
    assert_eq!(driver.read::<4>(isr), [0; 4]);
}

#[test]
fn a_queue_without_a_vector_sends_nothing_while_msix_is_on() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    driver.set_common(0x16, 0_u16.to_le_bytes());
    driver.set_common(0x1a, 0xffff_u16.to_le_bytes());
    machine.toy.call(0).notify();
    assert!(machine.toy.call(0).event_fd().is_none());
    assert!(machine.msi.deliver().is_empty());
    assert!(!machine.lines.level(GSI));
    assert_eq!(driver.isr(), 0);
}

#[test]
fn a_queues_descriptor_is_its_vectors() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let call = machine.toy.call(1);
    call.event_fd().unwrap().write(1).unwrap();
    assert_eq!(sent(&machine), [2]);
    driver.msix_control(0);
    assert!(call.event_fd().is_none(), "with MSI-X off");
}

#[test]
fn a_device_is_told_when_the_descriptor_of_a_queue_changes_and_not_when_it_is_masked() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    assert_eq!(machine.toy.take_changed(), [0; 0], "before DRIVER_OK");
    let map = |queue: u16, vector: u16| {
        driver.set_common(0x16, queue.to_le_bytes());
        driver.set_common(0x1a, vector.to_le_bytes());
        machine.toy.take_changed()
    };
    let control = |value| {
        driver.msix_control(value);
        machine.toy.take_changed()
    };
    assert_eq!(map(0, 1), [0; 0], "mapped to the same");
    assert_eq!(map(0, 2), [0]);
    machine.toy.call(0).event_fd().unwrap().write(1).unwrap();
    assert_eq!(sent(&machine), [2]);
    assert_eq!(control(0xc000), [0; 0], "masked");
    driver.write(driver.bar(1) + 0x20 + 12, 1_u32.to_le_bytes());
    assert_eq!(machine.toy.take_changed(), [0; 0], "one vector masked");
    assert_eq!(map(1, 0xffff), [1], "unmapped");
    assert_eq!(control(0), [0], "off: the other had none");
    assert_eq!(map(1, 2), [0; 0], "mapped while MSI-X is off");
    assert_eq!(control(0x8000), [0, 1], "on");
    driver.set_status(0);
    assert_eq!(map(0, 1), [0; 0], "after a reset");
}

#[test]
fn a_vector_shared_by_queues_and_configuration_is_sent_for_each() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    for queue in [0_u16, 1] {
        driver.set_common(0x16, queue.to_le_bytes());
        driver.set_common(0x1a, 0_u16.to_le_bytes());
    }
    machine.toy.call(0).notify();
    assert_eq!(sent(&machine), [0]);
    machine.toy.call(1).notify();
    assert_eq!(sent(&machine), [0]);
    machine.toy.transport().config_changed();
    assert_eq!(sent(&machine), [0]);
}

#[test]
fn a_masked_vector_is_sent_once_when_it_is_unmasked() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    driver.msix_control(0xc000);
    machine.toy.call(0).notify();
    machine.toy.call(0).notify();
    assert!(machine.msi.deliver().is_empty());
    assert_eq!(
        driver.read::<8>(driver.bar(1) + 0x800)[0],
        1 << 1,
        "pending"
    );
    driver.msix_control(0x8000);
    assert_eq!(sent(&machine), [1]);
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    // (written, read back)
    let table = [
        (0, 0),
        (2, 2),
        (3, 0xffff),
        (0x7ff, 0xffff),
        (0xffff, 0xffff),
    ];
    for register in [0x10, 0x1a] {
        for (written, expected) in table {
            driver.set_common(register, u16::to_le_bytes(written));
            let read = u16::from_le_bytes(driver.common(register));
            assert_eq!(read, expected, "{written:#x} at {register:#x}");
        }
    }
}

#[test]
fn a_configuration_change_moves_the_generation_and_interrupts_only_a_live_driver() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(IO_MEMORY_MASTER);
    machine.toy.transport().config_changed();
    assert_eq!(driver.isr(), 0);
    driver.start();
    let before = driver.common::<1>(0x15);
    *machine.toy.config.lock().unwrap() = [1, 2, 3, 4, 5];
    machine.toy.transport().config_changed();
    assert_eq!(sent(&machine), [0]);
    assert_eq!(
        driver.read::<8>(driver.structure(4)),
        [1, 2, 3, 4, 5, 0, 0, 0]
    );
    assert_ne!(driver.common::<1>(0x15), before);
    driver.write(driver.structure(4) + 1, [9, 9]);
    assert_eq!(*machine.toy.config.lock().unwrap(), [1, 9, 9, 4, 5]);
}

#[test]
fn kicks_are_bound_where_bar_4_is_and_only_while_it_is_decoded() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    let base = driver.bar(4);
    assert!(machine.binder.addresses().is_empty());
    driver.start();
    let at = |base: u64| vec![base + 0x3000, base + 0x3004];
    assert_eq!(machine.binder.addresses(), at(base));
    let bound = machine.binder.bound.lock().unwrap()[0].0;
    assert_eq!((bound.len, bound.value), (None, None));

    driver.command(0);
    assert!(machine.binder.addresses().is_empty(), "decoding is off");
    driver.set_config(0x20, [0, 0, 0x20, 0]);
    let moved = base & !0xffff_ffff | 0x20_0000;
    machine.toy.kick(0).read().unwrap();
    driver.command(IO_MEMORY_MASTER);
    assert_eq!(machine.binder.addresses(), at(moved));
    assert!(machine.toy.kick(0).read().is_ok(), "kicked after the move");

    driver.set_status(0);
    assert!(machine.binder.addresses().is_empty(), "after a reset");
}

#[test]
fn kicks_are_not_bound_over_what_is_not_the_buss() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let config = *machine.host.config();
    // (where the guest puts BAR 4, whether accesses come there)
    let table = [
        (config.mmio32.base, true),
        (0x8_0000, false),
        (0xfec0_0000, false),
        (0xfee0_0000, false),
        (config.ecam.base, false),
        (config.mmio64.base + config.mmio64.size, false),
        (config.mmio64.base, true),
    ];
    for (base, comes) in table {
        driver.command(0);
        let [a, b, c, d, e, f, g, h] = u64::to_le_bytes(base);
        driver.set_config(0x20, [a, b, c, d]);
        driver.set_config(0x24, [e, f, g, h]);
        driver.command(IO_MEMORY_MASTER);
        let bound = if comes {
            vec![base + 0x3000, base + 0x3004]
        } else {
            vec![]
        };
        assert_eq!(machine.binder.addresses(), bound, "{base:#x}");
    }
}

#[test]
fn notifications_reach_the_queue_where_nothing_can_be_bound() {
    for (config, refuse) in [
        (VirtioPciConfig::default(), true),
        (
            VirtioPciConfig {
                ioeventfd: false,
                ..VirtioPciConfig::default()
            },
            false,
        ),
    ] {
        let binder = Binder {
            refuse,
            ..Binder::default()
        };
        let machine = Machine::new(config, binder);
        let driver = Driver::find(&machine);
        driver.start();
        machine.toy.turn();
        assert!(machine.binder.addresses().is_empty());
        let notify = driver.structure(2);
        let kick = machine.toy.kick(1);
        driver.write(notify + 4, [0]);
        assert!(kick.read().is_ok(), "one byte");
        driver.write(notify + 5, [1, 0]);
        assert!(kick.read().is_ok(), "two bytes at an odd offset");
        driver.write(notify + 4, [0xff; 4]);
        assert!(kick.read().is_ok(), "another queue's value");
        driver.write(notify + 4, [0xff; 8]);
        assert!(kick.read().is_ok(), "eight bytes");
        assert!(machine.toy.kick(0).read().is_err(), "the other queue");
    }
}

#[test]
fn the_window_in_configuration_space_reads_and_writes_bar_4() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(0);
    let window = |bar: u8, offset: u32, len: u32| {
        driver.set_config(0x88, [bar]);
        driver.set_config(0x8c, offset.to_le_bytes());
        driver.set_config(0x90, len.to_le_bytes());
    };
    window(4, 0x14, 1);
    driver.set_config(0x94, [3]);
    assert_eq!(driver.config::<1>(0x94), [3], "status");
    window(4, 0x12, 2);
    assert_eq!(driver.config::<4>(0x94), [2, 0, 0, 0], "queues");
    window(4, 0, 4);
    driver.set_config(0x94, 1_u32.to_le_bytes());
    window(4, 4, 4);
    // VERSION_1, RING_PACKED where rings are packed, RING_RESET.
    let first = if format().is_empty() { 1 } else { 5 };
    assert_eq!(driver.config::<4>(0x94), [first, 1, 0, 0], "features");

    // (BAR, offset, length) that reach nothing
    let table = [
        (1, 0x14, 1),
        (0, 0x14, 1),
        (5, 0x14, 1),
        (6, 0x14, 1),
        (0xff, 0x14, 1),
        (4, 0x14, 0),
        (4, 0x14, 3),
        (4, 0x14, 8),
        (4, 0x14, u32::MAX),
        (4, 0x13, 2),
        (4, 0x4000, 1),
        (4, 0x3ffe, 4),
        (4, u32::MAX, 1),
        (4, 0xffff_fffc, 4),
    ];
    for (bar, offset, len) in table {
        window(bar, offset, len);
        driver.set_config(0x94, [0x80; 4]);
        assert_eq!(driver.config::<4>(0x94), [0; 4], "{bar} {offset:#x} {len}");
        window(4, 0x14, 1);
        assert_eq!(driver.config::<1>(0x94), [3], "{bar} {offset:#x} {len}");
    }
}
