//! One end of a link: peers, link state, and the ways that frames and completions take.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use iothread::AioContext;

use crate::bounce::Bounce;
use crate::client::{Drained, Frame, FrameSource, NetClient, Read, Received, Token};
use crate::filter::{Direction, Filters};
use crate::iovec::IoVec;
use crate::queue::PacketQueue;
use crate::statistics::{Counters, DropReason, Statistics};

/// Why two ports were not connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// One of the two has a peer already.
    #[error("'{port}' is in use: its peer is '{peer}'")]
    InUse {
        /// The port that is not free.
        port: String,
        /// Its peer.
        peer: String,
    },
    /// A port was to be its own peer.
    #[error("'{0}' cannot be its own peer")]
    Itself(String),
    /// A client could not work on the context.
    #[error("'{port}' cannot work on its peer's context: {source}")]
    Attach {
        /// The client's port.
        port: String,
        /// What the client said.
        source: io::Error,
    },
}

/// One end of a link, owned by the client whose end it is. Clients call their peer through it, so
/// that link state, filters and counters have one place.
///
/// Both backlinks, to the client and to the peer, are `Weak`. Filters stand in
/// [`send`](Self::send), where every frame that is handed over passes; while one stands on either
/// side [`offer`](Self::offer) takes the copy way, so that every frame is handed over.
///
/// Locks: `connection` and those inside `bounce`, `waiting` and `filters` are leaves; no client and
/// no filter is called while one is held. Frames and completions only read `connection`, so the two directions do not wait for one
/// another.
#[derive(Debug)]
pub struct Port {
    name: String,
    client: Weak<dyn NetClient>,
    connection: RwLock<Option<Connection>>,
    link_down: AtomicBool,
    /// The frame that is copied from a source on its way to the peer, behind those that wait.
    bounce: Bounce,
    /// Frames past all filters that the peer has no room for.
    pub(crate) waiting: PacketQueue,
    pub(crate) filters: Filters,
    pub(crate) sent: Counters,
    pub(crate) received: Counters,
}

/// What a port that has a peer knows.
#[derive(Debug)]
struct Connection {
    peer: Weak<Port>,
    context: Arc<dyn AioContext>,
    /// The connection is being undone: completions still pass, frames no longer.
    closing: bool,
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
            sent: Counters::default(),
            received: Counters::default(),
        })
    }

    /// Makes `a` and `b` each other's peers, both at work on `context`: by convention the NIC's.
    /// Both clients are attached to it before this returns.
    ///
    /// # Errors
    /// When one has a peer already, or a client cannot be attached; nothing has changed then.
    pub fn connect(
        a: &Arc<Self>,
        b: &Arc<Self>,
        context: &Arc<dyn AioContext>,
    ) -> Result<(), ConnectError> {
        if Arc::ptr_eq(a, b) {
            return Err(ConnectError::Itself(a.name.clone()));
        }
        a.set_peer(b, context)?;
        if let Err(error) = b.set_peer(a, context) {
            a.clear_peer();
            return Err(error);
        }
        for (end, other) in [(a, b), (b, a)] {
            let Some(client) = end.client() else { continue };
            if let Err(source) = client.attach(context) {
                client.detach();
                if let Some(attached) = other.client() {
                    attached.detach();
                }
                a.clear_peer();
                b.clear_peer();
                return Err(ConnectError::Attach {
                    port: end.name.clone(),
                    source,
                });
            }
        }
        tracing::debug!(a = a.name, b = b.name, "connected");
        Ok(())
    }

    /// Undoes [`connect`](Self::connect), called at either end: no frame passes any more, calls
    /// under way on the context end, and what either end has lent to the other comes back, before
    /// this returns. Does nothing without a peer.
    ///
    /// Not called from inside a client's own methods, nor while holding a lock that they take.
    pub fn disconnect(&self) {
        let Some(peer) = self.peer() else { return };
        // Of two calls at once, the second has nothing to do.
        let (Some(context), Some(_)) = (self.begin_close(), peer.begin_close()) else {
            return;
        };
        let clients = [self.client(), peer.client()];
        for client in clients.iter().flatten() {
            client.detach();
        }
        wait_for_turn(&context);
        for client in clients.iter().flatten() {
            client.revoke();
        }
        self.clear_peer();
        peer.clear_peer();
        // Who had stopped for want of room goes on, if only to have its frames dropped.
        let clients = [self.client.clone(), peer.client.clone()];
        context.schedule(Box::new(move || {
            for client in clients.iter().filter_map(Weak::upgrade) {
                client.room();
            }
        }));
        tracing::debug!(a = self.name, b = peer.name, "disconnected");
    }

    /// Moves both ends to another context. Called while the device is paused.
    ///
    /// # Errors
    /// When a client cannot be attached to it; both are then detached, and the caller moves them
    /// elsewhere or disconnects them.
    pub fn move_to(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        let (Some(peer), Some(old)) = (self.peer(), self.context()) else {
            return Ok(());
        };
        let clients = [self.client(), peer.client()];
        for client in clients.iter().flatten() {
            client.detach();
        }
        wait_for_turn(&old);
        for end in [self, &*peer] {
            if let Some(connection) = &mut *end.write_connection() {
                connection.context = context.clone();
            }
        }
        for client in clients.iter().flatten() {
            if let Err(error) = client.attach(context) {
                for client in clients.iter().flatten() {
                    client.detach();
                }
                return Err(error);
            }
        }
        Ok(())
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
        if let (Some(peer), Some(context)) = (peer, self.context()) {
            context.schedule(Box::new(move || {
                if let Some(port) = peer.peer() {
                    port.room();
                }
                peer.room();
            }));
        }
    }

    /// The client's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client whose end this is, while it lives.
    pub fn client(&self) -> Option<Arc<dyn NetClient>> {
        self.client.upgrade()
    }

    /// The other end, while it lives. A port with a peer is in use.
    pub fn peer(&self) -> Option<Arc<Port>> {
        self.read_connection().as_ref()?.peer.upgrade()
    }

    /// The context that this client and its peer work on, while they are connected.
    pub fn context(&self) -> Option<Arc<dyn AioContext>> {
        Some(self.read_connection().as_ref()?.context.clone())
    }

    /// Whether this end's link is up.
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
        let (peer, client) = match self.open_peer() {
            Ok(open) => open,
            Err(reason) => {
                self.sent.dropped(reason);
                return Received::Taken;
            }
        };
        if !self.waiting.is_empty() {
            return Received::Busy;
        }
        if self.is_filtered(&peer) {
            return self.pass(&peer, &*client, frame, None);
        }
        self.hand_over(&peer, &*client, frame)
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

    /// Forgets all frames that wait for this client, at its peer's port and at filters, and counts them
    /// as [`DropReason::NotRunning`]. Called by a client that begins anew, on the context: what was
    /// sent before its reset does not reach it after, nor with a header of another length.
    #[doc(alias = "qemu_purge_queued_packets")]
    pub fn purge(&self) {
        if let Some(peer) = self.peer() {
            peer.forget_sent(self);
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
        let (client, len) = match self.open_peer() {
            Ok((peer, client)) => {
                if len > 0 {
                    self.sent.passed(len);
                    peer.received.passed(len);
                }
                (Some(client), len)
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

    /// Forgets what is on its way to `peer`.
    fn forget_sent(&self, peer: &Self) {
        if self.bounce.clear() {
            self.sent.dropped(DropReason::NotRunning);
        }
        self.forget_waiting(DropReason::NotRunning);
        self.forget_held(Direction::Tx, DropReason::NotRunning);
        peer.forget_held(Direction::Rx, DropReason::NotRunning);
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
    pub(crate) fn hand_over(
        &self,
        peer: &Self,
        client: &dyn NetClient,
        frame: &Frame<'_>,
    ) -> Received {
        let received = client.receive(frame);
        debug_assert!(
            received != Received::Lent || frame.token.is_some(),
            "'{}' keeps a frame that is not lent",
            peer.name
        );
        if received != Received::Busy {
            self.sent.passed(frame.len);
            peer.received.passed(frame.len);
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

    pub(crate) fn peer_client(&self) -> Option<Arc<dyn NetClient>> {
        self.peer()?.client()
    }

    /// The peer, if a frame may pass.
    pub(crate) fn open_peer(&self) -> Result<(Arc<Port>, Arc<dyn NetClient>), DropReason> {
        let peer = match &*self.read_connection() {
            Some(connection) if !connection.closing => connection.peer.upgrade(),
            _ => None,
        };
        let peer = peer.ok_or(DropReason::NoPeer)?;
        if !self.link_is_up() || !peer.link_is_up() {
            return Err(DropReason::LinkDown);
        }
        let client = peer.client().ok_or(DropReason::NoPeer)?;
        Ok((peer, client))
    }

    fn set_peer(
        &self,
        peer: &Arc<Port>,
        context: &Arc<dyn AioContext>,
    ) -> Result<(), ConnectError> {
        let mut connection = self.write_connection();
        if let Some(other) = connection.as_ref().and_then(|c| c.peer.upgrade()) {
            return Err(ConnectError::InUse {
                port: self.name.clone(),
                peer: other.name.clone(),
            });
        }
        *connection = Some(Connection {
            peer: Arc::downgrade(peer),
            context: context.clone(),
            closing: false,
        });
        Ok(())
    }

    /// The context, if the connection was not being closed yet.
    fn begin_close(&self) -> Option<Arc<dyn AioContext>> {
        let mut connection = self.write_connection();
        let connection = connection.as_mut().filter(|c| !c.closing)?;
        connection.closing = true;
        Some(connection.context.clone())
    }

    fn clear_peer(&self) {
        // Dropped when the lock is free again: it may be the last owner of the context.
        let connection = self.write_connection().take();
        drop(connection);
        if self.bounce.clear() {
            self.sent.dropped(DropReason::NoPeer);
        }
        self.forget_waiting(DropReason::NoPeer);
        for direction in [Direction::Tx, Direction::Rx] {
            self.forget_held(direction, DropReason::NoPeer);
        }
    }

    fn read_connection(&self) -> RwLockReadGuard<'_, Option<Connection>> {
        self.connection
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write_connection(&self) -> RwLockWriteGuard<'_, Option<Connection>> {
        self.connection
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Port {
    /// A client that goes without disconnecting leaves its peer as if it had, as far as can still
    /// be done: what it had lent, it has taken back itself.
    fn drop(&mut self) {
        let Some(peer) = self.peer() else { return };
        if peer.begin_close().is_some()
            && let Some(client) = peer.client()
        {
            client.detach();
            client.revoke();
        }
        peer.clear_peer();
    }
}

/// Counts the frames that a peer reads for itself.
struct Counted<'a> {
    source: &'a mut dyn FrameSource,
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
            self.received.passed(len);
        }
        read
    }
}

/// Returns when no call that had begun on `context` still runs.
fn wait_for_turn(context: &Arc<dyn AioContext>) {
    if context.is_current() {
        return;
    }
    let turned = Arc::new(AtomicBool::new(false));
    let flag = turned.clone();
    context.schedule(Box::new(move || flag.store(true, Ordering::Release)));
    wait_for(context, &turned);
}

/// Returns when work on `context` has set the flag.
pub(crate) fn wait_for(context: &Arc<dyn AioContext>, flag: &AtomicBool) {
    context.wait_while(&mut || !flag.load(Ordering::Acquire));
}
