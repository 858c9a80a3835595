//! The record of a packed ring: `QueueRegionPacked`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use virtqueue::{InFlight, InFlightRecord, QueueConfig, QueueState, RingDescriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::shared::Shared;
use super::{Reason, VERSION};

/// Bytes before the entries, and of each.
pub(super) const HEAD: usize = 32;
pub(super) const ENTRY: usize = 32;

const DESC_NUM: usize = 10;
const FREE_HEAD: usize = 12;
const OLD_FREE_HEAD: usize = 14;
/// `used_idx`, `old_used_idx` and both wrap counters, which share a word.
const USED: usize = 16;
/// Of an entry.
const INFLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

/// The wrap counter, in a place of the ring.
const WRAP: u16 = 1 << 15;
/// `VIRTQ_DESC_F_AVAIL` and `VIRTQ_DESC_F_USED`.
const AVAIL: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;

/// Where a field of an entry is.
fn at(entry: u16, field: usize) -> usize {
    HEAD + ENTRY * usize::from(entry) + field
}

pub(super) fn is_in_flight(shared: &Shared, entry: u16) -> bool {
    shared.load::<u8>(at(entry, INFLIGHT)) == 1
}

#[derive(Debug)]
pub(super) struct PackedRecord {
    shared: Shared,
    in_flight: Vec<InFlight>,
    /// What was written last; the queue's holder alone takes the lock.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// For the next chain that is taken.
    counter: u64,
    free_head: u16,
    /// By entry: the next of its list, of free ones or of a chain's.
    next: Vec<u16>,
    /// By entry that is a chain's first: its last.
    last: Vec<u16>,
    /// By buffer id: its chain's first entry.
    first: Vec<u16>,
    /// Where the device stands in the ring.
    used: u16,
}

impl PackedRecord {
    /// Reads what is in flight, and ends or takes back what was under way.
    pub(super) fn open<G: GuestMemory>(
        shared: Shared,
        queue_size: u16,
        config: &QueueConfig,
        base: QueueState,
        map: &G,
    ) -> Result<(Self, QueueState), Reason> {
        let version = shared.load::<u16>(VERSION);
        match version {
            0 => begin(&shared, queue_size, base.next_used),
            1 => {}
            other => return Err(format!("version {other} is unknown")),
        }
        let desc_num: u16 = shared.load(DESC_NUM);
        if desc_num != queue_size {
            return Err(format!("it is of {desc_num} entries, not {queue_size}"));
        }
        let (free_head, used) = settle(&shared, config, map)?;
        let entries = Entries::read(&shared, queue_size, free_head)?;
        let mut state = State {
            counter: entries.counter()?,
            free_head,
            next: entries.next,
            last: vec![0; queue_size.into()],
            first: vec![0; config.size.into()],
            used,
        };
        let mut in_flight = Vec::new();
        let mut descriptors = 0;
        for chain in entries.chains {
            let (Some(last), Some(end)) = (chain.descriptors.last(), chain.entries.last()) else {
                return Err(format!("entry {} has no descriptors", chain.first));
            };
            descriptors += chain.entries.len();
            let slot = state.first.get_mut(usize::from(last.id));
            *slot.ok_or_else(|| format!("id {} is not one of {}", last.id, config.size))? =
                chain.first;
            if let Some(slot) = state.last.get_mut(usize::from(chain.first)) {
                *slot = *end;
            }
            in_flight.push(InFlight {
                head: last.id,
                descriptors: chain.descriptors,
            });
        }
        if descriptors > usize::from(config.size) {
            return Err(format!(
                "{descriptors} descriptors are not in a ring of {}",
                config.size
            ));
        }
        let record = Self {
            shared,
            in_flight,
            state: Mutex::new(state),
        };
        let state = match version {
            0 => base,
            _ => QueueState {
                next_avail: used,
                next_used: used,
            },
        };
        Ok((record, state))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a record of nothing of memory that was not used yet.
fn begin(shared: &Shared, queue_size: u16, used: u16) {
    for entry in 0..queue_size {
        shared.store(at(entry, INFLIGHT), 0_u8);
        // Behind the last comes what is no entry.
        shared.store(at(entry, NEXT), entry + 1);
    }
    shared.store(DESC_NUM, queue_size);
    shared.store(FREE_HEAD, 0_u16);
    shared.store(OLD_FREE_HEAD, 0_u16);
    shared.store(USED, used_word(used, used));
    shared.store(VERSION, 1_u16);
}

/// Finds out whether the last batch was published, and has the region say so; the first free entry, and where the device
/// stands in the ring.
fn settle<G: GuestMemory>(
    shared: &Shared,
    config: &QueueConfig,
    map: &G,
) -> Result<(u16, u16), Reason> {
    let [a, b, c, d, wrap, old_wrap, _, _] = shared.load::<u64>(USED).to_ne_bytes();
    let place = |index: u16, wrap: u8| match wrap {
        _ if index >= config.size => {
            Err(format!("used index {index} is not one of {}", config.size))
        }
        0 => Ok(index),
        1 => Ok(index | WRAP),
        _ => Err(format!("a wrap counter is {wrap}")),
    };
    let used = place(u16::from_ne_bytes([a, b]), wrap)?;
    let old_used = place(u16::from_ne_bytes([c, d]), old_wrap)?;
    let free_head: u16 = shared.load(FREE_HEAD);
    let old_free_head: u16 = shared.load(OLD_FREE_HEAD);
    // A batch of a whole lap leaves the index alone as it was.
    let published = used != old_used && {
        let flags = u64::from(old_used & !WRAP) * 16 + 14;
        let flags = config.desc.checked_add(flags).map(GuestAddress);
        let flags = flags.and_then(|flags| map.read_obj::<u16>(flags).ok());
        let flags = u16::from_le(flags.ok_or("the ring is not in guest memory")?);
        let available = if old_used & WRAP != 0 {
            AVAIL
        } else {
            USED_FLAG
        };
        flags & (AVAIL | USED_FLAG) != available
    };
    let (free_head, used) = if published {
        (free_head, used)
    } else {
        (old_free_head, old_used)
    };
    shared.store(OLD_FREE_HEAD, free_head);
    shared.store(FREE_HEAD, free_head);
    shared.store(USED, used_word(used, used));
    Ok((free_head, used))
}

/// The word at `USED`.
fn used_word(used: u16, old: u16) -> u64 {
    let [a, b] = (used & !WRAP).to_ne_bytes();
    let [c, d] = (old & !WRAP).to_ne_bytes();
    let wrap = |place: u16| u8::from(place & WRAP != 0);
    u64::from_ne_bytes([a, b, c, d, wrap(used), wrap(old), 0, 0])
}

/// What the entries say, checked: each is free or a chain's, and none is both or twice the same.
struct Entries {
    next: Vec<u16>,
    /// In the order of their counters.
    chains: Vec<Chain>,
}

struct Chain {
    counter: u64,
    first: u16,
    entries: Vec<u16>,
    descriptors: Vec<RingDescriptor>,
}

impl Entries {
    fn read(shared: &Shared, queue_size: u16, free_head: u16) -> Result<Self, Reason> {
        let next: Vec<u16> = (0..queue_size)
            .map(|entry| shared.load(at(entry, NEXT)))
            .collect();
        let mut seen = vec![false; queue_size.into()];
        let mut visit = |entry: u16| match seen.get_mut(usize::from(entry)) {
            Some(seen) if !*seen => {
                *seen = true;
                Ok(())
            }
            Some(_) => Err(format!("entry {entry} is in two lists, or twice in one")),
            None => Err(format!("entry {entry} is not one of {queue_size}")),
        };
        let mut free = Vec::new();
        let mut entry = free_head;
        while entry != queue_size {
            visit(entry)?;
            free.push(entry);
            entry = next.get(usize::from(entry)).copied().unwrap_or(queue_size);
        }
        for entry in free {
            shared.store(at(entry, INFLIGHT), 0_u8);
        }
        let mut chains = Vec::new();
        for first in (0..queue_size).filter(|entry| is_in_flight(shared, *entry)) {
            let num: u16 = shared.load(at(first, NUM));
            let mut entries = Vec::new();
            let mut entry = first;
            for _ in 0..num {
                visit(entry)?;
                entries.push(entry);
                entry = next.get(usize::from(entry)).copied().unwrap_or(queue_size);
            }
            let last: u16 = shared.load(at(first, LAST));
            if entries.last() != Some(&last) {
                return Err(format!("the chain of entry {first} does not end at {last}"));
            }
            chains.push(Chain {
                counter: shared.load(at(first, COUNTER)),
                first,
                descriptors: entries
                    .iter()
                    .map(|entry| descriptor(shared, *entry))
                    .collect(),
                entries,
            });
        }
        if let Some(lost) = seen.iter().position(|seen| !seen) {
            return Err(format!("entry {lost} is in no list"));
        }
        chains.sort_by_key(|chain| chain.counter);
        Ok(Self { next, chains })
    }

    /// For the next chain.
    fn counter(&self) -> Result<u64, Reason> {
        let last = self.chains.last().map(|chain| chain.counter);
        let next = last.map_or(Some(0), |counter| counter.checked_add(1));
        next.ok_or_else(|| "its counter is at its end".to_owned())
    }
}

fn descriptor(shared: &Shared, entry: u16) -> RingDescriptor {
    RingDescriptor {
        address: shared.load(at(entry, ADDR)),
        len: shared.load(at(entry, LEN)),
        id: shared.load(at(entry, ID)),
        flags: shared.load(at(entry, FLAGS)),
    }
}

impl State {
    fn next(&self, entry: u16) -> u16 {
        let next = self.next.get(usize::from(entry)).copied();
        next.unwrap_or_default()
    }

    /// The first entry of a chain, by its id.
    fn first(&self, id: u16) -> u16 {
        let first = self.first.get(usize::from(id)).copied();
        first.unwrap_or_default()
    }

    /// Puts a chain's entries before all that are free.
    fn free(&mut self, shared: &Shared, first: u16) {
        let last = self.last.get(usize::from(first)).copied();
        let last = last.unwrap_or_default();
        if let Some(next) = self.next.get_mut(usize::from(last)) {
            *next = self.free_head;
        }
        shared.store(at(last, NEXT), self.free_head);
        self.free_head = first;
        shared.store(FREE_HEAD, first);
    }
}

impl InFlightRecord for PackedRecord {
    fn in_flight(&self) -> Vec<InFlight> {
        self.in_flight.clone()
    }

    fn taken(&self, id: u16, descriptors: &[RingDescriptor]) {
        let state = &mut *self.state();
        let shared = &self.shared;
        let first = state.free_head;
        // There are as many entries as descriptors in the ring, so as many are free as can be taken.
        shared.store(at(first, NUM), 0_u16);
        shared.store(at(first, COUNTER), state.counter);
        state.counter = state.counter.wrapping_add(1);
        shared.store(at(first, INFLIGHT), 1_u8);
        let mut last = first;
        for (num, descriptor) in (1_u16..).zip(descriptors) {
            let entry = state.free_head;
            shared.store(at(first, LAST), entry);
            shared.store(at(first, NUM), num);
            shared.store(at(entry, ADDR), descriptor.address);
            shared.store(at(entry, LEN), descriptor.len);
            shared.store(at(entry, FLAGS), descriptor.flags);
            shared.store(at(entry, ID), descriptor.id);
            state.free_head = state.next(entry);
            shared.store(FREE_HEAD, state.free_head);
            last = entry;
        }
        if let Some(slot) = state.last.get_mut(usize::from(first)) {
            *slot = last;
        }
        if let Some(slot) = state.first.get_mut(usize::from(id)) {
            *slot = first;
        }
        // From here on it is in flight: before, its entries are still free.
        shared.store(OLD_FREE_HEAD, state.free_head);
    }

    fn undone(&self, id: u16) {
        let state = &mut *self.state();
        let first = state.first(id);
        state.free(&self.shared, first);
        // It is free from here on, whatever its own word says.
        self.shared.store(OLD_FREE_HEAD, first);
        self.shared.store(at(first, INFLIGHT), 0_u8);
    }

    fn publishing(&self, ids: &[u16], next_used: u16) {
        let state = &mut *self.state();
        for id in ids {
            let first = state.first(*id);
            state.free(&self.shared, first);
        }
        self.shared.store(USED, used_word(next_used, state.used));
    }

    fn published(&self, ids: &[u16], next_used: u16) {
        let state = &mut *self.state();
        for id in ids {
            self.shared.store(at(state.first(*id), INFLIGHT), 0_u8);
        }
        self.shared.store(OLD_FREE_HEAD, state.free_head);
        state.used = next_used;
        self.shared.store(USED, used_word(next_used, next_used));
    }
}
