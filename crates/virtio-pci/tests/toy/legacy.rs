//! Drivers from before virtio 1.0, through BAR 0.

use virtio_bus::{ANY_LAYOUT, KickSpace};
use virtio_pci::VirtioPciConfig;
use virtqueue::NOTIFY_ON_EMPTY;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{Driver, IO_MEMORY_MASTER};
use crate::machine::{Binder, GSI, Machine};
use crate::transfer::sent;

const FEATURES: u16 = 0;
const DRIVER_FEATURES: u16 = 4;
const PFN: u16 = 8;
const SIZE: u16 = 12;
const SELECT: u16 = 14;
const NOTIFY: u16 = 16;
const STATUS: u16 = 18;
const ISR: u16 = 19;

/// The registers of BAR 0.
struct Legacy<'a> {
    machine: &'a Machine,
    base: u16,
}

impl<'a> Legacy<'a> {
    fn find(machine: &'a Machine) -> Self {
        let driver = Driver::find(machine);
        driver.command(IO_MEMORY_MASTER);
        let base = u16::try_from(driver.bar(0)).unwrap();
        Self { machine, base }
    }

    fn read<const N: usize>(&self, register: u16) -> [u8; N] {
        let mut data = [0xa5; N];
        assert!(self.machine.host.port_read(self.base + register, &mut data));
        data
    }

    fn write<const N: usize>(&self, register: u16, data: [u8; N]) {
        assert!(self.machine.host.port_write(self.base + register, &data));
    }

    fn status(&self) -> u8 {
        self.read::<1>(STATUS)[0]
    }

    fn select(&self, queue: u16) {
        self.write(SELECT, queue.to_le_bytes());
    }

    fn pfn(&self) -> u32 {
        u32::from_le_bytes(self.read(PFN))
    }

    /// Places a queue at page `pfn`.
    fn place(&self, queue: u16, pfn: u32) -> Ring<'a> {
        self.select(queue);
        let size = u16::from_le_bytes(self.read(SIZE));
        self.write(PFN, pfn.to_le_bytes());
        Ring {
            machine: self.machine,
            base: u64::from(pfn) * 4096,
            size: size.into(),
            added: 0,
            seen: 0,
        }
    }

    fn notify(&self, queue: u16) {
        self.write(NOTIFY, queue.to_le_bytes());
    }

    /// To DRIVER_OK with both queues.
    fn start(&self) -> [Ring<'a>; 2] {
        self.write(STATUS, [0]);
        self.write(STATUS, [1]);
        self.write(STATUS, [3]);
        let rings = [self.place(0, 0x10), self.place(1, 0x20)];
        self.write(STATUS, [7]);
        assert_eq!(self.status(), 7);
        rings
    }
}

/// A queue as a legacy driver lays it out.
struct Ring<'a> {
    machine: &'a Machine,
    base: u64,
    size: u64,
    added: u16,
    seen: u16,
}

impl Ring<'_> {
    /// A chain of one buffer in descriptor and place `added`.
    fn add(&mut self, address: u64, len: u32, writable: bool) {
        let memory = &self.machine.memory;
        let at = |address| GuestAddress(address);
        let index = u64::from(self.added) % self.size;
        let descriptor = self.base + 16 * index;
        memory.write_obj(address, at(descriptor)).unwrap();
        memory.write_obj(len, at(descriptor + 8)).unwrap();
        let flags = if writable { 2_u32 } else { 0 };
        memory.write_obj(flags, at(descriptor + 12)).unwrap();
        let available = self.base + 16 * self.size;
        let place = at(available + 4 + 2 * index);
        memory
            .write_obj(u16::try_from(index).unwrap(), place)
            .unwrap();
        self.added += 1;
        memory.write_obj(self.added, at(available + 2)).unwrap();
    }

    /// What the device has used: head and bytes.
    fn take_used(&mut self) -> Option<(u32, u32)> {
        let memory = &self.machine.memory;
        let used = (self.base + 18 * self.size + 6).next_multiple_of(4096);
        let index: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
        if index == self.seen {
            return None;
        }
        let place = used + 4 + 8 * (u64::from(self.seen) % self.size);
        self.seen += 1;
        let id = memory.read_obj(GuestAddress(place)).unwrap();
        let len = memory.read_obj(GuestAddress(place + 4)).unwrap();
        Some((id, len))
    }
}

fn legacy_only() -> VirtioPciConfig {
    VirtioPciConfig {
        modern: false,
        ..VirtioPciConfig::default()
    }
}

#[test]
fn a_legacy_driver_exchanges_buffers_and_is_interrupted() {
    for config in [VirtioPciConfig::default(), legacy_only()] {
        let machine = Machine::with(config);
        let driver = Legacy::find(&machine);
        let [mut fill, mut choose] = driver.start();
        machine.toy.turn();
        let memory = &machine.memory;
        memory.write_slice(&[0x5a], GuestAddress(0x9000)).unwrap();
        choose.add(0x9000, 1, false);
        driver.notify(1);
        assert_eq!(machine.toy.turn(), 1);
        fill.add(0x8000, 4, true);
        driver.notify(0);
        assert_eq!(machine.toy.turn(), 1);
        assert!(machine.lines.level(GSI));
        assert_eq!(driver.read::<1>(ISR), [1]);
        assert!(!machine.lines.level(GSI), "reading ISR releases the pin");
        assert_eq!(choose.take_used(), Some((0, 0)));
        assert_eq!(fill.take_used(), Some((0, 4)));
        let written: [u8; 4] = memory.read_obj(GuestAddress(0x8000)).unwrap();
        assert_eq!(written, [0x5a; 4]);
    }
}

#[test]
fn the_device_is_used_from_the_first_kick_on_even_before_driver_ok() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    driver.write(STATUS, [3]);
    let mut fill = driver.place(0, 0x10);
    fill.add(0x8000, 4, true);
    assert_eq!(machine.toy.lent(), 0);
    driver.notify(0);
    assert_eq!((machine.toy.lent(), machine.toy.turn()), (1, 1));
    assert_eq!(fill.take_used(), Some((0, 4)));
    assert_eq!(driver.read::<1>(ISR), [1]);
    assert_eq!(driver.status(), 3, "DRIVER_OK is the driver's to set");

    let mut choose = driver.place(1, 0x20);
    assert_eq!(machine.toy.lent(), 2, "a queue that comes later");
    choose.add(0x9000, 1, false);
    driver.write(STATUS, [7]);
    assert_eq!(driver.status(), 7);
    driver.notify(1);
    assert_eq!(machine.toy.turn(), 1);
}

#[test]
fn what_was_queued_is_served_at_driver_ok_without_a_kick() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    driver.write(STATUS, [3]);
    let mut fill = driver.place(0, 0x10);
    fill.add(0x8000, 4, true);
    assert_eq!(machine.toy.turn(), 0);
    driver.write(STATUS, [7]);
    assert_eq!(machine.toy.turn(), 1);
}

#[test]
fn a_kick_for_a_queue_that_was_not_placed_does_nothing() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    driver.write(STATUS, [3]);
    for queue in [0, 1, 2, 0x400, 0xffff] {
        driver.notify(queue);
    }
    assert_eq!(machine.toy.lent(), 0);
    driver.place(0, 0x10);
    driver.notify(1);
    assert_eq!(machine.toy.lent(), 0);
    driver.write(STATUS, [0x83]);
    driver.notify(0);
    driver.write(STATUS, [0x87]);
    assert_eq!(machine.toy.lent(), 0, "the driver gave up");
}

#[test]
fn only_the_low_32_features_are_offered_with_those_that_are_only_legacys() {
    let config = VirtioPciConfig {
        legacy_features: ANY_LAYOUT | NOTIFY_ON_EMPTY,
        ..VirtioPciConfig::default()
    };
    let machine = Machine::with(config);
    let driver = Legacy::find(&machine);
    // EVENT_IDX, INDIRECT_DESC, ANY_LAYOUT, NOTIFY_ON_EMPTY; no VERSION_1.
    assert_eq!(u32::from_le_bytes(driver.read(FEATURES)), 0x3900_0000);
    let modern = Driver::find(&machine);
    assert_eq!(u32::from_le_bytes(modern.common(4)), 0x3000_0000);
}

#[test]
fn features_that_are_not_offered_stay_clear_and_none_change_after_the_first_use() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    driver.write(STATUS, [3]);
    driver.write(DRIVER_FEATURES, [0xff; 4]);
    assert_eq!(
        u32::from_le_bytes(driver.read(DRIVER_FEATURES)),
        0x3900_0000
    );
    driver.write(DRIVER_FEATURES, 0x1000_0000_u32.to_le_bytes());
    driver.place(0, 0x10);
    driver.notify(0);
    assert_eq!(machine.toy.lent(), 1);
    assert_eq!(machine.toy.features(), Some(virtio::F::INDIRECT_DESC));
    driver.write(DRIVER_FEATURES, [0; 4]);
    assert_eq!(
        u32::from_le_bytes(driver.read(DRIVER_FEATURES)),
        0x1000_0000
    );
    driver.write(STATUS, [0]);
    assert_eq!(driver.read::<4>(DRIVER_FEATURES), [0; 4]);
}

#[test]
fn a_queue_that_does_not_exist_has_no_size_and_takes_no_place() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    for (queue, size) in [(0, 64), (1, 16), (2, 0), (0xffff, 0)] {
        driver.select(queue);
        assert_eq!(u16::from_le_bytes(driver.read(SIZE)), size, "{queue}");
        driver.write(SIZE, [8, 0]);
        assert_eq!(u16::from_le_bytes(driver.read(SIZE)), size, "read only");
        driver.write(PFN, 0x10_u32.to_le_bytes());
        let expected = if size == 0 { 0 } else { 0x10 };
        assert_eq!(driver.pfn(), expected, "{queue}");
    }
}

#[test]
fn a_queue_moves_until_the_device_has_it() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    driver.place(0, 0x10);
    driver.place(0, 0x11);
    assert_eq!(driver.pfn(), 0x11);
    driver.write(STATUS, [7]);
    driver.place(0, 0x12);
    assert_eq!(driver.pfn(), 0x11);
    let mut fill = Ring {
        machine: &machine,
        base: 0x1_1000,
        size: 64,
        added: 0,
        seen: 0,
    };
    fill.add(0x8000, 4, true);
    driver.notify(0);
    assert_eq!(machine.toy.turn(), 1);
}

#[test]
fn page_0_and_status_0_reset_the_device() {
    for by_page in [false, true] {
        let machine = Machine::usual();
        let driver = Legacy::find(&machine);
        driver.start();
        driver.write(DRIVER_FEATURES, [0xff; 4]);
        if by_page {
            driver.write(PFN, [0; 4]);
        } else {
            driver.write(STATUS, [0]);
        }
        assert_eq!((driver.status(), machine.toy.lent()), (0, 0));
        assert_eq!(driver.pfn(), 0);
        assert!(machine.binder.addresses().is_empty());
        driver.start();
        assert_eq!(machine.toy.lent(), 2);
    }
}

#[test]
fn a_ring_outside_of_memory_does_not_run_and_a_reset_makes_good() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    for pfn in [0xff, 0x100, 0xf_ffff, u32::MAX] {
        driver.write(STATUS, [3]);
        driver.place(0, pfn);
        driver.write(STATUS, [7]);
        assert_eq!(machine.toy.lent(), 0, "{pfn:#x}");
        assert_eq!(driver.status(), 7, "NEEDS_RESET is not a legacy driver's");
        driver.notify(0);
        driver.write(STATUS, [0]);
    }
    driver.start();
    assert_eq!(machine.toy.lent(), 2);
}

#[test]
fn configuration_is_behind_the_header_and_moves_with_msix() {
    let machine = Machine::usual();
    *machine.toy.config.lock().unwrap() = [1, 2, 3, 4, 5];
    let driver = Legacy::find(&machine);
    let modern = Driver::find(&machine);
    assert_eq!(driver.read::<5>(20), [1, 2, 3, 4, 5]);
    assert_eq!(driver.read::<4>(24), [5, 0, 0, 0]);
    driver.write(20, [7]);
    modern.enable_msix(3);
    assert_eq!(driver.read::<5>(24), [7, 2, 3, 4, 5]);
    assert_eq!(driver.read::<4>(20), [0xff; 4], "two vectors, unmapped");
    driver.write(25, [8, 9]);
    modern.msix_control(0);
    assert_eq!(driver.read::<5>(20), [7, 8, 9, 4, 5]);
    assert_eq!(
        driver.read::<3>(18),
        [0, 0, 7],
        "over the end of the header"
    );
}

#[test]
fn vectors_are_mapped_and_one_that_does_not_exist_reads_back_as_none() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    Driver::find(&machine).enable_msix(3);
    let [mut fill, _] = driver.start();
    machine.toy.turn();
    // (written, read back)
    for (vector, expected) in [(0, 0), (3, 0xffff), (0xffff, 0xffff), (2, 2)] {
        for register in [20, 22] {
            driver.select(0);
            driver.write(register, u16::to_le_bytes(vector));
            let read = u16::from_le_bytes(driver.read(register));
            assert_eq!(read, expected, "{vector:#x} at {register}");
        }
    }
    fill.add(0x8000, 4, true);
    driver.notify(0);
    machine.toy.turn();
    assert_eq!(sent(&machine), [2]);
    machine.toy.transport().config_changed();
    assert_eq!(sent(&machine), [2]);
    assert!(!machine.lines.level(GSI));
}

#[test]
fn kicks_are_bound_by_value_to_the_one_register_while_it_is_decoded() {
    let machine = Machine::usual();
    let driver = Legacy::find(&machine);
    let config = Driver::find(&machine);
    let bound = |machine: &Machine| {
        let bound = machine.binder.bound.lock().unwrap();
        let all = bound
            .iter()
            .map(|(at, _)| (at.space, at.address, at.len, at.value));
        all.collect::<Vec<_>>()
    };
    assert_eq!(bound(&machine), []);
    driver.start();
    let at = |base: u16| {
        [0, 1].map(|queue| (KickSpace::Port, u64::from(base) + 16, Some(2), Some(queue)))
    };
    assert_eq!(bound(&machine), at(driver.base));
    config.command(6);
    assert_eq!(bound(&machine), []);
    config.set_config(0x10, [0, 0xd0, 0, 0]);
    config.command(IO_MEMORY_MASTER);
    assert_eq!(bound(&machine), at(0xd000));
    config.set_config(0x10, [0, 0x10, 0, 0]);
    assert_eq!(bound(&machine), [], "not the bus's ports");
}

#[test]
fn a_kick_names_its_queue_by_value_whatever_its_width() {
    let refuse = Binder {
        refuse: true,
        ..Binder::default()
    };
    let machine = Machine::new(VirtioPciConfig::default(), refuse);
    let driver = Legacy::find(&machine);
    driver.start();
    machine.toy.turn();
    let kicks = [machine.toy.kick(0), machine.toy.kick(1)];
    let signalled = || kicks.each_ref().map(|kick| kick.read().is_ok());
    driver.write(NOTIFY, [1]);
    assert_eq!(signalled(), [false, true], "one byte");
    driver.write(NOTIFY, [1, 0]);
    assert_eq!(signalled(), [false, true]);
    driver.write(NOTIFY, [0, 0]);
    assert_eq!(signalled(), [true, false]);
    for value in [[2, 0], [0, 1], [0xff, 0xff]] {
        driver.write(NOTIFY, value);
        assert_eq!(signalled(), [false, false], "{value:?}");
    }
    driver.write(NOTIFY, [1, 0, 7, 0]);
    assert_eq!(signalled(), [false, true], "status and ISR along with it");
}

#[test]
fn a_driver_that_uses_both_interfaces_has_the_one_that_it_began_with() {
    let machine = Machine::usual();
    let legacy = Legacy::find(&machine);
    let modern = Driver::find(&machine);

    modern.set_status(3);
    legacy.write(STATUS, [7]);
    legacy.write(DRIVER_FEATURES, [0xff; 4]);
    legacy.place(0, 0x10);
    legacy.notify(0);
    assert_eq!((modern.status(), legacy.status()), (3, 3));
    modern.set_common(8, [0; 4]);
    assert_eq!(modern.common::<4>(12), [0; 4]);
    assert_eq!((legacy.pfn(), machine.toy.lent()), (0, 0));
    modern.start();
    let before = machine.binder.addresses();
    legacy.notify(0);
    legacy.write(PFN, [0; 4]);
    assert_eq!(machine.toy.lent(), 2, "page 0 is of the other interface");
    assert_eq!(machine.binder.addresses(), before);
    legacy.write(STATUS, [0]);
    assert_eq!(
        (modern.status(), machine.toy.lent()),
        (0, 0),
        "a reset is one"
    );

    legacy.start();
    modern.set_common(0x16, 0_u16.to_le_bytes());
    modern.set_common(0x1c, 1_u16.to_le_bytes());
    modern.set_common(0x3a, 1_u16.to_le_bytes());
    modern.set_status(0xf);
    modern.write(modern.structure(4), [9]);
    assert_eq!((modern.status(), machine.toy.lent()), (7, 2));
    assert_eq!(*machine.toy.config.lock().unwrap(), [0; 5]);
    machine.toy.turn();
    modern.write(modern.structure(2), [0; 2]);
    assert!(machine.toy.kick(0).read().is_err());
    modern.set_status(0);
    assert_eq!((legacy.status(), machine.toy.lent()), (0, 0));
    modern.start();
}

#[test]
fn a_modern_driver_may_kick_through_the_port_as_well() {
    for refuse in [false, true] {
        let config = VirtioPciConfig {
            modern_pio_notify: true,
            page_per_vq: true,
            ..VirtioPciConfig::default()
        };
        let binder = Binder {
            refuse,
            ..Binder::default()
        };
        let machine = Machine::new(config, binder);
        let driver = Driver::find(&machine);
        driver.start();
        machine.toy.turn();
        let port = driver.bar(2);
        let pages = driver.bar(4) + 0x3000;
        if !refuse {
            let mut bound = machine.binder.addresses();
            bound.sort_unstable();
            assert_eq!(bound, [port, port, pages, pages + 0x1000]);
        }
        let kick = machine.toy.kick(1);
        let port = u16::try_from(port).unwrap();
        machine.host.port_write(port, &[1, 0]);
        assert!(kick.read().is_ok());
        machine.host.port_write(port, &[1, 0, 0xff, 0xff]);
        assert!(kick.read().is_ok(), "with data behind it");
        machine.host.port_write(port, &[2, 0]);
        driver.write(pages + 0x1000, [0; 2]);
        assert!(kick.read().is_ok(), "its page");
        assert!(kick.read().is_err());
        assert!(machine.toy.kick(0).read().is_err());
    }
}
