//! Used rings and notifications, both ways, in both formats.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::sync::Arc;

use virtio::F;
use virtqueue::mock::{Buffer, Driver};
use virtqueue::{Chain, NOTIFY_ON_EMPTY, QueueError, QueueState, VirtQueue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;

const DATA: u64 = 0x8000;

/// Split and packed.
fn formats() -> [F; 2] {
    [F::VERSION_1, F::VERSION_1 | F::RING_PACKED]
}

fn queue(size: u16, features: F) -> (Driver<Memory>, VirtQueue<Memory>) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
    let driver = Driver::new(memory.clone(), GuestAddress(0), size, features);
    let state = QueueState::initial(features);
    let queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
    (driver, queue)
}

fn take(queue: &mut VirtQueue<Memory>, count: usize) -> Vec<Chain<Memory>> {
    (0..count)
        .map(|_| {
            let mut chain = Chain::new();
            assert!(queue.pop(&mut chain).unwrap());
            chain
        })
        .collect()
}

#[test]
fn elements_are_seen_when_they_are_published_and_not_before() {
    for features in formats() {
        let (mut driver, mut queue) = queue(8, features);
        let heads: Vec<u16> = (0..3)
            .map(|_| driver.add(&[Buffer::writable(DATA, 64)]))
            .collect();
        for chain in take(&mut queue, 3) {
            queue.push_used(chain.head(), 7).unwrap();
            assert!(!driver.has_used());
        }
        assert_eq!(queue.publish(), 3);
        for head in heads {
            assert_eq!(driver.take_used(), Some((u32::from(head), 7)));
        }
        assert_eq!(driver.take_used(), None);
        assert_eq!(queue.publish(), 0);
        assert_eq!(queue.state(), driver.state());
    }
}

#[test]
fn a_head_is_completed_once_and_only_if_it_was_taken() {
    for features in formats() {
        for in_order in [F::empty(), F::IN_ORDER] {
            let (mut driver, mut queue) = queue(8, features | in_order);
            driver.add(&[Buffer::writable(DATA, 64)]);
            driver.add(&[Buffer::writable(DATA, 64)]);
            let chains = take(&mut queue, 2);
            // The second first: in order, it waits for the first.
            let chain = &chains[1];
            queue.push_used(chain.head(), 0).unwrap();
            assert_eq!(queue.in_flight(), 1);
            for head in [chain.head(), 5, 8, u16::MAX] {
                assert!(
                    matches!(queue.push_used(head, 0), Err(QueueError::NotInFlight(h)) if h == head),
                    "{head}"
                );
            }
            queue.push_used(chains[0].head(), 0).unwrap();
            assert_eq!(queue.publish(), 2);
            assert_eq!(queue.in_flight(), 0);
            assert!(!queue.is_broken());
        }
    }
}

#[test]
fn chains_complete_in_any_order_for_as_long_as_one_likes() {
    for features in formats() {
        let (mut driver, mut queue) = queue(4, features | F::EVENT_IDX);
        // Past the wrap of the indices.
        for turn in 0..17_000_u32 {
            let heads: Vec<u16> = (0..4)
                .map(|_| driver.add(&[Buffer::writable(DATA, 64)]))
                .collect();
            let chains = take(&mut queue, 4);
            let order = if turn % 2 == 0 {
                [3, 1, 0, 2]
            } else {
                [0, 2, 3, 1]
            };
            for i in order {
                queue.push_used(chains[i].head(), turn).unwrap();
            }
            queue.publish();
            for i in order {
                assert_eq!(driver.take_used(), Some((u32::from(heads[i]), turn)));
            }
            assert_eq!(driver.free(), 4);
        }
        assert_eq!(queue.state().next_avail, queue.state().next_used);
    }
}

/// "If VIRTIO_F_IN_ORDER has been negotiated, a device MUST use buffers in the same order in which they have been
/// available" (virtio 1.4, 6.1).
#[test]
fn with_in_order_chains_are_used_as_they_were_made_available_however_they_complete() {
    for features in formats() {
        let (mut driver, mut queue) = queue(16, features | F::IN_ORDER);
        for turn in 0..17_000_u32 {
            // Of one and of two descriptors.
            let heads: Vec<u16> = (0..4)
                .map(|i| driver.add(&[Buffer::writable(DATA, 64); 2][i % 2..]))
                .collect();
            let chains = take(&mut queue, 4);
            let orders = [[3, 1, 0, 2], [0, 2, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3]];
            let order = orders[turn as usize % 4];
            let mut done = [false; 4];
            let mut seen = 0;
            for i in order {
                queue.push_used(chains[i].head(), turn).unwrap();
                done[i] = true;
                queue.publish();
                // All that are done before the first that is not.
                while done.get(seen) == Some(&true) {
                    let used = driver.take_used();
                    assert_eq!(used, Some((u32::from(heads[seen]), turn)), "{order:?}");
                    seen += 1;
                }
                assert!(!driver.has_used(), "{order:?} {i}");
            }
            assert_eq!(driver.free(), 16);
        }
    }
}

#[test]
fn with_in_order_a_chain_that_waits_for_its_turn_cannot_be_made_available_again_or_given_back() {
    let (mut driver, mut queue) = queue(8, F::VERSION_1 | F::IN_ORDER);
    let heads = [0, 1].map(|_| driver.add(&[Buffer::writable(DATA, 64)]));
    let mut chains = take(&mut queue, 2);
    queue.push_used(heads[1], 1).unwrap();
    assert_eq!(queue.publish(), 0, "it is not its turn");
    assert!(!queue.undo_pop(&mut chains[1]));
    assert!(
        !queue.undo_pop(&mut chains[0]),
        "not the last that was taken"
    );
    driver.split().offer(heads[1]);
    let again = queue.pop(&mut chains[1]);
    assert!(matches!(again, Err(QueueError::HeadInFlight(h)) if h == heads[1]));
}

#[test]
fn without_an_event_index_the_drivers_flag_decides() {
    for features in formats() {
        let (mut driver, mut queue) = queue(8, features);
        for (no_interrupt, wanted) in [(false, true), (true, false), (false, true)] {
            driver.set_no_interrupt(no_interrupt);
            driver.add(&[Buffer::readable(DATA, 1)]);
            let chain = take(&mut queue, 1).remove(0);
            queue.push_used(chain.head(), 0).unwrap();
            queue.publish();
            assert_eq!(queue.needs_notification(), wanted, "{no_interrupt}");
            assert!(!queue.needs_notification(), "asked again with nothing new");
        }
    }
}

#[test]
fn with_an_event_index_only_passing_it_notifies() {
    for features in formats() {
        let (mut driver, mut queue) = queue(8, features | F::EVENT_IDX);
        let mut turn = |driver: &mut Driver<Memory>, count: usize| {
            for _ in 0..count {
                driver.add(&[Buffer::readable(DATA, 1)]);
            }
            for chain in take(&mut queue, count) {
                queue.push_used(chain.head(), 0).unwrap();
            }
            queue.publish();
            while driver.take_used().is_some() {}
            queue.needs_notification()
        };
        // (set the event so far from here, or leave it; chains used; expected)
        let table = [
            (Some(7), 1, true), // the first: where the driver stood before is not known
            (Some(7), 3, false),
            (Some(0), 1, true),
            (None, 2, false),
            (Some(3), 2, false),
            (None, 1, false),
            (None, 1, true),
            (Some(4), 5, true),
            (Some(6), 8, true),
            (None, 6, false),
        ];
        for (row, (event, count, expected)) in table.into_iter().enumerate() {
            if let Some(after) = event {
                driver.want_interrupt(after);
            }
            assert_eq!(
                turn(&mut driver, count),
                expected,
                "{features:?}, row {row}"
            );
        }
    }
}

#[test]
fn kicks_are_invited_only_when_the_device_asks_for_them() {
    for features in formats() {
        for event_idx in [F::empty(), F::EVENT_IDX] {
            let (mut driver, mut queue) = queue(8, features | event_idx);
            let add = |driver: &mut Driver<Memory>| {
                driver.add(&[Buffer::readable(DATA, 1)]);
                driver.kick_wanted()
            };
            assert!(add(&mut driver), "a new queue wants its first kick");
            queue.disable_notifications();
            assert!(!add(&mut driver), "busy");
            let _chains = take(&mut queue, 2);
            assert!(!add(&mut driver), "still busy");
            assert!(
                queue.enable_notifications().unwrap(),
                "one is there already"
            );
            let _chain = take(&mut queue, 1);
            assert!(!queue.enable_notifications().unwrap());
            assert!(add(&mut driver), "{features:?}: asked for");
        }
    }
}

#[test]
fn a_queue_goes_on_from_its_state_with_a_notification_rather_than_too_few() {
    for features in formats() {
        let features = features | F::EVENT_IDX;
        let (mut driver, mut queue) = queue(8, features);
        let heads: Vec<_> = (0..3)
            .map(|_| driver.add(&[Buffer::readable(DATA, 1)]))
            .collect();
        let chain = take(&mut queue, 1).remove(0);
        queue.push_used(chain.head(), 0).unwrap();
        queue.publish();
        let state = queue.state();
        let memory = driver.memory().clone();
        let mut queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
        driver.want_interrupt(7);
        for chain in take(&mut queue, 2) {
            queue.push_used(chain.head(), 0).unwrap();
        }
        queue.publish();
        assert!(queue.needs_notification());
        for head in heads {
            assert_eq!(driver.take_used(), Some((head.into(), 0)));
        }
    }
}

#[test]
fn only_the_chain_that_was_taken_last_can_be_given_back() {
    for features in formats() {
        for in_order in [F::empty(), F::IN_ORDER] {
            let (mut driver, mut queue) = queue(8, features | in_order);
            let before = queue.state();
            let heads: Vec<u16> = (0..3)
                .map(|_| driver.add(&[Buffer::readable(DATA, 1); 2]))
                .collect();
            let mut chains = take(&mut queue, 3);
            assert!(!queue.undo_pop(&mut chains[0]));
            assert!(queue.undo_pop(&mut chains[2]));
            assert!(!queue.undo_pop(&mut chains[2]), "once");
            assert!(queue.undo_pop(&mut chains[1]));
            assert_eq!(queue.in_flight(), 1);
            let again = take(&mut queue, 2);
            assert_eq!([again[0].head(), again[1].head()], heads[1..]);
            for chain in again.iter().rev().chain([&chains[0]]) {
                assert_eq!(chain.readable_len(), 2);
                queue.push_used(chain.head(), 0).unwrap();
            }
            assert_eq!(queue.publish(), 3);
            while driver.take_used().is_some() {}
            assert_eq!(driver.free(), 8);
            assert_eq!(queue.state(), driver.state());
            assert_ne!(queue.state(), before);
        }
    }
}

#[test]
fn a_queue_that_runs_empty_is_told_of_unasked_if_that_was_negotiated() {
    // (features, whether all that was available is used, whether the driver is told)
    let table = [
        (NOTIFY_ON_EMPTY, true, true),
        (NOTIFY_ON_EMPTY, false, false),
        (NOTIFY_ON_EMPTY | F::EVENT_IDX, true, true),
        (NOTIFY_ON_EMPTY | F::EVENT_IDX, false, false),
        (F::empty(), true, false),
        (F::EVENT_IDX, true, false),
    ];
    for (features, all, expected) in table {
        for taken in [1, 2] {
            let (mut driver, mut queue) = queue(8, features);
            for _ in 0..3 {
                driver.add(&[Buffer::writable(DATA, 64)]);
            }
            let first = take(&mut queue, 1);
            queue.push_used(first[0].head(), 0).unwrap();
            queue.publish();
            queue.needs_notification();
            if features.contains(F::EVENT_IDX) {
                driver.want_interrupt(100);
            } else {
                driver.set_no_interrupt(true);
            }
            let chains = take(&mut queue, if all { 2 } else { taken });
            // Without `all`: one is still available, or taken and not used.
            for chain in &chains[..if all { 2 } else { 1 }] {
                queue.push_used(chain.head(), 0).unwrap();
            }
            queue.publish();
            assert_eq!(queue.needs_notification(), expected, "{features:?} {all}");
        }
    }
}
