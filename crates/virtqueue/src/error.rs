//! What can be wrong with a queue.

use vm_memory::GuestAddress;

/// Why a queue cannot be made, or cannot go on.
///
/// Each but [`NotInFlight`](Self::NotInFlight) is the driver's doing, and leaves the queue broken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The size is 0, above what the device can do, or one that the format does not have: no power of two
    /// (split), above 2^15 (packed).
    #[error("size {size} is not one that a queue of at most {max_size} entries can have")]
    Size {
        /// What the driver wrote.
        size: u16,
        /// The most that the device can do.
        max_size: u16,
    },
    /// A ring is not aligned: descriptors to 16 bytes, available to 2, used to 4 (virtio 1.4, 2.7), event
    /// suppression to 4 (2.8.10.1).
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
    /// The state to start from has more chains outstanding than the queue has entries, or (packed) is at an entry
    /// that the queue does not have.
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
    /// A head (packed: a buffer id) is not below the size of the queue.
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
    /// Packed: a descriptor is available again before the device has used it, or a chain goes on into such ones.
    #[error("descriptor {0} is available before the device has used it")]
    Overrun(u16),
    /// Packed: a descriptor behind the first of a chain has not the flags of an available one (virtio 1.4, 2.8.6):
    /// the chain was made available before all of it was written.
    #[error("descriptor {0} of an available chain is not available")]
    NotAvailable(u16),
    /// A `next` field is not an entry of its table.
    #[error("next {next} is outside of a table of {entries}")]
    Next {
        /// What the driver wrote.
        next: u16,
        /// Entries of the table.
        entries: u32,
    },
    /// Split: a chain has more descriptors than its table has entries, so it is a loop. Both: it has more segments than
    /// [`MAX_SEGMENTS`](crate::MAX_SEGMENTS) allows. (Packed: the number is that of its first descriptor.)
    #[error("chain of head {0} is too long or loops")]
    TooLong(u16),
    /// An indirect descriptor, without `VIRTIO_F_INDIRECT_DESC`.
    #[error("indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table.
    #[error("indirect descriptor inside an indirect table")]
    IndirectNested,
    /// An indirect descriptor that has the next flag too, or (packed) comes behind one that has.
    #[error("indirect descriptor that is not the last, or (packed) not the only one of its chain")]
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

/// An error on its way out of the hot path: one word, so that what succeeds is not slowed down by the room that an
/// error takes. A queue has one in its life.
pub(crate) type Fault = Box<QueueError>;

/// Boxes what has gone wrong, out of the way of what goes right.
#[cold]
#[inline(never)]
pub(crate) fn fault(error: QueueError) -> Fault {
    Box::new(error)
}
