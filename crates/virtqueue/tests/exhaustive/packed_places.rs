//! Every offset with wrap counter: where a queue stands, and where an event is.

use virtio::F;
use virtqueue::{Chain, QueueError, QueueState};

use crate::packed_ring::{PackedRing, Place};

/// How many descriptors `to` is after `from`, by counting; `None` if never.
fn distance(from: Place, to: Place, size: u16) -> Option<u16> {
    (0..2 * size).find(|count| from.plus(*count, size) == to)
}

/// All places of a ring.
fn places(size: u16) -> impl Iterator<Item = Place> {
    (0..2 * size).map(move |count| Place::START.plus(count, size))
}

#[test]
fn a_queue_stands_where_at_most_its_size_is_outstanding_and_nowhere_else() {
    for size in [1, 2, 3] {
        let ring = PackedRing::new(size);
        for used in places(size) {
            for value in 0..=u16::MAX {
                let avail = Place::of(value);
                // Each of the two may be the one that is anywhere.
                for (next_avail, next_used) in [(avail, used), (used, avail)] {
                    let queue = ring.queue(F::VERSION_1, next_avail, next_used);
                    let outstanding = if next_avail.offset < size && next_used.offset < size {
                        distance(next_used, next_avail, size).filter(|count| *count <= size)
                    } else {
                        None
                    };
                    let case = (next_avail, next_used, size);
                    match (queue, outstanding) {
                        (Ok(queue), Some(_)) => {
                            let state = QueueState {
                                next_avail: next_avail.value(),
                                next_used: next_used.value(),
                            };
                            assert_eq!(queue.state(), state, "{case:?}");
                        }
                        (Err(QueueError::State { .. }), None) => {}
                        (queue, outstanding) => panic!("{case:?} {outstanding:?}: {queue:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn of_what_is_outstanding_the_driver_has_nothing_to_make_available() {
    let mut chain = Chain::new();
    for size in [1, 2, 3] {
        let ring = PackedRing::new(size);
        for next_used in places(size) {
            for outstanding in 0..=size {
                let next_avail = next_used.plus(outstanding, size);
                ring.clear(next_avail);
                for nth in 0..size {
                    let place = next_avail.plus(nth, size);
                    ring.set_buffer(place, 0x2000, 8, nth);
                    ring.set_flags(place, place.available());
                }
                let mut queue = ring.queue(F::VERSION_1, next_avail, next_used).unwrap();
                let mut taken = 0;
                while let Ok(true) = queue.pop(&mut chain) {
                    taken += 1;
                }
                assert_eq!(taken, size - outstanding, "{next_used:?} {size}");
                // All that there are is none too many; one more breaks the queue.
                assert_eq!(queue.is_broken(), outstanding > 0, "{next_used:?} {size}");
            }
        }
    }
}

#[test]
fn an_event_is_told_exactly_when_its_descriptor_is_used_for_every_offset() {
    let features = F::VERSION_1 | F::EVENT_IDX;
    let mut chain = Chain::new();
    for size in [1, 2, 3] {
        let ring = PackedRing::new(size);
        for count in 1..=size {
            let mut place = Place::START;
            ring.clear(place);
            let mut queue = ring.queue(features, place, place).unwrap();
            let mut first = true;
            let mut turn = |event: u16, flags: u16| {
                ring.set_driver_event(event, flags);
                for nth in 0..count {
                    let at = place.plus(nth, size);
                    ring.set_buffer(at, 0x2000, 8, nth);
                    ring.set_flags(at, at.available());
                }
                for id in 0..count {
                    assert!(queue.pop(&mut chain).unwrap());
                    queue.push_used(id, 0).unwrap();
                }
                queue.publish();
                let is_event = Place::of(event).offset < size;
                let was_used = (0..count).any(|nth| place.plus(nth, size) == Place::of(event));
                let told = match flags & 3 {
                    1 => false,
                    // The first is told: where the driver stood before is not known.
                    2 => first || !is_event || was_used,
                    _ => true,
                };
                let case = (size, count, place, event, flags);
                assert_eq!(queue.needs_notification(), told, "{case:?}");
                assert!(!queue.needs_notification(), "told twice");
                first = false;
                place = place.plus(count, size);
            };
            for event in 0..=u16::MAX {
                turn(event, 2);
            }
            // Of the flags two bits count.
            for flags in (0..16).chain(0xfff0..=u16::MAX) {
                turn(0, flags);
            }
        }
    }
}

#[test]
fn a_device_that_asks_for_kicks_asks_for_the_next_descriptor_wherever_it_stands() {
    let mut chain = Chain::new();
    for event_idx in [false, true] {
        let mut features = F::VERSION_1;
        features.set(F::EVENT_IDX, event_idx);
        for size in [1, 2, 3] {
            let ring = PackedRing::new(size);
            for place in places(size) {
                ring.clear(place);
                let mut queue = ring.queue(features, place, place).unwrap();
                queue.disable_notifications();
                assert_eq!(ring.device_event().1, 1);
                // What the driver writes before the device looks, it finds when it asks.
                ring.set_buffer(place, 0x2000, 8, 0);
                ring.set_flags(place, place.available());
                assert!(queue.enable_notifications().unwrap());
                assert!(queue.pop(&mut chain).unwrap());
                queue.push_used(0, 0).unwrap();
                queue.publish();
                assert!(!queue.enable_notifications().unwrap());
                let next = place.plus(1, size).value();
                let expected = if event_idx { (next, 2) } else { (0, 0) };
                assert_eq!(ring.device_event(), expected, "{place:?} of {size}");
            }
        }
    }
}
