//! The memory of split rings (virtio 1.4, 2.7), and the order of accesses to it.
//!
//! The driver runs on other CPUs and writes to the same memory, so every access is an atomic one and
//! each value is loaded once. Four orderings matter, and each is argued where it is made:
//! the available index is acquired before the entries that it covers are read; used entries are
//! released by the used index; and between publishing something (used index, available event) and
//! reading what the driver may have published at the same moment (used event, available index), there
//! is a full fence on both sides, or each could miss the other.
#![expect(unsafe_code, reason = "rings are shared with the driver in memory")]

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::memory::{Raw, mark_dirty, ring_memory};
use crate::{QueueConfig, QueueError};

/// Where the three parts of a split queue are, in guest and host.
pub(crate) struct SplitRings {
    /// Entries less one. The size is a power of two, so an index is reduced to a slot by masking.
    mask: u16,
    /// `size` descriptors, aligned to 16.
    desc: *const u8,
    /// flags, idx, `size` entries, used_event: `6 + 2 * size` bytes, aligned to 2.
    avail: *const u8,
    /// flags, idx, `size` elements of 8 bytes, avail_event: `6 + 8 * size` bytes, aligned to 4.
    used: *mut u8,
    used_address: GuestAddress,
}

// SAFETY: the pointers are into memory that is shared with the guest anyway and only accessed
// atomically; the queue that owns the rings keeps it mapped.
unsafe impl Send for SplitRings {}
// SAFETY: as above.
unsafe impl Sync for SplitRings {}

const FLAGS: usize = 0;
const IDX: usize = 2;
const RING: usize = 4;
const AVAIL_ENTRY: usize = 2;
const USED_ELEMENT: usize = 8;

impl SplitRings {
    /// Finds the rings of `config`, whose size and alignment were checked, in `map`. They may be used
    /// for as long as `map` lives.
    pub(crate) fn new<G: GuestMemory>(config: &QueueConfig, map: &G) -> Result<Self, QueueError> {
        let size = usize::from(config.size);
        let desc = ring_memory(
            map,
            "descriptor",
            config.desc,
            (Raw::SIZE * size, align_of::<u64>()),
            Permissions::Read,
        )?;
        let avail = ring_memory(
            map,
            "available",
            config.driver,
            (RING + AVAIL_ENTRY * size + 2, align_of::<u16>()),
            Permissions::Read,
        )?;
        let used = ring_memory(
            map,
            "used",
            config.device,
            (RING + USED_ELEMENT * size + 2, align_of::<u32>()),
            Permissions::Write,
        )?;
        Ok(Self {
            mask: config.size.wrapping_sub(1),
            desc,
            avail,
            used,
            used_address: GuestAddress(config.device),
        })
    }

    /// The driver's index: one past the last entry that it has made available.
    #[inline]
    pub(crate) fn avail_idx(&self) -> u16 {
        // Acquire: pairs with the driver's write barrier before it stored the index, so that the
        // entries and descriptors that the index covers are seen as they were when it was stored.
        u16::from_le(self.avail_u16(IDX).load(Ordering::Acquire))
    }

    /// Entry `index` (free-running) of the available ring. Ordered by the load of the index.
    #[inline]
    pub(crate) fn avail_entry(&self, index: u16) -> u16 {
        let slot = usize::from(index & self.mask);
        u16::from_le(
            self.avail_u16(RING + AVAIL_ENTRY * slot)
                .load(Ordering::Relaxed),
        )
    }

    /// Whether the driver asks for no used buffer notifications. Advice, so relaxed; the caller has
    /// fenced it from its publication.
    #[inline]
    pub(crate) fn no_interrupt(&self) -> bool {
        let flags = u16::from_le(self.avail_u16(FLAGS).load(Ordering::Relaxed));
        flags & NO_INTERRUPT != 0
    }

    /// The used index whose passing the driver wants to hear of.
    #[inline]
    pub(crate) fn used_event(&self) -> u16 {
        let at = RING + AVAIL_ENTRY * self.size();
        u16::from_le(self.avail_u16(at).load(Ordering::Relaxed))
    }

    /// Descriptor `index` of the table; masked, though callers have checked it.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Raw {
        let slot = usize::from(index & self.mask);
        // SAFETY: the table has `mask + 1` descriptors of 16 bytes; an offset inside of it.
        let at = unsafe { self.desc.add(Raw::SIZE * slot) };
        // Two loads for four fields, each of which is read once. They need no order of their own, as the load
        // of the index is before them: a driver that changes a descriptor in between has made a chain that
        // is checked like any other.
        // SAFETY: aligned to 8 as checked at `new`, inside of the table, mapped while the queue lives, and
        // only ever accessed atomically by this process.
        unsafe { Raw::load(at, Ordering::Relaxed) }
    }

    /// Writes element `index` (free-running) of the used ring; the driver looks at it only once the
    /// used index has passed it, so the stores are relaxed.
    #[inline]
    pub(crate) fn write_used(&self, index: u16, head: u16, len: u32) {
        let slot = usize::from(index & self.mask);
        let at = RING + USED_ELEMENT * slot;
        self.used_u32(at)
            .store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used_u32(at + 4).store(len.to_le(), Ordering::Relaxed);
    }

    /// Publishes all elements before `index`.
    #[inline]
    pub(crate) fn set_used_idx(&self, index: u16) {
        // Release: the elements, and the buffers they name, are visible before the index is. (What the
        // kernel wrote into the buffers happened before it returned to this thread.)
        self.used_u16(IDX).store(index.to_le(), Ordering::Release);
    }

    /// Asks the driver to notify, or not to. Advice, so relaxed; a full fence
    /// follows where a look at the available index does.
    #[inline]
    pub(crate) fn set_no_notify(&self, no_notify: bool) {
        let flags = if no_notify { NO_NOTIFY } else { 0 };
        self.used_u16(FLAGS).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Asks the driver to notify when it passes available entry `index`. Relaxed, as above.
    #[inline]
    pub(crate) fn set_avail_event(&self, index: u16) {
        let at = RING + USED_ELEMENT * self.size();
        self.used_u16(at).store(index.to_le(), Ordering::Relaxed);
    }

    /// Marks dirty what [`write_used`](Self::write_used) and [`set_used_idx`](Self::set_used_idx) have
    /// written for `count` elements from `index` on.
    #[inline]
    pub(crate) fn mark_used<G: GuestMemory>(&self, map: &G, index: u16, count: u16) {
        let first = usize::from(index & self.mask);
        let count = usize::from(count).min(self.size());
        let before_wrap = count.min(self.size() - first);
        self.mark(map, FLAGS, RING);
        self.mark(map, RING + USED_ELEMENT * first, USED_ELEMENT * before_wrap);
        self.mark(map, RING, USED_ELEMENT * (count - before_wrap));
    }

    /// Marks dirty what [`set_no_notify`](Self::set_no_notify) and
    /// [`set_avail_event`](Self::set_avail_event) have written.
    #[inline]
    pub(crate) fn mark_suppression<G: GuestMemory>(&self, map: &G) {
        self.mark(map, FLAGS, RING);
        self.mark(map, RING + USED_ELEMENT * self.size(), 2);
    }

    fn mark<G: GuestMemory>(&self, map: &G, offset: usize, len: usize) {
        // The ring lies in guest memory, so its addresses do not overflow.
        mark_dirty(map, GuestAddress(self.used_address.0 + offset as u64), len);
    }

    #[inline]
    fn size(&self) -> usize {
        usize::from(self.mask) + 1
    }

    #[inline]
    fn avail_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset <= RING + AVAIL_ENTRY * self.size());
        // SAFETY: callers' offsets are those of the layout, with masked slots: inside of the ring.
        let at = unsafe { self.avail.add(offset) }.cast_mut().cast();
        // SAFETY: aligned to 2 as checked at `new`, mapped while the queue lives, and only ever
        // accessed atomically by this process.
        unsafe { AtomicU16::from_ptr(at) }
    }

    #[inline]
    fn used_u16(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset.is_multiple_of(2) && offset <= RING + USED_ELEMENT * self.size());
        // SAFETY: as in `avail_u16`.
        let at = unsafe { self.used.add(offset) }.cast();
        // SAFETY: as in `avail_u16`.
        unsafe { AtomicU16::from_ptr(at) }
    }

    #[inline]
    fn used_u32(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset < RING + USED_ELEMENT * self.size());
        // SAFETY: as in `avail_u16`.
        let at = unsafe { self.used.add(offset) }.cast();
        // SAFETY: as in `avail_u16`; aligned to 4, which the used ring is.
        unsafe { AtomicU32::from_ptr(at) }
    }
}

const NO_INTERRUPT: u16 = virtio::virtq::AvailF::NO_INTERRUPT.bits().to_ne();
const NO_NOTIFY: u16 = virtio::virtq::UsedF::NO_NOTIFY.bits().to_ne();
