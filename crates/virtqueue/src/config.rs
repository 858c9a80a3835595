//! What a driver writes to set up a queue, and where a queue stands.

use std::fmt;

use virtio::{F, le128};

/// VIRTIO_F_NOTIFY_ON_EMPTY: a used buffer notification whenever a queue runs out of available buffers, asked for
/// or not. Only of the legacy interface, and so of split rings (virtio 1.4, 6.3).
#[doc(alias = "VIRTIO_F_NOTIFY_ON_EMPTY")]
pub const NOTIFY_ON_EMPTY: F = F::from_bits_retain(le128::from_ne(1 << 24));

/// Which queue of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueIndex(pub u16);

impl fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size and addresses of a queue as the driver wrote them (virtio 1.4, 4.1.4.3).
///
/// Plain numbers, not checked: they are when a [`VirtQueue`](crate::VirtQueue) is made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// The most entries that the device can do.
    pub max_size: u16,
    /// Entries in use; `max_size` until the driver writes less.
    pub size: u16,
    /// Guest-physical address of the descriptor area (split: the descriptor table; packed: the ring).
    pub desc: u64,
    /// Guest-physical address of the driver area (split: the available ring; packed: the driver's event
    /// suppression).
    pub driver: u64,
    /// Guest-physical address of the device area (split: the used ring; packed: the device's event
    /// suppression).
    pub device: u64,
}

/// Where a queue stands: what a data plane needs, beside [`QueueConfig`], to go on with it.
///
/// The default is where a split queue begins; [`initial`](Self::initial) knows both formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Split: index of the next entry of the available ring to take. Packed: offset of the next
    /// descriptor, with its wrap counter in bit 15.
    pub next_avail: u16,
    /// The same for the used ring: next entry to write.
    pub next_used: u16,
}

impl QueueState {
    /// Where a queue begins that its driver has just set up, in the format that `features` say. Packed:
    /// at the first descriptor, with both "wrap counters initialized to 1" (virtio 1.4, 2.8.1).
    pub fn initial(features: F) -> Self {
        if features.contains(F::RING_PACKED) {
            let start = 1 << 15;
            Self {
                next_avail: start,
                next_used: start,
            }
        } else {
            Self::default()
        }
    }
}
