//! Serves a virtio device to drivers of other processes: the back end of the vhost-user protocol, as one
//! more transport on [`virtio_bus`].
//!
//! The device model is the one that sits behind virtio-pci elsewhere; nothing of it knows who its
//! transport is. [`VhostUserTransport`] has the bus that the device is plugged into, and
//! [`serve`](VhostUserTransport::serve)s a connection on the thread that calls it. QEMU
//! (`-netdev vhost-user`), Cloud Hypervisor, crosvm and DPDK's virtio-user are front ends.
//!
//! A front end passes its guest's memory and each ring's addresses, kick and call; a ring runs from
//! SET_VRING_KICK to GET_VRING_BASE. Whatever a front end sends ends in an answer or in the end of its
//! connection with a [`ServeError`] that names the request; the device is then reset, and the next front
//! end finds it as new.
//!
//! With in-flight tracking a front end keeps a record of what the rings have in flight. If this process dies, at whatever
//! moment, the next one goes on by the record and by the used ring, not by SET_VRING_BASE: what was taken and is not
//! used is taken again first, in the order in which it was taken. A frame that was on its way out when the process died may
//! so be sent twice; its chain is used once. After GET_VRING_BASE, which says where the ring stands, and with nothing in flight
//! the record is closed, and the base counts again.
//!
//! The control queue of a network device stays with the front end, so its features end at 64 bits and
//! at what needs no control queue; which queue pairs are in use is what SET_VRING_ENABLE says.
//!
//! | module | holds |
//! |---|---|
//! | `transport` | [`VhostUserTransport`]: the bus, and the device as it is set up |
//! | `session` | the requests of one connection |
//! | `early` | the one request that QEMU makes before its time |
//! | `ring` | one ring's settings, and where it stands |
//! | `inflight` | in-flight tracking: what a back end that dies leaves to the next one |
//! | `memory` | [`Memory`]: the front end's memory, mapped |
//! | `notify` | kick, call and error descriptors |
//! | `error` | [`ServeError`], [`Refusal`] |
//!
//! Not here: logging of written pages, postcopy, transfer of the device's state, and the channel from
//! back end to front end, so that a front end learns of a changed link when it next reads configuration
//! space. The socket is the caller's: whoever can connect to it can have the device write to any memory
//! that it passes, a front end that shortens its memory's file ends this process, and one that makes its call block
//! again and fills it stops the device's context.

mod early;
mod error;
mod inflight;
mod memory;
mod notify;
mod ring;
mod session;
mod transport;

pub use error::{Refusal, ServeError};
pub use memory::Memory;
pub use transport::VhostUserTransport;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
