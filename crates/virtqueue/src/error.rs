//! What can be wrong with a queue.

use vm_memory::GuestAddress;

/// Why a queue cannot be made, or cannot go on.
///
/// Each but [`NotInFlight`](Self::NotInFlight) is the driver's doing, and leaves the queue broken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The size is 0, no power of two, or above what the device can do.
    #[error("size {size} is not a power of two between 1 and {max_size}")]
    Size {
        /// What the driver wrote.
        size: u16,
        /// The most that the device can do.
        max_size: u16,
    },
    /// A ring is not aligned (virtio 1.4, 2.7): descriptors to 16 bytes, available to 2, used to 4.
    #[error("{ring} ring at {address:#x} is not aligned")]
    Alignment {
        /// Which ring.
        ring: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// A ring is not, or not as one piece, in guest memory.
    #[error("{ring} ring at {address:#x} is not in one piece of guest memory")]
    RingMemory {
        /// Which ring.
        ring: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// The features ask for a ring format that is not implemented.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The state to start from has more chains outstanding than the queue has entries.
    #[error("state {next_avail}, {next_used} does not fit a queue of {size} entries")]
    State {
        /// Next entry to take.
        next_avail: u16,
        /// Next entry to write.
        next_used: u16,
        /// Entries.
        size: u16,
    },
    /// An earlier error has stopped the queue.
    #[error("the queue is broken")]
    Broken,
    /// The available index is ahead by more than the queue's size, or went backwards.
    #[error("available index moved from {from} to {to}, more than the queue's {size} entries")]
    AvailIndex {
        /// Where the device is.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// Entries.
        size: u16,
    },
    /// A head is not an entry of the descriptor table.
    #[error("head {head} is outside of a table of {size}")]
    Head {
        /// What the driver wrote.
        head: u16,
        /// Entries.
        size: u16,
    },
    /// A head was made available again before the device has used it.
    #[error("head {0} is available twice")]
    HeadInFlight(u16),
    /// A `next` field is not an entry of its table.
    #[error("next {next} is outside of a table of {entries}")]
    Next {
        /// What the driver wrote.
        next: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// A chain has more descriptors than its table has entries (so it is a loop) or than
    /// [`MAX_SEGMENTS`](crate::MAX_SEGMENTS) allows.
    #[error("chain of head {0} is too long or loops")]
    TooLong(u16),
    /// An indirect descriptor, without `VIRTIO_F_INDIRECT_DESC`.
    #[error("indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table.
    #[error("indirect descriptor inside an indirect table")]
    IndirectNested,
    /// An indirect descriptor that has the next flag too.
    #[error("indirect descriptor with a next one")]
    IndirectNext,
    /// The length of an indirect table is 0 or no multiple of 16.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A descriptor of no bytes. [QEMU: "zero sized buffers are not allowed"]
    #[error("zero sized buffers are not allowed")]
    ZeroLength,
    /// A device-readable descriptor after a device-writable one (virtio 1.4, 2.7.4.2).
    #[error("readable descriptor after a writable one")]
    ReadableAfterWritable,
    /// A buffer or an indirect table is not, or not all, in guest memory.
    #[error("{len} bytes at {address:#x} are not guest memory", address = address.0)]
    Memory {
        /// Where it begins.
        address: GuestAddress,
        /// How long it is.
        len: u32,
    },
    /// The device completes a head that it has not got; nothing was written.
    #[error("head {0} is not in flight")]
    NotInFlight(u16),
}
