//! A client that gives back what it gets.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::client::{Frame, NetClient, Received, Token};
use crate::netdev::Netdev;
use crate::port::Port;
use crate::vnet::{Offloads, VnetHeader};

/// Sends each frame back to the peer that it came from, header and all, within the call.
///
/// It copes with no offload, so that a frame's header says nothing that its sender does not cope
/// with as a receiver.
#[derive(Debug)]
pub struct Loopback {
    port: Arc<Port>,
    header_len: AtomicUsize,
}

impl Loopback {
    /// Makes one whose port is called `name`.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new(name, me.clone()),
            header_len: AtomicUsize::new(0),
        })
    }

    /// Its end of the link.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }
}

impl NetClient for Loopback {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        // The memory is lent to us and not ours to lend on.
        let back = Frame {
            token: None,
            ..*frame
        };
        match self.port.send(&back) {
            Received::Busy => Received::Busy,
            Received::Taken | Received::Lent => Received::Taken,
        }
    }

    fn flush(&self, _done: &mut dyn FnMut(Token)) {
        self.port.flush(&mut |_| {});
    }

    fn room(&self) {
        self.port.room();
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        Some(self)
    }
}

impl VnetHeader for Loopback {
    fn supported_offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn header_len(&self) -> usize {
        self.header_len.load(Ordering::Relaxed)
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.header_len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn set_little_endian(&self, _little_endian: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}

impl Netdev for Loopback {
    fn kind(&self) -> &str {
        "loopback"
    }

    fn ports(&self) -> &[Arc<Port>] {
        std::slice::from_ref(&self.port)
    }

    fn info(&self) -> String {
        String::new()
    }
}
