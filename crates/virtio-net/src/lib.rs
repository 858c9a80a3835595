//! The virtio-net device model: a network card for any transport and any net client (virtio 1.4, 5.1).
//!
//! [`VirtioNet::new`] makes one from a [`VirtioNetConfig`], the ports of its backend (a tap) and an
//! event loop for each pair of queues; plugged into a transport's bus it runs from DRIVER_OK to reset.
//! It knows no transport, no threads but those of its contexts, and no machine.
//!
//! A frame that the driver sends is checked (its header is copied first, so the driver cannot change it
//! afterwards), handed to the peer where it lies in guest memory, and its chain put on the used ring
//! once the peer is done with it. One of up to an MTU of 1500 is copied behind its header, as long as the peer keeps
//! fewer than 64: one piece costs the kernel less than two.
//!
//! A frame for the driver is read by the backend straight into buffers that the driver has made available, one or,
//! with `VIRTIO_NET_F_MRG_RXBUF`, several of them: as many as the longest frame takes while frames are long, else as a
//! frame of 1500 bytes takes, with room of the device's own behind them for the one that is longer after all.
//!
//! Either way the used ring is published once a batch, and the driver is notified at most once a batch: when there is
//! no more to do, and in a long turn after every 64 buffers or pages, so that driver and device work at once.
//!
//! Whatever the driver writes has a defined end. A bad frame is dropped, counted, and its chain given
//! back; a bad control command is answered with `VIRTIO_NET_ERR`; a queue whose rings make no sense is
//! stopped and the transport asked for a reset.
//!
//! ```
//! use std::sync::Arc;
//! use iothread::EventLoop;
//! use net_client::Loopback;
//! use virtio_bus::VirtioDevice;
//! use virtio_net::{VirtioNet, VirtioNetConfig};
//! use vm_memory::GuestMemoryMmap;
//!
//! let backend = Loopback::new("net0");
//! let context = EventLoop::new()?;
//! let nic = VirtioNet::<Arc<GuestMemoryMmap<()>>>::new(
//!     VirtioNetConfig::default(),
//!     vec![backend.port().clone()],
//!     vec![context],
//! )?;
//! // What a transport asks it: a receive, a transmit and a control queue.
//! assert_eq!(nic.queue_max_sizes(), [256, 256, 64]);
//! assert!(nic.offered_features().contains(virtio::F::VERSION_1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `config` | [`VirtioNetConfig`], and the configuration space |
//! | `features` | what is offered, of what is configured and the backend can |
//! | `device` | [`VirtioNet`]: life cycle and the queues' coming and going |
//! | `error` | why one is not made |
//! | `role` | which queue is which |
//! | `shared` | what the parts share beside their queues |
//! | `pair` | one receive and one transmit queue with their port: the net client; what is done to all pairs |
//! | `tx`, `rx` | the two directions |
//! | `buffers` | the buffers that the driver has made available for reception |
//! | `ctrl` | the control queue and its commands |
//! | `announce` | asking the driver to announce itself |
//! | `coalesce` | notifications that are held back |
//! | `filter` | which received frames the driver wants |
//! | `hash` | the hash of a received frame, and the queue that it leads to |
//! | `watched` | what the control queue changes and receive queues look at |
//! | `header` | the header in front of each frame |
//! | `rsc` | TCP segments that are put together before the driver gets them |
//! | `limit` | how fast frames may pass |
//! | `report` | [`FeatureReport`] |
//! | `lend` | guest memory and buffers of our own, as lent to the peer |
//! | `kick`, `timer` | watching a queue's kick; its timers |
//! | `statistics` | what each queue counts |
//! | [`object`] | the type `virtio-net-device` |
//!
//! Which frames the driver wants it says on the control queue: by address, by kind and by VLAN. A frame
//! that it does not want is dropped where it is looked at first: behind the door, or, read in place,
//! in buffers that the next frame then goes into.
//!
//! With `hash=on` each frame comes with the hash of its flow, and with `rss=on` the driver says which hash goes to
//! which queue: frames then come in by the copy door, since they cannot be read in place before their queue is known. With
//! `hash_tunnel=on` it may have that of the packet in a tunnel instead.
//!
//! With `tx=timer` what the driver sends is taken `x-txtimer` nanoseconds after its kick, or at its next, and no kick is
//! asked for meanwhile: fewer turns for more frames, each later.
//!
//! With `guest_rsc_ext=on` and a driver that knows it, TCP segments are kept for up to `rsc_interval` and put together;
//! frames come in by the copy door then too.
//!
//! With `mq=on` each port of the backend has a pair of queues, and the driver says how many of them it
//! uses. The others' frames go nowhere, and their ports rest.
//!
//! Locks, in the order in which they may be taken: the transport's, the device's (`device`), the control
//! queue's (`ctrl`), then one of a queue's (`rx`, `tx`); a transmit queue's may be held while a receive
//! queue's is taken (a frame that is looped back), never the other way. The data path takes the locks of
//! its queue only; that of the filters (`filter`), a leaf, when they have changed.
//!
//! That its queue is broken the transport is told under the queue's lock, so that a reset comes before or after.
//!
//! Of two queues of one direction no thread holds both locks: a frame that goes to another pair's queue is handed over
//! with that one's lock alone.
//!
//! What the specification demands is listed with its tests in `tests/conformance/README.md`.
//!
//! Not here: `VIRTIO_NET_F_OUT_NET_HEADER`, and drivers from before virtio 1.0 on big-endian hosts.

mod announce;
mod buffers;
mod coalesce;
mod config;
mod ctrl;
mod device;
mod error;
mod features;
mod filter;
mod hash;
mod header;
mod kick;
mod lend;
mod limit;
pub mod object;
mod pair;
mod report;
mod role;
mod rsc;
mod rx;
mod shared;
mod statistics;
mod timer;
mod tx;
mod watched;

pub use announce::AnnounceParameters;
pub use config::{Duplex, TxMitigation, VirtioNetConfig};
pub use device::{
    SavedCoalescing, SavedCounters, SavedFilter, SavedLimit, SavedNet, SavedSteering, VirtioNet,
};
pub use error::VirtioNetError;
pub use header::HeaderFault;
pub use limit::RateLimit;
pub use report::{FeatureReport, Withheld};
pub use rsc::FlushReason;
pub use statistics::{CtrlStatistics, RxStatistics, TxStatistics};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
