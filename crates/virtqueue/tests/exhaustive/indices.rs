//! Every available index; every distance of an event index.

use virtio::F;
use virtqueue::{Chain, QueueError};

use crate::ring::{Desc, Rings};

const DATA: u64 = 0x2000;

fn rings(size: u16) -> Rings {
    let rings = Rings::new(size);
    for index in 0..size {
        let (addr, len) = (DATA, 8);
        let (flags, next) = (0, 0);
        let desc = Desc {
            addr,
            len,
            flags,
            next,
        };
        rings.set_desc(index, desc);
    }
    rings
}

/// Where indices begin: at the ends, in the middle, and before the wrap.
const STARTS: [u16; 7] = [0, 1, 0x7fff, 0x8000, 0xfffc, 0xfffe, 0xffff];

#[test]
fn every_available_index_yields_its_distance_in_chains_or_an_error() {
    let mut chain = Chain::new();
    for size in [1, 2, 4] {
        let rings = rings(size);
        for start in STARTS {
            for slot in 0..size {
                rings.set_avail_entry(start.wrapping_add(slot), size - 1 - slot);
            }
            // All of them for one size; of the others those around what is allowed, and far ones.
            let distances: Vec<u16> = match size {
                4 => (0..=u16::MAX).collect(),
                _ => (0..=2 * size)
                    .chain(0x7ffe..0x8002)
                    .chain(0xfff0..=0xffff)
                    .collect(),
            };
            for distance in distances {
                rings.set_avail_idx(start.wrapping_add(distance));
                rings.set_used_idx(start);
                let mut queue = rings.queue(F::VERSION_1, start);
                if distance > size {
                    let error = queue.pop(&mut chain);
                    assert!(
                        matches!(error, Err(QueueError::AvailIndex { .. })),
                        "{distance} from {start}: {error:?}"
                    );
                    assert_eq!(queue.in_flight(), 0);
                    continue;
                }
                for taken in 0..distance {
                    assert!(queue.pop(&mut chain).unwrap(), "{taken} of {distance}");
                    assert_eq!(chain.head(), size - 1 - taken);
                }
                assert!(!queue.pop(&mut chain).unwrap(), "{distance} from {start}");
                assert_eq!(queue.in_flight(), distance);
            }
        }
    }
}

#[test]
fn an_index_that_moves_in_two_jumps_never_has_more_chains_taken_than_there_are_entries() {
    let mut chain = Chain::new();
    for size in [1, 2, 4] {
        let rings = rings(size);
        let span = -i32::from(size) - 1..=2 * i32::from(size) + 1;
        for start in STARTS {
            for slot in 0..size {
                rings.set_avail_entry(start.wrapping_add(slot), slot);
            }
            for first in 0..=size {
                for taken in 0..=first {
                    for second in span.clone() {
                        rings.set_avail_idx(start.wrapping_add(first));
                        let mut queue = rings.queue(F::VERSION_1, start);
                        for _ in 0..taken {
                            assert!(queue.pop(&mut chain).unwrap());
                        }
                        rings.set_avail_idx(start.wrapping_add_signed(second as i16));
                        let mut heads: Vec<u16> = (0..taken).collect();
                        while let Ok(true) = queue.pop(&mut chain) {
                            assert!(!heads.contains(&chain.head()), "in flight twice");
                            heads.push(chain.head());
                            assert!(heads.len() <= usize::from(size));
                        }
                        assert_eq!(usize::from(queue.in_flight()), heads.len());
                        // What was allowed both times is all taken.
                        if (i32::from(first)..=i32::from(size)).contains(&second) {
                            assert_eq!(heads.len(), second as usize);
                            assert!(!queue.is_broken());
                        }
                    }
                }
            }
        }
    }
}

/// Whether an index that goes from `old` to `new` passes `event`, by counting (virtio 1.4, 2.7.7.1).
fn passes(event: u16, old: u16, steps: u16) -> bool {
    (0..steps).any(|step| old.wrapping_add(step) == event)
}

#[test]
fn an_event_is_told_exactly_when_it_is_passed_for_every_distance() {
    let features = F::VERSION_1 | F::EVENT_IDX;
    let mut chain = Chain::new();
    for (size, start) in [(1, 0_u16), (2, 0xfff0), (4, 0x7ff0)] {
        let rings = rings(size);
        let mut queue = rings.queue(features, start);
        let mut index = start;
        let mut first = true;
        let mut turn = |distance: u16, count: u16| {
            // As far from where the index is, which runs on, so that each position is met too.
            let event = index.wrapping_add(distance);
            rings.set_used_event(event);
            for n in 0..count {
                rings.set_avail_entry(index.wrapping_add(n), n);
            }
            rings.set_avail_idx(index.wrapping_add(count));
            for head in 0..count {
                assert!(queue.pop(&mut chain).unwrap());
                queue.push_used(head, 0).unwrap();
            }
            queue.publish();
            let old = index;
            index = index.wrapping_add(count);
            assert_eq!(rings.used_idx(), index, "only forwards");
            let told = queue.needs_notification();
            assert!(!queue.needs_notification(), "told twice");
            // The first is told whatever the event is: where the driver stood before is not known.
            let first = std::mem::take(&mut first);
            let passed = passes(event, old, count);
            assert_eq!(
                told,
                first || passed,
                "{event} and {old}, {count} of {size}"
            );
        };
        for count in 1..=size {
            for distance in 0..=u16::MAX {
                turn(distance, count);
            }
        }
    }
}

#[test]
fn a_device_that_asks_for_kicks_asks_for_the_next_entry_wherever_it_stands() {
    let mut chain = Chain::new();
    for event_idx in [false, true] {
        let mut features = F::VERSION_1;
        features.set(F::EVENT_IDX, event_idx);
        let rings = rings(4);
        let mut queue = rings.queue(features, 0);
        for index in (0..=u16::MAX).chain(0..8) {
            queue.disable_notifications();
            assert!(event_idx || rings.no_notify());
            // What the driver writes before the device looks, it finds when it asks.
            rings.set_avail_entry(index, 0);
            rings.set_avail_idx(index.wrapping_add(1));
            assert!(queue.enable_notifications().unwrap(), "{index}");
            assert!(queue.pop(&mut chain).unwrap());
            queue.push_used(0, 0).unwrap();
            queue.publish();
            assert!(!queue.enable_notifications().unwrap(), "{index}");
            if event_idx {
                assert_eq!(rings.avail_event(), index.wrapping_add(1));
            } else {
                assert!(!rings.no_notify());
            }
        }
    }
}
