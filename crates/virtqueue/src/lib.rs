//! The device's half of a virtqueue, behind one type whatever the format of its rings.
//!
//! A driver makes chains of buffers available; the device takes them, reads or fills them, and puts
//! them on the used ring. [`VirtQueue`] is made from what the driver wrote to the transport
//! ([`QueueConfig`]), from where the queue stands ([`QueueState`]), from the features that were
//! negotiated and from guest memory. It belongs to one holder, who takes a batch at a time:
//!
//! 1. [`disable_notifications`](VirtQueue::disable_notifications): no kick is wanted while at work.
//! 2. [`pop`](VirtQueue::pop) into a [`Chain`] that is used again and again, until it says `false`.
//! 3. [`push_used`](VirtQueue::push_used) for each chain that is done with: staged, not yet seen.
//! 4. [`publish`](VirtQueue::publish) once, then
//!    [`needs_notification`](VirtQueue::needs_notification) once: whether the driver wants to hear.
//! 5. [`enable_notifications`](VirtQueue::enable_notifications), which looks once more: when it says
//!    `true`, more came meanwhile, and the holder begins again.
//!
//! Between 2 and 3 most chains can do without a [`Chain`]: [`peek`](VirtQueue::peek) shows the next one where it is short,
//! and it is completed at once.
//!
//! Whatever a driver writes ends in chains or in a [`QueueError`]; after an error the queue is broken
//! and yields nothing more until it is made anew, so a bad chain is parsed once. Each value in guest
//! memory is read once and then checked.
//!
//! With `VIRTIO_F_RING_PACKED` the rings are packed, and nothing in these steps is different; a chain is named by its
//! buffer id instead of the first of its descriptors. With `VIRTIO_F_IN_ORDER` chains come out on the used ring in the
//! order in which they were made available, whatever the order in which the holder completes them: what is completed
//! early waits for its turn. Notification data (`VIRTIO_F_NOTIFICATION_DATA`) is a hint that the transport may
//! throw away: a queue finds out for itself what is available.
//!
//! | module | holds |
//! |---|---|
//! | `config` | what a driver writes to set up a queue, and where a queue stands |
//! | `queue` | [`VirtQueue`]: what both formats have in common |
//! | `chain` | [`Chain`] and its [`Segment`]s |
//! | `short` | [`Short`]: a chain that needs no lists |
//! | `split`, `packed` | where the device stands in its rings, and how it follows a chain |
//! | `split::rings`, `packed::ring` | the memory of the rings, and the order of accesses to it |
//! | `in_order` | completions that wait for those before them |
//! | `in_flight` | [`InFlightRecord`]: what is in flight, kept where it outlives this process |
//! | `event` | when an index passes an event index |
//! | `memory` | [`QueueMemory`], what is asked of guest memory; where in this process it is |
//! | `mock` | with the feature `test-utils`: drivers for tests |
//!
//! An address is translated by the region of guest memory that the last one was in, as long as both are in the
//! same; descriptors are read in place. Nothing is allocated for a chain but, at first, the room in its lists.
//!
//! Not here: rings that lie across two regions of guest memory, memory that is mapped on demand (Xen grants), and
//! one used element for several chains (virtio 1.4, 2.7.9, 2.8.8 allow it; each chain gets its own, with its length).
//!
//! ```
//! # #[cfg(feature = "test-utils")] {
//! use std::sync::Arc;
//! use virtqueue::mock::{Buffer, SplitDriver};
//! use virtqueue::{Chain, QueueState, VirtQueue};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)])?);
//! let features = virtio::F::VERSION_1;
//! let mut driver = SplitDriver::new(memory.clone(), GuestAddress(0), 16, features);
//! let mut queue = VirtQueue::new(&driver.config(), QueueState::default(), features, memory)?;
//!
//! let head = driver.add(&[Buffer::readable(0x8000, 64), Buffer::writable(0x9000, 512)]);
//! let mut chain = Chain::new();
//! assert!(queue.pop(&mut chain)?);
//! assert_eq!((chain.readable_len(), chain.writable_len()), (64, 512));
//! let written = chain.write(0, b"answer");
//! queue.push_used(chain.head(), written as u32)?;
//! queue.publish();
//! assert!(queue.needs_notification());
//! assert_eq!(driver.take_used(), Some((u32::from(head), 6)));
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chain;
mod config;
mod error;
mod event;
mod in_flight;
mod in_order;
mod memory;
#[cfg(feature = "test-utils")]
pub mod mock;
mod packed;
mod queue;
mod short;
mod split;

pub use chain::{Chain, Segment};
pub use config::{NOTIFY_ON_EMPTY, QueueConfig, QueueIndex, QueueState};
pub use error::QueueError;
pub use in_flight::{InFlight, InFlightRecord, RingDescriptor};
pub use memory::QueueMemory;
pub use queue::{MAX_SEGMENTS, VirtQueue};
pub use short::Short;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
