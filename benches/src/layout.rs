//! How frames lie in a driver's memory: the same for devices and for the bare loops beside them.

use crate::frame::{FrameSize, HEADER_LEN, PROTOCOL_LEN};

/// Bytes of a page, on which each piece or receive buffer has a place of its own.
pub(crate) const PAGE: usize = 4096;
/// Entries of each queue.
pub(crate) const QUEUE: u16 = 256;
/// Where what is smaller than a page lies in it, as behind the headroom that a driver leaves: reads into whole pages are
/// slower.
const OFFSET: usize = 52;

/// Frames of one size, in pieces of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The frames.
    pub size: FrameSize,
    /// Large frames are in small pieces: they are sent in pages, and received in the buffers of 1536 bytes that Linux has
    /// for an MTU of 1500. Else they are as in the midst of a TCP stream of Linux, which sends them in pieces of
    /// 32 KiB behind the headers, and whose receive buffers have grown to a page.
    pub small_pieces: bool,
}

/// A piece of a frame: how far from the frame's place it begins, and how long it is.
pub(crate) type Piece = (usize, usize);

impl Layout {
    /// Bytes of memory that one frame to be sent has for itself.
    fn room_to_send(self) -> usize {
        self.pieces_to_send()
            .last()
            .map_or(0, |(at, len)| (at + len).next_multiple_of(PAGE))
    }

    /// The pieces of a frame to be sent, the header in the first.
    pub(crate) fn pieces_to_send(self) -> Vec<Piece> {
        let whole = HEADER_LEN + self.size.frame_len();
        let first = match self.size {
            FrameSize::Smallest | FrameSize::Full => whole,
            FrameSize::Segmented => HEADER_LEN + PROTOCOL_LEN,
        };
        let most = if self.small_pieces { PAGE } else { 8 * PAGE };
        let rest = (first..whole)
            .step_by(most)
            .map(|at| (PAGE + at - first, most.min(whole - at)));
        std::iter::once((OFFSET, first)).chain(rest).collect()
    }

    /// Where the frames lie that are sent in turn, from the beginning of their memory: no more large ones than a few,
    /// which stay in the caches.
    pub(crate) fn places_to_send(self) -> impl Iterator<Item = usize> {
        let most = usize::from(QUEUE) / self.pieces_to_send().len();
        let count = match self.size {
            FrameSize::Smallest | FrameSize::Full => most,
            FrameSize::Segmented => most.min(16),
        };
        let room = self.room_to_send();
        (0..count).map(move |frame| frame * room)
    }

    /// Bytes of a receive buffer, and where it begins on its page.
    pub(crate) fn buffer(self) -> (usize, usize) {
        match self.size {
            FrameSize::Segmented if !self.small_pieces => (PAGE, 0),
            _ => (1536, OFFSET),
        }
    }

    /// Receive buffers that a frame takes.
    pub fn buffers(self) -> u64 {
        (HEADER_LEN + self.size.frame_len()).div_ceil(self.buffer().0) as u64
    }

    /// Bytes of memory for either direction.
    pub(crate) fn memory_len(self) -> usize {
        (self.places_to_send().count() * self.room_to_send()).max(usize::from(QUEUE) * PAGE)
    }
}
