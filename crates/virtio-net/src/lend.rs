//! Guest memory and buffers of our own, as lent to the peer.
#![expect(
    unsafe_code,
    reason = "frames are read and written in place, by the peer or the kernel, while we look away"
)]

use std::cell::UnsafeCell;
use std::ptr;

use net_client::IoVec;
use virtqueue::Segment;

/// Lends a segment of a chain behind what is in `iov`: as one piece with the last there, where it begins where that ends.
/// The payload of a large frame often lies in pages one behind the other.
#[inline]
pub(crate) fn lend_on(iov: &mut Vec<IoVec>, segment: &Segment) {
    if let Some(last) = iov.last_mut()
        && last.base().wrapping_add(last.len()) == segment.ptr()
    {
        // SAFETY: of two pieces that are each mapped for as long as the lend lasts, the second behind the first. The
        // first is the guest's too: a header of ours does not fill its place.
        *last = unsafe { IoVec::new(last.base(), last.len() + segment.len()) };
    } else {
        iov.push(lend_from(segment, 0));
    }
}

/// Lends a segment of a chain from `skip` (at most its length) on. The chain is kept until the lend is over.
#[inline]
pub(crate) fn lend_from(segment: &Segment, skip: usize) -> IoVec {
    let skip = skip.min(segment.len());
    // SAFETY: `skip` is in the segment. The segment is mapped while its chain lives, and a queue here
    // drops no chain before the peer has completed (or has answered) the call that it lent it for.
    unsafe { IoVec::new(segment.ptr().wrapping_add(skip), segment.len() - skip) }
}

/// Copies the first bytes of a chain into `buf`, where its first segment has so many. `false`: it has not.
#[inline]
pub(crate) fn read_start(segments: &[Segment], buf: &mut [u8]) -> bool {
    let Some(first) = segments.first().filter(|first| first.len() >= buf.len()) else {
        return false;
    };
    // SAFETY: the segment has so many bytes, mapped while its chain is held. A slice of this process does
    // not overlap guest memory, of which no reference is ever made.
    unsafe { ptr::copy_nonoverlapping(first.ptr(), buf.as_mut_ptr(), buf.len()) };
    true
}

/// Copies `N` bytes from `offset` on, where the first segment reaches so far. As [`read_start`], for a number that
/// is known beforehand: that makes it a few loads.
#[inline]
pub(crate) fn read_at<const N: usize>(segments: &[Segment], offset: usize) -> Option<[u8; N]> {
    let end = offset.checked_add(N)?;
    let first = segments.first().filter(|first| first.len() >= end)?;
    // SAFETY: as in `read_start`; an array of bytes lies anywhere.
    Some(unsafe { first.ptr().wrapping_add(offset).cast::<[u8; N]>().read() })
}

/// Writes `bytes` at `offset`, where the first segment reaches so far. As [`write_start`], for a number that is known
/// beforehand.
#[inline]
pub(crate) fn write_at<const N: usize>(
    segments: &[Segment],
    offset: usize,
    bytes: [u8; N],
) -> bool {
    let end = offset.saturating_add(N);
    let Some(first) = segments.first().filter(|first| first.len() >= end) else {
        return false;
    };
    let to = first.ptr().wrapping_add(offset).cast::<[u8; N]>();
    // SAFETY: as in `read_at`, the other way round.
    unsafe { to.write(bytes) };
    true
}

/// Writes `bytes` at `offset` of a chain, where its first segment reaches so far. `false`: it does not. What is
/// written is not marked dirty; whoever gives the chain to the driver does that.
#[inline(always)]
pub(crate) fn write_start(segments: &[Segment], offset: usize, bytes: &[u8]) -> bool {
    let end = offset.saturating_add(bytes.len());
    let Some(first) = segments.first().filter(|first| first.len() >= end) else {
        return false;
    };
    let to = first.ptr().wrapping_add(offset);
    // SAFETY: as in `read_start`, the other way round.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    true
}

/// Where the part of a frame goes for which the driver has no buffer, so that it is seen and not cut off.
#[derive(Debug, Default)]
pub(crate) struct Overflow(Box<[UnsafeCell<u8>]>);

// SAFETY: lent to one read at a time and read only between reads, all under the queue's lock.
unsafe impl Sync for Overflow {}

impl Overflow {
    /// Lends `len` bytes. Grows, which happens when the source's largest frame is first seen; only called
    /// while it is not lent.
    #[inline]
    pub(crate) fn lend(&mut self, len: usize) -> IoVec {
        if self.0.len() < len {
            self.grow(len);
        }
        // SAFETY: not dropped or grown before the read is over; `&mut` says that nobody looks now.
        unsafe { IoVec::new(UnsafeCell::raw_get(self.0.as_ptr()), len) }
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        // Zeroes that cost no memory until a frame lies there.
        let bytes = Box::into_raw(vec![0_u8; len].into_boxed_slice());
        // SAFETY: a cell is laid out as what is in it.
        self.0 = unsafe { Box::from_raw(bytes as *mut [UnsafeCell<u8>]) };
    }

    /// What the last read left in it, at most `len` bytes. Only called while it is not lent.
    pub(crate) fn bytes(&mut self, len: usize) -> &[u8] {
        let len = len.min(self.0.len());
        // SAFETY: `len` initialized bytes that nobody writes while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(UnsafeCell::raw_get(self.0.as_ptr()), len) }
    }
}

/// Copies `len` bytes of `from`, beginning `skip` bytes in, into `to`, beginning `offset` bytes in; returns how
/// many there was room for. Both may be memory of guests, even the same.
pub(crate) fn copy_frame(
    to: &[Segment],
    mut offset: usize,
    from: &[IoVec],
    mut skip: usize,
    len: usize,
) -> usize {
    let mut copied = 0;
    let mut segments = to.iter();
    let mut segment = segments.next();
    for vec in from {
        if skip >= vec.len() {
            skip -= vec.len();
            continue;
        }
        let mut at = skip;
        skip = 0;
        while at < vec.len() && copied < len {
            let Some(here) = segment else { return copied };
            if offset >= here.len() {
                offset -= here.len();
                segment = segments.next();
                continue;
            }
            let part = (here.len() - offset).min(vec.len() - at).min(len - copied);
            let source = vec.base().wrapping_add(at);
            let sink = here.ptr().wrapping_add(offset);
            // SAFETY: `part` bytes are left in either, the one mapped by its chain, the other by the
            // promise of `IoVec::new`. They may overlap, so it is a move.
            unsafe { ptr::copy(source, sink, part) };
            at += part;
            offset += part;
            copied += part;
        }
    }
    copied
}
