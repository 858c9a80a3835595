//! One chain of buffers, as the device works on it.
#![expect(
    unsafe_code,
    reason = "buffers are read and written in place in guest memory"
)]

use std::fmt;
use std::ptr;

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::error::{Fault, fault};
use crate::memory::{Translation, has_an_end, mark_dirty};
use crate::queue::MAX_SEGMENTS;
use crate::short::Pieces;
use crate::{QueueError, QueueMemory};

/// A piece of a chain that is contiguous in guest and host memory: one descriptor, or one of the
/// parts of a descriptor whose buffer lies across regions of guest memory. Never empty.
#[derive(Clone, Copy)]
pub struct Segment {
    address: GuestAddress,
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a segment is an address and a length. Whoever follows the address does so with an unsafe
// block of their own; the memory behind it is shared with the guest, whichever thread looks at it.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Guest-physical address of its first byte.
    #[inline]
    pub fn address(&self) -> GuestAddress {
        self.address
    }

    /// Where it is in this process. Valid for as long as the [`Chain`] that it is of is neither
    /// dropped nor popped into again; the guest may change the bytes at any time.
    #[inline]
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// How many bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Segment {
    /// A descriptor's buffer, where it is not empty and in the region that the last one was in.
    #[inline(always)]
    pub(crate) fn known(translation: &Translation, address: u64, len: u32) -> Option<Self> {
        let ptr = translation.known(address, len)?;
        let len = usize::try_from(len).ok().filter(|len| *len > 0)?;
        Some(Self {
            address: GuestAddress(address),
            ptr,
            len,
        })
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{}", self.address.0, self.len)
    }
}

/// A chain of buffers that the driver has made available.
///
/// Made once and used for one [`pop`](crate::VirtQueue::pop) after another: its lists keep their
/// room. It keeps the snapshot of guest memory alive that its pointers point into.
#[doc(alias = "VirtQueueElement")]
pub struct Chain<M: QueueMemory> {
    head: u16,
    /// How many were popped before it.
    position: u16,
    /// The readable ones, then the writable ones.
    segments: Vec<Segment>,
    /// How many are readable.
    readable: usize,
    readable_len: usize,
    writable_len: usize,
    /// What the segments point into.
    map: Option<M::T>,
}

impl<M: QueueMemory> Chain<M> {
    /// Makes a chain with no buffers.
    pub fn new() -> Self {
        Self {
            head: 0,
            position: 0,
            segments: Vec::new(),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
            map: None,
        }
    }

    /// Copies `data` into the writable segments, beginning `offset` bytes in, and marks what it
    /// wrote dirty. Returns how many bytes fitted.
    #[doc(alias = "iov_from_buf")]
    pub fn write(&self, offset: usize, data: &[u8]) -> usize {
        let mut done = 0;
        each_run(self.writable(), offset, data.len(), |segment, at, len| {
            let from = data.as_ptr().wrapping_add(done);
            let to = segment.ptr.wrapping_add(at);
            // SAFETY: the segment's `at + len` bytes are mapped while `self.map` is held; `data` has
            // `done + len` bytes by the bound given to `each_run`. A slice of this process does not
            // overlap guest memory, of which no reference is ever made.
            unsafe { ptr::copy_nonoverlapping(from, to, len) };
            self.mark(segment, at, len);
            done += len;
        });
        done
    }

    /// Copies from the writable segments, beginning `offset` bytes in: what was just written there, by
    /// whomever. Returns how many bytes there were. The guest may have changed them meanwhile, so only
    /// what concerns nobody but the guest may hang on them.
    pub fn read_back(&self, offset: usize, buf: &mut [u8]) -> usize {
        copy_out(self.writable(), offset, buf)
    }

    /// Marks the first `len` writable bytes dirty: they were written through
    /// [`Segment::ptr`], by this process or by the kernel.
    pub fn mark_written(&self, len: usize) {
        if size_of::<<M::M as GuestMemory>::Bitmap>() == 0 {
            return;
        }
        each_run(self.writable(), 0, len, |segment, at, len| {
            self.mark(segment, at, len);
        });
    }

    /// Copies from the readable segments, beginning `offset` bytes in. Returns how many bytes there
    /// were. What was copied is the device's own; reading it again may yield something else.
    #[doc(alias = "iov_to_buf")]
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> usize {
        copy_out(self.readable(), offset, buf)
    }

    /// What names the chain on the used ring. Split: the first of its descriptors. Packed: its buffer id.
    /// Less than the queue's size, and no other chain's that is in flight.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read, in order.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// What the device may write, in order.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes in [`readable`](Self::readable).
    #[inline]
    pub fn readable_len(&self) -> usize {
        self.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    #[inline]
    pub fn writable_len(&self) -> usize {
        self.writable_len
    }

    /// Its place in the order in which chains were made available: counts on by one for each, and wraps at 2^16.
    /// The chain popped next will have [`VirtQueue::next_position`](crate::VirtQueue::next_position), so of
    /// two chains in flight the older is the one that is farther from it.
    #[inline]
    pub fn position(&self) -> u16 {
        self.position
    }

    /// Is of `map` from now on. What it held is there yet.
    #[inline(always)]
    pub(crate) fn begin(&mut self, head: u16, position: u16, map: &M::T) {
        self.head = head;
        self.position = position;
        // The old snapshot is alive, so a new one cannot have its address.
        if !self.map.as_deref().is_some_and(|old| ptr::eq(old, &**map)) {
            self.hold(map);
        }
    }

    #[cold]
    #[inline(never)]
    fn hold(&mut self, map: &M::T) {
        // First what points into the old one.
        self.clear();
        self.map = Some(map.clone());
    }

    /// Names it, where the name is found after the buffers.
    #[inline]
    pub(crate) fn set_head(&mut self, head: u16) {
        self.head = head;
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }

    /// Makes it what was found in `map`.
    pub(crate) fn set_pieces(&mut self, pieces: &Pieces, position: u16, map: &M::T) {
        self.begin(pieces.head, position, map);
        self.clear();
        self.segments.extend_from_slice(pieces.segments());
        let len = self.segments.iter().map(Segment::len).sum();
        if pieces.writable {
            self.writable_len = len;
        } else {
            self.readable = self.segments.len();
            self.readable_len = len;
        }
    }

    /// Makes it one descriptor's buffer, as [`add`](Self::add) does with what is empty.
    #[inline(always)]
    pub(crate) fn set_one(
        &mut self,
        map: &M::M,
        translation: &mut Translation,
        address: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), Fault> {
        self.segments.clear();
        let (Some(ptr), Ok(count)) = (translation.find(map, address, len), usize::try_from(len))
        else {
            return self.set_anywhere(map, translation, address, len, writable);
        };
        if len == 0 {
            return Err(fault(QueueError::ZeroLength));
        }
        self.segments.push(Segment {
            address: GuestAddress(address),
            ptr,
            len: count,
        });
        let readable = if writable { 0 } else { count };
        self.readable = usize::from(!writable);
        self.readable_len = readable;
        self.writable_len = count - readable;
        Ok(())
    }

    /// As [`set_one`](Self::set_one) where it is not all in one region.
    #[cold]
    #[inline(never)]
    fn set_anywhere(
        &mut self,
        map: &M::M,
        translation: &mut Translation,
        address: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), Fault> {
        self.clear();
        self.add(map, translation, address, len, writable)
    }

    /// Appends one descriptor's buffer, which is in `map`, the snapshot that the chain was begun with.
    #[inline(always)]
    pub(crate) fn add(
        &mut self,
        map: &M::M,
        translation: &mut Translation,
        address: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), Fault> {
        let before = self.segments.len();
        if !writable && before != self.readable {
            return Err(fault(QueueError::ReadableAfterWritable));
        }
        // Those in the same direction.
        let most = MAX_SEGMENTS + if writable { self.readable } else { 0 };
        if len == 0 {
            return Err(fault(QueueError::ZeroLength));
        }
        let address = GuestAddress(address);
        let count = usize::try_from(len).map_err(|_| fault(QueueError::Memory { address, len }))?;
        match translation.find(map, address.0, len) {
            Some(_) if before >= most => {
                return Err(fault(QueueError::TooLong(self.head)));
            }
            Some(ptr) => self.segments.push(Segment {
                address,
                ptr,
                len: count,
            }),
            None => {
                let room = (&mut self.segments, most);
                add_pieces(map, room, self.head, address, len, writable)?;
            }
        }
        // At most `MAX_SEGMENTS` lengths of 32 bits each.
        if writable {
            self.writable_len += count;
        } else {
            self.readable = self.segments.len();
            self.readable_len += count;
        }
        Ok(())
    }

    fn mark(&self, segment: &Segment, at: usize, len: usize) {
        if let Some(map) = &self.map {
            mark_dirty(&**map, GuestAddress(segment.address.0 + at as u64), len);
        }
    }
}

impl<M: QueueMemory> Default for Chain<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: QueueMemory> fmt::Debug for Chain<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.head)
            .field("readable", &self.readable())
            .field("writable", &self.writable())
            .finish_non_exhaustive()
    }
}

/// Appends a buffer that is not all in one region, as the pieces that it is in: to a list that may get so long.
#[cold]
#[inline(never)]
fn add_pieces<G: GuestMemory>(
    map: &G,
    (list, most): (&mut Vec<Segment>, usize),
    head: u16,
    address: GuestAddress,
    len: u32,
    writable: bool,
) -> Result<(), Fault> {
    let access = if writable {
        Permissions::Write
    } else {
        Permissions::Read
    };
    let unmapped = || fault(QueueError::Memory { address, len });
    let count = usize::try_from(len).map_err(|_| unmapped())?;
    // With that, no address of a part of it can overflow.
    if !has_an_end(address.0, count) {
        return Err(unmapped());
    }
    let mut at = address;
    for slice in map
        .get_slices(address, count, access)
        .map_err(|_| unmapped())?
    {
        let slice = slice.map_err(|_| unmapped())?;
        if list.len() >= most {
            return Err(fault(QueueError::TooLong(head)));
        }
        list.push(Segment {
            address: at,
            ptr: slice.ptr_guard_mut().as_ptr(),
            len: slice.len(),
        });
        at = GuestAddress(at.0.wrapping_add(slice.len() as u64));
    }
    Ok(())
}

/// Copies from segments of a chain that is held, beginning `offset` bytes in; returns how many bytes there
/// were.
fn copy_out(segments: &[Segment], offset: usize, buf: &mut [u8]) -> usize {
    let mut done = 0;
    each_run(segments, offset, buf.len(), |segment, at, len| {
        let from = segment.ptr.wrapping_add(at);
        let to = buf.as_mut_ptr().wrapping_add(done);
        // SAFETY: the segment's `at + len` bytes are mapped while its chain is held; `buf` has
        // `done + len` bytes by the bound given to `each_run`. A slice of this process does not overlap
        // guest memory, of which no reference is ever made.
        unsafe { ptr::copy_nonoverlapping(from, to, len) };
        done += len;
    });
    done
}

/// Calls `run` for each stretch of bytes `offset .. offset + len` of `segments`: the segment, the
/// offset in it, the length.
fn each_run(
    segments: &[Segment],
    mut offset: usize,
    mut len: usize,
    mut run: impl FnMut(&Segment, usize, usize),
) {
    for segment in segments {
        if len == 0 {
            return;
        }
        if offset >= segment.len {
            offset -= segment.len;
            continue;
        }
        let part = (segment.len - offset).min(len);
        run(segment, offset, part);
        offset = 0;
        len -= part;
    }
}
