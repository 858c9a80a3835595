//! Guest memory with arbitrary rings in it, and what must hold of a queue on them.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use arbitrary::Arbitrary;
use virtio::F;
use virtqueue::mock::Descriptor;
use virtqueue::{Chain, MAX_SEGMENTS, QueueConfig, QueueState, Segment, VirtQueue};
use vm_memory::{
    Address as _, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Two regions that touch, one behind a hole, and one at the end of the address space.
const REGIONS: [(u64, usize); 4] = [
    (0, 0x8000),
    (0x8000, 0x1000),
    (0xa000, 0x1000),
    (0xffff_ffff_ffff_e000, 0x1000),
];

/// A guest address that is worth a try.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Place {
    /// Somewhere low, where most memory is.
    Low(u16),
    /// At most 32 bytes off the edge of a region.
    Edge {
        /// Which region.
        region: u8,
        /// Its end rather than its start.
        end: bool,
        /// How far from there.
        off: i8,
    },
    /// Anywhere.
    Any(u64),
}

impl Place {
    fn address(self) -> u64 {
        match self {
            Self::Low(at) => u64::from(at),
            Self::Edge { region, end, off } => {
                let (base, len) = REGIONS[usize::from(region) % REGIONS.len()];
                let edge = if end { base + len as u64 } else { base };
                edge.wrapping_add_signed(i64::from(off % 33))
            }
            Self::Any(at) => at,
        }
    }
}

/// A descriptor.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Fields {
    address: Place,
    len: Len,
    flags: u8,
    next: u8,
}

/// The length of a buffer.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Len {
    Short(u8),
    Entries(u8),
    Any(u32),
}

impl Fields {
    fn descriptor(self) -> Descriptor {
        let len = match self.len {
            Len::Short(len) => len.into(),
            Len::Entries(n) => 16 * u32::from(n),
            Len::Any(len) => len,
        };
        // The three flags that there are, and now and then some that are not.
        let flags = match self.flags {
            0xf0.. => u16::from(self.flags) << 8 | u16::from(self.flags),
            flags => u16::from(flags & 7),
        };
        Descriptor::new(self.address.address(), len, flags, self.next.into())
    }
}

/// Where the rings are.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Layout {
    /// One behind the other.
    Usual { log2_size: u8 },
    /// Anywhere; they may lie over one another.
    Odd {
        size: u16,
        desc: Place,
        driver: Place,
        device: Place,
    },
}

impl Layout {
    fn config(self) -> QueueConfig {
        match self {
            Self::Usual { log2_size } => {
                let size = 1 << (log2_size % 9);
                let driver = 16 * u64::from(size);
                let device = (driver + 6 + 2 * u64::from(size)).next_multiple_of(4);
                QueueConfig {
                    max_size: 1024,
                    size,
                    desc: 0,
                    driver,
                    device,
                }
            }
            Self::Odd {
                size,
                desc,
                driver,
                device,
            } => QueueConfig {
                max_size: 1024,
                size,
                desc: desc.address(),
                driver: driver.address(),
                device: device.address(),
            },
        }
    }
}

/// What the driver writes or the device does next.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Write {
        at: Place,
        bytes: [u8; 4],
    },
    Describe {
        index: u8,
        fields: Fields,
    },
    DescribeIndirect {
        table: Place,
        index: u8,
        fields: Fields,
    },
    Offer {
        head: u8,
    },
    MoveAvailIdx {
        by: u8,
    },
    WantUsedEvent {
        off: i8,
    },
    SetAvailFlags {
        flags: u8,
    },
    Pop,
    UndoPop,
    Drain,
    Push {
        nth: u8,
        len: u32,
    },
    PushAny {
        head: u16,
    },
    Publish,
    Enable,
    Disable,
    Remake,
}

/// A driver's and a device's doings with one queue.
#[derive(Arbitrary, Debug)]
pub struct Story {
    layout: Layout,
    event_idx: bool,
    indirect: bool,
    /// State to start from.
    next_avail: u16,
    outstanding: u8,
    steps: Vec<Step>,
}

/// Runs it.
pub fn check(story: &Story) {
    MEMORY.with(|memory| {
        let memory = memory.get_or_init(|| {
            let ranges = REGIONS.map(|(base, len)| (GuestAddress(base), len));
            Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"))
        });
        for (base, len) in REGIONS {
            memory
                .write_slice(&vec![0; len], GuestAddress(base))
                .expect("a region");
        }
        if let Some(mut device) = Device::new(memory, story) {
            for step in &story.steps {
                device.step(*step);
            }
        }
    });
}

thread_local! {
    static MEMORY: OnceCell<Memory> = const { OnceCell::new() };
}

/// A queue and what is known of it.
struct Device<'a> {
    memory: &'a Memory,
    queue: VirtQueue<Memory>,
    features: F,
    chain: Chain<Memory>,
    in_flight: BTreeSet<u16>,
    staged: u16,
    avail_idx: u16,
}

impl<'a> Device<'a> {
    fn new(memory: &'a Memory, story: &Story) -> Option<Self> {
        let mut features = F::VERSION_1;
        features.set(F::EVENT_IDX, story.event_idx);
        features.set(F::INDIRECT_DESC, story.indirect);
        let next_avail = story.next_avail;
        let state = QueueState {
            next_avail,
            next_used: next_avail.wrapping_sub(story.outstanding.into()),
        };
        let config = story.layout.config();
        let queue = VirtQueue::new(&config, state, features, memory.clone()).ok()?;
        assert!(config.size.is_power_of_two() && config.size <= config.max_size);
        assert!(u16::from(story.outstanding) <= config.size);
        Some(Self {
            memory,
            queue,
            features,
            chain: Chain::new(),
            in_flight: BTreeSet::new(),
            staged: 0,
            avail_idx: next_avail,
        })
    }

    fn step(&mut self, step: Step) {
        let config = *self.queue.config();
        let before = self.queue.state();
        match step {
            Step::Write { at, bytes } => self.write(at.address(), &bytes),
            Step::Describe { index, fields } => {
                let slot = u64::from(u16::from(index) % config.size);
                self.write_descriptor(config.desc + 16 * slot, fields);
            }
            Step::DescribeIndirect {
                table,
                index,
                fields,
            } => {
                let at = table.address().wrapping_add(16 * u64::from(index % 32));
                self.write_descriptor(at, fields);
            }
            Step::Offer { head } => {
                let slot = u64::from(self.avail_idx % config.size);
                self.write(config.driver + 4 + 2 * slot, &[head, 0]);
                self.avail_idx = self.avail_idx.wrapping_add(1);
                self.write(config.driver + 2, &self.avail_idx.to_le_bytes());
            }
            Step::MoveAvailIdx { by } => {
                self.avail_idx = before.next_avail.wrapping_add(by.into());
                self.write(config.driver + 2, &self.avail_idx.to_le_bytes());
            }
            Step::WantUsedEvent { off } => {
                let event = before.next_used.wrapping_add_signed(off.into());
                let at = config.driver + 4 + 2 * u64::from(config.size);
                self.write(at, &event.to_le_bytes());
            }
            Step::SetAvailFlags { flags } => self.write(config.driver, &[flags, 0]),
            Step::Pop => {
                if self.pop() {
                    let mut bytes = [0; 16];
                    let read = self.chain.read(3, &mut bytes);
                    assert_eq!(read, self.chain.readable_len().saturating_sub(3).min(16));
                    let written = self.chain.write(3, &bytes);
                    assert_eq!(written, self.chain.writable_len().saturating_sub(3).min(16));
                }
            }
            Step::UndoPop => {
                let head = self.chain.head();
                if self.queue.undo_pop(&mut self.chain) {
                    assert!(self.in_flight.remove(&head), "{head} was not in flight");
                    let after = self.queue.state().next_avail;
                    assert_eq!(after.wrapping_add(1), before.next_avail);
                }
            }
            // Nothing is written meanwhile, so at most `size` entries are there to take.
            Step::Drain => {
                let taken = (0..=config.size).take_while(|_| self.pop()).count();
                assert!(taken <= config.size.into(), "no end");
            }
            Step::Push { nth, len } => {
                let count = self.in_flight.len();
                if let Some(&head) = self.in_flight.iter().nth(usize::from(nth) % count.max(1)) {
                    self.push(head, len);
                }
            }
            Step::PushAny { head } => self.push(head, 0),
            Step::Publish => {
                let staged = std::mem::take(&mut self.staged);
                assert_eq!(self.queue.publish(), staged);
                let after = self.queue.state().next_used;
                assert_eq!(after, before.next_used.wrapping_add(staged));
                if staged > 0 {
                    let index: u16 = (self.memory)
                        .read_obj(GuestAddress(config.device + 2))
                        .expect("the ring is in memory");
                    assert_eq!(u16::from_le(index), after);
                }
                self.queue.needs_notification();
                assert!(!self.queue.needs_notification(), "told twice");
            }
            Step::Enable => match self.queue.enable_notifications() {
                Ok(_) => assert!(!self.queue.is_broken()),
                Err(_) => assert!(self.queue.is_broken()),
            },
            Step::Disable => self.queue.disable_notifications(),
            // What is in flight is lost to the next holder, which can go on all the same.
            Step::Remake => {
                if self.staged == 0 && self.in_flight.is_empty() {
                    let state = self.queue.state();
                    self.queue = VirtQueue::new(&config, state, self.features, self.memory.clone())
                        .expect("the state of a queue fits it");
                    self.chain = Chain::new();
                }
            }
        }
        assert_eq!(usize::from(self.queue.in_flight()), self.in_flight.len());
    }

    /// Pops, and checks what came. Whether something did.
    fn pop(&mut self) -> bool {
        let was_broken = self.queue.is_broken();
        let before = self.queue.state();
        match self.queue.pop(&mut self.chain) {
            Ok(true) => {}
            Ok(false) => {
                assert!(!was_broken);
                return false;
            }
            Err(_) => {
                assert!(self.queue.is_broken());
                assert_eq!(self.queue.state(), before);
                return false;
            }
        }
        assert!(!was_broken);
        let head = self.chain.head();
        assert!(head < self.queue.size());
        assert!(self.in_flight.insert(head), "{head} is in flight");
        let directions = [
            (self.chain.readable(), self.chain.readable_len()),
            (self.chain.writable(), self.chain.writable_len()),
        ];
        for (segments, len) in directions {
            assert!(segments.len() <= MAX_SEGMENTS);
            assert_eq!(segments.iter().map(Segment::len).sum::<usize>(), len);
            for segment in segments {
                check_segment(self.memory, segment);
            }
        }
        true
    }

    fn push(&mut self, head: u16, len: u32) {
        let pushed = self.queue.push_used(head, len).is_ok();
        assert_eq!(pushed, self.in_flight.remove(&head), "{head}");
        self.staged += u16::from(pushed);
    }

    /// Where memory is; elsewhere nothing happens, as for a guest.
    fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn write_descriptor(&self, address: u64, fields: Fields) {
        let _ = (self.memory).write_obj(fields.descriptor(), GuestAddress(address));
    }
}

/// A segment lies in one region, and its pointer is that region's.
fn check_segment(memory: &Memory, segment: &Segment) {
    let address = segment.address();
    let region = memory.find_region(address).expect("mapped");
    let last = address.checked_add(segment.len() as u64 - 1).expect("ends");
    assert!(last <= region.last_addr(), "{segment:?} leaves its region");
    let host = memory.get_host_address(address).expect("mapped");
    assert_eq!(host, segment.ptr());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_by_the_book_is_taken_and_completed() {
        let address = Place::Low(0x4000);
        let story = Story {
            layout: Layout::Usual { log2_size: 4 },
            event_idx: false,
            indirect: true,
            next_avail: 0xffff,
            outstanding: 0,
            steps: vec![],
        };
        let ranges = REGIONS.map(|(base, len)| (GuestAddress(base), len));
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let mut device = Device::new(&memory, &story).unwrap();
        let fields = Fields {
            address,
            len: Len::Short(40),
            flags: 2,
            next: 0,
        };
        device.step(Step::Describe { index: 7, fields });
        device.step(Step::Offer { head: 7 });
        device.step(Step::Pop);
        assert_eq!(device.in_flight, BTreeSet::from([7]));
        assert_eq!(device.chain.writable_len(), 40);
        device.step(Step::Push { nth: 0, len: 40 });
        device.step(Step::Publish);
        assert_eq!(device.queue.state().next_used, 0);
    }
}
