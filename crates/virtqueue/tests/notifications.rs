//! Used rings and notifications, both ways.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::sync::Arc;

use virtio::F;
use virtqueue::mock::{Buffer, SplitDriver};
use virtqueue::{Chain, QueueError, QueueState, VirtQueue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;

const DATA: u64 = 0x8000;

fn queue(size: u16, features: F) -> (SplitDriver<Memory>, VirtQueue<Memory>) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
    let driver = SplitDriver::new(memory.clone(), GuestAddress(0), size, features);
    let queue = VirtQueue::new(&driver.config(), QueueState::default(), features, memory).unwrap();
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
    let (mut driver, mut queue) = queue(8, F::VERSION_1);
    let heads: Vec<u16> = (0..3)
        .map(|_| driver.add(&[Buffer::writable(DATA, 64)]))
        .collect();
    for chain in take(&mut queue, 3) {
        queue.push_used(chain.head(), 7).unwrap();
        assert_eq!(driver.published(), 0);
    }
    assert_eq!(queue.publish(), 3);
    assert_eq!(driver.published(), 3);
    for head in heads {
        assert_eq!(driver.take_used(), Some((u32::from(head), 7)));
    }
    assert_eq!(driver.take_used(), None);
    assert_eq!(queue.publish(), 0);
}

#[test]
fn a_head_is_completed_once_and_only_if_it_was_taken() {
    let (mut driver, mut queue) = queue(8, F::VERSION_1);
    driver.add(&[Buffer::writable(DATA, 64)]);
    let chain = take(&mut queue, 1).remove(0);
    queue.push_used(chain.head(), 0).unwrap();
    for head in [chain.head(), 5, 8, u16::MAX] {
        assert!(
            matches!(queue.push_used(head, 0), Err(QueueError::NotInFlight(h)) if h == head),
            "{head}"
        );
    }
    assert_eq!(queue.publish(), 1);
    assert!(!queue.is_broken());
}

#[test]
fn chains_complete_in_any_order_for_as_long_as_one_likes() {
    let (mut driver, mut queue) = queue(4, F::VERSION_1 | F::EVENT_IDX);
    // Past the wrap of the indices.
    for turn in 0..20_000_u32 {
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

#[test]
fn without_an_event_index_the_drivers_flag_decides() {
    let (mut driver, mut queue) = queue(8, F::VERSION_1);
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

#[test]
fn with_an_event_index_only_passing_it_notifies() {
    let (mut driver, mut queue) = queue(8, F::VERSION_1 | F::EVENT_IDX);
    let mut turn = |driver: &mut SplitDriver<Memory>, count: usize| {
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
    // (used event, chains used, expected); the used index runs on from row to row.
    let table = [
        (100, 1, true), // the first: where the driver stood before is not known
        (100, 3, false),
        (4, 1, true),
        (4, 2, false),
        (9, 2, false),
        (9, 1, true),
        (12, 5, true),
    ];
    for (event, count, expected) in table {
        driver.set_used_event(event);
        assert_eq!(turn(&mut driver, count), expected, "{event}, {count}");
    }
}

#[test]
fn kicks_are_invited_only_when_the_device_asks_for_them() {
    for features in [F::VERSION_1, F::VERSION_1 | F::EVENT_IDX] {
        let (mut driver, mut queue) = queue(8, features);
        let add = |driver: &mut SplitDriver<Memory>| {
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

#[test]
fn a_queue_goes_on_from_its_state_with_a_notification_rather_than_too_few() {
    let features = F::VERSION_1 | F::EVENT_IDX;
    let (mut driver, mut queue) = queue(8, features);
    for _ in 0..3 {
        driver.add(&[Buffer::readable(DATA, 1)]);
    }
    let chain = take(&mut queue, 1).remove(0);
    queue.push_used(chain.head(), 0).unwrap();
    queue.publish();
    let state = queue.state();
    let memory = driver.memory().clone();
    let mut queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
    driver.set_used_event(0x4000);
    for chain in take(&mut queue, 2) {
        queue.push_used(chain.head(), 0).unwrap();
    }
    queue.publish();
    assert!(queue.needs_notification());
    assert_eq!(driver.published(), 3);
}

#[test]
fn only_the_chain_that_was_taken_last_can_be_given_back() {
    let (mut driver, mut queue) = queue(8, F::VERSION_1);
    let heads: Vec<u16> = (0..3)
        .map(|_| driver.add(&[Buffer::readable(DATA, 1)]))
        .collect();
    let mut chains = take(&mut queue, 3);
    assert!(!queue.undo_pop(&mut chains[0]));
    assert!(queue.undo_pop(&mut chains[2]));
    assert!(!queue.undo_pop(&mut chains[2]), "once");
    assert!(queue.undo_pop(&mut chains[1]));
    assert_eq!((queue.in_flight(), queue.state().next_avail), (1, 1));
    let again = take(&mut queue, 2);
    assert_eq!([again[0].head(), again[1].head()], heads[1..]);
}
