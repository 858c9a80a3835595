//! What a port counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// The sender has no peer.
    NoPeer,
    /// The link is down, at either end.
    LinkDown,
    /// The receiver does not run: no driver, or paused.
    NotRunning,
    /// The receiver has no room, and the sender does not keep frames.
    NoRoom,
    /// The frame is longer than the receiver can ever take.
    TooLong,
    /// The frame, or the header in front of it, is not well formed.
    Malformed,
    /// The receiver's rules keep it out: a MAC or VLAN filter.
    Filtered,
    /// What is behind the client reported an error.
    Backend,
}

impl DropReason {
    /// All reasons, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::NoPeer,
        Self::LinkDown,
        Self::NotRunning,
        Self::NoRoom,
        Self::TooLong,
        Self::Malformed,
        Self::Filtered,
        Self::Backend,
    ];
}

/// What passed through a port in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionStatistics {
    /// Frames taken by their receiver.
    pub frames: u64,
    /// Bytes of those, headers in front included.
    pub bytes: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl DirectionStatistics {
    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Frames dropped for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }
}

/// What passed through a port, seen by the client whose end it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the client gave to its peer.
    pub sent: DirectionStatistics,
    /// Frames that the client got from its peer.
    pub received: DirectionStatistics,
}

/// The counters of one direction, on cache lines of their own, so that the two directions may run
/// on two processors.
///
/// One direction has one writer at a time (the context that the two clients share), so a count is
/// a load and a store; should two threads ever count at once, a count is lost and nothing else.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Counters {
    #[inline]
    pub(crate) fn passed(&self, len: usize) {
        add(&self.frames, 1);
        add(&self.bytes, len as u64);
    }

    pub(crate) fn dropped(&self, reason: DropReason) {
        add(&self.drops[reason as usize], 1);
    }

    pub(crate) fn read(&self) -> DirectionStatistics {
        let mut drops = [0; DropReason::ALL.len()];
        for (to, from) in drops.iter_mut().zip(&self.drops) {
            *to = from.load(Ordering::Relaxed);
        }
        DirectionStatistics {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops,
        }
    }
}

#[inline]
fn add(counter: &AtomicU64, n: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(n);
    counter.store(sum, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        for reason in DropReason::ALL {
            let counters = Counters::default();
            counters.dropped(reason);
            let read = counters.read();
            for other in DropReason::ALL {
                assert_eq!(
                    read.dropped(other),
                    u64::from(other == reason),
                    "{reason:?}, {other:?}"
                );
            }
            assert_eq!(read.dropped_in_all(), 1);
        }
    }
}
