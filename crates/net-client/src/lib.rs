//! Two clients on a link: ports, peers, queues with back-pressure, link state, filters, the netdev
//! table.

mod client;
mod iovec;
mod port;
mod vnet;

pub use client::{Drained, Frame, FrameSource, NetClient, Read, Received, Token};
pub use iovec::{IoVec, copy_from_iov, copy_to_iov, total_len};
pub use port::Port;
pub use vnet::{Offloads, VnetHeader};
