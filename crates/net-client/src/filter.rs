//! What stands between two peers, and sees the frames that pass.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::client::Frame;
use crate::iovec::copy_from_iov;
use crate::queue::PacketQueue;

/// Which way a frame goes, seen from the client at whose port the filter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The client sends it.
    Tx,
    /// The client receives it.
    Rx,
}

/// Which frames a filter sees. [QEMU: NetFilterDirection]
#[doc(alias = "NetFilterDirection")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Directions {
    /// All.
    #[default]
    All,
    /// Those that the client sends.
    Tx,
    /// Those that the client receives.
    Rx,
}

impl Directions {
    fn contain(self, direction: Direction) -> bool {
        match self {
            Self::All => true,
            Self::Tx => direction == Direction::Tx,
            Self::Rx => direction == Direction::Rx,
        }
    }
}

/// Where a filter comes to stand among those of its port: the head is next to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Position {
    /// Next to the client.
    Head,
    /// Next to the peer.
    #[default]
    Tail,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on; behind those that the filter holds, if there are any.
    Pass,
    /// It is dropped, and counted as [`DropReason::Filtered`](crate::DropReason::Filtered).
    Drop,
    /// It is kept until [`Port::release`](crate::Port::release), and goes on then.
    Hold,
}

/// A frame that passes a filter.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Bytes of `virtio_net_hdr` at its beginning; the Ethernet frame follows.
    pub header_len: usize,
    /// Header and frame, in memory that may be a guest's: what is read twice may differ.
    pub frame: &'a Frame<'a>,
}

impl Passing<'_> {
    /// Bytes of the Ethernet frame.
    pub fn ethernet_len(&self) -> usize {
        self.frame.len.saturating_sub(self.header_len)
    }

    /// Copies the Ethernet frame, or as much of it as fits; returns how many bytes.
    pub fn copy_ethernet(&self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.ethernet_len());
        copy_from_iov(
            self.frame.iov,
            self.header_len,
            to.get_mut(..len).unwrap_or_default(),
        )
    }
}

/// Stands at a port, sees each frame of its directions once, and decides about it.
///
/// Frames of one direction pass one after the other, on the context of the two peers; the two
/// directions, and other ports at which the same filter stands, may meet in it at once.
#[doc(alias = "NetFilterClass")]
pub trait Filter: Send + Sync + fmt::Debug {
    /// Decides about a frame. It must not call the ports it stands at but for
    /// [`Port::release`](crate::Port::release).
    #[doc(alias = "receive_iov")]
    fn filter(&self, passing: &Passing<'_>) -> Verdict;
}

/// Names one filter at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FilterId(u64);

/// A filter's place at a port.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: FilterId,
    filter: Arc<dyn Filter>,
    directions: Directions,
    /// The filter is on its way out: it is not asked any more.
    retired: AtomicBool,
    tx: PacketQueue,
    rx: PacketQueue,
}

impl Slot {
    /// What the filter says, with the order kept: nothing passes those that are held.
    pub(crate) fn verdict(&self, passing: &Passing<'_>) -> Verdict {
        if !self.directions.contain(passing.direction) {
            return Verdict::Pass;
        }
        let verdict = if self.retired.load(Ordering::Relaxed) {
            Verdict::Pass
        } else {
            self.filter.filter(passing)
        };
        match verdict {
            Verdict::Pass if !self.held(passing.direction).is_empty() => Verdict::Hold,
            verdict => verdict,
        }
    }

    pub(crate) fn held(&self, direction: Direction) -> &PacketQueue {
        match direction {
            Direction::Tx => &self.tx,
            Direction::Rx => &self.rx,
        }
    }

    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

/// The filters of one port, from head to tail.
///
/// The lock is a leaf; the list is taken out of it whole, and changed by putting another in its
/// place.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    slots: RwLock<Arc<[Arc<Slot>]>>,
    /// Whether there are any: read on each frame's way, without the lock.
    any: AtomicBool,
    ids: AtomicU64,
}

impl Filters {
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(crate) fn slots(&self) -> Arc<[Arc<Slot>]> {
        self.slots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn find(&self, id: FilterId) -> Option<Arc<Slot>> {
        self.slots().iter().find(|slot| slot.id == id).cloned()
    }

    pub(crate) fn slot(&self, filter: Arc<dyn Filter>, directions: Directions) -> Arc<Slot> {
        Arc::new(Slot {
            id: FilterId(self.ids.fetch_add(1, Ordering::Relaxed)),
            filter,
            directions,
            retired: AtomicBool::new(false),
            tx: PacketQueue::default(),
            rx: PacketQueue::default(),
        })
    }

    pub(crate) fn insert(&self, slot: Arc<Slot>, position: Position) {
        self.change(|slots| match position {
            Position::Head => slots.insert(0, slot),
            Position::Tail => slots.push(slot),
        });
    }

    pub(crate) fn remove(&self, id: FilterId) {
        self.change(|slots| slots.retain(|slot| slot.id != id));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Slot>>)) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let mut list = slots.to_vec();
        change(&mut list);
        self.any.store(!list.is_empty(), Ordering::Release);
        *slots = list.into();
    }
}
