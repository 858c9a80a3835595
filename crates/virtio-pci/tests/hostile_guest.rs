//! What a guest does that no driver does: classes 6, 9, 13, 14, 15, 16 and 17 of the table in
//! `examples/tests/hostile/README.md`, each with a guard whose loss shows here.
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]
#![allow(dead_code, reason = "the scaffold is the toy's, which uses all of it")]

#[path = "toy/device.rs"]
pub(crate) mod device;
#[path = "toy/driver.rs"]
pub(crate) mod driver;
#[path = "toy/machine.rs"]
pub(crate) mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};
use virtqueue::mock::Buffer;

use crate::driver::Driver;
use crate::machine::Machine;

/// Counts what one thread says at the level of a warning or above. Of the whole process: whether something is said is
/// looked up once, for all threads.
struct Warnings(Arc<AtomicUsize>, ThreadId);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &Event<'_>) {
        if thread::current().id() == self.1 {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn class_6_a_buffer_inside_the_devices_own_registers_is_no_memory() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    for structure in [1, 2, 3] {
        let [_, mut ring] = driver.start();
        let address = driver.structure(structure);
        // A device that wrote there would reset itself, or kick itself for ever.
        ring.add(&[Buffer::writable(address, 64)]);
        driver.set_common(0x16, 1_u16.to_le_bytes());
        driver.notify(1);
        assert_eq!(machine.toy.turn(), 0, "structure {structure}");
        assert_eq!(driver.status(), 0x4f, "structure {structure}");
        machine.toy.turn();
        assert_eq!(driver.status(), 0x4f, "structure {structure}");
    }
    driver.start();
}

#[test]
fn class_9_a_guest_that_breaks_its_device_again_and_again_fills_no_log() {
    let warnings = Arc::<AtomicUsize>::default();
    let said = warnings.clone();
    tracing::subscriber::set_global_default(Warnings(said, thread::current().id())).unwrap();
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    for _ in 0..200 {
        let [mut ring, _] = driver.start();
        ring.offer_nonsense();
        driver.set_common(0x16, 0_u16.to_le_bytes());
        driver.notify(0);
        machine.toy.turn();
        assert_eq!(driver.status(), 0x4f);
    }
    assert_eq!(warnings.load(Ordering::Relaxed), 1);
}

#[test]
fn class_13_a_queue_size_is_what_was_legal_last_whatever_is_written_in_whatever_width() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    driver.negotiate(virtio::F::empty());
    driver.set_common(0x16, 0_u16.to_le_bytes());
    let max = u16::from_le_bytes(driver.common(0x18));
    // Packed rings may have any number of entries (virtio 1.4, 2.8), split ones a power of two.
    let is_packed = !driver::format().is_empty();
    let expected = |size: u16| {
        let legal = (1..=max).contains(&size) && (is_packed || size.is_power_of_two());
        (if legal { size } else { max }).to_le_bytes()
    };
    for size in [0, 3, max - 1, max + 1, max * 2, 0x8000, 0xffff] {
        driver.set_common(0x18, max.to_le_bytes());
        driver.set_common(0x18, size.to_le_bytes());
        assert_eq!(driver.common::<2>(0x18), expected(size), "{size:#x}");
    }
    driver.set_common(0x18, max.to_le_bytes());
    // Four bytes of which the lower two are 0: size 0, and the register behind it.
    driver.set_common(0x18, 0x0001_0000_u32.to_le_bytes());
    assert_eq!(driver.common::<2>(0x18), max.to_le_bytes());
    // One byte alone: with the other it is the size.
    driver.set_common(0x18, [3]);
    assert_eq!(driver.common::<2>(0x18), expected(3));
    driver.set_common(0x18, 8_u16.to_le_bytes());
    assert_eq!(driver.common::<2>(0x18), [8, 0], "what is legal is taken");
}

#[test]
fn class_13_a_queue_is_enabled_by_1_alone_and_once() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(7);
    driver.negotiate(virtio::F::empty());
    driver.arrange(0, 0x1_0000, 0);
    for value in [0, 2, 0x100, 0x101, 0xffff_u16] {
        driver.set_common(0x1c, value.to_le_bytes());
        assert_eq!(driver.common::<2>(0x1c), [0, 0], "{value:#x}");
    }
    driver.set_common(0x1c, 1_u16.to_le_bytes());
    driver.set_common(0x1c, 1_u16.to_le_bytes());
    driver.set_common(0x1c, 0_u16.to_le_bytes());
    assert_eq!(driver.common::<2>(0x1c), [1, 0]);
    driver.set_status(0xf);
    assert_eq!(machine.toy.lent(), 1, "lent once");
}

#[test]
fn class_14_a_kick_of_any_width_at_any_offset_reaches_only_its_own_live_queue() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let notify = driver.structure(2);
    let kicks = [0, 1].map(|queue| machine.toy.kick(queue));
    let heard = || kicks.each_ref().map(|kick| kick.read().is_ok());
    heard();
    for offset in 0..0x20_u64 {
        for width in [1, 2, 4, 8] {
            match width {
                1 => driver.write(notify + offset, [0xff; 1]),
                2 => driver.write(notify + offset, [0xff; 2]),
                4 => driver.write(notify + offset, [0xff; 4]),
                _ => driver.write(notify + offset, [0xff; 8]),
            }
            // By where it begins, whatever it says.
            let expected = [offset / 4 == 0, offset / 4 == 1];
            assert_eq!(heard(), expected, "{width} bytes at {offset}");
        }
    }
}

#[test]
fn class_15_status_bits_are_not_taken_back_but_by_a_reset() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    for status in 1..=0xff_u8 {
        driver.set_status(status);
        assert_eq!(driver.status() & 0xf, 0xf, "{status:#x}");
        assert_eq!(driver.status() & 0x70, 0, "{status:#x}: not the driver's");
    }
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert_eq!(machine.toy.lent(), 0);
}

#[test]
fn class_16_a_vector_that_is_not_there_is_none_for_each_queue_and_for_configuration() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(7);
    driver.negotiate(virtio::F::empty());
    for vector in [3, 4, 0x7ff, 0x800, 0xfffe, 0xffff_u16] {
        driver.set_common(0x10, vector.to_le_bytes());
        assert_eq!(driver.common::<2>(0x10), [0xff; 2], "{vector:#x}");
        for queue in [0, 1_u16] {
            driver.set_common(0x16, queue.to_le_bytes());
            driver.set_common(0x1a, vector.to_le_bytes());
            assert_eq!(driver.common::<2>(0x1a), [0xff; 2], "{vector:#x}");
        }
    }
}

#[test]
fn class_17_the_window_answers_only_for_what_a_register_access_may_be() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let window = driver.structures.iter().find(|s| s.kind == 5).unwrap().at;
    let point = |bar: u8, offset: u32, length: u32| {
        driver.set_config(window + 4, [bar]);
        driver.set_config(window + 8, offset.to_le_bytes());
        driver.set_config(window + 12, length.to_le_bytes());
    };
    // Through it, status reads as it is.
    point(4, 0x14, 1);
    assert_eq!(driver.config::<1>(window + 16), [0xf]);
    let table = [
        (4, 0x14, 0),
        (4, 0x14, 3),
        (4, 0x12, 3),
        (4, 0x14, 8),
        (4, 0x14, u32::MAX),
        (0, 0x14, 1),
        (5, 0x14, 1),
        (6, 0x14, 1),
        (255, 0x14, 1),
        (4, 0x15, 2),
        (4, 0x16, 4),
        (4, 0x4000, 1),
        (4, 0x3fff, 2),
        (4, 0xffff_fffc, 4),
        (4, u32::MAX, 1),
    ];
    for (bar, offset, length) in table {
        point(bar, offset, length);
        // Neither a reset nor a kick comes of it.
        driver.set_config(window + 16, [0; 4]);
        assert_eq!(driver.status(), 0xf, "BAR {bar} {offset:#x} {length}");
        assert_eq!(machine.toy.lent(), 2);
    }
    // What it points at may be its own BAR's registers, not itself: those are not in a BAR.
    point(4, 0x14, 1);
    driver.set_config(window + 16, [0]);
    assert_eq!(driver.status(), 0, "it does work");
}
