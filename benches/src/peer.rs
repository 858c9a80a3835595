//! The other end of the link.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use net_client::{
    Frame, FrameSource, IoVec, NetClient, Netdev, Offloads, Port, Read, Received, Token,
    VnetHeader, copy_to_iov, total_len,
};

use crate::frame::{FrameSize, MAC, number_offset};

/// A backend that takes each frame at once and counts it, and that can do every offload a tap can.
#[derive(Debug)]
pub struct InstantPeer {
    ports: Vec<Arc<Port>>,
    header_len: AtomicUsize,
    taken: AtomicU64,
    taken_bytes: AtomicU64,
}

impl InstantPeer {
    /// With no peer of its own yet.
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            ports: vec![Port::new("instant", me.clone() as Weak<dyn NetClient>)],
            header_len: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            taken_bytes: AtomicU64::new(0),
        })
    }

    /// Its end of the link.
    pub fn port(&self) -> &Arc<Port> {
        &self.ports[0]
    }

    /// Frames and bytes (headers included) that were taken since the last call.
    pub fn take_counts(&self) -> (u64, u64) {
        (
            self.taken.swap(0, Ordering::Relaxed),
            self.taken_bytes.swap(0, Ordering::Relaxed),
        )
    }
}

impl NetClient for InstantPeer {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        // On one thread, as every client: no read-modify-write is needed.
        let add = |counter: &AtomicU64, more: u64| {
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        };
        add(&self.taken, 1);
        add(&self.taken_bytes, total_len(frame.iov) as u64);
        Received::Taken
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        Some(self)
    }
}

impl VnetHeader for InstantPeer {
    fn supported_offloads(&self) -> Offloads {
        Offloads {
            csum: true,
            tso4: true,
            tso6: true,
            ecn: true,
            ..Offloads::default()
        }
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

impl Netdev for InstantPeer {
    fn kind(&self) -> &str {
        "instant"
    }

    fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    fn info(&self) -> String {
        String::new()
    }
}

/// Numbered frames of one size. What a kernel would copy is not the device's work, so only the headers
/// and the number are written.
#[derive(Debug)]
pub(crate) struct Numbered {
    start: Vec<u8>,
    len: usize,
    number_at: usize,
    next: u64,
    left: u64,
}

impl Numbered {
    pub(crate) fn new(size: FrameSize) -> Self {
        let number_at = number_offset(size);
        let mut start = size.bytes(MAC);
        let len = start.len();
        start.truncate(number_at + size_of::<u64>());
        Self {
            start,
            len,
            number_at,
            next: 0,
            left: 0,
        }
    }

    /// So many more are there to be read; returns the number of the first.
    pub(crate) fn refill(&mut self, frames: u64) -> u64 {
        self.left = frames;
        self.next
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl FrameSource for Numbered {
    /// As a tap's.
    fn max_frame(&self) -> usize {
        65535 + 14 + 4 + crate::HEADER_LEN
    }

    fn read(&mut self, _token: Token, iov: &[IoVec]) -> Read {
        if self.left == 0 {
            return Read::Empty;
        }
        self.start[self.number_at..].copy_from_slice(&self.next.to_le_bytes());
        copy_to_iov(iov, 0, &self.start);
        self.next += 1;
        self.left -= 1;
        Read::Frame(self.len)
    }
}
