//! Every chain that a small packed ring, or an indirect table of one, can hold, in part or in full.

use virtio::F;
use virtqueue::{Chain, QueueError, VirtQueue};

use crate::packed_ring::{PackedRing, Place};
use crate::ring::{Memory, RAM};
use crate::tape::Tape;
use crate::walks::{Buffers, buffers_of};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL_AND_USED: u16 = 1 << 7 | 1 << 15;
const TABLE: u64 = 0x1000;
const LAST_TABLE: u64 = RAM - 16;
const DATA: u64 = 0x2000;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
struct Desc {
    address: u64,
    len: u32,
    id: u16,
    flags: u16,
}

/// A driver that writes a descriptor when the specification's words get to it, and not before.
struct Author<'a> {
    tape: &'a mut Tape,
    ring: &'a PackedRing,
    indirect: bool,
}

/// A chain: its buffer id, how many descriptors it takes, and what it is.
type Good = (u16, u16, Buffers);

impl Author<'_> {
    fn buffer(&mut self, in_table: bool) -> (u64, u32) {
        let options = [
            (DATA, 8),
            (DATA, 0),
            (RAM - 8, 8),
            (RAM - 8, 9),
            (u64::MAX - 3, 8),
        ];
        // On the long ways of the largest ring, only whether they are buffers.
        let tried = if self.ring.size == 3 || in_table {
            2
        } else {
            options.len()
        };
        self.tape.choose(&options[..tried])
    }

    /// Any flags, of any lap; of the rest, all that matters with them.
    fn descriptor(&mut self, place: Place) -> Desc {
        let flags: u16 = self.tape.choose(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let lap = self.tape.choose(&[
            place.available(),
            place.used(),
            place.available() ^ AVAIL_AND_USED,
            place.used() ^ AVAIL_AND_USED,
        ]);
        let (address, len) = if flags & INDIRECT != 0 {
            self.tape.choose(&[
                (TABLE, 32),
                (TABLE, 16),
                (TABLE, 0),
                (TABLE, 24),
                (TABLE, u32::MAX),
                (LAST_TABLE, 32),
                (u64::MAX - 15, 16),
            ])
        } else {
            self.buffer(false)
        };
        // The id of one that is not the last means nothing.
        let id = if flags & NEXT == 0 {
            let size = self.ring.size;
            self.tape.choose(&[0, size - 1, size, u16::MAX])
        } else {
            u16::MAX
        };
        let desc = Desc {
            address,
            len,
            id,
            flags: flags | lap,
        };
        self.ring.set_buffer(place, address, len, id);
        self.ring.set_flags(place, desc.flags);
        desc
    }

    /// An entry of a table: "WRITE is the only valid flag" (virtio 1.4, 2.8.7), and the rest is ignored.
    fn entry(&mut self, at: u64) -> (u64, u32, bool) {
        let (address, len) = self.buffer(true);
        let flags: u16 = self
            .tape
            .choose(&[0, WRITE, NEXT | INDIRECT | AVAIL_AND_USED]);
        self.ring.write(at, &address.to_le_bytes());
        self.ring.write(at + 8, &len.to_le_bytes());
        self.ring.write(at + 12, &[0xff, 0xff]);
        self.ring.write(at + 14, &flags.to_le_bytes());
        (address, len, flags & WRITE != 0)
    }

    /// What the specification says of the chain at `start` (virtio 1.4, 2.8): `Ok(None)` where none is, and an error
    /// for one that no driver may make.
    fn chain(&mut self, start: Place) -> Result<Option<Good>, ()> {
        let size = self.ring.size;
        let mut buffers = Buffers::new();
        for nth in 0..size {
            let place = start.plus(nth, size);
            let desc = self.descriptor(place);
            let is_available = desc.flags & AVAIL_AND_USED == place.available();
            if !is_available {
                return if nth == 0 { Ok(None) } else { Err(()) };
            }
            if desc.flags & INDIRECT != 0 {
                let whole = desc.len > 0 && desc.len.is_multiple_of(16);
                let allowed = self.indirect && nth == 0 && desc.flags & NEXT == 0;
                let end = desc.address.checked_add(desc.len.into());
                // A table may end past memory: an error when it comes to that entry.
                if !allowed || !whole || end.is_none() {
                    return Err(());
                }
                for entry in 0..desc.len / 16 {
                    let at = desc.address + 16 * u64::from(entry);
                    if at + 16 > RAM {
                        return Err(());
                    }
                    let entry = if at < DATA {
                        self.entry(at)
                    } else {
                        // The ring itself is there, which is no good buffer.
                        return Err(());
                    };
                    Self::add(&mut buffers, entry)?;
                }
                return self.end(desc.id, 1, buffers);
            }
            let entry = (desc.address, desc.len, desc.flags & WRITE != 0);
            Self::add(&mut buffers, entry)?;
            if desc.flags & NEXT == 0 {
                return self.end(desc.id, nth + 1, buffers);
            }
        }
        // Longer than the ring.
        Err(())
    }

    fn add(buffers: &mut Buffers, (address, len, write): (u64, u32, bool)) -> Result<(), ()> {
        let end = address.checked_add(len.into()).ok_or(())?;
        let after_write = buffers.last().is_some_and(|(_, _, write)| *write);
        if len == 0 || end > RAM || (after_write && !write) {
            return Err(());
        }
        buffers.push((address, len, write));
        Ok(())
    }

    fn end(&self, id: u16, count: u16, buffers: Buffers) -> Result<Option<Good>, ()> {
        if id < self.ring.size {
            Ok(Some((id, count, buffers)))
        } else {
            Err(())
        }
    }
}

fn check(
    ring: &PackedRing,
    queue: &mut VirtQueue<Memory>,
    start: Place,
    expected: &Result<Option<Good>, ()>,
) {
    let mut chain = Chain::new();
    let popped = queue.pop(&mut chain);
    match expected {
        Ok(None) => {
            assert!(!popped.unwrap());
            assert_eq!(queue.state().next_avail, start.value());
        }
        Ok(Some((id, count, buffers))) => {
            assert!(popped.unwrap());
            assert_eq!(chain.head(), *id);
            assert_eq!(buffers_of(&chain), *buffers);
            let next = start.plus(*count, ring.size).value();
            assert_eq!(queue.state().next_avail, next);
            queue.push_used(*id, 7).unwrap();
            assert!(queue.push_used(*id, 7).is_err(), "once");
            queue.publish();
            assert_eq!(ring.id(start), *id);
            assert_eq!(ring.flags(start), start.used() | WRITE);
            assert_eq!(queue.state().next_used, next);
        }
        Err(()) => {
            assert!(popped.is_err(), "{:?}", buffers_of(&chain));
            assert!(queue.is_broken());
            assert_eq!(buffers_of(&chain), [], "nothing of it is lent");
            let again = queue.pop(&mut chain);
            assert!(matches!(again, Err(QueueError::Broken)), "parsed once");
            assert_eq!(queue.in_flight(), 0);
            assert_eq!(queue.state().next_avail, start.value());
        }
    }
}

#[test]
fn a_chain_is_what_the_specification_says_or_an_error_for_every_small_packed_ring() {
    // At the start, and from the last descriptor over the wrap.
    for size in [1, 2, 3] {
        let last = Place {
            offset: size - 1,
            wrap: false,
        };
        for (start, indirect) in [
            (Place::START, false),
            (Place::START, true),
            (last, false),
            (last, true),
        ] {
            if size == 3 && (indirect || start == Place::START) {
                // The way into a table is the same from any ring, and each way is longest over the wrap.
                continue;
            }
            let ring = PackedRing::new(size);
            let mut features = F::VERSION_1;
            features.set(F::INDIRECT_DESC, indirect);
            let (mut good, mut none, mut bad) = (0, 0, 0);
            Tape::all(|tape| {
                ring.clear(start);
                let mut author = Author {
                    tape,
                    ring: &ring,
                    indirect,
                };
                let expected = author.chain(start);
                *(match expected {
                    Ok(Some(_)) => &mut good,
                    Ok(None) => &mut none,
                    Err(()) => &mut bad,
                }) += 1;
                let mut queue = ring.queue(features, start, start).unwrap();
                check(&ring, &mut queue, start, &expected);
            });
            assert!(good > 0 && none > 0 && bad > good, "{good} {none} {bad}");
        }
    }
}

#[test]
fn of_all_buffer_ids_those_below_the_size_name_chains_and_the_others_are_errors() {
    for size in [1, 2, 3] {
        let ring = PackedRing::new(size);
        for id in 0..=u16::MAX {
            let start = Place::START;
            ring.clear(start);
            ring.set_buffer(start, DATA, 8, id);
            ring.set_flags(start, start.available());
            let expected = (id < size).then(|| (id, 1, vec![(DATA, 8, false)]));
            let mut queue = ring.queue(F::VERSION_1, start, start).unwrap();
            check(&ring, &mut queue, start, &expected.map(Some).ok_or(()));
        }
    }
}
