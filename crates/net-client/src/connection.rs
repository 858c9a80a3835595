//! The life of a connection: two ports become peers, move to another context, and part.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::thread::{self, ThreadId};

use iothread::AioContext;

use crate::client::NetClient;
use crate::filter::Direction;
use crate::port::Port;
use crate::statistics::DropReason;

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

/// What a port that has a peer knows.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Weak<Port>,
    link: Arc<Link>,
}

/// A peer that is kept from going.
#[derive(Debug)]
pub(crate) struct LastingPeer {
    pub(crate) port: Arc<Port>,
    pub(crate) client: Arc<dyn NetClient>,
    link: Arc<Link>,
}

impl LastingPeer {
    /// No frame passes any more.
    #[inline]
    pub(crate) fn is_closing(&self) -> bool {
        self.link.closing.load(Ordering::Acquire)
    }
}

/// What the two ports of one connection share, from its beginning to its end.
#[derive(Debug)]
struct Link {
    /// The connection is being undone: completions still pass, frames no longer.
    closing: AtomicBool,
    /// A leaf lock.
    state: Mutex<LinkState>,
}

#[derive(Debug)]
struct LinkState {
    context: Arc<dyn AioContext>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A thread connects, moves or disconnects the two ends; no other does meanwhile.
    Claimed(ThreadId),
    /// Connected.
    Open,
    /// Disconnected, for ever.
    Closed,
}

impl Port {
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
        let link = Link::claimed(context);
        a.set_peer(b, &link)?;
        if let Err(error) = b.set_peer(a, &link) {
            a.clear_peer(&link);
            link.release(Phase::Closed);
            return Err(error);
        }
        for (end, other) in [(a, b), (b, a)] {
            let Some(client) = end.client() else { continue };
            if let Err(source) = client.attach(context) {
                client.detach();
                if let Some(attached) = other.client() {
                    attached.detach();
                }
                a.clear_peer(&link);
                b.clear_peer(&link);
                link.release(Phase::Closed);
                return Err(ConnectError::Attach {
                    port: end.name.clone(),
                    source,
                });
            }
        }
        link.release(Phase::Open);
        tracing::debug!(a = a.name, b = b.name, "connected");
        Ok(())
    }

    /// Undoes [`connect`](Self::connect), called at either end: no frame passes any more, calls
    /// under way on the context end, and what either end has lent to the other comes back, before
    /// this returns. Does nothing without a peer. Of two calls at once, at the same end or at both, the
    /// second returns when the first has done it.
    ///
    /// Not called from inside a client's own methods, nor while holding a lock that they take.
    pub fn disconnect(&self) {
        let Some(link) = self.link().filter(|link| link.claim()) else {
            return;
        };
        link.closing.store(true, Ordering::Release);
        let peer = self.peer();
        let ends = [Some(self), peer.as_deref()];
        let clients = ends.map(|end| end.and_then(Self::client));
        for client in clients.iter().flatten() {
            client.detach();
        }
        wait_for_turn(&link.context());
        for client in clients.iter().flatten() {
            client.revoke();
        }
        for end in ends.into_iter().flatten() {
            end.clear_peer(&link);
        }
        link.release(Phase::Closed);
        // Who had stopped for want of room goes on, if only to have its frames dropped.
        link.schedule_room(ends.into_iter().flatten());
        tracing::debug!(
            a = self.name,
            b = peer.map(|peer| peer.name.clone()),
            "disconnected"
        );
    }

    /// Moves both ends to another context. Called while the device is paused, as
    /// [`disconnect`](Self::disconnect) is. A client that waits for room looks again there.
    ///
    /// # Errors
    /// When a client cannot be attached to it; both are then detached, and the caller moves them
    /// elsewhere or disconnects them.
    pub fn move_to(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        let Some(link) = self.link().filter(|link| link.claim()) else {
            return Ok(());
        };
        let moved = self.move_claimed(&link, context);
        link.release(Phase::Open);
        // What a client waits for it no longer watches where it was, nor yet where it is.
        self.schedule_offers();
        moved
    }

    fn move_claimed(&self, link: &Link, context: &Arc<dyn AioContext>) -> io::Result<()> {
        let peer = self.peer();
        let clients = [Some(self), peer.as_deref()].map(|end| end.and_then(Self::client));
        for client in clients.iter().flatten() {
            client.detach();
        }
        wait_for_turn(&link.context());
        link.set_context(context);
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

    /// The other end, while it lives. A port with a peer is in use.
    pub fn peer(&self) -> Option<Arc<Port>> {
        self.read_connection().as_ref()?.peer.upgrade()
    }

    /// The context that this client and its peer work on, while they are connected.
    pub fn context(&self) -> Option<Arc<dyn AioContext>> {
        Some(self.link()?.context())
    }

    pub(crate) fn peer_client(&self) -> Option<Arc<dyn NetClient>> {
        self.peer()?.client()
    }

    /// The peer, if a frame may pass.
    pub(crate) fn open_peer(&self) -> Result<(Arc<Port>, Arc<dyn NetClient>), DropReason> {
        let peer = match &*self.read_connection() {
            Some(connection) if !connection.link.closing.load(Ordering::Acquire) => {
                connection.peer.upgrade()
            }
            _ => None,
        };
        let peer = peer.ok_or(DropReason::NoPeer)?;
        if !self.link_is_up() || !peer.link_is_up() {
            return Err(DropReason::LinkDown);
        }
        let client = peer.client().ok_or(DropReason::NoPeer)?;
        Ok((peer, client))
    }

    /// The peer, and what says whether frames may still pass, for a batch of frames.
    pub(crate) fn lasting_peer(&self) -> Option<LastingPeer> {
        let (port, link) = match &*self.read_connection() {
            Some(connection) => (connection.peer.upgrade()?, connection.link.clone()),
            None => return None,
        };
        let client = port.client()?;
        Some(LastingPeer { port, client, link })
    }

    fn link(&self) -> Option<Arc<Link>> {
        Some(self.read_connection().as_ref()?.link.clone())
    }

    fn set_peer(&self, peer: &Arc<Self>, link: &Arc<Link>) -> Result<(), ConnectError> {
        let mut connection = self.write_connection();
        if let Some(taken) = &*connection {
            let peer = taken.peer.upgrade();
            return Err(ConnectError::InUse {
                port: self.name.clone(),
                // It is gone when this port has heard of it.
                peer: peer.map_or_else(|| "(going)".into(), |peer| peer.name.clone()),
            });
        }
        *connection = Some(Connection {
            peer: Arc::downgrade(peer),
            link: link.clone(),
        });
        Ok(())
    }

    fn clear_peer(&self, link: &Arc<Link>) {
        // Dropped when the lock is free again: it may be the last owner of the context.
        let connection = self
            .write_connection()
            .take_if(|connection| Arc::ptr_eq(&connection.link, link));
        if connection.is_none() {
            return;
        }
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
        // Waits while the peer disconnects on another thread: then what was lent is back after it.
        let Some(link) = self.link().filter(|link| link.claim()) else {
            return;
        };
        link.closing.store(true, Ordering::Release);
        let peer = self.peer();
        if let Some(peer) = &peer {
            if let Some(client) = peer.client() {
                client.detach();
                client.revoke();
            }
            peer.clear_peer(&link);
        }
        link.release(Phase::Closed);
        link.schedule_room(peer.as_deref());
    }
}

impl Link {
    /// One that the calling thread is making.
    fn claimed(context: &Arc<dyn AioContext>) -> Arc<Self> {
        Arc::new(Self {
            closing: AtomicBool::new(false),
            state: Mutex::new(LinkState {
                context: context.clone(),
                phase: Phase::Claimed(thread::current().id()),
            }),
        })
    }

    /// Keeps all others from changing the connection until [`release`](Self::release), and waits for
    /// who does so now. `false`: it is closed, or this thread changes it already, further up the
    /// stack.
    fn claim(&self) -> bool {
        let me = thread::current().id();
        loop {
            let (claimed, context) = {
                let mut state = self.lock();
                match state.phase {
                    Phase::Open => {
                        state.phase = Phase::Claimed(me);
                        return true;
                    }
                    Phase::Closed => return false,
                    Phase::Claimed(thread) if thread == me => return false,
                    claimed @ Phase::Claimed(_) => (claimed, state.context.clone()),
                }
            };
            // Not by blocking: this may be the thread whose turn the other waits for.
            context.wait_while(&mut || {
                let state = self.lock();
                state.phase == claimed && Arc::ptr_eq(&state.context, &context)
            });
        }
    }

    fn release(&self, phase: Phase) {
        let context = {
            let mut state = self.lock();
            state.phase = phase;
            state.context.clone()
        };
        // Who waits in `claim` looks after a turn.
        context.schedule(Box::new(|| {}));
    }

    fn context(&self) -> Arc<dyn AioContext> {
        self.lock().context.clone()
    }

    fn set_context(&self, context: &Arc<dyn AioContext>) {
        let old = mem::replace(&mut self.lock().context, context.clone());
        // Who waits there goes on waiting here.
        old.schedule(Box::new(|| {}));
    }

    /// At the next turn the clients of `ends` hear that there is room.
    fn schedule_room<'a>(&self, ends: impl IntoIterator<Item = &'a Port>) {
        let clients: Vec<_> = ends.into_iter().map(|end| end.client.clone()).collect();
        self.context().schedule(Box::new(move || {
            for client in clients.iter().filter_map(Weak::upgrade) {
                client.room();
            }
        }));
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
