//! Frames that wait for their receiver, in order.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::client::Frame;
use crate::iovec::copy_from_iov;

/// Frames that a queue holds at most. [QEMU: nq_maxlen]
pub(crate) const QUEUE_MAX: usize = 10_000;

/// Bytes of a frame that is copied at most, header included. [QEMU: NET_BUFSIZE]
pub(crate) const FRAME_MAX: usize = 4096 + 65536;

/// Copies of frames on their way in one direction, first in, first out.
///
/// The lock is a leaf: a frame is taken out, offered with no lock held, and put back at the head should
/// there be no room. Until that is settled the queue counts it as still there, so that nothing
/// overtakes it.
#[doc(alias = "NetQueue")]
#[derive(Default)]
pub(crate) struct PacketQueue {
    state: Mutex<State>,
    /// Frames in the queue and the one that is being offered: read on each frame's way, without the
    /// lock.
    len: AtomicUsize,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Vec<u8>>,
    /// One is being offered. `Some(true)`: there was word of room meanwhile.
    offering: Option<bool>,
    /// Counts the times that the queue was cleared; a frame that was out meanwhile stays out.
    cleared: u64,
}

/// Why a frame cannot be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The queue holds as many as it ever will.
    Queue,
    /// The frame is longer than any that is copied.
    Frame,
}

impl PacketQueue {
    /// Puts a copy of `frame` at the end.
    pub(crate) fn push(&self, frame: &Frame<'_>) -> Result<(), Full> {
        if frame.len > FRAME_MAX {
            return Err(Full::Frame);
        }
        if self.len() >= QUEUE_MAX {
            return Err(Full::Queue);
        }
        let mut bytes = vec![0; frame.len];
        let copied = copy_from_iov(frame.iov, 0, &mut bytes);
        bytes.truncate(copied);
        let mut state = self.lock();
        state.frames.push_back(bytes);
        self.count(&state);
        Ok(())
    }

    /// Offers up to `max` frames in order, until `offer` says that there is no room. Whether `max` were
    /// offered or none is left.
    ///
    /// Called while a call further up the stack does the same, it leaves it to that call, and says
    /// `false`.
    pub(crate) fn deliver(&self, max: usize, offer: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        for _ in 0..max {
            let (bytes, cleared) = {
                let mut state = self.lock();
                if state.offering.is_some() {
                    state.offering = Some(true);
                    return false;
                }
                let Some(bytes) = state.frames.pop_front() else {
                    return true;
                };
                state.offering = Some(false);
                (bytes, state.cleared)
            };
            loop {
                let taken = offer(&bytes);
                let mut state = self.lock();
                if !taken && state.offering == Some(true) && state.cleared == cleared {
                    state.offering = Some(false);
                    continue;
                }
                state.offering = None;
                if !taken && state.cleared == cleared {
                    state.frames.push_front(bytes);
                    self.count(&state);
                    return false;
                }
                self.count(&state);
                break;
            }
        }
        true
    }

    /// Forgets all frames; returns how many there were.
    pub(crate) fn clear(&self) -> usize {
        let mut state = self.lock();
        let forgotten = state.frames.len();
        state.frames.clear();
        state.cleared = state.cleared.wrapping_add(1);
        self.count(&state);
        forgotten
    }

    /// How many frames wait, the one that is being offered among them.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn count(&self, state: &State) {
        let offered = usize::from(state.offering.is_some());
        // At most `QUEUE_MAX` frames and one, but for pushes at once.
        self.len.store(
            state.frames.len().saturating_add(offered),
            Ordering::Release,
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PacketQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iovec::IoVec;

    fn push(queue: &PacketQueue, bytes: &[u8]) -> Result<(), Full> {
        let iov = IoVec::of_bytes(bytes);
        queue.push(&Frame {
            token: None,
            iov: &[iov],
            len: bytes.len(),
        })
    }

    #[test]
    fn a_refused_frame_goes_back_to_the_head() {
        let queue = PacketQueue::default();
        for bytes in [b"1", b"2", b"3"] {
            push(&queue, bytes).unwrap();
        }
        let mut seen = Vec::new();
        let mut room = 1;
        let mut offer = |bytes: &[u8]| {
            seen.push(bytes[0]);
            let taken = room > 0;
            room -= i32::from(taken);
            taken
        };
        assert!(!queue.deliver(usize::MAX, &mut offer));
        assert_eq!(queue.len(), 2);
        room = 2;
        let mut offer = |bytes: &[u8]| {
            seen.push(bytes[0]);
            true
        };
        assert!(queue.deliver(1, &mut offer));
        assert!(queue.deliver(usize::MAX, &mut offer));
        assert_eq!((&*seen, queue.len()), (&b"1223"[..], 0));
        assert_eq!(room, 2);
    }

    #[test]
    fn word_of_room_during_an_offer_is_another_try() {
        let queue = PacketQueue::default();
        push(&queue, b"1").unwrap();
        let mut tries = 0;
        let taken = queue.deliver(usize::MAX, &mut |_| {
            tries += 1;
            // The receiver says that it has room from inside its own call.
            assert!(!queue.deliver(usize::MAX, &mut |_| unreachable!()));
            assert_eq!(queue.len(), 1);
            tries == 3
        });
        assert!(taken && queue.is_empty());
        assert_eq!(tries, 3);
    }

    #[test]
    fn a_frame_that_is_out_while_the_queue_is_cleared_stays_out() {
        let queue = PacketQueue::default();
        push(&queue, b"1").unwrap();
        push(&queue, b"2").unwrap();
        assert!(queue.deliver(usize::MAX, &mut |_| {
            assert_eq!(queue.clear(), 1);
            false
        }));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_queue_has_a_bound_and_so_has_a_frame() {
        let queue = PacketQueue::default();
        assert_eq!(push(&queue, &[0; FRAME_MAX + 1]), Err(Full::Frame));
        for _ in 0..QUEUE_MAX {
            push(&queue, b"x").unwrap();
        }
        assert_eq!(push(&queue, b"x"), Err(Full::Queue));
        assert_eq!(queue.clear(), QUEUE_MAX);
        push(&queue, &[0; FRAME_MAX]).unwrap();
    }
}
