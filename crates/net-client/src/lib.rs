//! Two net clients on a link: a NIC and a backend such as a tap, each behind its [`Port`].
//!
//! A client implements [`NetClient`] and owns a [`Port`]; [`Port::connect`] makes two ports each
//! other's peers. A client reaches its peer only through its own port, which is where link state,
//! counters and filters have their place. Frames cross in one of two ways:
//!
//! - **Handed over.** The sender calls [`Port::send`] with a [`Frame`], a batch of times, then
//!   [`Port::flush`]. The receiver answers [`Received`]: done with it, kept until
//!   [`NetClient::sent`], or no room. Frames of a NIC go this way; they are still in guest memory, or
//!   in memory of the NIC's, which it lends.
//! - **Read in place.** A backend with frames to read calls [`Port::offer`] with a [`FrameSource`],
//!   and the peer has each read straight into buffers of its own. A peer that lends none has the
//!   frames handed over instead, copied once by the port.
//!
//! No room is said once ([`Received::Busy`], [`Drained::NoRoom`]); the sender stops, keeps what it
//! has, and tries again when [`NetClient::room`] is called. Nothing is lost or reordered on the way.
//! What is lent comes back by completion, or all at once by [`NetClient::revoke`], which
//! [`Port::disconnect`] sees to.
//!
//! A client that keeps no frames of its own has them queued by its port, [`Port::post`].
//!
//! Between the two may stand filters ([`Filter`], [`Port::add_filter`]): each sees each frame once,
//! in order, and lets it pass, drops it or holds it for a while. They come and go under traffic. As
//! long as one stands, no frame is read in place. [`Capture`] is one: a pcap file of the traffic.
//!
//! [`NetClients`] is the table behind `-netdev`: the kinds that there are, and the netdevs made of
//! option strings, by id.
//!
//! ```
//! use std::sync::Arc;
//! use iothread::{AioContext, EventLoop};
//! use net_client::{Loopback, NetClients, Port, Received, Recorder};
//!
//! // A kind of netdev, and one made from an option string.
//! let netdevs = NetClients::new();
//! netdevs.register("loopback", Box::new(|_options| {
//!     Ok(Box::new(|id| Ok(Loopback::new(id))))
//! }));
//! let netdev = netdevs.add("loopback,id=net0")?;
//!
//! // Its peer, and the context that both work on.
//! let nic = Recorder::new("nic");
//! let context: Arc<dyn AioContext> = EventLoop::new()?;
//! Port::connect(nic.port(), &netdev.ports()[0], &context)?;
//!
//! assert_eq!(nic.port().send_bytes(b"there and back"), Received::Taken);
//! assert_eq!(nic.take_frames(), [b"there and back"]);
//!
//! let error = netdevs.add("loopback,id=net0").unwrap_err();
//! assert_eq!(error.to_string(), "Duplicate ID 'net0' for netdev");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `client` | what a client is: frames, sources, answers, completions |
//! | `port` | one end of a link |
//! | `connection` | how two ports become peers, move to another context, and part |
//! | `passage` | the way of a frame past filters, and the wait for room behind them |
//! | `filter` | what stands between peers: sees, drops, holds |
//! | `capture` | a filter that writes frames to a pcap file |
//! | `dump` | captures behind `-object filter-dump` |
//! | `queue` | frames that wait, in order, up to 10,000 |
//! | `bounce` | the one frame that a port copies for a source, and keeps when its peer has no room |
//! | `padding` | zeroes behind frames that are shorter than their receiver takes |
//! | `statistics` | frames, bytes, and drops by reason |
//! | `vnet` | the header in front of each frame |
//! | `iovec` | memory that a frame is in |
//! | `netdev` | the table behind `-netdev` |
//! | `help` | what `-netdev help` prints |
//! | `loopback`, `recorder` | two simple clients |
//! | `faulty` | a client with bad luck, the same each time: for tests |

mod bounce;
mod capture;
mod client;
mod connection;
mod dump;
mod faulty;
mod filter;
mod help;
mod iovec;
mod loopback;
mod netdev;
mod padding;
mod passage;
mod port;
mod queue;
mod recorder;
mod statistics;
mod vnet;

pub use capture::{CAPTURE_MAX_LEN, Capture, Clock};
pub use client::{Drained, Frame, FrameSource, NetClient, Read, Received, Token};
pub use connection::ConnectError;
pub use dump::FilterError;
pub use faulty::{Faults, Faulty};
pub use filter::{Direction, Directions, Filter, FilterId, Passing, Position, Verdict};
pub use help::KindHelp;
pub use iovec::{IoVec, copy_from_iov, copy_to_iov, total_len};
pub use loopback::Loopback;
pub use netdev::{Constructor, NetClients, Netdev, NetdevError, OpenError, Opener};
pub use port::{Port, Sender};
pub use recorder::Recorder;
pub use statistics::{DirectionStatistics, DropReason, Statistics};
pub use vnet::{Offloads, VnetHeader};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
