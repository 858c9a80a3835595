//! The record of a split ring: `QueueRegionSplit`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use virtqueue::{InFlight, InFlightRecord, QueueConfig, QueueState, RingDescriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::shared::Shared;
use super::{Reason, VERSION};

/// Bytes before the entries, and of each.
pub(super) const HEAD: usize = 16;
pub(super) const ENTRY: usize = 16;

const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
/// Of an entry.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// Where a field of an entry is.
fn at(entry: u16, field: usize) -> usize {
    HEAD + ENTRY * usize::from(entry) + field
}

pub(super) fn is_in_flight(shared: &Shared, entry: u16) -> bool {
    shared.load::<u8>(at(entry, INFLIGHT)) == 1
}

#[derive(Debug)]
pub(super) struct SplitRecord {
    shared: Shared,
    in_flight: Vec<u16>,
    /// What was written last; the queue's holder alone takes the lock.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// For the next chain that is taken.
    counter: u64,
    last_batch_head: u16,
}

impl SplitRecord {
    /// Reads what is in flight, and brings up to date what the last batch has left behind.
    pub(super) fn open<G: GuestMemory>(
        shared: Shared,
        queue_size: u16,
        config: &QueueConfig,
        base: QueueState,
        map: &G,
    ) -> Result<(Self, QueueState), Reason> {
        let index = config.device.checked_add(2).map(GuestAddress);
        let used = index.and_then(|at| map.read_obj::<u16>(at).ok());
        let used = u16::from_le(used.ok_or("the used index is not in guest memory")?);
        match shared.load::<u16>(VERSION) {
            0 => {
                begin(&shared, queue_size, used);
                return Ok((Self::empty(shared), base));
            }
            1 => {}
            other => return Err(format!("version {other} is unknown")),
        }
        let desc_num: u16 = shared.load(DESC_NUM);
        if desc_num != queue_size {
            return Err(format!("it is of {desc_num} entries, not {queue_size}"));
        }
        let mut in_flight: Vec<bool> = (0..queue_size)
            .map(|entry| is_in_flight(&shared, entry))
            .collect();
        let last_batch_head = shared.load(LAST_BATCH_HEAD);
        let batch = used.wrapping_sub(shared.load(USED_IDX));
        if in_flight.contains(&true) {
            let published = last_batch(&shared, queue_size, last_batch_head, batch)?;
            for entry in published {
                if let Some(flag) = in_flight.get_mut(usize::from(entry)) {
                    *flag = false;
                }
                shared.store(at(entry, INFLIGHT), 0_u8);
            }
        }
        if batch != 0 {
            shared.store(USED_IDX, used);
        }
        let mut list: Vec<(u64, u16)> = (0..queue_size)
            .zip(in_flight)
            .filter(|(_, in_flight)| *in_flight)
            .map(|(entry, _)| (shared.load(at(entry, COUNTER)), entry))
            .collect();
        list.sort_unstable();
        if let Some((_, entry)) = list.iter().find(|(_, entry)| *entry >= config.size) {
            return Err(format!("head {entry} is not one of {}", config.size));
        }
        let last = list.last().map(|(counter, _)| *counter);
        let counter = last.map_or(Some(0), |counter| counter.checked_add(1));
        let state = State {
            counter: counter.ok_or("its counter is at its end")?,
            last_batch_head,
        };
        let record = Self {
            shared,
            in_flight: list.into_iter().map(|(_, entry)| entry).collect(),
            state: Mutex::new(state),
        };
        // The chains in flight have their places between what is used and what the driver goes on with.
        let state = QueueState {
            next_avail: used,
            next_used: used,
        };
        Ok((record, state))
    }

    /// Of a region that was just begun.
    fn empty(shared: Shared) -> Self {
        Self {
            shared,
            in_flight: Vec::new(),
            state: Mutex::new(State {
                counter: 0,
                last_batch_head: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a record of nothing of memory that was not used yet.
fn begin(shared: &Shared, queue_size: u16, used: u16) {
    for entry in 0..queue_size {
        shared.store(at(entry, INFLIGHT), 0_u8);
    }
    shared.store(DESC_NUM, queue_size);
    shared.store(LAST_BATCH_HEAD, 0_u16);
    shared.store(USED_IDX, used);
    shared.store(VERSION, 1_u16);
}

/// The `count` chains that were published last.
fn last_batch(shared: &Shared, queue_size: u16, head: u16, count: u16) -> Result<Vec<u16>, Reason> {
    if count > queue_size {
        return Err(format!(
            "the used index is {count} ahead of it, of {queue_size} entries"
        ));
    }
    let mut list = Vec::new();
    let mut entry = head;
    for _ in 0..count {
        if entry >= queue_size {
            return Err(format!("its last batch has entry {entry} of {queue_size}"));
        }
        list.push(entry);
        entry = shared.load(at(entry, NEXT));
    }
    Ok(list)
}

impl InFlightRecord for SplitRecord {
    fn in_flight(&self) -> Vec<InFlight> {
        let chain = |&head| InFlight {
            head,
            descriptors: Vec::new(),
        };
        self.in_flight.iter().map(chain).collect()
    }

    fn taken(&self, head: u16, _descriptors: &[RingDescriptor]) {
        let mut state = self.state();
        self.shared.store(at(head, COUNTER), state.counter);
        state.counter = state.counter.wrapping_add(1);
        self.shared.store(at(head, INFLIGHT), 1_u8);
    }

    fn undone(&self, head: u16) {
        self.shared.store(at(head, INFLIGHT), 0_u8);
    }

    fn publishing(&self, heads: &[u16], _next_used: u16) {
        let mut state = self.state();
        for head in heads {
            self.shared.store(at(*head, NEXT), state.last_batch_head);
            state.last_batch_head = *head;
            self.shared.store(LAST_BATCH_HEAD, *head);
        }
    }

    fn published(&self, heads: &[u16], next_used: u16) {
        for head in heads {
            self.shared.store(at(*head, INFLIGHT), 0_u8);
        }
        self.shared.store(USED_IDX, next_used);
    }
}
