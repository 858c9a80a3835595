//! The driver's half of a split ring (virtio 1.4, 2.7).
#![expect(unsafe_code, reason = "rings are shared with the device in memory")]

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use virtqueue::QueueConfig;
use virtqueue::mock::{NEXT, WRITE};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::nic::Memory;

#[derive(Debug)]
pub(super) struct SplitRing {
    /// Keeps the ring mapped.
    _memory: Memory,
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    config: QueueConfig,
    avail_idx: u16,
    /// `avail_idx` when the device was last kicked, or not.
    kicked: u16,
    used_idx: u16,
}

// SAFETY: the pointers are into memory that is kept, and accessed atomically.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// An empty ring of `size` entries at `base`.
    pub(super) fn new(memory: &Memory, base: u64, size: u16) -> Self {
        let entries = u64::from(size);
        let driver = base + 16 * entries;
        let device = (driver + 6 + 2 * entries).next_multiple_of(4);
        let config = QueueConfig {
            max_size: size,
            size,
            desc: base,
            driver,
            device,
        };
        let host = |address| memory.get_host_address(GuestAddress(address)).unwrap();
        Self {
            desc: host(config.desc),
            avail: host(config.driver),
            used: host(config.device),
            _memory: memory.clone(),
            config,
            avail_idx: 0,
            kicked: 0,
            used_idx: 0,
        }
    }

    pub(super) fn config(&self) -> QueueConfig {
        self.config
    }

    /// Lays out descriptor `index`; `next` is the one behind it.
    pub(super) fn describe(
        &mut self,
        index: u16,
        (at, len): (u64, u32),
        write: bool,
        next: Option<u16>,
    ) {
        assert!(index < self.config.size);
        let flags = if write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next.unwrap_or(0)) << 48;
        // SAFETY: the table has so many descriptors of 16 bytes, aligned to 16.
        let slot = unsafe { self.desc.add(16 * usize::from(index)) }.cast::<u64>();
        for (word, value) in [(0, at), (1, rest)] {
            // SAFETY: as above, one of its two words.
            let word = unsafe { AtomicU64::from_ptr(slot.wrapping_add(word)) };
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Offers the chain of `head`; [`publish`](Self::publish) shows it.
    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        let slot = usize::from(self.avail_idx & (self.config.size - 1));
        self.u16_at(self.avail, 4 + 2 * slot)
            .store(head.to_le(), Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows what was offered. Whether the device wants a kick for it.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let size = usize::from(self.config.size);
        self.u16_at(self.avail, 2)
            .store(self.avail_idx.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        let event = u16::from_le(self.u16_at(self.used, 4 + 8 * size).load(Ordering::Relaxed));
        let (old, new) = (
            std::mem::replace(&mut self.kicked, self.avail_idx),
            self.avail_idx,
        );
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes what the device has used next: its head.
    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        let published = u16::from_le(self.u16_at(self.used, 2).load(Ordering::Acquire));
        if published == self.used_idx {
            return None;
        }
        let slot = usize::from(self.used_idx & (self.config.size - 1));
        // SAFETY: an element of the used ring, aligned to 4.
        let element = unsafe { AtomicU32::from_ptr(self.used.wrapping_add(4 + 8 * slot).cast()) };
        self.used_idx = self.used_idx.wrapping_add(1);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a head is an index of 16 bits"
        )]
        Some(u32::from_le(element.load(Ordering::Relaxed)) as u16)
    }

    #[inline]
    pub(super) fn want_no_interrupt(&mut self) {
        self.set_event(self.used_idx.wrapping_sub(1));
    }

    #[inline]
    pub(super) fn want_interrupt(&mut self, after: u16) -> bool {
        self.set_event(self.used_idx.wrapping_add(after).wrapping_sub(1));
        fence(Ordering::SeqCst);
        u16::from_le(self.u16_at(self.used, 2).load(Ordering::Acquire)) != self.used_idx
    }

    /// `used_event`
    fn set_event(&self, event: u16) {
        let at = 4 + 2 * usize::from(self.config.size);
        self.u16_at(self.avail, at)
            .store(event.to_le(), Ordering::Relaxed);
    }

    #[inline]
    fn u16_at(&self, ring: *mut u8, offset: usize) -> &AtomicU16 {
        // SAFETY: callers' offsets are those of the layout: in the ring, and even.
        unsafe { AtomicU16::from_ptr(ring.wrapping_add(offset).cast()) }
    }
}
