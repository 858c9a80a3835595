//! Guest memory with an arbitrary packed ring in it, and what must hold of a queue on it.

use arbitrary::Arbitrary;
use virtio::F;
use virtqueue::mock::{AVAIL, INDIRECT, NEXT, PackedDescriptor, USED, WRITE};
use virtqueue::{QueueConfig, QueueState, VirtQueue};
use vm_memory::{Bytes, GuestAddress};

use crate::holder::{Holder, Memory};
use crate::rings::{Len, Place, with_memory};

/// The wrap counter in an offset.
const WRAP: u16 = 1 << 15;

/// A descriptor.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Fields {
    address: Place,
    len: Len,
    id: u8,
    flags: u8,
}

impl Fields {
    /// With the flags that make it available or used, or do not.
    fn descriptor(self, lap: u16) -> PackedDescriptor {
        // Those that a driver has to do with, and now and then some that are not.
        let flags = match self.flags {
            0xf0.. => u16::from(self.flags) << 8 | u16::from(self.flags),
            flags => u16::from(flags) & (NEXT | WRITE | INDIRECT) | lap,
        };
        PackedDescriptor {
            address: self.address.address(),
            len: self.len.bytes(),
            id: self.id.into(),
            flags,
        }
    }
}

/// Where the ring and the two event suppression structures are.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Layout {
    /// One behind the other, and of any number of entries.
    Usual { size: u8 },
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
        let (size, [desc, driver, device]) = match self {
            Self::Usual { size } => {
                let size = 1 + u16::from(size);
                let driver = 16 * u64::from(size);
                (size, [0, driver, driver + 4])
            }
            Self::Odd {
                size,
                desc,
                driver,
                device,
            } => (size, [desc, driver, device].map(Place::address)),
        };
        QueueConfig {
            max_size: 1024,
            size,
            desc,
            driver,
            device,
        }
    }
}

/// Where the queue stands at first.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Start {
    Initial,
    /// Somewhere in the ring, with so many descriptors outstanding.
    Within {
        offset: u16,
        wrap: bool,
        outstanding: u8,
    },
    Any {
        next_avail: u16,
        next_used: u16,
    },
}

impl Start {
    fn state(self, size: u16, features: F) -> QueueState {
        match self {
            Self::Initial => QueueState::initial(features),
            Self::Within {
                offset,
                wrap,
                outstanding,
            } => {
                let size = size.clamp(1, 1024);
                let offset = offset % size;
                let next_used = offset | if wrap { WRAP } else { 0 };
                let outstanding = u16::from(outstanding) % (size + 1);
                QueueState {
                    next_avail: plus(next_used, outstanding, size),
                    next_used,
                }
            }
            Self::Any {
                next_avail,
                next_used,
            } => QueueState {
                next_avail,
                next_used,
            },
        }
    }
}

/// `count` descriptors on, at most a lap.
fn plus(place: u16, count: u16, size: u16) -> u16 {
    let (offset, wrap) = (place & !WRAP, place & WRAP);
    let to = offset + count;
    if to < size {
        to | wrap
    } else {
        (to - size) | (wrap ^ WRAP)
    }
}

/// What the driver writes or the device does next.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Write {
        at: Place,
        bytes: [u8; 4],
    },
    /// A descriptor anywhere in the ring, of this lap or another.
    Describe {
        index: u8,
        fields: Fields,
        lap: u8,
    },
    DescribeIndirect {
        table: Place,
        index: u8,
        fields: Fields,
    },
    /// A chain where the device looks for it, the last descriptor first; or only its beginning.
    Offer {
        fields: Fields,
        more: u8,
        partial: bool,
    },
    /// The driver goes on where the device is.
    Follow,
    WantEvent {
        off: i8,
        other_lap: bool,
    },
    SetDriverEvent([u8; 4]),
    Pop,
    UndoPop,
    Drain,
    Push {
        nth: u8,
        len: u32,
    },
    PushAny {
        id: u16,
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
    in_order: bool,
    start: Start,
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

/// A queue with its holder, and how far its driver got.
struct Device<'a> {
    holder: Holder<'a>,
    next: u16,
}

impl<'a> Device<'a> {
    fn new(memory: &'a Memory, story: &Story) -> Option<Self> {
        let mut features = F::VERSION_1 | F::RING_PACKED;
        features.set(F::EVENT_IDX, story.event_idx);
        features.set(F::INDIRECT_DESC, story.indirect);
        features.set(F::IN_ORDER, story.in_order);
        let config = story.layout.config();
        let state = story.start.state(config.size, features);
        let queue = VirtQueue::new(&config, state, features, memory.clone()).ok()?;
        for place in [state.next_avail, state.next_used] {
            assert!(place & !WRAP < config.size, "outside of the ring");
        }
        assert_eq!(queue.state(), state);
        Some(Self {
            holder: Holder::new(memory, queue, features),
            next: state.next_avail,
        })
    }

    fn step(&mut self, step: Step) {
        let config = *self.holder.queue.config();
        let before = self.holder.queue.state();
        match step {
            Step::Write { at, bytes } => self.write(at.address(), &bytes),
            Step::Describe { index, fields, lap } => {
                let flags = [AVAIL, USED, AVAIL | USED, 0][usize::from(lap % 4)];
                self.describe(index.into(), fields.descriptor(flags));
            }
            Step::DescribeIndirect {
                table,
                index,
                fields,
            } => {
                let at = table.address().wrapping_add(16 * u64::from(index % 32));
                self.write_descriptor(at, fields.descriptor(0));
            }
            Step::Offer {
                fields,
                more,
                partial,
            } => self.offer(fields, more.into(), partial),
            Step::Follow => self.next = before.next_avail,
            Step::WantEvent { off, other_lap } => {
                let offset = (before.next_used & !WRAP).wrapping_add_signed(off.into());
                let wrap = (before.next_used & WRAP) ^ if other_lap { WRAP } else { 0 };
                let event = offset & !WRAP | wrap;
                self.write(config.driver, &event.to_le_bytes());
                self.write(config.driver.wrapping_add(2), &[2, 0]);
            }
            Step::SetDriverEvent(bytes) => self.write(config.driver, &bytes),
            Step::Pop => self.holder.pop_and_use(),
            Step::UndoPop => self.holder.undo_pop(),
            Step::Drain => self.holder.drain(),
            Step::Push { nth, len } => self.holder.push_nth(nth, len),
            Step::PushAny { id } => self.holder.push(id, 0),
            Step::Publish => {
                let staged = self.holder.publish();
                self.check_used(before.next_used, staged.first());
                self.holder.ask_whether_to_notify();
            }
            Step::Enable => self.holder.enable(),
            Step::Disable => self.holder.queue.disable_notifications(),
            Step::Remake => self.holder.remake(),
        }
        let after = self.holder.queue.state();
        for place in [after.next_avail, after.next_used] {
            assert!(place & !WRAP < config.size, "outside of the ring");
        }
        self.holder.check();
    }

    /// What was published is where the driver looks for it.
    fn check_used(&self, place: u16, first: Option<&(u16, u32)>) {
        let after = self.holder.queue.state().next_used;
        let Some(&(id, len)) = first else {
            assert_eq!(after, place, "nothing was published");
            return;
        };
        assert_ne!(after, place, "something was published");
        let at = self.holder.queue.config().desc + 16 * u64::from(place & !WRAP);
        let mut rest = [0; 8];
        (self.holder.memory)
            .read_slice(&mut rest, GuestAddress(at + 8))
            .expect("the ring is in memory");
        let rest = u64::from_le_bytes(rest);
        assert_eq!((rest as u32, (rest >> 32) as u16), (len, id));
        let lap = if place & WRAP != 0 { AVAIL | USED } else { 0 };
        assert_eq!((rest >> 48) as u16 & (AVAIL | USED), lap);
    }

    fn offer(&mut self, fields: Fields, more: u16, partial: bool) {
        let size = self.holder.queue.size();
        // A chain of more than the ring has goes over itself.
        let more = more % 8 % size;
        let place = |n| plus(self.next, n, size);
        let available = |place: u16| if place & WRAP != 0 { AVAIL } else { USED };
        let first_last = if partial { 0 } else { more };
        for n in (0..=first_last).rev() {
            let mut descriptor = fields.descriptor(available(place(n)));
            descriptor.address = descriptor.address.wrapping_add(16 * u64::from(n));
            descriptor.flags &= if n == more { !NEXT } else { u16::MAX };
            descriptor.flags |= if n == more { 0 } else { NEXT };
            self.describe(place(n) & !WRAP, descriptor);
        }
        self.next = place(more + 1);
    }

    /// Where memory is; elsewhere nothing happens, as for a guest.
    fn write(&self, address: u64, bytes: &[u8]) {
        let _ = (self.holder.memory).write_slice(bytes, GuestAddress(address));
    }

    fn describe(&self, slot: u16, descriptor: PackedDescriptor) {
        let config = self.holder.queue.config();
        let slot = u64::from(slot % config.size);
        self.write_descriptor(config.desc + 16 * slot, descriptor);
    }

    fn write_descriptor(&self, address: u64, descriptor: PackedDescriptor) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.id.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.flags.to_le_bytes());
        self.write(address, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn chains_by_the_book_are_taken_and_completed_in_order() {
        let story = Story {
            layout: Layout::Usual { size: 4 },
            event_idx: true,
            indirect: true,
            in_order: true,
            start: Start::Within {
                offset: 3,
                wrap: false,
                outstanding: 0,
            },
            steps: vec![],
        };
        with_memory(|memory| {
            let mut device = Device::new(memory, &story).unwrap();
            for id in [4, 2] {
                let fields = Fields {
                    address: Place::Low(0x4000),
                    len: Len::Short(40),
                    id,
                    flags: 2,
                };
                let (more, partial) = (1, false);
                device.step(Step::Offer {
                    fields,
                    more,
                    partial,
                });
                device.step(Step::Pop);
                assert_eq!(device.holder.chain.writable_len(), 80);
            }
            assert_eq!(device.holder.in_flight, BTreeSet::from([2, 4]));
            device.step(Step::PushAny { id: 2 });
            device.step(Step::Publish);
            assert_eq!(device.holder.queue.state().next_used, 3, "not its turn");
            device.step(Step::PushAny { id: 4 });
            device.step(Step::Publish);
            assert_eq!(device.holder.queue.state().next_used, WRAP | 2);
        });
    }
}
