//! Frames that go to the pair that their hash leads to, whichever port they come from.

use std::sync::{Arc, Weak};

use net_client::{DropReason, Frame, Received, copy_from_iov};
use virtqueue::QueueMemory;

use super::Pair;
use crate::hash::{HashCell, HashView, PEEK};
use crate::kick::again;
use crate::shared::lock;

/// What a pair knows of where frames from its port go.
pub(super) struct Steering {
    hashes: HashView,
    /// The peer's header.
    pub(super) host_header_len: usize,
    /// Pairs that have got frames since the last batch's end.
    touched: Vec<usize>,
}

impl Steering {
    pub(super) fn new(hashes: Arc<HashCell>) -> Self {
        Self {
            hashes: HashView::new(hashes),
            host_header_len: 0,
            touched: Vec::new(),
        }
    }

    /// The pair that a frame goes to, and the length of the header that it comes with. `None` if frames are not
    /// steered.
    fn destination(&mut self, frame: &Frame<'_>) -> Option<(usize, usize)> {
        let mut start = [0; PEEK];
        let there = frame.len.saturating_sub(self.host_header_len).min(PEEK);
        let start = start.get_mut(..there).unwrap_or_default();
        let len = copy_from_iov(frame.iov, self.host_header_len, start);
        let start = start.get(..len).unwrap_or_default();
        let pair = self.hashes.look().destination(start)?;
        if !self.touched.contains(&pair) {
            self.touched.push(pair);
        }
        Some((pair, self.host_header_len))
    }
}

impl<M: QueueMemory> Pair<M> {
    /// Makes the pairs of one device known to each other.
    pub(crate) fn introduce(pairs: &[Arc<Self>]) {
        for pair in pairs {
            // Done once.
            let _ = pair
                .siblings
                .set(pairs.iter().map(Arc::downgrade).collect());
        }
    }

    /// Hands a frame to the pair that its hash leads to. That one's queue alone is locked.
    pub(super) fn receive_steered(&self, frame: &Frame<'_>) -> Received {
        let destination = lock(&self.steering).destination(frame);
        let Some((pair, host_header_len)) = destination else {
            // They were steered a moment ago.
            return self.with_rx(|rx| rx.receive(frame, &self.port));
        };
        let siblings = self.siblings.get().map(AsRef::as_ref);
        let Some(pair) = siblings.and_then(|all: &[_]| all.get(pair)?.upgrade()) else {
            // The device is going.
            return Received::Taken;
        };
        let received = pair.with_rx(|rx| {
            pair.spend_rx(rx, |rx| {
                rx.receive_steered(frame, host_header_len, &pair.port)
            })
        });
        if received == Received::Busy && !lock(&self.rx).tell_at_next_kick() {
            // Nobody would tell the peer when there is room.
            self.port.count_dropped_receiving(DropReason::NotRunning);
            return Received::Taken;
        }
        received
    }

    /// Has all pairs look at their receive queues, where frames from the port of one may wait for the queue of another.
    pub(super) fn wake_steered(&self) {
        if !self.shared.is_steered() {
            return;
        }
        let siblings = self.siblings.get().map(AsRef::as_ref).unwrap_or_default();
        for pair in siblings.iter().filter_map(Weak::upgrade) {
            if let Some(active) = &lock(&pair.rx).active {
                again(&active.loan().kick);
            }
        }
    }

    /// Ends a batch of frames that went to other pairs, whether or not frames are steered still.
    pub(super) fn flush_steered(&self) {
        let mut touched = std::mem::take(&mut lock(&self.steering).touched);
        for pair in touched.drain(..) {
            let siblings = self.siblings.get().map(AsRef::as_ref);
            if let Some(pair) = siblings.and_then(|all: &[_]| all.get(pair)?.upgrade()) {
                lock(&pair.rx).flush();
            }
        }
        // Its memory is used again.
        lock(&self.steering).touched = touched;
    }
}
