//! The queue against the fake device's memory.

use virtio::F;

use super::*;
use crate::fake::Fake;

fn queue(fake: &Fake, size: u16, features: F, indirect: u16) -> VirtQueue<16> {
    let mut memory = Fake::memory();
    VirtQueue::new(fake, &mut memory, 0, size, features, indirect).unwrap()
}

fn buffer(n: u16) -> DmaRegion {
    DmaRegion {
        address: 0x10_0000 + u64::from(n) * 0x1000,
        len: 0x100 + u32::from(n),
    }
}

#[test]
fn a_size_that_no_queue_can_have_is_refused() {
    let fake = Fake::new();
    for size in [0, 3, 32, 0x8000] {
        let queue = VirtQueue::<16>::new(&fake, &mut Fake::memory(), 0, size, F::empty(), 0);
        assert_eq!(queue.err(), Some(Error::QueueSize(size)));
    }
}

#[test]
fn a_chain_is_invisible_until_it_is_published() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 8, F::empty(), 0);
    queue
        .add(&fake, &[buffer(0), buffer(1)], &[buffer(2)], 7)
        .unwrap();
    assert_eq!(fake.device_avail_index(&queue), 0);
    assert!(queue.publish(&fake));
    assert_eq!(fake.device_avail_index(&queue), 1);
    let chain = fake.device_chain(&queue, 0);
    assert_eq!([chain[0].flags, chain[1].flags, chain[2].flags], [1, 1, 2]);
    assert_eq!(chain[2].len, 0x102);
    assert!(!queue.publish(&fake), "nothing is there to publish");
}

#[test]
fn a_full_queue_takes_more_only_after_a_completion() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 4, F::empty(), 0);
    queue
        .add(&fake, &[buffer(0), buffer(1), buffer(2)], &[], 1)
        .unwrap();
    assert_eq!(
        queue.add(&fake, &[buffer(0); 2], &[], 2),
        Err(Error::QueueFull)
    );
    queue.publish(&fake);
    fake.device_use(&queue, 0, 0);
    assert_eq!(queue.pop(&fake), Ok(Some(Used { token: 1, len: 0 })));
    assert_eq!(queue.pop(&fake), Ok(None));
    assert_eq!(queue.add(&fake, &[buffer(0); 4], &[], 2), Ok(()));
}

#[test]
fn completions_out_of_order_free_what_they_held() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 8, F::empty(), 0);
    // More rounds than the indices count to, so that they wrap.
    for round in 0..70_000_u32 / 3 {
        for token in 0..3 {
            queue.add(&fake, &[buffer(0)], &[buffer(1)], token).unwrap();
        }
        queue.publish(&fake);
        let start = u16::try_from(round * 3 % 0x1_0000).unwrap();
        for (place, token) in [(2, 2), (0, 0), (1, 1)] {
            let head = fake.device_head(&queue, start.wrapping_add(place));
            fake.device_use(&queue, head, 9);
            assert_eq!(
                queue.pop(&fake),
                Ok(Some(Used { token, len: 9 })),
                "{round}"
            );
        }
        assert_eq!(queue.free(), 8);
    }
}

#[test]
fn a_device_that_completes_what_it_has_not_is_found_out() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 4, F::empty(), 0);
    queue.add(&fake, &[buffer(0)], &[], 1).unwrap();
    queue.publish(&fake);
    for id in [1, 3, 4, 0x1_0000, u32::MAX] {
        fake.device_set_used(&queue, 0, id, 0);
        fake.device_set_used_index(&queue, 1);
        assert_eq!(queue.pop(&fake), Err(Error::BrokenRing(0)), "id {id}");
    }
    fake.device_set_used_index(&queue, 5);
    assert_eq!(queue.pop(&fake), Err(Error::BrokenRing(0)), "five of four");
}

#[test]
fn a_long_chain_takes_one_descriptor_when_it_is_indirect() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 4, F::INDIRECT_DESC, 4);
    for _ in 0..4 {
        queue
            .add(&fake, &[buffer(0), buffer(1), buffer(2)], &[buffer(3)], 0)
            .unwrap();
    }
    assert_eq!(queue.free(), 0);
    let head = fake.device_head(&queue, 3);
    let [table, ..] = fake.device_chain(&queue, head);
    assert_eq!((table.flags, table.len), (SplitRing::INDIRECT, 64));
    let last = SplitRing::read_descriptor_at(&fake, table.address, 3);
    let third = SplitRing::read_descriptor_at(&fake, table.address, 2);
    assert_eq!((third.flags, third.next), (SplitRing::NEXT, 3));
    assert_eq!(
        (last.flags, last.address),
        (SplitRing::WRITE, buffer(3).address)
    );
}

#[test]
fn a_chain_longer_than_its_indirect_table_is_direct() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 4, F::INDIRECT_DESC, 2);
    queue.add(&fake, &[buffer(0); 3], &[], 0).unwrap();
    assert_eq!(queue.free(), 1);
    queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
    assert_eq!(queue.free(), 0, "one buffer needs no table");
}

#[test]
fn the_device_is_notified_when_it_wants_to_be() {
    let fake = Fake::new();
    let mut by_flag = queue(&fake, 4, F::empty(), 0);
    fake.device_set_used_flags(&by_flag, SplitRing::NO_NOTIFY);
    by_flag.add(&fake, &[buffer(0)], &[], 0).unwrap();
    assert!(!by_flag.publish(&fake));

    let fake = Fake::new();
    let mut by_event = queue(&fake, 4, F::EVENT_IDX, 0);
    // The flag is to be ignored when there is an index.
    fake.device_set_used_flags(&by_event, SplitRing::NO_NOTIFY);
    for (event, wanted) in [(0, true), (0, false), (2, true), (9, false)] {
        fake.device_set_avail_event(&by_event, event);
        by_event.add(&fake, &[buffer(0)], &[], 0).unwrap();
        assert_eq!(by_event.publish(&fake), wanted, "event {event}");
    }
}

#[test]
fn enabling_interrupts_looks_again() {
    for features in [F::empty(), F::EVENT_IDX] {
        let fake = Fake::new();
        let mut queue = queue(&fake, 4, features, 0);
        let event_idx = features.contains(F::EVENT_IDX);
        assert!(!queue.enable_interrupts(&fake));
        assert!(fake.device_would_interrupt(&queue, event_idx));
        queue.disable_interrupts(&fake);
        assert!(!fake.device_would_interrupt(&queue, event_idx));
        queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
        queue.publish(&fake);
        fake.device_use(&queue, 0, 0);
        assert!(queue.enable_interrupts(&fake), "one is there already");
        queue.pop(&fake).unwrap();
        assert!(!queue.enable_interrupts(&fake));
        assert!(fake.device_would_interrupt(&queue, event_idx));
    }
}

#[test]
fn an_event_is_crossed_only_by_passing_it() {
    let cases = [
        (0, 0, 1, true),
        (1, 0, 1, false),
        (0, 1, 2, false),
        (5, 3, 6, true),
        (6, 3, 6, false),
        (0xffff, 0xfffe, 1, true),
        (1, 0xfffe, 1, false),
    ];
    for (event, old, new, expected) in cases {
        assert_eq!(crossed(event, old, new), expected, "{event} {old} {new}");
    }
}

#[test]
fn notification_data_tells_where_the_driver_stands() {
    let fake = Fake::new();
    let mut queue = queue(&fake, 4, F::NOTIFICATION_DATA, 0);
    queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
    queue.publish(&fake);
    assert_eq!(queue.notification(), (Width::U32, 1 << 16));
}

fn packed_queue(fake: &Fake, size: u16, features: F) -> (VirtQueue<16>, PackedRing) {
    let queue = queue(fake, size, features | F::RING_PACKED, 4);
    let Ring::Packed(ring) = queue.ring() else {
        panic!("packed was negotiated");
    };
    (queue, ring)
}

/// Writes a used descriptor, as a device does.
fn device_uses(fake: &Fake, ring: PackedRing, place: u16, id: u16, len: u32) {
    let used = PackedDescriptor {
        address: 0,
        len,
        id,
        flags: Place::of(place).used(),
    };
    ring.write_descriptor(fake, Place::of(place).offset(), used);
}

const LAP: u16 = 0x8000;

#[test]
fn a_size_that_no_packed_queue_can_have_is_refused() {
    for (size, good) in [(0, false), (1, true), (7, true), (16, true), (17, false)] {
        let fake = Fake::new();
        let queue = VirtQueue::<16>::new(&fake, &mut Fake::memory(), 0, size, F::RING_PACKED, 0);
        assert_eq!(queue.is_ok(), good, "{size}");
    }
}

#[test]
fn packed_descriptors_have_the_flags_of_their_lap_and_the_id_in_the_last() {
    let fake = Fake::new();
    let (mut queue, ring) = packed_queue(&fake, 3, F::empty());
    let [available, other_lap] = [PackedRing::AVAIL, PackedRing::USED];
    queue.add(&fake, &[buffer(0)], &[buffer(1)], 5).unwrap();
    assert_eq!(
        ring.descriptor(&fake, 0).flags,
        0,
        "not before it is published"
    );
    assert!(queue.publish(&fake));
    let chain = [0, 1].map(|slot| ring.descriptor(&fake, slot));
    assert_eq!(chain[0].flags, available | SplitRing::NEXT);
    assert_eq!(chain[1].flags, available | SplitRing::WRITE);
    assert_eq!((chain[0].len, chain[1].len, chain[1].id), (0x100, 0x101, 0));
    device_uses(&fake, ring, LAP, 0, 1);
    assert_eq!(queue.pop(&fake), Ok(Some(Used { token: 5, len: 1 })));
    assert_eq!(queue.pop(&fake), Ok(None));

    // Two chains, the second over the end of the ring: the first of all is published last.
    queue.add(&fake, &[buffer(0)], &[], 6).unwrap();
    queue.add(&fake, &[buffer(0); 2], &[], 7).unwrap();
    let flags = |slot| ring.descriptor(&fake, slot).flags;
    assert_eq!(flags(2), 0, "not published");
    assert_eq!(
        [flags(0), flags(1)],
        [other_lap | SplitRing::NEXT, other_lap]
    );
    assert_eq!(queue.free(), 0);
    assert!(queue.publish(&fake));
    assert_eq!(flags(2), available);
    // The second is used first.
    device_uses(&fake, ring, 2 | LAP, 1, 0);
    assert_eq!(queue.pop(&fake), Ok(Some(Used { token: 7, len: 0 })));
    assert_eq!(queue.free(), 2);
}

#[test]
fn an_indirect_table_of_a_packed_ring_has_no_flag_but_one() {
    let fake = Fake::new();
    let (mut queue, ring) = packed_queue(&fake, 4, F::INDIRECT_DESC);
    queue
        .add(&fake, &[buffer(0), buffer(1)], &[buffer(2)], 0)
        .unwrap();
    queue.publish(&fake);
    assert_eq!(queue.free(), 3);
    let table = ring.descriptor(&fake, 0);
    assert_eq!(table.flags, PackedRing::AVAIL | SplitRing::INDIRECT);
    assert_eq!(table.len, 48);
    let entries = [0, 1, 2].map(|i| PackedRing::read_descriptor_at(&fake, table.address, i));
    assert_eq!(entries.map(|e| e.flags), [0, 0, SplitRing::WRITE]);
    assert_eq!(entries.map(|e| e.len), [0x100, 0x101, 0x102]);
}

#[test]
fn a_device_that_completes_what_it_has_not_is_found_out_in_a_packed_ring_too() {
    for features in [F::empty(), F::IN_ORDER] {
        let fake = Fake::new();
        let (mut queue, ring) = packed_queue(&fake, 4, features);
        device_uses(&fake, ring, LAP, 0, 0);
        assert_eq!(queue.pop(&fake), Ok(None), "nothing is in flight");
        queue.add(&fake, &[buffer(0)], &[], 1).unwrap();
        queue.publish(&fake);
        for id in [1, 3, 4, 16, u16::MAX] {
            device_uses(&fake, ring, LAP, id, 0);
            assert_eq!(queue.pop(&fake), Err(Error::BrokenRing(0)), "id {id}");
        }
        device_uses(&fake, ring, LAP, 0, 0);
        assert_eq!(queue.pop(&fake), Ok(Some(Used { token: 1, len: 0 })));
    }
}

#[test]
fn a_packed_device_is_notified_when_it_wants_to_be() {
    let fake = Fake::new();
    let (mut queue, ring) = packed_queue(&fake, 3, F::EVENT_IDX);
    let device = queue.layout().device;
    let mut done = LAP;
    // (offset and wrap counter, flags, chains to add, wanted); the ring goes on from row to row.
    let table = [
        (0, PackedRing::ENABLE, 1, true),      // 0
        (0, PackedRing::DISABLE, 1, false),    // 1
        (2 | LAP, PackedRing::DESC, 1, true),  // 2
        (0, PackedRing::DESC, 1, true),        // 0 of the other lap
        (0, PackedRing::DESC, 1, false),       // 1
        (LAP, PackedRing::DESC, 2, true),      // 2, and 0 of the first lap again
        (3 | LAP, PackedRing::DESC, 1, false), // no such descriptor
        (1, PackedRing::DESC, 3, true),        // 2, and 0 and 1 of the other lap
        (1 | LAP, PackedRing::DESC, 2, false), // 2 and 0
    ];
    for (row, (event, flags, count, wanted)) in table.into_iter().enumerate() {
        fake.memory_store_u16(device, event);
        fake.memory_store_u16(device + 2, flags);
        for _ in 0..count {
            queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
        }
        assert_eq!(queue.publish(&fake), wanted, "row {row}");
        for _ in 0..count {
            let id = ring.descriptor(&fake, Place::of(done).offset()).id;
            device_uses(&fake, ring, done, id, 0);
            done = Place::of(done).plus(1, 3).value();
            assert!(queue.pop(&fake).unwrap().is_some());
        }
    }
}

/// "The driver needs to look up the used Buffer ID and calculate the batch size" (virtio 1.4, 2.8.8); 2.7.9 says the
/// same of split rings.
#[test]
fn with_in_order_one_completion_may_stand_for_all_before_it() {
    let add = |fake: &Fake, queue: &mut VirtQueue<16>| {
        for token in 10..14 {
            queue
                .add(fake, &[buffer(0)], &[buffer(token)], token)
                .unwrap();
        }
        queue.publish(fake);
    };
    let pops = |fake: &Fake, queue: &mut VirtQueue<16>, expected: &[(u16, u32)]| {
        for &(token, len) in expected {
            assert!(queue.has_used(fake));
            assert_eq!(queue.pop(fake), Ok(Some(Used { token, len })));
        }
        assert!(!queue.has_used(fake));
        assert_eq!(queue.pop(fake), Ok(None));
    };
    // Those that were skipped count as full.
    let first = [(10, 0x10a), (11, 0x10b), (12, 3)];
    let second = [(13, 4)];

    let fake = Fake::new();
    let mut queue = queue(&fake, 8, F::IN_ORDER, 0);
    add(&fake, &mut queue);
    let third = fake.device_head(&queue, 2);
    fake.device_set_used(&queue, 0, third.into(), 3);
    fake.device_set_used_index(&queue, 2);
    assert_eq!(
        queue.pop(&fake),
        Err(Error::BrokenRing(0)),
        "three are not two"
    );
    fake.device_set_used_index(&queue, 3);
    pops(&fake, &mut queue, &first);
    let fourth = fake.device_head(&queue, 3);
    fake.device_set_used(&queue, 3, fourth.into(), 4);
    fake.device_set_used_index(&queue, 4);
    pops(&fake, &mut queue, &second);
    assert_eq!(queue.free(), 8);

    let fake = Fake::new();
    let (mut queue, ring) = packed_queue(&fake, 8, F::IN_ORDER);
    add(&fake, &mut queue);
    let ids = [5, 7].map(|slot| ring.descriptor(&fake, slot).id);
    device_uses(&fake, ring, LAP, ids[0], 3);
    pops(&fake, &mut queue, &first);
    device_uses(&fake, ring, 6 | LAP, ids[1], 4);
    pops(&fake, &mut queue, &second);
    assert_eq!(queue.free(), 8);
}

#[test]
fn packed_places_are_counted_around_two_laps() {
    for size in [1, 3, 4, 0x8000] {
        let mut place = Place::START;
        for count in 0..2 * u32::from(size).min(40) {
            let between = Place::since(place, Place::START, size);
            assert_eq!(u32::from(between), count, "{size}");
            place = place.plus(1, size);
        }
        assert_eq!(Place::START.plus(size, size).plus(size, size), Place::START);
        assert_eq!(Place::since(Place::START, Place::START, size), 0);
    }
    assert_eq!(Place::since(Place::of(3), Place::START, 3), u16::MAX);
    assert_eq!(
        Place::since(Place::of(0x7fff), Place::of(0x7fff), 0x8000),
        0
    );
    assert_eq!(
        Place::since(Place::of(0x7ffe), Place::of(0x7fff), 0x8000),
        u16::MAX
    );
}
