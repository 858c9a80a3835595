//! The way of a frame past filters, and the wait for room behind them.
//!
//! A frame that a client sends passes the filters of its own port from head to tail, then those of
//! its peer's from tail to head. Behind them the port keeps what the peer has no room for, so that
//! each filter sees each frame once; and as long as it keeps any, the client is refused, so that
//! back-pressure reaches it all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::{Frame, NetClient, Received};
use crate::connection::wait_for;
use crate::filter::{Direction, Directions, Filter, FilterId, Passing, Position, Slot, Verdict};
use crate::iovec::IoVec;
use crate::port::Port;
use crate::queue::{Full, PacketQueue};
use crate::statistics::DropReason;

impl Port {
    /// Puts a filter at this port, where it sees all frames that are sent after this returns. No
    /// frame is lost or overtaken meanwhile; from now on none is read in place.
    ///
    /// Called at any time, on any thread, as [`disconnect`](Self::disconnect) is: not from inside a
    /// client's own methods, nor while holding a lock that they take.
    #[doc(alias = "netfilter_complete")]
    pub fn add_filter(
        self: &Arc<Self>,
        filter: Arc<dyn Filter>,
        directions: Directions,
        position: Position,
    ) -> FilterId {
        let slot = self.filters.slot(filter, directions);
        let id = slot.id;
        let port = self.clone();
        self.run_on_context(move || {
            port.filters.insert(slot, position);
            let clients = [port.client(), port.peer_client()];
            for client in clients.into_iter().flatten() {
                client.cancel_reads();
            }
        });
        id
    }

    /// Takes a filter away. What it holds goes on first, in order. Does nothing for one that is gone;
    /// called as [`add_filter`](Self::add_filter) is.
    #[doc(alias = "netfilter_finalize")]
    pub fn remove_filter(self: &Arc<Self>, id: FilterId) {
        let port = self.clone();
        self.run_on_context(move || {
            let Some(slot) = port.filters.find(id) else {
                return;
            };
            slot.retire();
            for direction in [Direction::Tx, Direction::Rx] {
                port.let_go(&slot, direction, usize::MAX);
            }
            port.filters.remove(id);
        });
    }

    /// Lets up to `frames` of those that a filter holds go on, the eldest first, at the next turn of
    /// the context. Called at any time, on any thread, by the filter itself too.
    #[doc(alias = "qemu_netfilter_pass_to_next")]
    pub fn release(self: &Arc<Self>, id: FilterId, direction: Direction, frames: usize) {
        // Without a peer nothing is held.
        let Some(context) = self.context() else {
            return;
        };
        let port = Arc::downgrade(self);
        context.schedule(Box::new(move || {
            if let Some(port) = port.upgrade()
                && let Some(slot) = port.filters.find(id)
            {
                port.let_go(&slot, direction, frames);
            }
        }));
    }

    /// Sends a frame for a client that keeps none and has no use for word of room: what the peer has
    /// no room for the port keeps, up to 10,000 frames, and drops the rest as
    /// [`DropReason::NoRoom`]. [`flush`](Self::flush) ends the batch as ever.
    #[doc(alias = "qemu_send_packet")]
    pub fn post(&self, bytes: &[u8]) {
        self.post_behind(bytes, None);
    }

    /// As [`post`](Self::post), past the filters behind `after` only.
    fn post_behind(&self, bytes: &[u8], after: Option<&Slot>) {
        let iov = IoVec::of_bytes(bytes);
        let frame = Frame {
            token: None,
            iov: &[iov],
            len: bytes.len(),
        };
        match self.open_peer() {
            Ok((peer, client)) => {
                let _taken = self.pass(&peer, &*client, &frame, after);
            }
            Err(reason) => self.sent.dropped(reason),
        }
    }

    /// Forgets all frames that are on their way to this client, at its peer's port and at filters, and
    /// counts them as [`DropReason::NotRunning`]. Called by a client that begins anew: what was sent
    /// before does not reach it after, nor with a header of another length. The peer goes on when
    /// this client next says that it has [`room`](Self::room).
    ///
    /// On any thread: off the context it waits for a turn of it, so that no call that had begun there
    /// still carries a frame when this returns. The caller then holds no lock that is taken on the
    /// context. From inside a turn, a frame that is being offered further up the stack is forgotten if
    /// it is refused.
    #[doc(alias = "qemu_purge_queued_packets")]
    pub fn purge(self: &Arc<Self>) {
        let port = self.clone();
        self.run_on_context(move || {
            if let Some(peer) = port.peer() {
                peer.forget_sent(&port);
            }
        });
    }

    /// Whether frames may be on their way to this client of which it knows nothing: at its peer's port, or
    /// at filters. Where it says that there are none, [`purge`](Self::purge) would find nothing.
    pub fn awaits_frames(&self) -> bool {
        self.peer().is_some_and(|peer| {
            !peer.waiting.is_empty() || !peer.bounce.is_idle() || peer.is_filtered(self)
        })
    }

    /// Frames that have passed all filters and wait for the peer to have room.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a filter stands on the way to `peer` or back.
    #[inline]
    pub(crate) fn is_filtered(&self, peer: &Self) -> bool {
        self.filters.any() || peer.filters.any()
    }

    /// Sends a frame past the filters behind `after`, and keeps it where the peer has no room. Never
    /// says that there is none.
    pub(crate) fn pass(
        &self,
        peer: &Self,
        client: &dyn NetClient,
        frame: &Frame<'_>,
        after: Option<&Slot>,
    ) -> Received {
        if self.is_filtered(peer) {
            let (own, theirs) = (self.filters.slots(), peer.filters.slots());
            let own = own.iter().map(|slot| (slot, self, Direction::Tx));
            let theirs = theirs.iter().rev().map(|slot| (slot, peer, Direction::Rx));
            let mut behind = after.is_none();
            let header_len = self.header_len(client);
            for (slot, port, direction) in own.chain(theirs) {
                if !behind {
                    behind = after.is_some_and(|after| std::ptr::eq(after, &**slot));
                    continue;
                }
                let passing = Passing {
                    direction,
                    header_len,
                    frame,
                };
                match slot.verdict(&passing) {
                    Verdict::Pass => {}
                    Verdict::Drop => {
                        port.count(direction, DropReason::Filtered);
                        return Received::Taken;
                    }
                    Verdict::Hold => {
                        self.keep(slot.held(direction), frame);
                        return Received::Taken;
                    }
                }
            }
        }
        if self.waiting.is_empty() {
            match self.hand_over(peer, client, frame) {
                Received::Busy => {}
                received => return received,
            }
        }
        let first = self.waiting.is_empty();
        self.keep(&self.waiting, frame);
        if first {
            // The peer may have said that it has room from inside its refusal, when nothing waited.
            self.deliver_waiting();
        }
        Received::Taken
    }

    /// Offers what waits. Whether nothing does any more.
    pub(crate) fn deliver_waiting(&self) -> bool {
        if self.waiting.is_empty() {
            return true;
        }
        let delivered = self.waiting.deliver(usize::MAX, &mut |bytes| {
            let iov = IoVec::of_bytes(bytes);
            let frame = Frame {
                token: None,
                iov: &[iov],
                len: bytes.len(),
            };
            match self.open_peer() {
                Ok((peer, client)) => self.hand_over(&peer, &*client, &frame) != Received::Busy,
                Err(reason) => {
                    self.sent.dropped(reason);
                    true
                }
            }
        });
        self.flush_own();
        delivered
    }

    /// Forgets what waits for the peer to have room.
    pub(crate) fn forget_waiting(&self, reason: DropReason) {
        for _ in 0..self.waiting.clear() {
            self.sent.dropped(reason);
        }
    }

    /// Forgets what the filters of this port hold.
    pub(crate) fn forget_held(&self, direction: Direction, reason: DropReason) {
        for slot in self.filters.slots().iter() {
            for _ in 0..slot.held(direction).clear() {
                self.count(direction, reason);
            }
        }
    }

    /// Forgets what is on its way to `peer`.
    fn forget_sent(&self, peer: &Self) {
        if self.bounce.clear() {
            self.sent.dropped(DropReason::NotRunning);
        }
        if self.bounce.is_reading()
            && let Some(client) = self.client()
        {
            // What the read brings is for a driver that is gone.
            client.cancel_reads();
        }
        self.forget_waiting(DropReason::NotRunning);
        self.forget_held(Direction::Tx, DropReason::NotRunning);
        peer.forget_held(Direction::Rx, DropReason::NotRunning);
    }

    /// Lets frames go on that `slot` of this port holds. On the context.
    fn let_go(&self, slot: &Slot, direction: Direction, frames: usize) {
        let peer = self.peer();
        let sender = match direction {
            Direction::Tx => Some(self),
            Direction::Rx => peer.as_deref(),
        };
        let Some(sender) = sender else { return };
        slot.held(direction).deliver(frames, &mut |bytes| {
            sender.post_behind(bytes, Some(slot));
            true
        });
        sender.flush_own();
    }

    fn keep(&self, queue: &PacketQueue, frame: &Frame<'_>) {
        if let Err(full) = queue.push(frame) {
            self.sent.dropped(match full {
                Full::Queue => DropReason::NoRoom,
                Full::Frame => DropReason::TooLong,
            });
        }
    }

    fn count(&self, direction: Direction, reason: DropReason) {
        match direction {
            Direction::Tx => self.sent.dropped(reason),
            Direction::Rx => self.received.dropped(reason),
        }
    }

    /// The length of the header that the two clients agreed on: the backend of the two knows.
    fn header_len(&self, peer: &dyn NetClient) -> usize {
        let own = self.client();
        let own = own.as_ref().and_then(|client| client.vnet_header());
        own.or_else(|| peer.vnet_header())
            .map_or(0, |header| header.header_len())
    }

    /// Runs `work` between two calls of clients on one another, and waits for its end.
    fn run_on_context(&self, work: impl FnOnce() + Send + 'static) {
        match self.context() {
            Some(context) if !context.is_current() => {
                let done = Arc::new(AtomicBool::new(false));
                let flag = done.clone();
                context.schedule(Box::new(move || {
                    work();
                    flag.store(true, Ordering::Release);
                }));
                wait_for(&context, &done);
            }
            _ => work(),
        }
    }
}
