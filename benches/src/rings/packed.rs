//! The driver's half of a packed ring (virtio 1.4, 2.8).
#![expect(unsafe_code, reason = "rings are shared with the device in memory")]

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use virtqueue::QueueConfig;
use virtqueue::mock::{AVAIL, NEXT, USED, WRITE};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::nic::Memory;

#[derive(Debug)]
pub(super) struct PackedRing {
    /// Keeps the ring mapped.
    _memory: Memory,
    desc: *mut u8,
    driver: *mut u8,
    device: *mut u8,
    config: QueueConfig,
    /// What [`describe`](Self::describe) has laid out.
    plan: Vec<Planned>,
    /// By head: descriptors of its chain.
    lens: Vec<u16>,
    avail: Place,
    /// Descriptors offered since the device was last kicked, or not.
    added: u16,
    used: Place,
}

#[derive(Clone, Copy, Debug, Default)]
struct Planned {
    at: u64,
    len: u32,
    flags: u16,
    next: Option<u16>,
}

/// A descriptor of the ring, and the wrap counter there.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self {
        offset: 0,
        wrap: true,
    };

    /// `count`, at most `size`, further on.
    #[inline]
    fn plus(self, count: u16, size: u16) -> Self {
        let offset = self.offset + count;
        if offset < size {
            Self { offset, ..self }
        } else {
            Self {
                offset: offset - size,
                wrap: !self.wrap,
            }
        }
    }
}

// SAFETY: the pointers are into memory that is kept, and accessed atomically.
unsafe impl Send for PackedRing {}

impl PackedRing {
    pub(super) fn new(memory: &Memory, base: u64, size: u16) -> Self {
        let driver = base + 16 * u64::from(size);
        let config = QueueConfig {
            max_size: size,
            size,
            desc: base,
            driver,
            device: driver + 4,
        };
        let host = |address| memory.get_host_address(GuestAddress(address)).unwrap();
        Self {
            desc: host(config.desc),
            driver: host(config.driver),
            device: host(config.device),
            _memory: memory.clone(),
            config,
            plan: vec![Planned::default(); usize::from(size)],
            lens: vec![0; usize::from(size)],
            avail: Place::START,
            added: 0,
            used: Place::START,
        }
    }

    pub(super) fn config(&self) -> QueueConfig {
        self.config
    }

    pub(super) fn describe(
        &mut self,
        index: u16,
        (at, len): (u64, u32),
        write: bool,
        next: Option<u16>,
    ) {
        let flags = if write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
        self.plan[usize::from(index)] = Planned {
            at,
            len,
            flags,
            next,
        };
    }

    /// Offers the chain of `head`. The device sees it from here on.
    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        let first = self.avail;
        let mut first_flags = 0;
        let mut index = Some(head);
        let mut count = 0;
        while let Some(this) = index {
            let planned = self.plan[usize::from(this)];
            let place = first.plus(count, self.config.size);
            let flags = planned.flags | if place.wrap { AVAIL } else { USED };
            let slot = self.slot(place);
            // SAFETY: the address of a descriptor, aligned to 16; the device looks at none of its parts before the flags
            // of the chain's first say that it is available.
            let address = unsafe { AtomicU64::from_ptr(slot.cast()) };
            // SAFETY: as above; the length, aligned to 8.
            let len = unsafe { AtomicU32::from_ptr(slot.wrapping_add(8).cast()) };
            address.store(planned.at.to_le(), Ordering::Relaxed);
            len.store(planned.len.to_le(), Ordering::Relaxed);
            Self::word(slot, 12).store(head.to_le(), Ordering::Relaxed);
            if count == 0 {
                first_flags = flags;
            } else {
                self.flags(place).store(flags.to_le(), Ordering::Relaxed);
            }
            count += 1;
            index = planned.next;
        }
        self.flags(first)
            .store(first_flags.to_le(), Ordering::Release);
        self.lens[usize::from(head)] = count;
        self.avail = first.plus(count, self.config.size);
        self.added += count;
    }

    /// Whether the device wants a kick for what was offered.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let added = std::mem::take(&mut self.added);
        let flags = u16::from_le(Self::word(self.device, 2).load(Ordering::Relaxed));
        match flags {
            EVENTS_DISABLE => false,
            EVENTS_DESC => {
                let event = u16::from_le(Self::word(self.device, 0).load(Ordering::Relaxed));
                let new = self.avail.offset;
                let mut offset = event & 0x7fff;
                if (event & 0x8000 != 0) != self.avail.wrap {
                    offset = offset.wrapping_sub(self.config.size);
                }
                new.wrapping_sub(offset).wrapping_sub(1) < added
            }
            _ => true,
        }
    }

    #[inline]
    pub(super) fn take(&mut self) -> Option<u16> {
        if !self.is_used() {
            return None;
        }
        let slot = self.slot(self.used);
        let head = u16::from_le(Self::word(slot, 12).load(Ordering::Relaxed));
        self.used = (self.used).plus(self.lens[usize::from(head)], self.config.size);
        Some(head)
    }

    #[inline]
    pub(super) fn want_no_interrupt(&mut self) {
        Self::word(self.driver, 2).store(EVENTS_DISABLE.to_le(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn want_interrupt(&mut self, after: u16) -> bool {
        let place = self.used.plus(after - 1, self.config.size);
        let event = place.offset | u16::from(place.wrap) << 15;
        Self::word(self.driver, 0).store(event.to_le(), Ordering::Relaxed);
        Self::word(self.driver, 2).store(EVENTS_DESC.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        self.is_used()
    }

    #[inline]
    fn is_used(&self) -> bool {
        let flags = u16::from_le(self.flags(self.used).load(Ordering::Acquire));
        flags & (AVAIL | USED) == if self.used.wrap { AVAIL | USED } else { 0 }
    }

    #[inline]
    fn slot(&self, place: Place) -> *mut u8 {
        self.desc.wrapping_add(16 * usize::from(place.offset))
    }

    #[inline]
    fn flags(&self, place: Place) -> &AtomicU16 {
        Self::word(self.slot(place), 14)
    }

    #[inline]
    fn word<'a>(part: *mut u8, offset: usize) -> &'a AtomicU16 {
        // SAFETY: callers' offsets are those of the layout: in the ring, which is kept, and even.
        unsafe { AtomicU16::from_ptr(part.wrapping_add(offset).cast()) }
    }
}

/// `RING_EVENT_FLAGS_DISABLE`
const EVENTS_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`
const EVENTS_DESC: u16 = 2;
