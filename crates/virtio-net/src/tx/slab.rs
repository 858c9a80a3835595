//! Memory of our own for what the peer gets: the checked headers, and frames of up to an MTU.
#![expect(
    unsafe_code,
    reason = "guest memory is copied from, and the peer or the kernel reads the copies while we look away"
)]

use std::cell::UnsafeCell;
use std::ptr;

use net_client::IoVec;
use virtqueue::Segment;

use super::{ADDRESSES, USUAL_HEADER};
use crate::header::MAX_HEADER;

/// What is lent to the peer of frames beside what lies in guest memory: copied once, so that what was checked is what is sent.
pub(super) struct FrameSlab {
    /// By head: the header of a frame that is sent in pieces, with the frame's addresses behind it where those were checked.
    starts: Box<[UnsafeCell<[u8; START]>]>,
    /// Headers with the frames behind them.
    copies: Box<[UnsafeCell<[u8; COPY]>]>,
    /// Which of those nobody has. The last is the next, so few of them are in use and those are in the processor's cache.
    free: Vec<u16>,
    /// By head: which of them the peer has, or [`NONE`].
    kept: Box<[u16]>,
}

const START: usize = MAX_HEADER + ADDRESSES;
/// Bytes of a header and the frame behind it: what fits an MTU of 1500, with two VLAN tags. To copy as many costs less than
/// to tell the kernel of a second piece: 50 to 100 ns less a frame of 1500 bytes.
const COPY: usize = 1600;
const _: () = assert!(COPY >= MAX_HEADER + 1500 + 14 + 8);
/// As many at most: what a peer keeps until a batch is over.
const COPIES: u16 = 64;
/// No copy.
const NONE: u16 = u16::MAX;

// SAFETY: all of it is written under the queue's lock: what is of a head while the head is not lent, a copy while it is free.
// While it is lent, only the peer reads it.
unsafe impl Sync for FrameSlab {}

impl FrameSlab {
    /// For a queue of so many entries.
    pub(super) fn new(size: u16) -> Self {
        let copies = size.min(COPIES);
        Self {
            starts: (0..size).map(|_| UnsafeCell::new([0; START])).collect(),
            copies: (0..copies).map(|_| UnsafeCell::new([0; COPY])).collect(),
            free: (0..copies).collect(),
            kept: vec![NONE; usize::from(size)].into(),
        }
    }

    /// Stores the header of a frame that is not lent (so `&mut`). A head past the end has no place.
    pub(super) fn set_header(&mut self, head: u16, header: [u8; MAX_HEADER]) {
        if let Some(start) = self.starts.get(usize::from(head)) {
            // SAFETY: the head was just popped, so no earlier frame of it is lent: nobody else looks at
            // the place, which is longer than a header. No reference into the slab is ever made, so
            // pointers to other places stay good.
            unsafe { start.get().cast::<[u8; MAX_HEADER]>().write(header) };
        }
    }

    /// Stores the header of the copy that was lent last, of the frame of `head`: it is to be lent once more.
    pub(super) fn keep_header(&mut self, head: u16) {
        if let Some(copy) = self.next_copy()
            && let Some(start) = self.starts.get(usize::from(head))
        {
            // SAFETY: a header's length fits both, which are two; the copy was not kept, so nobody else looks at it, nor at
            // the place of the head, as in `set_header`.
            unsafe { ptr::copy_nonoverlapping(copy, start.get().cast(), USUAL_HEADER) };
        }
    }

    /// Lends the first `len` bytes of a header.
    pub(super) fn lend_header(&self, head: u16, len: usize) -> Option<IoVec> {
        let start = self.starts.get(usize::from(head))?;
        // SAFETY: the slab is dropped with its queue, when no frame is lent any more.
        Some(unsafe { IoVec::new(start.get().cast(), len.min(MAX_HEADER)) })
    }

    /// Lends the first `header_len` bytes of a header with the frame's addresses behind it: the bytes of `segments` from
    /// `skip` on, which are copied now.
    pub(super) fn lend_start(
        &mut self,
        head: u16,
        header_len: usize,
        segments: &[Segment],
        skip: usize,
    ) -> Option<IoVec> {
        let start = self.starts.get(usize::from(head))?.get().cast::<u8>();
        let header_len = header_len.min(MAX_HEADER);
        // SAFETY: so many bytes are behind the header there, and nobody else looks at them, as in `set_header`.
        let copied = unsafe { copy(segments, skip, start.wrapping_add(header_len), ADDRESSES) };
        // SAFETY: as in `lend_header`.
        Some(unsafe { IoVec::new(start, header_len + copied) })
    }

    /// Lends the first `header_len` bytes of a header with the frame behind it: the `len` bytes of `segments` from `skip` on,
    /// which are copied now. `None`: the frame is too large, or the peer has all copies.
    ///
    /// The copy is made use of again by the next call, unless it is [kept](Self::keep).
    #[inline]
    pub(super) fn lend_copy(
        &mut self,
        head: u16,
        header_len: usize,
        segments: &[Segment],
        skip: usize,
        len: usize,
    ) -> Option<IoVec> {
        let header_len = header_len.min(MAX_HEADER);
        if len > COPY - header_len {
            return None;
        }
        let to = self.next_copy()?;
        let start = self.starts.get(usize::from(head))?.get().cast::<u8>();
        // SAFETY: a header's length fits both, which are two; the copy is free, so nobody else looks at it.
        unsafe { ptr::copy_nonoverlapping(start, to, header_len) };
        // SAFETY: behind the header there is room for `len` bytes, as was seen above.
        let copied = unsafe { copy(segments, skip, to.wrapping_add(header_len), len) };
        // SAFETY: as in `lend_header`.
        Some(unsafe { IoVec::new(to, header_len + copied) })
    }

    /// As [`lend_copy`](Self::lend_copy), with a header of the usual length that is not stored
    /// [yet](Self::keep_header), and a frame in one piece: `frame` from `skip` on.
    #[inline(always)]
    pub(super) fn lend_usual(
        &mut self,
        header: [u8; USUAL_HEADER],
        frame: &Segment,
        skip: usize,
    ) -> Option<IoVec> {
        let len = frame.len().checked_sub(skip)?;
        if len > COPY - USUAL_HEADER {
            return None;
        }
        let to = self.next_copy()?;
        // SAFETY: as in `lend_copy`.
        unsafe { to.cast::<[u8; USUAL_HEADER]>().write(header) };
        let from = frame.ptr().wrapping_add(skip);
        // SAFETY: `skip + len` bytes are in the segment, mapped while its chain is held; `USUAL_HEADER + len` is at most the
        // copy's size.
        unsafe { ptr::copy_nonoverlapping(from, to.wrapping_add(USUAL_HEADER), len) };
        // SAFETY: as in `lend_header`.
        Some(unsafe { IoVec::new(to, USUAL_HEADER + len) })
    }

    /// The peer keeps the frame of `head`, of which `first` is the first piece.
    #[inline]
    pub(super) fn keep(&mut self, head: u16, first: Option<&IoVec>) {
        if let Some(next) = self.next_copy()
            && first.is_some_and(|first| first.base() == next)
            && let Some(kept) = self.kept.get_mut(usize::from(head))
        {
            *kept = self.free.pop().unwrap_or(NONE);
        }
    }

    /// The peer is finished with the frame of `head`.
    #[inline]
    pub(super) fn release(&mut self, head: u16) {
        if let Some(kept) = self.kept.get_mut(usize::from(head))
            && *kept != NONE
        {
            self.free.push(std::mem::replace(kept, NONE));
        }
    }

    #[inline(always)]
    fn next_copy(&self) -> Option<*mut u8> {
        let next = self.copies.get(usize::from(*self.free.last()?))?;
        Some(next.get().cast())
    }
}

/// Copies `len` bytes of `segments` from `skip` on, or as many as there are; how many those were.
///
/// # Safety
/// There is room for `len` bytes at `to`, at which nobody else looks.
#[inline]
unsafe fn copy(segments: &[Segment], mut skip: usize, to: *mut u8, len: usize) -> usize {
    let mut at = 0;
    for segment in segments {
        let here = skip.min(segment.len());
        skip -= here;
        let part = (segment.len() - here).min(len - at);
        // SAFETY: `here + part` bytes are in the segment, mapped while its chain is held; `at + part` is at most `len`. A
        // copy of our own does not overlap guest memory.
        unsafe {
            ptr::copy_nonoverlapping(segment.ptr().wrapping_add(here), to.wrapping_add(at), part);
        }
        at += part;
    }
    at
}
