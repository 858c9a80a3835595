//! One end of a link: its link state, and the ways that frames and completions take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, Weak};

use crate::bounce::Bounce;
use crate::client::{Drained, Frame, FrameSource, NetClient, Read, Received, Token};
use crate::connection::{Connection, LastingPeer};
use crate::filter::Filters;
use crate::iovec::IoVec;
use crate::padding::{Padding, Shortest, padded};
use crate::queue::PacketQueue;
use crate::statistics::{Counters, DropReason, Statistics};

/// One end of a link, owned by the client whose end it is. Clients call their peer through it, so
/// that link state, filters and counters have one place.
///
/// Both backlinks, to the client and to the peer, are `Weak`. Filters stand in
/// [`send`](Self::send), where every frame that is handed over passes; while one stands on either
/// side [`offer`](Self::offer) takes the copy way, so that every frame is handed over.
///
/// Locks: `connection` and those inside `bounce`, `waiting` and `filters` are leaves; no client and
/// no filter is called while one is held. Frames and completions only read `connection`, so the two
/// directions do not wait for one another.
#[derive(Debug)]
pub struct Port {
    pub(crate) name: String,
    pub(crate) client: Weak<dyn NetClient>,
    pub(crate) connection: RwLock<Option<Connection>>,
    link_down: AtomicBool,
    /// The frame that is copied from a source on its way to the peer, behind those that wait.
    pub(crate) bounce: Bounce,
    /// Frames past all filters that the peer has no room for.
    pub(crate) waiting: PacketQueue,
    pub(crate) filters: Filters,
    pub(crate) padding: Padding,
    pub(crate) sent: Counters,
    pub(crate) received: Counters,
}

impl Port {
    /// Makes the port of `client`, called `name` (`tap0`, `virtio-net-pci.0`), with no peer.
    pub fn new(name: impl Into<String>, client: Weak<dyn NetClient>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            client,
            connection: RwLock::new(None),
            link_down: AtomicBool::new(false),
            bounce: Bounce::default(),
            waiting: PacketQueue::default(),
            filters: Filters::default(),
            padding: Padding::default(),
            sent: Counters::default(),
            received: Counters::default(),
        })
    }

    /// Sets this end's link up or down, at any time and on any thread. Both clients are told
    /// whether the link as a whole is up; frames on a link that is down are dropped.
    #[doc(alias = "qmp_set_link")]
    pub fn set_link(&self, up: bool) {
        if self.link_down.swap(!up, Ordering::AcqRel) != up {
            return;
        }
        let peer = self.peer();
        let whole = up && peer.as_ref().is_none_or(|peer| peer.link_is_up());
        for client in [self.client(), peer.as_ref().and_then(|peer| peer.client())]
            .into_iter()
            .flatten()
        {
            client.link_status_changed(whole);
        }
        // A source that had stopped because its peer had no room learns from the next offer that its
        // frames are dropped now, or taken again.
        self.schedule_offers();
    }

    /// The client's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client whose end this is, while it lives.
    pub fn client(&self) -> Option<Arc<dyn NetClient>> {
        self.client.upgrade()
    }

    /// Whether this end's link is up.
    #[inline]
    pub fn link_is_up(&self) -> bool {
        !self.link_down.load(Ordering::Acquire)
    }

    /// What has passed so far.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            sent: self.sent.read(),
            received: self.received.read(),
        }
    }

    /// Counts a frame that this client had for its peer and dropped.
    pub fn count_dropped_sending(&self, reason: DropReason) {
        self.sent.dropped(reason);
    }

    /// Counts a frame that this client got from its peer ([`Received::Taken`]) and dropped.
    pub fn count_dropped_receiving(&self, reason: DropReason) {
        self.received.dropped(reason);
    }

    /// Offers a frame to the peer. A frame on a link that is down, or without a peer, is dropped
    /// (and so [`Received::Taken`]).
    #[doc(alias = "qemu_sendv_packet_async")]
    pub fn send(&self, frame: &Frame<'_>) -> Received {
        self.sender().send(frame)
    }

    /// Looks the peer up once for a batch of frames.
    pub fn sender(&self) -> Sender<'_> {
        Sender {
            port: self,
            to: self.lasting_peer(),
        }
    }

    /// Offers a frame that the caller has as bytes (header included, where one is agreed on) and
    /// that the peer copies. For clients that cannot lend.
    pub fn send_bytes(&self, bytes: &[u8]) -> Received {
        let iov = IoVec::of_bytes(bytes);
        self.send(&Frame {
            token: None,
            iov: &[iov],
            len: bytes.len(),
        })
    }

    /// The batch is complete. See [`NetClient::flush`].
    pub fn flush(&self, done: &mut dyn FnMut(Token)) {
        if let Some(client) = self.peer_client() {
            client.flush(done);
        }
    }

    /// Offers the peer to read frames from `source`, which it does straight into its own buffers.
    /// From a peer that lends none the port's own buffer stands in, and each frame is copied once.
    /// Without a peer, or on a link that is down, the source's frames are read and dropped.
    ///
    /// Never answers [`Drained::CannotLend`]. After [`Drained::NoRoom`] the client's
    /// [`room`](NetClient::room) is called when there is room again; a frame that was read already
    /// is kept by the port, and goes first.
    pub fn offer(&self, source: &mut dyn FrameSource) -> Drained {
        if !self.waiting.is_empty() || !self.bounce.deliver(self) {
            return Drained::NoRoom;
        }
        if self.bounce.is_reading() {
            return Drained::Empty;
        }
        if let Ok((peer, client)) = self.open_peer()
            && !self.is_filtered(&peer)
        {
            let mut counted = Counted {
                source: &mut *source,
                shortest: peer.padding.shortest(),
                padding: &self.padding,
                sent: &self.sent,
                received: &peer.received,
            };
            match client.receive_from(&mut counted) {
                Drained::CannotLend => {}
                drained => return drained,
            }
        }
        self.bounce.copy(self, source)
    }

    /// This client has room again, after it answered [`Received::Busy`] or [`Drained::NoRoom`]:
    /// tells the peer.
    pub fn room(&self) {
        if let Some(peer) = self.peer() {
            peer.peer_has_room();
        }
    }

    /// This client is finished with a frame that its peer lent to it.
    #[doc(alias = "qemu_packet_sent")]
    pub fn sent(&self, token: Token) {
        if let Some(client) = self.peer_client() {
            client.sent(token);
        }
    }

    /// A read of this client's source that was [`Read::Pending`] has ended, with a frame of `len`
    /// bytes or (0) without one.
    pub fn read_done(&self, token: Token, len: usize) {
        if token == Token::PORT {
            self.bounce.read_done(self, len);
            return;
        }
        let whole = self.padding.end(token, len);
        let (client, len) = match self.open_peer() {
            Ok((peer, client)) => {
                if len > 0 {
                    self.sent.passed(len);
                    peer.received.passed(whole);
                }
                (Some(client), whole)
            }
            // The peer has its buffers back; the frame is gone.
            Err(reason) => {
                if len > 0 {
                    self.sent.dropped(reason);
                }
                (self.peer_client(), 0)
            }
        };
        if let Some(client) = client {
            client.read_done(token, len);
        }
    }

    /// At the next turn both ends offer again what waits for the other's room.
    pub(crate) fn schedule_offers(&self) {
        let (Some(peer), Some(context)) = (self.peer(), self.context()) else {
            return;
        };
        let peer = Arc::downgrade(&peer);
        context.schedule(Box::new(move || {
            let Some(peer) = peer.upgrade() else { return };
            if let Some(port) = peer.peer() {
                port.room();
            }
            peer.room();
        }));
    }

    fn peer_has_room(&self) {
        if !self.deliver_waiting() || !self.bounce.deliver(self) {
            return;
        }
        if let Some(client) = self.client() {
            client.room();
        }
    }

    /// Gives one frame to the peer's client, past all filters.
    #[inline]
    pub(crate) fn hand_over(
        &self,
        peer: &Self,
        client: &dyn NetClient,
        frame: &Frame<'_>,
    ) -> Received {
        let (received, len) = Self::give(client, frame, peer.padding.shortest());
        debug_assert!(
            received != Received::Lent || frame.token.is_some(),
            "'{}' keeps a frame that is not lent",
            peer.name
        );
        if received != Received::Busy {
            self.sent.passed(frame.len);
            peer.received.passed(len);
        }
        received
    }

    /// Ends a batch that the port itself has sent. What the client's own lent frames complete
    /// meanwhile is told it at the next turn, since it may be at work further up the stack.
    pub(crate) fn flush_own(&self) {
        let mut done = Vec::new();
        self.flush(&mut |token| done.push(token));
        if let (false, Some(context)) = (done.is_empty(), self.context()) {
            let client = self.client.clone();
            context.schedule(Box::new(move || {
                let Some(client) = client.upgrade() else {
                    return;
                };
                for token in done {
                    client.sent(token);
                }
            }));
        }
    }
}

/// The way to the peer for one batch of frames: the peer is looked up, and kept from going, once.
///
/// Made on the context, and dropped before the turn ends: whoever disconnects the two waits for that.
#[derive(Debug)]
pub struct Sender<'a> {
    port: &'a Port,
    to: Option<LastingPeer>,
}

impl Sender<'_> {
    /// As [`Port::send`].
    #[inline]
    pub fn send(&self, frame: &Frame<'_>) -> Received {
        let port = self.port;
        let to = match &self.to {
            Some(to) if !to.is_closing() => to,
            _ => {
                port.sent.dropped(DropReason::NoPeer);
                return Received::Taken;
            }
        };
        if !port.link_is_up() || !to.port.link_is_up() {
            port.sent.dropped(DropReason::LinkDown);
            return Received::Taken;
        }
        if !port.waiting.is_empty() {
            return Received::Busy;
        }
        if port.is_filtered(&to.port) {
            return port.pass(&to.port, &*to.client, frame, None);
        }
        port.hand_over(&to.port, &*to.client, frame)
    }

    /// As [`Port::flush`].
    pub fn flush(&self, done: &mut dyn FnMut(Token)) {
        if let Some(to) = &self.to {
            to.client.flush(done);
        }
    }
}

/// Counts the frames that a peer reads for itself.
struct Counted<'a> {
    source: &'a mut dyn FrameSource,
    /// Of the reader's frames.
    shortest: Option<Shortest>,
    /// The source's.
    padding: &'a Padding,
    sent: &'a Counters,
    received: &'a Counters,
}

impl FrameSource for Counted<'_> {
    fn max_frame(&self) -> usize {
        self.source.max_frame()
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        let read = self.source.read(token, iov);
        if let Read::Frame(len) = read {
            self.sent.passed(len);
        }
        let read = match self.shortest {
            None => read,
            Some(shortest) => padded(read, iov, shortest, || {
                self.padding.begin(token, iov, shortest);
            }),
        };
        if let Read::Frame(len) = read {
            self.received.passed(len);
        }
        read
    }

    fn batch(&mut self) -> usize {
        // Where the reads of a batch go only the source knows.
        match self.shortest {
            Some(_) => 1,
            None => self.source.batch(),
        }
    }

    fn queue(&mut self, token: Token, iov: &[IoVec]) {
        self.source.queue(token, iov);
    }

    fn submit(&mut self, done: &mut dyn FnMut(Token, Read)) {
        let Self {
            source,
            sent,
            received,
            ..
        } = self;
        source.submit(&mut |token, read| {
            if let Read::Frame(len) = read {
                sent.passed(len);
                received.passed(len);
            }
            done(token, read);
        });
    }
}
