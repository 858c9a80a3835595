//! A record of the chains in flight that outlives this process, and what is done again by it.

use std::fmt;
use std::sync::Arc;

use crate::memory::Raw;

/// A descriptor of a packed ring, as its driver wrote it (virtio 1.4, 2.8.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingDescriptor {
    /// Of the buffer, or of an indirect table.
    pub address: u64,
    /// Of that, in bytes.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// In the host's byte order.
    pub flags: u16,
}

impl RingDescriptor {
    pub(crate) fn from_raw(raw: Raw) -> Self {
        Self {
            address: raw.address,
            len: raw.len(),
            id: raw.third(),
            flags: raw.fourth(),
        }
    }

    pub(crate) fn to_raw(self) -> Raw {
        let rest = [
            u64::from(self.len),
            u64::from(self.id) << 32,
            u64::from(self.flags) << 48,
        ];
        Raw {
            address: self.address,
            rest: rest.into_iter().sum(),
        }
    }
}

/// A chain that somebody took before, and that is not on the used ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Split: the first of its descriptors. Packed: its buffer id.
    pub head: u16,
    /// Packed: its descriptors, since their place in the ring may have been used for others. Split: none.
    pub descriptors: Vec<RingDescriptor>,
}

/// Where a queue writes down what it has in flight, so that another one can go on if this process dies at any
/// moment: in memory that it shares, say.
///
/// All calls come from the holder of the queue, one at a time, in the order in which things happen. Between
/// [`publishing`](Self::publishing) and [`published`](Self::published) the driver comes to see the chains as used; that
/// is the moment at which a record does not know which of the two it is, and must find out from the ring.
pub trait InFlightRecord: Send + Sync + fmt::Debug {
    /// What is in flight by the record, in the order in which it was taken. Asked once, by
    /// [`VirtQueue::with_record`](crate::VirtQueue::with_record); such chains are not reported as taken again.
    fn in_flight(&self) -> Vec<InFlight>;

    /// A chain was taken. `descriptors` is as in [`InFlight`].
    fn taken(&self, head: u16, descriptors: &[RingDescriptor]);

    /// The chain that was taken last is as if it had not been.
    fn undone(&self, head: u16);

    /// These chains are next to be published as used, all at once; the used ring then stands at `next_used`, which is
    /// as in [`QueueState`](crate::QueueState).
    fn publishing(&self, heads: &[u16], next_used: u16);

    /// They are.
    fn published(&self, heads: &[u16], next_used: u16);
}

/// A queue's side of it.
pub(crate) struct Recorder {
    record: Arc<dyn InFlightRecord>,
    /// What is to be done again, of which `again` chains were popped again.
    in_flight: Vec<InFlight>,
    again: usize,
    /// Chains that were popped from the ring since.
    popped: u64,
    /// Not published yet.
    staged: Vec<u16>,
    /// Of the chain at hand.
    pub(crate) descriptors: Vec<RingDescriptor>,
}

impl Recorder {
    pub(crate) fn new(record: Arc<dyn InFlightRecord>, size: u16) -> Self {
        Self {
            in_flight: record.in_flight(),
            record,
            again: 0,
            popped: 0,
            staged: Vec::with_capacity(size.into()),
            descriptors: Vec::new(),
        }
    }

    /// The chain that is to be popped again before anything of the ring.
    pub(crate) fn next(&self) -> Option<&InFlight> {
        self.in_flight.get(self.again)
    }

    /// It was.
    pub(crate) fn popped_again(&mut self) {
        self.again += 1;
    }

    /// A chain of the ring was taken; `descriptors` are its own.
    pub(crate) fn popped(&mut self, head: u16) {
        self.popped += 1;
        self.record.taken(head, &self.descriptors);
    }

    /// The pop of `head`, which was the last, is undone.
    pub(crate) fn undone(&mut self, head: u16) {
        if self.popped > 0 {
            self.popped -= 1;
            self.record.undone(head);
        } else {
            // In flight is what it was before.
            self.again = self.again.saturating_sub(1);
        }
    }

    pub(crate) fn staged(&mut self, head: u16) {
        self.staged.push(head);
    }

    pub(crate) fn publishing(&self, next_used: u16) {
        if !self.staged.is_empty() {
            self.record.publishing(&self.staged, next_used);
        }
    }

    pub(crate) fn published(&mut self, next_used: u16) {
        if !self.staged.is_empty() {
            self.record.published(&self.staged, next_used);
            self.staged.clear();
        }
    }
}
