//! Guest memory with arbitrary split rings in it, and what must hold of a queue on them.

use std::cell::OnceCell;
use std::sync::Arc;

use arbitrary::Arbitrary;
use virtio::F;
use virtqueue::mock::Descriptor;
use virtqueue::{QueueConfig, QueueState, VirtQueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::holder::{Holder, Memory};

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
    pub(crate) fn address(self) -> u64 {
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
pub(crate) enum Len {
    Short(u8),
    Entries(u8),
    Any(u32),
}

impl Len {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Short(len) => len.into(),
            Self::Entries(n) => 16 * u32::from(n),
            Self::Any(len) => len,
        }
    }
}

impl Fields {
    fn descriptor(self) -> Descriptor {
        let len = self.len.bytes();
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
    in_order: bool,
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
    with_memory(|memory| {
        if let Some(mut device) = Device::new(memory, story) {
            for step in &story.steps {
                device.step(*step);
            }
        }
    });
}

/// With all of guest memory zero.
pub(crate) fn with_memory(run: impl FnOnce(&Memory)) {
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
        run(memory);
    });
}

thread_local! {
    static MEMORY: OnceCell<Memory> = const { OnceCell::new() };
}

/// A queue with its holder, and how far its driver got.
struct Device<'a> {
    holder: Holder<'a>,
    avail_idx: u16,
}

impl<'a> Device<'a> {
    fn new(memory: &'a Memory, story: &Story) -> Option<Self> {
        let mut features = F::VERSION_1;
        features.set(F::EVENT_IDX, story.event_idx);
        features.set(F::INDIRECT_DESC, story.indirect);
        features.set(F::IN_ORDER, story.in_order);
        let next_avail = story.next_avail;
        let state = QueueState {
            next_avail,
            next_used: next_avail.wrapping_sub(story.outstanding.into()),
        };
        let config = story.layout.config();
        let queue = VirtQueue::new(&config, state, features, memory.clone()).ok()?;
        assert!(config.size.is_power_of_two());
        assert!(u16::from(story.outstanding) <= config.size);
        Some(Self {
            holder: Holder::new(memory, queue, features),
            avail_idx: next_avail,
        })
    }

    fn step(&mut self, step: Step) {
        let config = *self.holder.queue.config();
        let before = self.holder.queue.state();
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
            Step::Pop => self.holder.pop_and_use(),
            Step::UndoPop => self.holder.undo_pop(),
            Step::Drain => self.holder.drain(),
            Step::Push { nth, len } => self.holder.push_nth(nth, len),
            Step::PushAny { head } => self.holder.push(head, 0),
            Step::Publish => {
                let staged = self.holder.publish().len() as u16;
                let after = self.holder.queue.state().next_used;
                assert_eq!(after, before.next_used.wrapping_add(staged));
                if staged > 0 {
                    let index: u16 = (self.holder.memory)
                        .read_obj(GuestAddress(config.device + 2))
                        .expect("the ring is in memory");
                    assert_eq!(u16::from_le(index), after);
                }
                self.holder.ask_whether_to_notify();
            }
            Step::Enable => self.holder.enable(),
            Step::Disable => self.holder.queue.disable_notifications(),
            Step::Remake => self.holder.remake(),
        }
        self.holder.check();
    }

    /// Where memory is; elsewhere nothing happens, as for a guest.
    fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.holder.memory.write_slice(bytes, GuestAddress(address));
    }

    fn write_descriptor(&self, address: u64, fields: Fields) {
        let _ = (self.holder.memory).write_obj(fields.descriptor(), GuestAddress(address));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_chain_by_the_book_is_taken_and_completed() {
        let address = Place::Low(0x4000);
        let story = Story {
            in_order: false,
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
        assert_eq!(device.holder.in_flight, BTreeSet::from([7]));
        assert_eq!(device.holder.chain.writable_len(), 40);
        device.step(Step::Push { nth: 0, len: 40 });
        device.step(Step::Publish);
        assert_eq!(device.holder.queue.state().next_used, 0);
    }
}
