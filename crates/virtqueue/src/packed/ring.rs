//! The memory of a packed ring (virtio 1.4, 2.8), and the order of accesses to it.
//!
//! The driver runs on other CPUs and writes to the same memory, so every access is an atomic one and
//! each value is loaded once. Three orderings matter, and each is argued where it is made: the flags that make a
//! descriptor available are acquired before anything that they cover is read; used descriptors are released by
//! the flags of the first of them; and between publishing something (used descriptors, event suppression) and
//! reading what the driver may have published at the same moment (its event suppression, its descriptors), there
//! is a full fence on both sides, or each could miss the other.
#![expect(unsafe_code, reason = "rings are shared with the driver in memory")]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::memory::{Raw, mark_dirty, ring_memory};
use crate::{QueueConfig, QueueError};

/// Where the three parts of a packed queue are, in guest and host.
pub(crate) struct PackedRing {
    /// `size` descriptors, aligned to 16.
    desc: *mut u8,
    /// 4 bytes, aligned to 4.
    driver: *mut u8,
    /// 4 bytes, aligned to 4.
    device: *mut u8,
    size: u16,
    desc_address: GuestAddress,
    device_address: GuestAddress,
}

// SAFETY: the pointers are into memory that is shared with the guest anyway and only accessed
// atomically; the queue that owns the ring keeps it mapped.
unsafe impl Send for PackedRing {}
// SAFETY: as above.
unsafe impl Sync for PackedRing {}

/// Where the id, length and flags of a descriptor begin.
const REST: usize = 8;
const EVENT_SUPPRESS: usize = size_of::<virtio::pvirtq::EventSuppress>();

impl PackedRing {
    /// Finds the parts of `config`, whose size and alignment were checked, in `map`. They may be used
    /// for as long as `map` lives.
    pub(crate) fn new<G: GuestMemory>(config: &QueueConfig, map: &G) -> Result<Self, QueueError> {
        let event = (EVENT_SUPPRESS, align_of::<u32>());
        Ok(Self {
            desc: ring_memory(
                map,
                "descriptor",
                config.desc,
                (Raw::SIZE * usize::from(config.size), align_of::<u64>()),
                Permissions::ReadWrite,
            )?,
            driver: ring_memory(map, "driver event", config.driver, event, Permissions::Read)?,
            device: ring_memory(
                map,
                "device event",
                config.device,
                event,
                Permissions::Write,
            )?,
            size: config.size,
            desc_address: GuestAddress(config.desc),
            device_address: GuestAddress(config.device),
        })
    }

    /// Descriptor `slot` of the ring, which is below the size.
    #[inline]
    pub(crate) fn descriptor(&self, slot: u16) -> Raw {
        let at = self.slot(slot);
        // Acquire, of the half with the flags, before the address: pairs with the driver's write barrier
        // before it stored the flags of the first descriptor of a chain, so that all of the chain, and
        // what was written into its buffers, is seen as it was then. Flags, id and length are one load, so they
        // are of one moment; if that saw the flags, it saw what was stored before them. A descriptor behind the
        // first of its chain was stored before the first was; for it the order does no harm.
        // SAFETY: aligned to 8 as checked at `new`, inside of the ring, mapped while the queue lives, and
        // only ever accessed atomically by this process.
        unsafe { Raw::load(at, Ordering::Acquire) }
    }

    /// Writes id, length and flags of a used descriptor behind one that is not published, so relaxed: the driver
    /// looks at it only once it has seen that one.
    #[inline]
    pub(crate) fn write_used(&self, slot: u16, rest: u64) {
        self.rest(slot).store(rest.to_le(), Ordering::Relaxed);
    }

    /// Writes id, length and flags of a used descriptor, and so publishes it and all behind it.
    #[inline]
    pub(crate) fn publish_used(&self, slot: u16, rest: u64) {
        // Release: the descriptors behind it, and the buffers that they name, are visible before its flags
        // are. (What the kernel wrote into the buffers happened before it returned to this thread.) The three
        // fields are one store, so whoever sees the flags sees the id and the length.
        self.rest(slot).store(rest.to_le(), Ordering::Release);
    }

    /// Offset with wrap counter, and flags, of the driver's event suppression. One load, so they are of one
    /// moment; relaxed, as the caller has fenced it from its publication.
    #[inline]
    pub(crate) fn driver_event(&self) -> (u16, u16) {
        let [o0, o1, f0, f1] = self
            .event(self.driver)
            .load(Ordering::Relaxed)
            .to_ne_bytes();
        (u16::from_le_bytes([o0, o1]), u16::from_le_bytes([f0, f1]))
    }

    /// Writes the device's event suppression. Advice, so relaxed; a full fence follows where a look at the
    /// ring does. One store, so the driver sees no offset with the flags of another.
    #[inline]
    pub(crate) fn set_device_event(&self, event: u16, flags: u16) {
        let value = u32::from(event) | u32::from(flags) << 16;
        self.event(self.device)
            .store(value.to_le(), Ordering::Relaxed);
    }

    /// Marks dirty what [`write_used`](Self::write_used) and [`publish_used`](Self::publish_used) have
    /// written in `count` descriptors from `slot` on.
    #[inline]
    pub(crate) fn mark_used<G: GuestMemory>(&self, map: &G, slot: u16, count: u16) {
        if size_of::<G::Bitmap>() == 0 {
            return;
        }
        let before_wrap = count.min(self.size - slot);
        let start = self.desc_address.0;
        // The ring lies in guest memory, so its addresses do not overflow.
        let first = GuestAddress(start + u64::from(slot) * Raw::SIZE as u64);
        mark_dirty(map, first, Raw::SIZE * usize::from(before_wrap));
        let rest = Raw::SIZE * usize::from(count - before_wrap);
        mark_dirty(map, GuestAddress(start), rest);
    }

    /// Marks dirty what [`set_device_event`](Self::set_device_event) has written.
    #[inline]
    pub(crate) fn mark_suppression<G: GuestMemory>(&self, map: &G) {
        mark_dirty(map, self.device_address, EVENT_SUPPRESS);
    }

    #[inline]
    fn slot(&self, slot: u16) -> *mut u8 {
        debug_assert!(slot < self.size);
        // SAFETY: the ring has `size` descriptors of 16 bytes, and offsets of a `Place` are below the size: they
        // are so from the start, and no step leads past it.
        unsafe { self.desc.add(Raw::SIZE * usize::from(slot)) }
    }

    #[inline]
    fn rest(&self, slot: u16) -> &AtomicU64 {
        // SAFETY: the second half of a descriptor that `slot` has found.
        let at = unsafe { self.slot(slot).add(REST) }.cast();
        // SAFETY: aligned to 8 as checked at `new`, mapped while the queue lives, and only ever
        // accessed atomically by this process.
        unsafe { AtomicU64::from_ptr(at) }
    }

    #[inline]
    fn event(&self, at: *mut u8) -> &AtomicU32 {
        // SAFETY: one of the two event suppression structures, of 4 bytes and aligned to 4 as checked at `new`,
        // mapped while the queue lives, and only ever accessed atomically by this process.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }
}

const _: () = assert!(EVENT_SUPPRESS == size_of::<u32>());
const _: () = assert!(size_of::<virtio::pvirtq::Desc>() == Raw::SIZE);
