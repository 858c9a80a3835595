//! What the table beside this file names and no other test is about (virtio 1.4, 2.7 and 2.8).
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::ops::Range;
use std::sync::Arc;

use virtio::F;
use virtqueue::mock::{Buffer, Driver, PackedDriver, SplitDriver};
use virtqueue::{Chain, QueueState, VirtQueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;

const LEN: usize = 0x1_0000;
const TABLE: u64 = 0x8000;
const READABLE: u64 = 0x9000;
const WRITABLE: u64 = 0xa000;

fn queue(features: F) -> (Driver<Memory>, VirtQueue<Memory>) {
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LEN)]).unwrap());
    let driver = Driver::new(memory.clone(), GuestAddress(0), 8, features);
    let state = QueueState::initial(features);
    let queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
    (driver, queue)
}

fn split(features: F) -> (SplitDriver<Memory>, VirtQueue<Memory>) {
    match queue(F::VERSION_1 | features) {
        (Driver::Split(driver), queue) => (driver, queue),
        (Driver::Packed(driver), _) => panic!("{driver:?}"),
    }
}

fn packed(features: F) -> (PackedDriver<Memory>, VirtQueue<Memory>) {
    match queue(F::VERSION_1 | F::RING_PACKED | features) {
        (Driver::Packed(driver), queue) => (driver, queue),
        (Driver::Split(driver), _) => panic!("{driver:?}"),
    }
}

fn pop(queue: &mut VirtQueue<Memory>) -> Chain<Memory> {
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap());
    chain
}

fn bytes(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

fn range(start: u64, len: u64) -> Range<usize> {
    usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap()
}

/// 2.7.5.1, 2.8.15: "A device MUST NOT write to a device-readable buffer"; 2.7.5.1: "A device MUST NOT write to any
/// descriptor table entry." Of a packed ring it writes length, buffer id and flags of used descriptors.
#[test]
fn nothing_is_written_but_what_the_driver_gave_to_be_written() {
    let buffers = [
        Buffer::readable(READABLE, 0x100),
        Buffer::readable(READABLE + 0x100, 0x10),
        Buffer::writable(WRITABLE, 0x100),
    ];
    for format in [F::empty(), F::RING_PACKED] {
        for event_idx in [F::empty(), F::EVENT_IDX] {
            for indirect in [false, true] {
                let features = F::VERSION_1 | F::INDIRECT_DESC | format | event_idx;
                let (mut driver, mut queue) = queue(features);
                let memory = driver.memory().clone();
                let pattern: Vec<u8> = (0..=255).cycle().take(0x1000).collect();
                memory
                    .write_slice(&pattern, GuestAddress(READABLE))
                    .unwrap();
                if indirect {
                    driver.add_indirect(TABLE, &buffers);
                } else {
                    driver.add(&buffers);
                }
                let before = bytes(&memory);

                queue.disable_notifications();
                let chain = pop(&mut queue);
                assert_eq!(chain.write(0, &[0x5a; 0x1000]), 0x100, "more than fits");
                queue.push_used(chain.head(), 0x100).unwrap();
                queue.publish();
                queue.needs_notification();
                assert!(!queue.enable_notifications().unwrap());

                let config = driver.config();
                let device = if format.is_empty() {
                    // flags, idx, 8 elements, avail_event
                    vec![range(config.device, 4 + 8 * 8 + 2)]
                } else {
                    // The event suppression; of the first descriptor all but its address.
                    vec![range(config.device, 4), range(config.desc + 8, 8)]
                };
                let after = bytes(&memory);
                let changed = (0..LEN).filter(|at| before[*at] != after[*at]);
                let may = |at: &usize| {
                    range(WRITABLE, 0x100).contains(at)
                        || device.iter().any(|range| range.contains(at))
                };
                let (good, bad): (Vec<_>, Vec<_>) = changed.partition(may);
                assert!(bad.is_empty(), "{features:?} {indirect}: {bad:x?}");
                assert!(good.len() > 0x100, "{features:?} {indirect}: no device");
            }
        }
    }
}

/// 2.7.7.2: without VIRTIO_F_EVENT_IDX, "The device MUST ignore the used_event value", "If flags is 0, the device MUST send
/// a notification"; with it, "The device MUST ignore the lower bit of flags", and "If the idx field in the used ring
/// [...] was equal to used_event, the device MUST send a notification".
#[test]
fn only_flags_or_only_the_event_decides_as_negotiated() {
    for event_idx in [false, true] {
        for no_interrupt in [false, true] {
            for event in [0, 1, 2, 3, 7, 0x8000, 0xffff] {
                let features = if event_idx { F::EVENT_IDX } else { F::empty() };
                let (mut driver, mut queue) = split(features);
                let mut one = |driver: &mut SplitDriver<Memory>| {
                    driver.add(&[Buffer::readable(READABLE, 1)]);
                    let head = pop(&mut queue).head();
                    queue.push_used(head, 0).unwrap();
                    queue.publish();
                    queue.needs_notification()
                };
                // Of the first, a driver with an event index is told whatever it wants.
                one(&mut driver);
                driver.set_no_interrupt(no_interrupt);
                driver.set_used_event(event);
                for index in 1..4 {
                    let expected = if event_idx {
                        event == index
                    } else {
                        !no_interrupt
                    };
                    assert_eq!(
                        one(&mut driver),
                        expected,
                        "{event_idx} {no_interrupt} {event} {index}"
                    );
                }
            }
        }
    }
}

/// 2.7.8.2: "The device MUST set len prior to updating the used idx. The device MUST write at least len bytes to
/// descriptor, beginning at the first device-writable buffer, prior to updating the used idx."
#[test]
fn an_element_is_whole_before_the_used_index_moves() {
    let (mut driver, mut queue) = split(F::empty());
    let used = driver.config().device;
    let memory = driver.memory().clone();
    let word = |at| -> u32 { memory.read_obj(GuestAddress(at)).unwrap() };
    for (index, entry) in (0..20_u16).zip((0..8).cycle()) {
        let head = driver.add(&[
            Buffer::writable(WRITABLE, 2),
            Buffer::writable(WRITABLE + 0x10, 9),
        ]);
        let chain = pop(&mut queue);
        let data = [u8::try_from(index).unwrap(); 5];
        assert_eq!(chain.write(0, &data), 5);
        queue.push_used(chain.head(), 5).unwrap();
        let element = used + 4 + 8 * entry;
        assert_eq!((word(element), word(element + 4)), (head.into(), 5));
        for at in [0, 1, 0x10, 0x11, 0x12] {
            let written: u8 = memory.read_obj(GuestAddress(WRITABLE + at)).unwrap();
            assert_eq!(written, data[0], "{index}: {at:#x}");
        }
        assert_eq!(driver.published(), index);
        queue.publish();
        assert_eq!(driver.published(), index + 1);
        assert_eq!(driver.take_used(), Some((head.into(), 5)));
    }
}

/// 2.7.10.2: without VIRTIO_F_EVENT_IDX, "The device MUST set flags to 0 or 1"; with it, "to 0".
#[test]
fn the_used_rings_flags_are_those_that_may_be() {
    for (features, busy) in [(F::empty(), 1), (F::EVENT_IDX, 0)] {
        let (mut driver, mut queue) = split(features);
        for _ in 0..3 {
            assert_eq!(driver.used_flags(), 0);
            queue.disable_notifications();
            assert_eq!(driver.used_flags(), busy, "{features:?}");
            driver.add(&[Buffer::readable(READABLE, 1)]);
            let head = pop(&mut queue).head();
            queue.push_used(head, 0).unwrap();
            queue.publish();
            queue.needs_notification();
            assert_eq!(driver.used_flags(), busy, "{features:?}");
            assert!(!queue.enable_notifications().unwrap());
        }
    }
}

/// 2.8.15: "A device MUST NOT change a descriptor after changing it's the VIRTQ_DESC_F_USED bit in its flags."
#[test]
fn a_used_descriptor_is_not_written_again_before_the_driver_has_it_back() {
    let (mut driver, mut queue) = packed(F::EVENT_IDX);
    // Of two descriptors each; all of the ring, three times.
    let pair = [Buffer::readable(READABLE, 1), Buffer::writable(WRITABLE, 8)];
    for lap in 0..3 {
        let ids = [0; 4].map(|_| driver.add(&pair));
        let chains = [0; 4].map(|_| pop(&mut queue));
        let mut used = Vec::new();
        // One, then two at once, then one; not in the order in which they came.
        for batch in [&[2_usize][..], &[0, 3], &[1]] {
            for i in batch {
                queue.push_used(chains[*i].head(), 8).unwrap();
            }
            queue.publish();
            for i in batch {
                let slot = u16::try_from(used.len()).unwrap() * 2;
                let descriptor = driver.descriptor(slot);
                assert_eq!(descriptor.id, ids[*i], "{lap}");
                used.push((slot, descriptor));
            }
            queue.disable_notifications();
            queue.needs_notification();
            assert!(!queue.enable_notifications().unwrap());
            for (slot, descriptor) in &used {
                assert_eq!(driver.descriptor(*slot), *descriptor, "{lap}: {slot}");
            }
        }
        while driver.take_used().is_some() {}
        assert_eq!(driver.free(), 8);
    }
}
