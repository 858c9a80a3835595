//! The life of a connection: two ports become peers, move to another context, and part.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard, Weak};

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
    context: Arc<dyn AioContext>,
    /// The connection is being undone: completions still pass, frames no longer.
    closing: bool,
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

    /// The other end, while it lives. A port with a peer is in use.
    pub fn peer(&self) -> Option<Arc<Port>> {
        self.read_connection().as_ref()?.peer.upgrade()
    }

    /// The context that this client and its peer work on, while they are connected.
    pub fn context(&self) -> Option<Arc<dyn AioContext>> {
        Some(self.read_connection().as_ref()?.context.clone())
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
