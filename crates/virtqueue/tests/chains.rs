//! What becomes of chains, good and bad.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::collections::BTreeSet;
use std::sync::Arc;

use virtio::F;
use virtqueue::mock::{Buffer, Descriptor, Driver, INDIRECT, NEXT, SplitDriver, WRITE};
use virtqueue::{Chain, MAX_SEGMENTS, QueueConfig, QueueError, QueueState, VirtQueue};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};

type Memory = Arc<GuestMemoryMmap<()>>;

const RINGS: GuestAddress = GuestAddress(0);
const TABLE: u64 = 0x8000;
const DATA: u64 = 0x10_0000;

/// 2 MiB, of which the second follows the first as a region of its own; then a hole; then 64 KiB.
fn memory() -> Memory {
    let ranges = [
        (GuestAddress(0), 0x10_0000),
        (GuestAddress(DATA), 0x10_0000),
        (GuestAddress(0x40_0000), 0x1_0000),
    ];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

fn features() -> F {
    F::VERSION_1 | F::INDIRECT_DESC
}

/// Split and packed, with indirect descriptors.
fn formats() -> [F; 2] {
    [features(), features() | F::RING_PACKED]
}

fn queue(size: u16, features: F) -> (SplitDriver<Memory>, VirtQueue<Memory>) {
    match queue_of(size, features) {
        (Driver::Split(driver), queue) => (driver, queue),
        (Driver::Packed(driver), _) => panic!("{driver:?}"),
    }
}

fn queue_of(size: u16, features: F) -> (Driver<Memory>, VirtQueue<Memory>) {
    let memory = memory();
    let driver = Driver::new(memory.clone(), RINGS, size, features);
    let state = QueueState::initial(features);
    let queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
    (driver, queue)
}

/// Addresses and lengths of segments.
type Lens = Vec<(u64, usize)>;

fn lens(chain: &Chain<Memory>) -> (Lens, Lens) {
    let of = |segments: &[virtqueue::Segment]| {
        segments
            .iter()
            .map(|s| (s.address().0, s.len()))
            .collect::<Vec<_>>()
    };
    (of(chain.readable()), of(chain.writable()))
}

#[test]
fn a_chain_has_the_buffers_that_the_driver_gave_it_direct_or_indirect() {
    let buffers = [
        Buffer::readable(DATA, 12),
        Buffer::readable(DATA + 0x100, 1),
        Buffer::writable(DATA + 0x200, 0x1000),
    ];
    // The second table is neither aligned nor in one piece.
    for (features, table) in formats()
        .into_iter()
        .flat_map(|f| [(f, TABLE), (f, DATA - 0x14)])
    {
        let (mut driver, mut queue) = queue_of(8, features);
        let heads = [driver.add(&buffers), driver.add_indirect(table, &buffers)];
        let mut chain = Chain::new();
        for (position, head) in (0..).zip(heads) {
            assert_eq!(queue.next_position(), position);
            assert!(queue.pop(&mut chain).unwrap());
            assert_eq!((chain.head(), chain.position()), (head, position));
            assert_eq!(
                lens(&chain),
                (
                    vec![(DATA, 12), (DATA + 0x100, 1)],
                    vec![(DATA + 0x200, 0x1000)]
                )
            );
            assert_eq!((chain.readable_len(), chain.writable_len()), (13, 0x1000));
        }
        assert!(!queue.pop(&mut chain).unwrap());
        assert_eq!(queue.in_flight(), 2);
    }
}

#[test]
fn direct_descriptors_may_come_before_an_indirect_one_whose_write_flag_is_ignored() {
    let (mut driver, mut queue) = queue(8, features());
    driver.set_descriptor(3, Descriptor::new(DATA, 10, NEXT, 5));
    driver.set_descriptor(5, Descriptor::new(TABLE, 32, INDIRECT | WRITE, 0));
    driver.set_indirect(TABLE, 0, Descriptor::new(DATA + 0x100, 20, NEXT, 1));
    driver.set_indirect(TABLE, 1, Descriptor::new(DATA + 0x200, 30, WRITE, 0));
    driver.offer(3);
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(
        lens(&chain),
        (
            vec![(DATA, 10), (DATA + 0x100, 20)],
            vec![(DATA + 0x200, 30)]
        )
    );
}

#[test]
fn a_buffer_across_two_regions_is_two_segments() {
    for features in formats() {
        check_two_regions(queue_of(8, features));
    }
}

fn check_two_regions((mut driver, mut queue): (Driver<Memory>, VirtQueue<Memory>)) {
    driver.add(&[Buffer::writable(DATA - 0x10, 0x30)]);
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(lens(&chain).1, [(DATA - 0x10, 0x10), (DATA, 0x20)]);
    assert_eq!(chain.write(0xe, b"abcd"), 4);
    let mut seen = [0; 4];
    driver
        .memory()
        .read_slice(&mut seen, GuestAddress(DATA - 2))
        .unwrap();
    assert_eq!(&seen, b"abcd");
    // Read back from anywhere, as far as there is something.
    for (offset, expected) in [
        (0xe, &b"abcd"[..]),
        (0xf, b"bcd\0"),
        (0x10, b"cd\0\0"),
        (0x2e, b"\0\0"),
        (0x30, b""),
        (usize::MAX, b""),
    ] {
        let mut back = [0xa5; 4];
        let len = chain.read_back(offset, &mut back);
        assert_eq!(&back[..len], expected, "{offset:#x}");
    }
    assert_eq!(chain.read(0, &mut seen), 0, "nothing to read");
}

/// A mistake, the descriptors that make it (index, descriptor; an index from 100 on is of the indirect
/// table), and the error.
type Mistake = (
    &'static str,
    Vec<(u16, Descriptor)>,
    fn(&QueueError) -> bool,
);

fn d(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor::new(address, len, flags, next)
}

fn mistakes() -> Vec<Mistake> {
    use QueueError::*;
    let to_table = |len| (0, d(TABLE, len, INDIRECT, 0));
    vec![
        ("a loop of one", vec![(0, d(DATA, 1, NEXT, 0))], |e| {
            matches!(e, TooLong(0))
        }),
        (
            "a loop of two",
            vec![(0, d(DATA, 1, NEXT, 1)), (1, d(DATA, 1, NEXT, 0))],
            |e| matches!(e, TooLong(0)),
        ),
        ("next past the table", vec![(0, d(DATA, 1, NEXT, 8))], |e| {
            matches!(
                e,
                Next {
                    next: 8,
                    entries: 8
                }
            )
        }),
        (
            "next far past the table",
            vec![(0, d(DATA, 1, NEXT, u16::MAX))],
            |e| matches!(e, Next { .. }),
        ),
        (
            "a loop in an indirect table",
            vec![to_table(32), (100, d(DATA, 1, NEXT, 0))],
            |e| matches!(e, TooLong(0)),
        ),
        (
            "next past an indirect table",
            vec![to_table(32), (100, d(DATA, 1, NEXT, 2))],
            |e| {
                matches!(
                    e,
                    Next {
                        next: 2,
                        entries: 2
                    }
                )
            },
        ),
        (
            "indirect inside indirect",
            vec![to_table(32), (100, d(TABLE, 16, INDIRECT, 0))],
            |e| matches!(e, IndirectNested),
        ),
        (
            "indirect with next",
            vec![(0, d(TABLE, 16, INDIRECT | NEXT, 1)), (1, d(DATA, 1, 0, 0))],
            |e| matches!(e, IndirectNext),
        ),
        ("an indirect table of 0 bytes", vec![to_table(0)], |e| {
            matches!(e, IndirectLength(0))
        }),
        ("an indirect table of 24 bytes", vec![to_table(24)], |e| {
            matches!(e, IndirectLength(24))
        }),
        (
            "a huge indirect table whose end is nowhere",
            vec![
                to_table(0xffff_fff0),
                (100, d(DATA, 1, NEXT, u16::MAX)),
                (100 + 1, d(DATA, 1, 0, 0)),
            ],
            // Entry 65535 is all zeroes: a buffer of no bytes.
            |e| matches!(e, ZeroLength),
        ),
        (
            "an indirect table past 2^64",
            vec![(0, d(u64::MAX - 15, 32, INDIRECT, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        (
            "an indirect table that is not in memory",
            vec![(0, d(0x30_0000, 32, INDIRECT, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        ("a buffer of no bytes", vec![(0, d(DATA, 0, 0, 0))], |e| {
            matches!(e, ZeroLength)
        }),
        ("a buffer past 2^64", vec![(0, d(u64::MAX, 2, 0, 0))], |e| {
            matches!(e, Memory { .. })
        }),
        (
            "a buffer up to 2^64",
            vec![(0, d(u64::MAX, 1, 0, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        (
            "a buffer over the end of the last region",
            vec![(0, d(0x40_fff0, 0x11, WRITE, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        (
            "a buffer over a hole",
            vec![(0, d(0x1f_fff0, 0x20_0020, 0, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        (
            "a buffer in a hole",
            vec![(0, d(0x30_0000, 1, 0, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        (
            "a buffer of 4 GiB less one",
            vec![(0, d(DATA, u32::MAX, WRITE, 0))],
            |e| matches!(e, Memory { .. }),
        ),
        (
            "readable after writable",
            vec![(0, d(DATA, 1, WRITE | NEXT, 1)), (1, d(DATA, 1, 0, 0))],
            |e| matches!(e, ReadableAfterWritable),
        ),
    ]
}

#[test]
fn each_bad_chain_breaks_the_queue_once_and_takes_nothing() {
    for (name, descriptors, expected) in mistakes() {
        let (mut driver, mut queue) = queue(8, features());
        for (index, descriptor) in descriptors {
            match index.checked_sub(100) {
                Some(index) => driver.set_indirect(TABLE, index, descriptor),
                None => driver.set_descriptor(index, descriptor),
            }
        }
        driver.offer(0);
        let mut chain = Chain::new();
        let error = queue.pop(&mut chain).unwrap_err();
        assert!(expected(&error), "{name}: {error}");
        assert!(queue.is_broken(), "{name}");
        assert_eq!(queue.in_flight(), 0, "{name}");
        assert!(chain.readable().is_empty() && chain.writable().is_empty());
        assert!(matches!(queue.pop(&mut chain), Err(QueueError::Broken)));
        assert!(matches!(
            queue.enable_notifications(),
            Err(QueueError::Broken)
        ));
    }
}

#[test]
fn an_indirect_descriptor_that_was_not_negotiated_breaks_the_queue() {
    let (mut driver, mut queue) = queue(8, F::VERSION_1);
    driver.add_indirect(TABLE, &[Buffer::readable(DATA, 1)]);
    let error = queue.pop(&mut Chain::new()).unwrap_err();
    assert!(matches!(error, QueueError::IndirectNotNegotiated));
}

#[test]
fn a_head_past_the_table_breaks_the_queue() {
    for head in [8, 9, u16::MAX] {
        let (mut driver, mut queue) = queue(8, features());
        driver.offer(head);
        let error = queue.pop(&mut Chain::new()).unwrap_err();
        assert!(matches!(error, QueueError::Head { size: 8, .. }), "{head}");
    }
}

#[test]
fn a_head_that_is_in_flight_cannot_be_made_available_again() {
    let (mut driver, mut queue) = queue(8, features());
    let head = driver.add(&[Buffer::readable(DATA, 1)]);
    driver.offer(head);
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap());
    let error = queue.pop(&mut chain).unwrap_err();
    assert!(matches!(error, QueueError::HeadInFlight(h) if h == head));
}

#[test]
fn the_available_index_may_be_ahead_by_the_size_and_no_more_also_around_the_wrap() {
    for start in [0, 1, 0x7fff, 0xfff8, 0xffff] {
        for (ahead, good) in [
            (0, true),
            (1, true),
            (8, true),
            (9, false),
            (0x8000, false),
            (0xffff, false),
        ] {
            let memory = memory();
            let mut driver = SplitDriver::new(memory.clone(), RINGS, 8, features());
            for i in 0..8 {
                driver.set_descriptor(i, d(DATA, 1, 0, 0));
                driver.offer_quietly(i);
            }
            let state = QueueState {
                next_avail: start,
                next_used: start,
            };
            let mut queue = VirtQueue::new(&driver.config(), state, features(), memory).unwrap();
            driver.set_avail_idx(start.wrapping_add(ahead));
            let popped = queue.pop(&mut Chain::new());
            assert_eq!(popped.is_ok(), good, "{ahead} ahead of {start}: {popped:?}");
        }
    }
}

#[test]
fn a_chain_in_one_direction_has_at_most_the_segments_that_one_call_takes() {
    let counts = [(MAX_SEGMENTS, true), (MAX_SEGMENTS + 1, false)];
    for (features, (count, good)) in formats().into_iter().flat_map(|f| counts.map(|c| (f, c))) {
        // In a table, and in a ring of more entries than that.
        for size in [8, 2048] {
            let (mut driver, mut queue) = queue_of(size, features);
            let buffers = vec![Buffer::readable(DATA, 1); count];
            if size == 8 {
                driver.add_indirect(TABLE, &buffers);
            } else {
                driver.add(&buffers);
            }
            let popped = queue.pop(&mut Chain::new());
            assert_eq!(popped.is_ok(), good, "{count}: {popped:?}");
        }
    }
}

#[test]
fn set_up_that_cannot_work_is_refused() {
    let good = QueueConfig {
        max_size: 256,
        size: 8,
        desc: 0x1000,
        driver: 0x2000,
        device: 0x3000,
    };
    type Check = fn(&QueueError) -> bool;
    let table: [(QueueConfig, Check); 12] = [
        (QueueConfig { size: 0, ..good }, |e| {
            matches!(e, QueueError::Size { .. })
        }),
        (QueueConfig { size: 7, ..good }, |e| {
            matches!(e, QueueError::Size { .. })
        }),
        (QueueConfig { size: 512, ..good }, |e| {
            matches!(e, QueueError::Size { .. })
        }),
        (
            QueueConfig {
                max_size: 0,
                size: 0,
                ..good
            },
            |e| matches!(e, QueueError::Size { .. }),
        ),
        (
            QueueConfig {
                desc: 0x1008,
                ..good
            },
            |e| matches!(e, QueueError::Alignment { .. }),
        ),
        (
            QueueConfig {
                driver: 0x2001,
                ..good
            },
            |e| matches!(e, QueueError::Alignment { .. }),
        ),
        (
            QueueConfig {
                device: 0x3002,
                ..good
            },
            |e| matches!(e, QueueError::Alignment { .. }),
        ),
        (
            QueueConfig {
                desc: 0x30_0000,
                ..good
            },
            |e| matches!(e, QueueError::RingMemory { .. }),
        ),
        (
            QueueConfig {
                driver: 0x40_fff0,
                ..good
            },
            |e| matches!(e, QueueError::RingMemory { .. }),
        ),
        (
            QueueConfig {
                device: 0xffff_ffff_ffff_fffc,
                ..good
            },
            |e| matches!(e, QueueError::RingMemory { .. }),
        ),
        (
            // Across two regions: not one piece for this process.
            QueueConfig {
                desc: DATA - 0x40,
                ..good
            },
            |e| matches!(e, QueueError::RingMemory { .. }),
        ),
        (
            QueueConfig {
                desc: 0x40_ffc0,
                ..good
            },
            |e| matches!(e, QueueError::RingMemory { .. }),
        ),
    ];
    let new =
        |config: &QueueConfig, state, features| VirtQueue::new(config, state, features, memory());
    assert!(new(&good, QueueState::default(), features()).is_ok());
    for (config, expected) in table {
        let error = new(&config, QueueState::default(), features()).unwrap_err();
        assert!(expected(&error), "{config:?}: {error}");
    }
    let ahead = QueueState {
        next_avail: 9,
        next_used: 0,
    };
    let error = new(&good, ahead, features()).unwrap_err();
    assert!(matches!(error, QueueError::State { .. }));
}

#[test]
fn rings_that_overlap_each_other_and_a_buffer_end_in_a_defined_way() {
    let config = QueueConfig {
        max_size: 8,
        size: 8,
        desc: 0,
        driver: 0,
        device: 0,
    };
    let memory = memory();
    let mut queue =
        VirtQueue::new(&config, QueueState::default(), features(), memory.clone()).unwrap();
    for pattern in [0x0000_0000_u64, 0x0001_0001_0001_0001, u64::MAX] {
        for at in (0..0x80).step_by(8) {
            memory.write_obj(pattern, GuestAddress(at)).unwrap();
        }
        let mut chain = Chain::new();
        for _ in 0..100 {
            if !matches!(queue.pop(&mut chain), Ok(true)) {
                break;
            }
            queue.push_used(chain.head(), 0).unwrap();
            queue.publish();
        }
    }
}

fn dirty_pages(region: &GuestRegionMmap<AtomicBitmap>) -> BTreeSet<usize> {
    (0..0x100)
        .filter(|page| region.bitmap().dirty_at(page * 0x1000))
        .collect()
}

#[test]
fn what_is_written_into_a_chain_and_the_rings_is_marked_dirty_and_nothing_else() {
    for features in formats() {
        let memory: Arc<GuestMemoryMmap<AtomicBitmap>> =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap());
        // The driver of this test writes through the same map. What the device writes of a split ring gets a
        // page of its own; of a packed ring, that is the device's event suppression.
        let mut driver = Driver::new(memory.clone(), RINGS, 8, features);
        let config = QueueConfig {
            device: 0x2000,
            ..driver.config()
        };
        let ring_page = if features.contains(F::RING_PACKED) {
            0
        } else {
            2
        };
        driver.add(&[
            Buffer::readable(0x2_0000, 0x1000),
            Buffer::writable(0x3_0800, 0x3000),
        ]);
        let region = memory.find_region(GuestAddress(0)).unwrap();
        (**region).bitmap().reset();
        let dirty = || -> Vec<usize> { dirty_pages(region).into_iter().collect() };
        let state = QueueState::initial(features);
        let mut queue = VirtQueue::new(&config, state, features, memory.clone()).unwrap();
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(dirty(), [0_usize; 0], "taking writes nothing");
        assert_eq!(chain.write(0, b"x"), 1);
        assert_eq!(dirty(), [0x30]);
        // As if the kernel had written 0x900 bytes: up to 0x3_10ff.
        chain.mark_written(0x900);
        assert_eq!(dirty(), [0x30, 0x31]);
        queue.push_used(chain.head(), 0x900).unwrap();
        queue.publish();
        assert_eq!(dirty(), [ring_page, 0x30, 0x31]);
        (**region).bitmap().reset();
        queue.disable_notifications();
        assert_eq!(dirty(), [2]);
        (**region).bitmap().reset();
        assert!(!queue.enable_notifications().unwrap());
        assert_eq!(dirty(), [2]);
    }
}

#[test]
fn a_chain_keeps_the_memory_that_it_points_into_while_the_map_changes() {
    for features in formats() {
        check_map_change(features);
    }
}

fn check_map_change(features: F) {
    let region = |start, len| {
        let region = vm_memory::MmapRegion::<()>::new(len).unwrap();
        GuestRegionMmap::new(region, GuestAddress(start)).unwrap()
    };
    let first = GuestMemoryMmap::from_regions(vec![region(0, 0x1_0000), region(DATA, 0x1000)]);
    let first = first.unwrap();
    let memory = GuestMemoryAtomic::new(first.clone());
    let mut driver = Driver::new(memory.clone(), RINGS, 8, features);
    let state = QueueState::initial(features);
    let mut queue = VirtQueue::new(&driver.config(), state, features, memory.clone()).unwrap();
    driver.add(&[Buffer::writable(DATA, 0x1000)]);
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap());

    // The region of the buffer goes, and is unmapped but for the chain.
    let (second, gone) = first.remove_region(GuestAddress(DATA), 0x1000).unwrap();
    drop((first, gone));
    memory.lock().unwrap().replace(second);
    assert!(memory.memory().find_region(GuestAddress(DATA)).is_none());
    assert_eq!(chain.write(0, &[7; 0x1000]), 0x1000);

    // The queue goes on in what is left, and does not find the buffer any more.
    queue.push_used(chain.head(), 0).unwrap();
    assert_eq!(queue.publish(), 1);
    assert!(driver.take_used().is_some());
    driver.add(&[Buffer::writable(DATA, 0x1000)]);
    assert!(matches!(
        queue.pop(&mut chain),
        Err(QueueError::Memory { .. })
    ));
}
