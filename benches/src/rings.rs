//! The driver's half of a ring, as fast as a driver's is: chains are laid out once, and offered again and again.

mod packed;
mod split;

use std::sync::Arc;

use virtqueue::QueueConfig;
use vmm_sys_util::eventfd::EventFd;

use self::packed::PackedRing;
use self::split::SplitRing;
use crate::nic::Memory;

/// The format of rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Descriptors, available ring and used ring.
    Split,
    /// One ring for all (`VIRTIO_F_RING_PACKED`).
    Packed,
}

impl Format {
    /// As a part of a bench's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Packed => "packed",
        }
    }
}

/// A ring with an event index, whose driver polls unless it says that it wants an interrupt.
#[derive(Debug)]
pub(crate) struct FastRing {
    ring: Ring,
    pub(crate) kick: Arc<EventFd>,
}

#[derive(Debug)]
enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl FastRing {
    /// An empty ring of `size` entries at `base`.
    pub(crate) fn new(memory: &Memory, base: u64, size: u16, format: Format) -> Self {
        let ring = match format {
            Format::Split => Ring::Split(SplitRing::new(memory, base, size)),
            Format::Packed => Ring::Packed(PackedRing::new(memory, base, size)),
        };
        let kick = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
        Self { ring, kick }
    }

    pub(crate) fn config(&self) -> QueueConfig {
        match &self.ring {
            Ring::Split(ring) => ring.config(),
            Ring::Packed(ring) => ring.config(),
        }
    }

    /// Lays out descriptor `index`; `next` is the one behind it. A chain is called by its first.
    pub(crate) fn describe(
        &mut self,
        index: u16,
        buffer: (u64, u32),
        write: bool,
        next: Option<u16>,
    ) {
        match &mut self.ring {
            Ring::Split(ring) => ring.describe(index, buffer, write, next),
            Ring::Packed(ring) => ring.describe(index, buffer, write, next),
        }
    }

    /// Offers the chain of `head`; [`publish`](Self::publish) shows it, at the latest.
    #[inline]
    pub(crate) fn offer(&mut self, head: u16) {
        match &mut self.ring {
            Ring::Split(ring) => ring.offer(head),
            Ring::Packed(ring) => ring.offer(head),
        }
    }

    /// Shows what was offered, and kicks if the device wants that.
    #[inline]
    pub(crate) fn publish(&mut self) {
        let wanted = match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        };
        if wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Takes what the device has used next: its head.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<u16> {
        match &mut self.ring {
            Ring::Split(ring) => ring.take(),
            Ring::Packed(ring) => ring.take(),
        }
    }

    /// Wants no interrupt for a long time.
    #[inline]
    pub(crate) fn want_no_interrupt(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.want_no_interrupt(),
            Ring::Packed(ring) => ring.want_no_interrupt(),
        }
    }

    /// Wants an interrupt once so many chains, each of one descriptor, have been used that were not taken. Whether
    /// some have been used already, for which there may be none.
    #[inline]
    pub(crate) fn want_interrupt(&mut self, after: u16) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.want_interrupt(after),
            Ring::Packed(ring) => ring.want_interrupt(after),
        }
    }
}
