//! Queues whose addresses are an IOMMU's, not those of guest memory: what VIRTIO_F_ACCESS_PLATFORM says of them
//! (virtio 1.4, 6.1). Each on rings of both formats.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use virtio::F;
use virtqueue::mock::{Buffer, Driver};
use virtqueue::{Chain, QueueConfig, QueueError, QueueState, VirtQueue};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::iommu::{Error as IommuError, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, Iommu, IommuMemory,
    Permissions,
};

/// All that is mapped, and nothing behind it: what is not there is a fault.
#[derive(Debug, Default)]
struct Mappings(RwLock<Iotlb>);

impl Mappings {
    fn map(&self, iova: u64, to: u64, len: u64, access: Permissions) {
        let len = usize::try_from(len).unwrap();
        let mut iotlb = self.0.write().unwrap();
        iotlb
            .set_mapping(GuestAddress(iova), GuestAddress(to), len, access)
            .unwrap();
    }

    fn unmap(&self, iova: u64, len: u64) {
        let len = usize::try_from(len).unwrap();
        let mut iotlb = self.0.write().unwrap();
        iotlb.invalidate_mapping(GuestAddress(iova), len);
    }
}

impl Iommu for Mappings {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, IommuError> {
        let iotlb = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Iotlb::lookup(iotlb, iova, length, access).map_err(|_| IommuError::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: "a fault".to_owned(),
        })
    }
}

type Translating = IommuMemory<GuestMemoryMmap<AtomicBitmap>, Mappings>;
type Memory = Arc<Translating>;

const PAGE: u64 = 0x1000;
/// Where the rings are for the device, far beyond guest memory, and where they are in it.
const RINGS: u64 = 0xffff_0000_0000;
const RINGS_AT: u64 = 0x20_0000;
/// Three pages in a row for the device, which lie apart and backwards in guest memory.
const DATA: u64 = 0xfffe_0000_0000;
const DATA_AT: [u64; 3] = [0x30_4000, 0x30_2000, 0x30_0000];
/// A page that the device may only read, and one that it may only write.
const READ_ONLY: u64 = 0xfffd_0000_0000;
const WRITE_ONLY: u64 = 0xfffd_0000_1000;
/// Is guest memory, but not the device's.
const UNMAPPED: u64 = 0x10_0000;
const SIZE: u16 = 8;

fn memory() -> Memory {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
    let mappings = Mappings::default();
    mappings.map(RINGS, RINGS_AT, 4 * PAGE, Permissions::ReadWrite);
    for (n, at) in (0..).zip(DATA_AT) {
        mappings.map(DATA + n * PAGE, at, PAGE, Permissions::ReadWrite);
    }
    mappings.map(READ_ONLY, 0x31_0000, PAGE, Permissions::Read);
    mappings.map(WRITE_ONLY, 0x31_1000, PAGE, Permissions::Write);
    Arc::new(IommuMemory::new(
        ram,
        mappings,
        true,
        AtomicBitmap::default(),
    ))
}

/// Split and packed.
fn formats() -> [F; 2] {
    let features = F::VERSION_1 | F::ACCESS_PLATFORM | F::INDIRECT_DESC;
    [features, features | F::RING_PACKED]
}

/// A driver on memory that it sees by the device's addresses, and the queue.
fn queue_on(memory: &Memory, features: F) -> (Driver<Memory>, VirtQueue<Memory>) {
    let driver = Driver::new(memory.clone(), GuestAddress(RINGS), SIZE, features);
    let state = QueueState::initial(features);
    let queue = VirtQueue::new(&driver.config(), state, features, memory.clone()).unwrap();
    (driver, queue)
}

fn physical(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .get_backend()
        .read_slice(&mut bytes, GuestAddress(at))
        .unwrap();
    bytes
}

/// Addresses and lengths of segments.
type Lens = Vec<(u64, usize)>;

fn lens<M: virtqueue::QueueMemory>(chain: &Chain<M>) -> (Lens, Lens) {
    let of = |segments: &[virtqueue::Segment]| {
        let each = segments.iter().map(|s| (s.address().0, s.len()));
        each.collect::<Vec<_>>()
    };
    (of(chain.readable()), of(chain.writable()))
}

#[test]
fn rings_and_buffers_are_where_the_iommu_says() {
    for features in formats() {
        let memory = memory();
        let (mut driver, mut queue) = queue_on(&memory, features);
        // Nothing of the driver is at an address that is also one of guest memory.
        assert!(driver.config().desc >= RINGS && driver.config().device >= RINGS);
        let ram = memory.get_backend();
        ram.write_slice(b"sent", GuestAddress(DATA_AT[0])).unwrap();
        let mut chain = Chain::new();
        // More than the ring has entries, so that it goes round.
        for round in 0..3 * u32::from(SIZE) {
            let head = driver.add(&[
                Buffer::readable(DATA, 4),
                Buffer::writable(DATA + 2 * PAGE + 8, 8),
            ]);
            assert!(queue.pop(&mut chain).unwrap());
            let mut sent = [0; 4];
            assert_eq!(chain.read(0, &mut sent), 4);
            assert_eq!(&sent, b"sent");
            let answer = [b'a' + u8::try_from(round).unwrap(); 8];
            assert_eq!(chain.write(0, &answer), 8);
            queue.push_used(chain.head(), 8).unwrap();
            assert_eq!(queue.publish(), 1);
            assert_eq!(driver.take_used(), Some((u32::from(head), 8)));
            assert_eq!(physical(&memory, DATA_AT[2] + 8, 8), answer);
        }
        assert!(!queue.pop(&mut chain).unwrap());
        // The rings themselves are in guest memory, and nothing is where their addresses' low bits would be.
        assert!(
            physical(&memory, RINGS_AT, 0x1000)
                .iter()
                .any(|byte| *byte != 0)
        );
        assert!(physical(&memory, 0, 0x8000).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_buffer_across_mappings_is_a_segment_in_each_and_its_bytes_are_in_order() {
    for features in formats() {
        let memory = memory();
        let (mut driver, mut queue) = queue_on(&memory, features);
        let pattern: Vec<u8> = (0..=250).cycle().take(0x1800).collect();
        // For the device in one piece; in guest memory in two.
        memory
            .write_slice(&pattern, GuestAddress(DATA + 0x400))
            .unwrap();
        assert_eq!(
            physical(&memory, DATA_AT[1], 0xc00),
            pattern[0xc00..].to_vec()
        );
        let len = u32::try_from(pattern.len()).unwrap();
        let segments = |start: u64, lens: &[usize]| {
            let mut at = start;
            let each = lens.iter().map(|len| {
                let segment = (at, *len);
                at += u64::try_from(*len).unwrap();
                segment
            });
            each.collect::<Vec<_>>()
        };
        let mut chain = Chain::new();

        driver.add(&[Buffer::readable(DATA + 0x400, len)]);
        assert!(queue.pop(&mut chain).unwrap());
        let expected = segments(DATA + 0x400, &[0xc00, 0xc00]);
        assert_eq!(lens(&chain), (expected, vec![]));
        let mut read = vec![0; pattern.len()];
        assert_eq!(chain.read(0, &mut read), pattern.len());
        assert_eq!(read, pattern);
        queue.push_used(chain.head(), 0).unwrap();

        driver.add(&[Buffer::writable(DATA + 0x800, 0x2000)]);
        assert!(queue.pop(&mut chain).unwrap());
        let expected = segments(DATA + 0x800, &[0x800, 0x1000, 0x800]);
        assert_eq!(lens(&chain), (vec![], expected));
        // From within the second page on.
        assert_eq!(chain.write(0xa00, &pattern), 0x1600);
        assert_eq!(
            physical(&memory, DATA_AT[1] + 0x200, 0xe00),
            pattern[..0xe00].to_vec()
        );
        assert_eq!(
            physical(&memory, DATA_AT[2], 0x800),
            pattern[0xe00..0x1600].to_vec()
        );
        queue.push_used(chain.head(), 0x2000).unwrap();

        // A table of descriptors of which one lies in two pages that are not neighbours.
        let table = DATA + PAGE - 24;
        driver.add_indirect(
            table,
            &[
                Buffer::readable(DATA + 2 * PAGE, 16),
                Buffer::readable(DATA + 2 * PAGE + 0x20, 17),
                Buffer::writable(DATA + 2 * PAGE + 0x40, 18),
            ],
        );
        assert!(queue.pop(&mut chain).unwrap());
        let expected = (
            vec![(DATA + 2 * PAGE, 16), (DATA + 2 * PAGE + 0x20, 17)],
            vec![(DATA + 2 * PAGE + 0x40, 18)],
        );
        assert_eq!(lens(&chain), expected);
    }
}

/// GUEST-BUGS 6: what the IOMMU does not let through, and the end of the address space.
#[test]
fn what_is_not_mapped_or_not_permitted_breaks_the_queue_and_nothing_is_touched() {
    let cases = [
        (
            "guest memory that is not mapped",
            Buffer::readable(UNMAPPED, 64),
        ),
        ("the same, written", Buffer::writable(UNMAPPED, 64)),
        (
            "a page for reading is written",
            Buffer::writable(READ_ONLY, 64),
        ),
        (
            "a page for writing is read",
            Buffer::readable(WRITE_ONLY, 64),
        ),
        (
            "the last byte is not mapped",
            Buffer::writable(DATA + 3 * PAGE - 64, 65),
        ),
        (
            "from one permission into another",
            Buffer::readable(READ_ONLY + PAGE - 4, 8),
        ),
        ("up to 2^64", Buffer::readable(u64::MAX - 15, 16)),
        ("past 2^64", Buffer::readable(u64::MAX - 15, 17)),
    ];
    for features in formats() {
        for (what, buffer) in cases {
            let memory = memory();
            let (mut driver, mut queue) = queue_on(&memory, features);
            let mut chain = Chain::new();
            driver.add(&[Buffer::readable(DATA, 1), buffer]);
            let QueueError::Memory { address, len } = queue.pop(&mut chain).unwrap_err() else {
                panic!("{what}")
            };
            assert_eq!((address.0, len), (buffer.address, buffer.len), "{what}");
            assert!(queue.is_broken() && lens(&chain) == (vec![], vec![]));
            assert!(matches!(queue.pop(&mut chain), Err(QueueError::Broken)));
            assert_eq!(queue.in_flight(), 0, "{what}");
        }
        // What is permitted is taken.
        let memory = memory();
        let (mut driver, mut queue) = queue_on(&memory, features);
        driver.add(&[
            Buffer::readable(READ_ONLY, 0x1000),
            Buffer::writable(WRITE_ONLY, 0x1000),
        ]);
        assert!(queue.pop(&mut Chain::new()).unwrap());
    }
}

#[test]
fn an_indirect_table_is_read_only_where_the_iommu_lets_the_device_read() {
    for features in formats() {
        // The driver writes it where it may, in two pages. Then the second of them goes, or the device is told of
        // another place.
        let written = DATA + PAGE - 16;
        for table in [written, UNMAPPED, WRITE_ONLY, u64::MAX - 31] {
            let memory = memory();
            let (mut driver, mut queue) = queue_on(&memory, features);
            driver.add_indirect(
                written,
                &[Buffer::readable(DATA, 1), Buffer::writable(DATA + 8, 1)],
            );
            if table == written {
                memory.iommu().unmap(DATA + PAGE, PAGE);
            } else {
                let entry = GuestAddress(driver.config().desc);
                memory.write_obj(table, entry).unwrap();
            }
            let error = queue.pop(&mut Chain::new()).unwrap_err();
            assert!(
                matches!(error, QueueError::Memory { address, len: 32 } if address.0 == table),
                "{table:#x}: {error:?}"
            );
            assert!(queue.is_broken());
        }
    }
}

#[test]
fn rings_are_refused_that_the_device_may_not_use_or_that_lie_in_pieces() {
    for features in formats() {
        let memory = memory();
        let config = Driver::new(memory.clone(), GuestAddress(RINGS), SIZE, features).config();
        let refused = |config: &QueueConfig| {
            let state = QueueState::initial(features);
            let made = VirtQueue::new(config, state, features, memory.clone());
            matches!(made, Err(QueueError::RingMemory { .. }))
        };
        assert!(!refused(&config));
        // The last are where length and address together leave the address space.
        let end = 0u64.wrapping_sub(64);
        for address in [UNMAPPED, DATA + 3 * PAGE, DATA + PAGE - 16, end] {
            let desc = QueueConfig {
                desc: address,
                ..config
            };
            assert!(refused(&desc), "{address:#x}");
        }
        for (part, address) in [("driver", WRITE_ONLY), ("device", READ_ONLY)] {
            let mut config = config;
            match part {
                "driver" => config.driver = address,
                _ => config.device = address,
            }
            assert!(refused(&config), "{part}");
        }
    }
}

#[test]
fn a_mapping_that_is_withdrawn_is_gone_for_the_next_chain_and_stays_for_one_that_was_taken() {
    for features in formats() {
        let memory = memory();
        let (mut driver, mut queue) = queue_on(&memory, features);
        let buffer = Buffer::writable(DATA + PAGE, 16);
        let head = driver.add(&[buffer]);
        let mut taken = Chain::new();
        assert!(queue.pop(&mut taken).unwrap());
        memory.iommu().unmap(DATA + PAGE, PAGE);

        // What the device has begun it ends, in the page that the chain was resolved to.
        assert_eq!(taken.write(0, &[7; 16]), 16);
        taken.mark_written(16);
        assert_eq!(physical(&memory, DATA_AT[1], 16), [7; 16]);
        queue.push_used(taken.head(), 16).unwrap();
        assert_eq!(queue.publish(), 1);
        assert_eq!(driver.take_used(), Some((u32::from(head), 16)));

        // A page of the same addresses is another one now.
        memory
            .iommu()
            .map(DATA + PAGE, 0x32_0000, PAGE, Permissions::ReadWrite);
        driver.add(&[buffer]);
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(chain.write(0, &[9; 16]), 16);
        assert_eq!(physical(&memory, 0x32_0000, 16), [9; 16]);
        assert_eq!(physical(&memory, DATA_AT[1], 16), [7; 16]);
        queue.push_used(chain.head(), 16).unwrap();

        memory.iommu().unmap(DATA + PAGE, PAGE);
        driver.add(&[buffer]);
        let error = queue.pop(&mut chain).unwrap_err();
        assert!(
            matches!(error, QueueError::Memory { address, len: 16 } if address.0 == buffer.address)
        );
        assert!(queue.is_broken());
    }
}

/// Rings are resolved when the queue is made and when the map of guest memory is another: a VMM that withdraws their
/// mapping puts a new snapshot in place.
#[test]
fn rings_that_are_withdrawn_break_the_queue_with_the_next_snapshot() {
    for features in formats() {
        let memory = memory();
        let atomic = GuestMemoryAtomic::from(memory.clone());
        let mut driver = Driver::new(memory.clone(), GuestAddress(RINGS), SIZE, features);
        let state = QueueState::initial(features);
        let mut queue = VirtQueue::new(&driver.config(), state, features, atomic.clone()).unwrap();
        let mut chain = Chain::new();
        let head = driver.add(&[Buffer::readable(DATA, 4)]);
        assert!(queue.pop(&mut chain).unwrap());
        assert!(!queue.pop(&mut chain).unwrap());

        // Moved: the driver's half is told by the new address, and the queue goes on there.
        let moved = 0x38_0000;
        let rings = physical(&memory, RINGS_AT, 0x4000);
        memory
            .get_backend()
            .write_slice(&rings, GuestAddress(moved))
            .unwrap();
        memory
            .iommu()
            .map(RINGS, moved, 4 * PAGE, Permissions::ReadWrite);
        let next = atomic
            .memory()
            .with_replaced_backend(memory.get_backend().clone());
        atomic.lock().unwrap().replace(next);
        assert!(!queue.pop(&mut chain).unwrap());
        queue.push_used(head, 0).unwrap();
        queue.publish();
        assert_eq!(driver.take_used(), Some((u32::from(head), 0)));

        // Withdrawn.
        driver.add(&[Buffer::readable(DATA, 4)]);
        memory.iommu().unmap(RINGS, 4 * PAGE);
        let next = atomic
            .memory()
            .with_replaced_backend(memory.get_backend().clone());
        atomic.lock().unwrap().replace(next);
        let error = queue.pop(&mut chain).unwrap_err();
        assert!(matches!(error, QueueError::RingMemory { .. }), "{error:?}");
        assert!(queue.is_broken());
    }
}

/// What the device writes is marked by the addresses that it was written at.
#[test]
fn writes_are_marked_dirty_by_the_device_s_addresses() {
    for features in formats() {
        // A log that covers the lowest addresses only.
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x40_0000)]).unwrap();
        let mappings = Mappings::default();
        mappings.map(0, RINGS_AT, 4 * PAGE, Permissions::ReadWrite);
        mappings.map(0x10_0000, DATA_AT[0], PAGE, Permissions::ReadWrite);
        mappings.map(0x10_1000, DATA_AT[1], PAGE, Permissions::ReadWrite);
        let page = std::num::NonZeroUsize::new(0x1000).unwrap();
        let log = AtomicBitmap::new(0x40_0000, page);
        let memory: Memory = Arc::new(IommuMemory::new(ram, mappings, true, log));
        let mut driver = Driver::new(memory.clone(), GuestAddress(0), SIZE, features);
        let state = QueueState::initial(features);
        let mut queue = VirtQueue::new(&driver.config(), state, features, memory.clone()).unwrap();
        driver.add(&[Buffer::writable(0x10_0ff0, 0x20)]);
        let log = memory.bitmap();
        log.reset();
        let mut chain = Chain::new();
        assert!(queue.pop(&mut chain).unwrap());
        chain.write(0, &[1; 0x18]);
        assert!(log.dirty_at(0x10_0000) && log.dirty_at(0x10_1000));
        assert!(!log.dirty_at(usize::try_from(DATA_AT[0]).unwrap()));
        log.reset();
        queue.push_used(chain.head(), 0x18).unwrap();
        queue.publish();
        assert!(
            (0..4).any(|page| log.dirty_at(page * 0x1000)),
            "{features:?}"
        );
    }
}
