//! A chain that needs no lists.

use std::fmt;

use vm_memory::GuestMemory;

use crate::memory::{Raw, Translation, mark_dirty};
use crate::{Chain, QueueMemory, Segment, VirtQueue};

/// The next chain, where it is a short one: one buffer or two, each in one piece, all of one direction. See
/// [`VirtQueue::peek`].
///
/// It has only been looked at: where this is dropped, the next look finds it again. Meanwhile nothing else is done with
/// the queue, which keeps the snapshot of guest memory that the segments point into.
#[must_use = "the chain is not taken yet"]
pub struct Short<'a, M: QueueMemory> {
    queue: &'a mut VirtQueue<M>,
    pieces: Pieces,
}

/// What a ring has found.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    pub(crate) head: u16,
    pub(crate) writable: bool,
    /// As many descriptors.
    pub(crate) count: u16,
    /// The second is of no account where there is but one.
    segments: [Segment; 2],
}

impl Pieces {
    /// Of one descriptor. `None`: its buffer is empty, or not in the region that the last one was in.
    #[inline(always)]
    pub(crate) fn one(
        head: u16,
        writable: bool,
        only: Raw,
        translation: &Translation,
    ) -> Option<Self> {
        let only = Segment::known(translation, only.address, only.len())?;
        Some(Self {
            head,
            writable,
            count: 1,
            segments: [only, only],
        })
    }

    /// Of two.
    #[inline(always)]
    pub(crate) fn two(
        head: u16,
        writable: bool,
        (first, second): (Raw, Raw),
        translation: &Translation,
    ) -> Option<Self> {
        Some(Self {
            head,
            writable,
            count: 2,
            segments: [
                Segment::known(translation, first.address, first.len())?,
                Segment::known(translation, second.address, second.len())?,
            ],
        })
    }

    #[inline(always)]
    pub(crate) fn segments(&self) -> &[Segment] {
        let [first, _] = &self.segments;
        match self.count {
            1 => std::slice::from_ref(first),
            _ => &self.segments,
        }
    }
}

impl<'a, M: QueueMemory> Short<'a, M> {
    #[inline(always)]
    pub(crate) fn new(queue: &'a mut VirtQueue<M>, pieces: Pieces) -> Self {
        Self { queue, pieces }
    }

    /// Takes it, and says that the device is done with it and has written `len` bytes into it: as
    /// [`VirtQueue::pop`] and [`VirtQueue::push_used`] do.
    #[inline(always)]
    pub fn complete(self, len: u32) {
        self.queue.complete_next(&self.pieces, len);
    }

    /// Takes it into `chain`, as [`VirtQueue::pop`] does.
    pub fn take(self, chain: &mut Chain<M>) {
        self.queue.take_next(&self.pieces, chain);
    }

    /// Marks the first `len` bytes dirty: they were written through [`Segment::ptr`].
    #[inline(always)]
    pub fn mark_written(&self, mut len: usize) {
        if size_of::<<M::M as GuestMemory>::Bitmap>() == 0 {
            return;
        }
        for segment in self.segments() {
            let here = len.min(segment.len());
            mark_dirty(self.queue.map(), segment.address(), here);
            len -= here;
        }
    }

    /// What names it on the used ring. See [`Chain::head`].
    #[inline(always)]
    pub fn head(&self) -> u16 {
        self.pieces.head
    }

    /// Whether the device may write to it. Else it may read.
    #[inline(always)]
    pub fn is_writable(&self) -> bool {
        self.pieces.writable
    }

    /// Its buffers, in order. Their pointers are valid for as long as this is there, or the [`Chain`] that it was
    /// [taken](Self::take) into.
    #[inline(always)]
    pub fn segments(&self) -> &[Segment] {
        self.pieces.segments()
    }

    /// Bytes in [`segments`](Self::segments).
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        let [first, second] = &self.pieces.segments;
        match self.pieces.count {
            1 => first.len(),
            // Of 32 bits each.
            _ => first.len() + second.len(),
        }
    }
}

impl<M: QueueMemory> fmt::Debug for Short<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Short")
            .field("head", &self.head())
            .field("writable", &self.is_writable())
            .field("segments", &self.segments())
            .finish_non_exhaustive()
    }
}
