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
use crate::header::{Header, MAX_HEADER};
use crate::kick::MOST_OF_A_BATCH;

/// What is lent to the peer of frames beside what lies in guest memory: copied once, so that what was checked is what
/// is sent.
///
/// A frame that is copied lies in the copy that is next, which stays the next until [`keep`](Self::keep) says that the
/// peer has it: between the two nothing else is copied or released.
pub(super) struct FrameSlab {
    /// By head: its checked header, until the frame is sent; behind it the frame's addresses, where those were checked.
    starts: Box<[UnsafeCell<[u8; START]>]>,
    /// Headers with the frames behind them, [`COPY`] bytes each.
    copies: Box<[UnsafeCell<u8>]>,
    /// Which of those nobody has. The last is the next, so few of them are in use and those are in the processor's
    /// cache.
    free: Vec<u16>,
    /// By head: which of them the peer has, or [`NONE`].
    kept: Box<[u16]>,
}

/// A cache line: a header does not fill its place, so that guest memory never begins where it ends.
const START: usize = 64;
const _: () = assert!(START > MAX_HEADER + ADDRESSES);
/// Bytes of a header and the frame behind it: what fits an MTU of 1500, with two VLAN tags. To copy as many costs less
/// than to tell the kernel of a second piece: 50 to 100 ns less a frame of 1500 bytes.
const COPY: usize = 1600;
const _: () = assert!(COPY >= MAX_HEADER + 1500 + 14 + 8);
/// No copy.
const NONE: u16 = u16::MAX;

// SAFETY: all of it is written under the queue's lock: what is of a head while the head is not lent, a copy while it is
// free. While it is lent, only the peer reads it.
unsafe impl Sync for FrameSlab {}

impl FrameSlab {
    /// For a queue of so many entries. There are copies for what a peer keeps until a batch is over.
    pub(super) fn new(size: u16) -> Self {
        let count = size.div_ceil(2).min(MOST_OF_A_BATCH);
        // Zeroes that cost no memory until a frame lies there.
        let bytes = vec![0_u8; usize::from(count) * COPY].into_boxed_slice();
        // SAFETY: a cell is laid out as what is in it.
        let copies = unsafe { Box::from_raw(Box::into_raw(bytes) as *mut [UnsafeCell<u8>]) };
        Self {
            starts: (0..size).map(|_| UnsafeCell::new([0; START])).collect(),
            copies,
            free: (0..count).rev().collect(),
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

    /// Stores the header of the frame that was copied last, which is that of `head`: it is to be lent once more, or
    /// counted.
    pub(super) fn keep_header(&mut self, head: u16) {
        if let Some(copy) = self.next_copy()
            && let Some(start) = self.starts.get(usize::from(head))
        {
            // SAFETY: a header's length fits both, which are two; the copy was not kept, so nobody else looks at it,
            // nor at the place of the head, as in `set_header`.
            unsafe { ptr::copy_nonoverlapping(copy, start.get().cast(), USUAL_HEADER) };
        }
    }

    /// The header that was stored for a head.
    pub(super) fn header(&self, head: u16, little_endian: bool) -> Header {
        let start = self.starts.get(usize::from(head));
        // SAFETY: written with a header at least when it was made, and by nobody now.
        let bytes = start.map(|start| unsafe { start.get().cast::<[u8; MAX_HEADER]>().read() });
        Header::parse(&bytes.unwrap_or_default(), little_endian)
    }

    /// Lends the first `len` bytes of a header.
    pub(super) fn lend_header(&self, head: u16, len: usize) -> Option<IoVec> {
        let start = self.starts.get(usize::from(head))?;
        // SAFETY: the slab is dropped with its queue, when no frame is lent any more.
        Some(unsafe { IoVec::new(start.get().cast(), len.min(MAX_HEADER)) })
    }

    /// Lends the first `header_len` bytes of a header with the frame's addresses behind it: the bytes of `segments`
    /// from `skip` on, which are copied now.
    pub(super) fn lend_start(
        &mut self,
        head: u16,
        header_len: usize,
        segments: &[Segment],
        skip: usize,
    ) -> Option<IoVec> {
        let start = self.starts.get(usize::from(head))?.get().cast::<u8>();
        let header_len = header_len.min(MAX_HEADER);
        let to = start.wrapping_add(header_len);
        // SAFETY: so many bytes are behind the header there, and nobody else looks at them, as in `set_header`; the
        // caller holds the chain.
        let copied = unsafe { copy_segments(segments, skip, to, ADDRESSES) };
        // SAFETY: as in `lend_header`.
        Some(unsafe { IoVec::new(start, header_len + copied) })
    }

    /// Whether a header and a frame of so many bytes together can be copied: it is not too large, and the peer has not
    /// all copies.
    #[inline(always)]
    pub(super) fn takes(&self, len: usize) -> bool {
        len <= COPY && !self.free.is_empty()
    }

    /// Lends the first `header_len` bytes of a header with the frame behind it: the `len` bytes of `segments` from
    /// `skip` on, which are copied now. `None`: it [takes](Self::takes) no such frame.
    #[inline]
    pub(super) fn copy_frame(
        &mut self,
        head: u16,
        header_len: usize,
        segments: &[Segment],
        skip: usize,
        len: usize,
    ) -> Option<IoVec> {
        let header_len = header_len.min(MAX_HEADER);
        if !self.takes(header_len.checked_add(len)?) {
            return None;
        }
        let to = self.next_copy()?;
        let start = self.starts.get(usize::from(head))?.get().cast::<u8>();
        // SAFETY: a header's length fits both, which are two; the copy is free, so nobody else looks at it.
        unsafe { ptr::copy_nonoverlapping(start, to, header_len) };
        // SAFETY: behind the header there is room for `len` bytes, as was seen above; the caller holds the chain.
        let copied = unsafe { copy_segments(segments, skip, to.wrapping_add(header_len), len) };
        // SAFETY: as in `lend_header`.
        Some(unsafe { IoVec::new(to, header_len + copied) })
    }

    /// As [`copy_frame`](Self::copy_frame), with a header of the usual length that is not stored
    /// [yet](Self::keep_header), and a frame in one piece: `frame` from `skip` on.
    #[inline(always)]
    pub(super) fn copy_usual(
        &mut self,
        header: [u8; USUAL_HEADER],
        frame: &Segment,
        skip: usize,
    ) -> Option<IoVec> {
        let len = frame.len().checked_sub(skip)?;
        if !self.takes(USUAL_HEADER.checked_add(len)?) {
            return None;
        }
        let to = self.next_copy()?;
        // SAFETY: as in `copy_frame`.
        unsafe { to.cast::<[u8; USUAL_HEADER]>().write(header) };
        let from = frame.ptr().wrapping_add(skip);
        // SAFETY: `skip + len` bytes are in the segment, mapped while its chain is held; `USUAL_HEADER + len` is at
        // most the copy's size.
        unsafe { ptr::copy_nonoverlapping(from, to.wrapping_add(USUAL_HEADER), len) };
        // SAFETY: as in `lend_header`.
        Some(unsafe { IoVec::new(to, USUAL_HEADER + len) })
    }

    /// The peer keeps the frame of `head`, of which `first` is the first piece: with it the copy that is next, if the
    /// frame lies there. Neither guest memory nor the head's own place do.
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

    /// The peer never said that it is finished with the frame of `head`: its copy is not used again.
    pub(super) fn abandon(&mut self, head: u16) {
        if let Some(kept) = self.kept.get_mut(usize::from(head)) {
            *kept = NONE;
        }
    }

    #[inline(always)]
    fn next_copy(&self) -> Option<*mut u8> {
        let next = usize::from(*self.free.last()?);
        let from = self.copies.get(next * COPY..)?;
        // All copies are as long, so there are so many bytes.
        Some(UnsafeCell::raw_get(from.as_ptr()))
    }
}

/// Copies `len` bytes of `segments` from `skip` on, or as many as there are; how many those were.
///
/// # Safety
/// There is room for `len` bytes at `to`, at which nobody else looks, and the chain of `segments` is held.
#[inline]
unsafe fn copy_segments(segments: &[Segment], mut skip: usize, to: *mut u8, len: usize) -> usize {
    let mut at = 0;
    for segment in segments {
        let here = skip.min(segment.len());
        skip -= here;
        let part = (segment.len() - here).min(len - at);
        let from = segment.ptr().wrapping_add(here);
        // SAFETY: `here + part` bytes are in the segment, mapped while its chain is held; `at + part` is at most `len`.
        // A copy of our own does not overlap guest memory.
        unsafe { ptr::copy_nonoverlapping(from, to.wrapping_add(at), part) };
        at += part;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lends the next copy, as those with segments do.
    fn next(slab: &FrameSlab) -> Option<IoVec> {
        // SAFETY: of the slab's, of which nobody makes use.
        slab.next_copy().map(|at| unsafe { IoVec::new(at, COPY) })
    }

    #[test]
    fn a_copy_is_the_next_until_it_is_kept_and_again_when_it_is_released() {
        let mut slab = FrameSlab::new(8);
        let first = next(&slab).unwrap();
        assert_eq!(next(&slab).unwrap().base(), first.base());
        slab.keep(3, Some(&first));
        let second = next(&slab).unwrap();
        assert_ne!(second.base(), first.base());
        slab.release(3);
        assert_eq!(next(&slab).unwrap().base(), first.base());
        // It is there once, however often it is released.
        slab.release(3);
        slab.keep(0, next(&slab).as_ref());
        assert_eq!(next(&slab).unwrap().base(), second.base());
    }

    #[test]
    fn copies_are_for_half_a_small_queue_and_no_two_overlap() {
        let mut slab = FrameSlab::new(8);
        let mut places = Vec::new();
        for head in 0..4 {
            assert!(slab.takes(COPY) && !slab.takes(COPY + 1));
            let copy = next(&slab).unwrap();
            places.push(copy.base().addr());
            slab.keep(head, Some(&copy));
        }
        assert!(!slab.takes(0) && next(&slab).is_none());
        places.sort_unstable();
        assert!(places.windows(2).all(|two| two[1] - two[0] >= COPY));
        // One that is given up stays so.
        slab.abandon(0);
        slab.release(0);
        assert!(!slab.takes(0));
        slab.release(1);
        assert!(slab.takes(COPY));
        for (size, count) in [(1, 1), (2, 1), (256, 64), (32768, 64)] {
            assert_eq!(FrameSlab::new(size).free.len(), count, "{size}");
        }
    }

    #[test]
    fn a_frame_in_pieces_keeps_no_copy() {
        let mut slab = FrameSlab::new(8);
        slab.set_header(2, [7; MAX_HEADER]);
        let copy = next(&slab).unwrap();
        slab.keep(2, slab.lend_header(2, 12).as_ref());
        slab.keep(2, None);
        assert_eq!(next(&slab).unwrap().base(), copy.base());
    }
}
