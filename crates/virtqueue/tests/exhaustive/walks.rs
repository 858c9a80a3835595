//! Every chain that a small descriptor table, or indirect table, can hold.

use virtio::F;
use virtqueue::{Chain, QueueError, VirtQueue};

use crate::ring::{Desc, Memory, RAM, Rings};
use crate::tape::Tape;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Indirect tables, and one that ends past memory.
const TABLE: u64 = 0x1000;
/// One that only a table leads to.
const INNER_TABLE: u64 = 0x1100;
const LAST_TABLE: u64 = RAM - 16;
const DATA: u64 = 0x2000;

/// A buffer and no more.
const PLAIN: Desc = Desc {
    addr: DATA,
    len: 8,
    flags: 0,
    next: 0,
};

/// What a chain is: its buffers in order, and which of them the device writes.
pub(crate) type Buffers = Vec<(u64, u32, bool)>;

/// A driver that writes a descriptor when the specification's words get to it, and not before: whatever
/// the rest of the table holds, the way does not lead there.
struct Author<'a> {
    tape: &'a mut Tape,
    rings: &'a Rings,
    indirect: bool,
    written: Vec<(u64, Desc)>,
}

impl Author<'_> {
    /// Descriptor `index` of the ring's own table, or of `table`.
    fn descriptor(&mut self, table: Option<u64>, index: u16) -> Desc {
        let key = table.unwrap_or(0) + u64::from(index);
        if let Some((_, desc)) = self.written.iter().find(|(at, _)| *at == key) {
            return *desc;
        }
        let desc = self.write(table.is_some());
        match table {
            None => self.rings.set_desc(index, desc),
            Some(table) => self.rings.set_desc_at(table + 16 * u64::from(index), desc),
        }
        self.written.push((key, desc));
        desc
    }

    /// Any flags; of the rest, all that matters with them.
    fn write(&mut self, in_table: bool) -> Desc {
        let flags: u16 = self.tape.choose(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let (addr, len) = if flags & INDIRECT != 0 && in_table {
            (INNER_TABLE, 16)
        } else if flags & INDIRECT != 0 {
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
            let options = [
                (DATA, 8),
                (DATA, 0),
                (RAM - 8, 8),
                (RAM - 8, 9),
                (u64::MAX - 3, 8),
            ];
            // On the long ways of the largest table, only whether they are buffers.
            let tried = if self.rings.size == 4 {
                2
            } else {
                options.len()
            };
            self.tape.choose(&options[..tried])
        };
        let next = if flags & NEXT != 0 {
            let entries = if in_table { 2 } else { self.rings.size };
            let mut options: Vec<u16> = (0..=entries).collect();
            options.push(u16::MAX);
            self.tape.choose(&options)
        } else {
            u16::MAX
        };
        Desc {
            addr,
            len,
            flags,
            next,
        }
    }

    /// What the specification says of the chain of `head` (virtio 1.4, 2.7.5); `None` for one that no
    /// driver may make.
    fn chain(&mut self, head: u16) -> Option<Buffers> {
        let mut buffers = Buffers::new();
        let mut visited = Vec::new();
        let mut table = None;
        let mut entries = u32::from(self.rings.size);
        let mut index = head;
        loop {
            if visited.contains(&(table, index)) || u32::from(index) >= entries {
                return None;
            }
            visited.push((table, index));
            let in_memory = |table: u64| table + 16 * u64::from(index) + 16 <= RAM;
            if !table.is_none_or(in_memory) {
                return None;
            }
            let desc = self.descriptor(table, index);
            if desc.flags & INDIRECT != 0 {
                let allowed = self.indirect && table.is_none() && desc.flags & NEXT == 0;
                let whole = desc.len > 0 && desc.len.is_multiple_of(16);
                if !allowed || !whole || desc.addr > RAM - 16 {
                    return None;
                }
                table = Some(desc.addr);
                entries = desc.len / 16;
                index = 0;
                continue;
            }
            let end = desc.addr.checked_add(desc.len.into())?;
            let write = desc.flags & WRITE != 0;
            let after_write = buffers.last().is_some_and(|(_, _, write)| *write);
            if desc.len == 0 || end > RAM || (after_write && !write) {
                return None;
            }
            buffers.push((desc.addr, desc.len, write));
            if desc.flags & NEXT == 0 {
                return Some(buffers);
            }
            index = desc.next;
        }
    }
}

pub(crate) fn buffers_of(chain: &Chain<Memory>) -> Buffers {
    let part = |write| {
        let segments = if write {
            chain.writable()
        } else {
            chain.readable()
        };
        segments
            .iter()
            .map(move |segment| (segment.address().0, segment.len() as u32, write))
    };
    part(false).chain(part(true)).collect()
}

fn check(rings: &Rings, queue: &mut VirtQueue<Memory>, head: u16, expected: Option<Buffers>) {
    let mut chain = Chain::new();
    let popped = queue.pop(&mut chain);
    match expected {
        Some(expected) => {
            assert!(popped.unwrap());
            assert_eq!(chain.head(), head);
            assert_eq!(buffers_of(&chain), expected);
            assert_eq!(queue.in_flight(), 1);
            queue.push_used(head, 0).unwrap();
            assert!(queue.push_used(head, 0).is_err(), "once");
            queue.publish();
            assert_eq!(rings.used_entry(0), (head.into(), 0));
        }
        None => {
            assert!(popped.is_err(), "{:?}", buffers_of(&chain));
            assert!(queue.is_broken());
            assert_eq!(buffers_of(&chain), [], "nothing of it is lent");
            let again = queue.pop(&mut chain);
            assert!(matches!(again, Err(QueueError::Broken)), "parsed once");
            assert_eq!(queue.in_flight(), 0);
        }
    }
}

#[test]
fn a_chain_is_what_the_specification_says_or_an_error_for_every_small_table() {
    // The first head is as good as any other: what is written where follows the way. Of size 4 only this
    // one is tried, of the others each.
    for (size, heads) in [(1, 0..1), (2, 0..2), (4, 0..1)] {
        for indirect in [false, true] {
            if size == 4 && indirect {
                // The way into a table is the same from any descriptor: two are enough before it.
                continue;
            }
            let rings = Rings::new(size);
            let mut features = F::VERSION_1;
            features.set(F::INDIRECT_DESC, indirect);
            for head in heads.clone() {
                let (mut good, mut bad) = (0, 0);
                Tape::all(|tape| {
                    // Where a way leads that should have ended, it finds a buffer.
                    for index in 0..2 {
                        rings.set_desc_at(TABLE + 16 * index, PLAIN);
                    }
                    rings.set_desc_at(INNER_TABLE, PLAIN);
                    for index in 0..size {
                        rings.set_desc(index, PLAIN);
                    }
                    let mut author = Author {
                        tape,
                        rings: &rings,
                        indirect,
                        written: Vec::new(),
                    };
                    let expected = author.chain(head);
                    *(if expected.is_some() {
                        &mut good
                    } else {
                        &mut bad
                    }) += 1;
                    rings.set_used_idx(0);
                    rings.set_avail_entry(0, head);
                    rings.set_avail_idx(1);
                    check(&rings, &mut rings.queue(features, 0), head, expected);
                });
                assert!(good > 0 && bad > good, "{good} chains, {bad} errors");
            }
        }
    }
}

#[test]
fn of_all_heads_those_of_the_table_are_chains_and_the_others_errors() {
    for size in [1, 2, 4] {
        let rings = Rings::new(size);
        for index in 0..size {
            rings.set_desc(index, PLAIN);
        }
        rings.set_avail_idx(1);
        for head in 0..=u16::MAX {
            rings.set_avail_entry(0, head);
            let expected = (head < size).then(|| vec![(PLAIN.addr, PLAIN.len, false)]);
            rings.set_used_idx(0);
            check(&rings, &mut rings.queue(F::VERSION_1, 0), head, expected);
        }
    }
}
