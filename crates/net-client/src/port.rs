//! One end of a link.
#![expect(
    unsafe_code,
    reason = "one borrow is described as an `IoVec` for the length of a call"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::client::{Drained, Frame, FrameSource, NetClient, Received, Token};
use crate::iovec::IoVec;

/// One end of a link, owned by the client whose end it is. Clients call their peer through it, so
/// that link state, filters and counters have one place.
///
/// Both backlinks, to the client and to the peer, are `Weak`.
#[derive(Debug)]
pub struct Port {
    name: String,
    client: Weak<dyn NetClient>,
    /// A leaf lock: nothing is called while it is held.
    peer: Mutex<Weak<Port>>,
    link_down: AtomicBool,
}

impl Port {
    /// Makes the port of `client`, called `name` (`tap0`, `virtio-net-pci.0`), with no peer.
    pub fn new(name: impl Into<String>, client: Weak<dyn NetClient>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            client,
            peer: Mutex::new(Weak::new()),
            link_down: AtomicBool::new(false),
        })
    }

    /// The client's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client whose end this is, while it lives.
    pub fn client(&self) -> Option<Arc<dyn NetClient>> {
        self.client.upgrade()
    }

    /// The other end, while it lives.
    pub fn peer(&self) -> Option<Arc<Port>> {
        self.peer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upgrade()
    }

    /// Whether this end's link is up.
    pub fn link_is_up(&self) -> bool {
        !self.link_down.load(Ordering::Acquire)
    }

    /// Offers a frame to the peer. A frame on a link that is down, or without a peer, is dropped
    /// (and so [`Received::Taken`]).
    #[doc(alias = "qemu_sendv_packet_async")]
    pub fn send(&self, frame: &Frame<'_>) -> Received {
        match self.open_peer() {
            Some(peer) => peer.receive(frame),
            None => Received::Taken,
        }
    }

    /// Offers a frame that the caller has as bytes (header included, where one is agreed on) and
    /// that the peer copies. For clients that cannot lend.
    #[doc(alias = "qemu_send_packet")]
    pub fn send_bytes(&self, bytes: &[u8]) -> Received {
        // SAFETY: without a token the frame is not lent, so it is used within this call only, in
        // which the borrow keeps the bytes; a frame that is sent is only read from.
        let iov = unsafe { IoVec::new(bytes.as_ptr().cast_mut(), bytes.len()) };
        self.send(&Frame {
            token: None,
            iov: &[iov],
            len: bytes.len(),
        })
    }

    /// The batch is complete. See [`NetClient::flush`].
    pub fn flush(&self, done: &mut dyn FnMut(Token)) {
        if let Some(client) = self.peer().and_then(|peer| peer.client()) {
            client.flush(done);
        }
    }

    /// Offers the peer to read frames from `source`.
    pub fn offer(&self, source: &mut dyn FrameSource) -> Drained {
        match self.open_peer() {
            Some(peer) => peer.receive_from(source),
            None => Drained::CannotLend,
        }
    }

    fn open_peer(&self) -> Option<Arc<dyn NetClient>> {
        let peer = self.peer()?;
        if !self.link_is_up() || !peer.link_is_up() {
            return None;
        }
        peer.client()
    }
}
