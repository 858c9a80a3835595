//! Zeroes behind frames that are shorter than their receiver takes.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::client::{Frame, NetClient, Read, Received, Token};
use crate::iovec::{IoVec, copy_from_iov, copy_to_iov};
use crate::port::Port;

/// The most bytes that a frame can be padded to, header included.
const MOST: usize = 128;

/// How long frames are that one port's client takes, and the reads of its source that are to be padded.
#[derive(Debug, Default)]
pub(crate) struct Padding {
    /// The header's length and, in the lowest byte, that of header and frame; 0: frames pass as they are.
    shortest: AtomicU32,
    /// A leaf lock.
    reads: Mutex<Vec<Pending>>,
    /// Of those; looked at without the lock.
    pending: AtomicUsize,
}

/// A read that goes on, into memory that is lent until it ends.
#[derive(Debug)]
struct Pending {
    token: Token,
    iov: Vec<IoVec>,
    shortest: Shortest,
}

/// Lengths with and without the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortest {
    header: usize,
    whole: usize,
}

impl Shortest {
    /// What so many bytes become; `None` if they pass as they are. What has no frame behind its header stays without.
    fn wanted(self, len: usize) -> Option<usize> {
        (self.header < len && len < self.whole).then_some(self.whole)
    }

    /// Pads a frame of `len` bytes in `iov`, as far as that has room; returns its length.
    pub(crate) fn pad(self, iov: &[IoVec], len: usize) -> usize {
        let Some(wanted) = self.wanted(len) else {
            return len;
        };
        let zeroes = [0; MOST];
        len + copy_to_iov(iov, len, zeroes.get(..wanted - len).unwrap_or_default())
    }
}

impl Padding {
    /// How long frames are at least, if not all pass as they are.
    #[inline]
    pub(crate) fn shortest(&self) -> Option<Shortest> {
        let both = self.shortest.load(Ordering::Relaxed);
        let [.., header, whole] = both.to_be_bytes();
        (both != 0).then_some(Shortest {
            header: header.into(),
            whole: whole.into(),
        })
    }

    /// A read into `iov`, by a client that takes no shorter frames than `shortest`, goes on.
    pub(crate) fn begin(&self, token: Token, iov: &[IoVec], shortest: Shortest) {
        let mut reads = self.lock();
        reads.retain(|read| read.token != token);
        let iov = iov.to_vec();
        reads.push(Pending {
            token,
            iov,
            shortest,
        });
        self.pending.store(reads.len(), Ordering::Release);
    }

    /// It has ended with a frame of `len` bytes, or (0) without one. How long the frame is now.
    pub(crate) fn end(&self, token: Token, len: usize) -> usize {
        if self.pending.load(Ordering::Acquire) == 0 {
            return len;
        }
        let mut reads = self.lock();
        let Some(at) = reads.iter().position(|read| read.token == token) else {
            return len;
        };
        let Pending { iov, shortest, .. } = reads.swap_remove(at);
        self.pending.store(reads.len(), Ordering::Release);
        shortest.pad(&iov, len)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    /// Frames that this client is given have `len` bytes at least from now on, behind a header of `header_len`: zeroes
    /// follow those that are shorter. At first, and with a `len` of 0, frames come as they are. Header and frame have
    /// 128 bytes together at most.
    ///
    /// For NICs whose guests count on what a wire brings: 60 bytes, Ethernet's least without its check sequence. A host
    /// does not pad what it hands to a tap.
    #[doc(alias = "do_not_pad")]
    #[doc(alias = "qemu_pad_short_frame")]
    pub fn pad_received(&self, header_len: usize, len: usize) {
        let byte = |len: usize| u8::try_from(len.min(MOST)).unwrap_or(u8::MAX);
        let both = if len == 0 {
            0
        } else {
            let whole = byte(header_len.saturating_add(len));
            u32::from_be_bytes([0, 0, byte(header_len), whole])
        };
        self.padding.shortest.store(both, Ordering::Relaxed);
    }

    /// Gives a frame to the peer's client, with the zeroes that it wants behind it.
    #[inline]
    pub(crate) fn give(
        client: &dyn NetClient,
        frame: &Frame<'_>,
        shortest: Option<Shortest>,
    ) -> (Received, usize) {
        if let Some(wanted) = shortest.and_then(|shortest| shortest.wanted(frame.len)) {
            return Self::give_padded(client, frame, wanted);
        }
        (client.receive(frame), frame.len)
    }

    /// Few bytes: a copy, which the client copies in turn if it keeps it.
    #[cold]
    fn give_padded(client: &dyn NetClient, frame: &Frame<'_>, wanted: usize) -> (Received, usize) {
        let mut bytes = [0; MOST];
        copy_from_iov(frame.iov, 0, bytes.get_mut(..frame.len).unwrap_or_default());
        let iov = IoVec::of_bytes(bytes.get(..wanted).unwrap_or_default());
        let received = client.receive(&Frame {
            token: None,
            iov: &[iov],
            len: wanted,
        });
        (received, wanted)
    }
}

/// What a source has read, with the zeroes that the reader wants; `begin` is told of a read that goes on.
pub(crate) fn padded(read: Read, iov: &[IoVec], shortest: Shortest, begin: impl FnOnce()) -> Read {
    match read {
        Read::Frame(len) => Read::Frame(shortest.pad(iov, len)),
        Read::Pending => {
            begin();
            Read::Pending
        }
        read => read,
    }
}
