//! Short chains are found, and are what they would be if they were popped.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::sync::Arc;

use virtio::F;
use virtqueue::mock::{Buffer, Driver};
use virtqueue::{Chain, QueueState, Segment, VirtQueue};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

type Memory = Arc<GuestMemoryMmap<()>>;

const DATA: u64 = 0x4_0000;
/// Where another region begins.
const OTHER: u64 = 0x8_0000;
const SIZE: u16 = 8;

fn formats() -> [F; 2] {
    let features = F::VERSION_1 | F::INDIRECT_DESC;
    [features, features | F::RING_PACKED]
}

/// A queue that has popped a first chain, which is of one readable byte, and has given it back.
fn begun(features: F) -> (Driver<Memory>, VirtQueue<Memory>) {
    let ranges = [(GuestAddress(0), 0x8_0000), (GuestAddress(OTHER), 0x1_0000)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    let driver = Driver::new(memory.clone(), GuestAddress(0), SIZE, features);
    let state = QueueState::initial(features);
    let queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
    (driver, queue)
}

/// As [`begun`], with chains behind the first.
fn with(
    features: F,
    chains: &[&[Buffer]],
) -> (Driver<Memory>, VirtQueue<Memory>, Vec<u16>, Chain<Memory>) {
    let (mut driver, mut queue) = begun(features);
    driver.add(&[Buffer::readable(DATA, 1)]);
    let heads = chains.iter().map(|chain| driver.add(chain)).collect();
    assert!(queue.peek().is_none(), "no batch has begun");
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap());
    (driver, queue, heads, chain)
}

fn lens(segments: &[Segment]) -> Vec<(u64, usize)> {
    segments.iter().map(|s| (s.address().0, s.len())).collect()
}

#[test]
fn a_chain_of_one_buffer_or_two_is_shown_and_completed() {
    for features in formats() {
        let one = [Buffer::writable(DATA, 100)];
        let two = [Buffer::readable(DATA, 12), Buffer::readable(DATA + 64, 60)];
        let (mut driver, mut queue, heads, first) = with(features, &[&one, &two]);
        for _ in 0..2 {
            let short = queue.peek().unwrap();
            assert_eq!((short.head(), short.is_writable()), (heads[0], true));
            assert_eq!(
                (lens(short.segments()), short.len()),
                (vec![(DATA, 100)], 100)
            );
            // Dropped, it is still there.
        }
        let position = queue.next_position();
        queue.peek().unwrap().complete(70);
        assert_eq!(queue.next_position(), position.wrapping_add(1));
        let short = queue.peek().unwrap();
        assert_eq!((short.head(), short.is_writable()), (heads[1], false));
        assert_eq!(lens(short.segments()), [(DATA, 12), (DATA + 64, 60)]);
        assert_eq!(short.len(), 72);
        short.complete(0);
        assert!(queue.peek().is_none());
        assert_eq!(queue.in_flight(), 1, "the first one");

        queue.push_used(first.head(), 0).unwrap();
        assert_eq!(queue.publish(), 3);
        assert_eq!(driver.take_used(), Some((heads[0].into(), 70)));
        assert_eq!(driver.take_used(), Some((heads[1].into(), 0)));
        assert_eq!(driver.take_used(), Some((first.head().into(), 0)));
        // All of the ring is the driver's again.
        for _ in 0..2 * SIZE {
            let head = driver.add(&two);
            let mut chain = Chain::new();
            assert!(queue.pop(&mut chain).unwrap());
            queue.push_used(head, 0).unwrap();
            queue.publish();
            assert_eq!(driver.take_used(), Some((head.into(), 0)));
        }
    }
}

#[test]
fn what_is_taken_is_what_would_have_been_popped() {
    let one = [Buffer::writable(DATA, 100)];
    let two = [Buffer::readable(DATA, 12), Buffer::readable(DATA + 64, 60)];
    for (features, chain) in formats()
        .into_iter()
        .flat_map(|features| [(features, &one[..]), (features, &two[..])])
    {
        let (mut driver, mut queue, heads, _first) = with(features, &[chain, &one]);
        let mut popped = Chain::new();
        assert!(queue.pop(&mut popped).unwrap());
        let described = |chain: &Chain<Memory>| {
            (
                (chain.head(), chain.position()),
                (lens(chain.readable()), lens(chain.writable())),
                (chain.readable_len(), chain.writable_len()),
            )
        };
        let expected = described(&popped);
        assert!(queue.undo_pop(&mut popped));

        // What a chain held before is gone.
        let mut taken = Chain::new();
        queue.peek().unwrap().take(&mut taken);
        assert_eq!(described(&taken), expected);
        assert_eq!(queue.in_flight(), 2);
        assert!(queue.undo_pop(&mut taken), "it was the last");
        queue.peek().unwrap().take(&mut taken);
        assert_eq!(described(&taken), expected);
        queue.push_used(taken.head(), 5).unwrap();
        assert!(queue.push_used(taken.head(), 5).is_err(), "once");
        queue.publish();
        assert_eq!(driver.take_used(), Some((heads[0].into(), 5)));
        let mut next = Chain::new();
        assert!(queue.pop(&mut next).unwrap());
        assert_eq!(next.head(), heads[1]);
    }
}

#[test]
fn what_is_not_short_is_left_to_be_popped() {
    let byte = |n: u64| Buffer::readable(DATA + n, 1);
    let chains: [&[Buffer]; 5] = [
        &[byte(0), byte(1), byte(2)],
        &[byte(0), Buffer::writable(DATA, 1)],
        // In a region where nothing was before, and across the border.
        &[Buffer::readable(OTHER, 1)],
        &[Buffer::readable(OTHER - 1, 2)],
        &[byte(0), Buffer::readable(OTHER - 1, 2)],
    ];
    for (features, chain) in formats()
        .into_iter()
        .flat_map(|features| chains.map(|chain| (features, chain)))
    {
        let (_driver, mut queue, heads, _first) = with(features, &[chain]);
        assert!(queue.peek().is_none(), "{features:?} {chain:?}");
        let mut popped = Chain::new();
        assert!(queue.pop(&mut popped).unwrap());
        assert_eq!(popped.head(), heads[0]);
        assert!(queue.peek().is_none(), "there is no more");
    }
    for features in formats() {
        let (mut driver, mut queue) = begun(features);
        driver.add(&[byte(0)]);
        driver.add_indirect(0x2_0000, &[byte(0)]);
        assert!(queue.pop(&mut Chain::new()).unwrap());
        assert!(queue.peek().is_none(), "indirect");
        assert!(queue.pop(&mut Chain::new()).unwrap());
    }
}

#[test]
fn what_makes_no_sense_is_not_shown_and_breaks_the_queue_when_it_is_popped() {
    for features in formats() {
        for bad in [
            &[Buffer::readable(DATA, 0)][..],
            &[Buffer::readable(DATA, 1), Buffer::readable(DATA, 0)],
            &[Buffer::writable(DATA, 1), Buffer::readable(DATA, 1)],
            &[Buffer::readable(u64::MAX, 1)],
            &[Buffer::readable(DATA, u32::MAX)],
        ] {
            let (_driver, mut queue, _, _first) = with(features, &[bad]);
            assert!(queue.peek().is_none(), "{features:?} {bad:?}");
            assert!(queue.pop(&mut Chain::new()).is_err());
            assert!(queue.peek().is_none(), "it is broken");
        }
    }
}

#[test]
fn a_head_that_is_in_flight_or_that_there_is_not_is_not_shown() {
    let features = F::VERSION_1;
    for (again, what) in [(None, "in flight"), (Some(SIZE), "none")] {
        let (mut driver, mut queue) = begun(features);
        let head = driver.add(&[Buffer::readable(DATA, 1)]);
        let Driver::Split(split) = &mut driver else {
            panic!("{driver:?}");
        };
        split.offer(again.unwrap_or(head));
        assert!(queue.pop(&mut Chain::new()).unwrap());
        assert!(queue.peek().is_none(), "{what}");
        assert!(queue.pop(&mut Chain::new()).is_err(), "{what}");
    }
}

#[test]
fn in_order_nothing_is_shown() {
    for features in formats() {
        let features = features | F::IN_ORDER;
        let (_driver, mut queue, _, _first) = with(features, &[&[Buffer::readable(DATA, 1)]]);
        assert!(queue.peek().is_none());
    }
}

#[test]
fn what_was_written_is_marked_dirty_across_both_buffers() {
    const PAGE: u64 = 4096;
    for features in formats() {
        let region = GuestRegionMmap::<AtomicBitmap>::from_range(GuestAddress(0), 0x8_0000, None);
        let memory = GuestMemoryMmap::from_regions(vec![region.unwrap()]).unwrap();
        let memory = Arc::new(memory);
        let mut driver = Driver::new(memory.clone(), GuestAddress(0), SIZE, features);
        let state = QueueState::initial(features);
        let mut queue = VirtQueue::new(&driver.config(), state, features, memory.clone()).unwrap();
        driver.add(&[Buffer::readable(DATA, 1)]);
        let second = DATA + 4 * PAGE;
        driver.add(&[Buffer::writable(DATA, 12), Buffer::writable(second, 8192)]);
        assert!(queue.pop(&mut Chain::new()).unwrap());
        let region = memory.find_region(GuestAddress(0)).unwrap();
        let dirty = |address: u64| region.bitmap().dirty_at(usize::try_from(address).unwrap());
        queue.peek().unwrap().mark_written(12);
        assert_eq!((dirty(DATA), dirty(second)), (true, false));
        queue.peek().unwrap().mark_written(13);
        assert_eq!((dirty(second), dirty(second + PAGE)), (true, false));
        queue.peek().unwrap().mark_written(12 + 4097);
        assert_eq!((dirty(second + PAGE), dirty(DATA + PAGE)), (true, false));
    }
}
