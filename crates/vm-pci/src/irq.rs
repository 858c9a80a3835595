//! What a function asks of the machine to interrupt: an MSI sink, and the line of its pin.

use std::fmt;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::address::DevFn;

/// A message-signalled interrupt: the write that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Where the dword is written.
    pub address: u64,
    /// The dword.
    pub data: u32,
}

/// Makes interrupts of messages. The machine has one; a VMM on KVM makes it of irqfds and routes.
pub trait MsiSink: Send + Sync + fmt::Debug {
    /// Makes one vector for the function `requester`, not routed. Dropping it frees what it holds.
    ///
    /// # Errors
    /// When the machine has no more interrupt routes or descriptors.
    fn vector(&self, requester: DevFn) -> io::Result<Arc<dyn MsiVector>>;
}

/// One vector: a descriptor that, once signalled, sends the message routed at that time.
pub trait MsiVector: Send + Sync + fmt::Debug {
    /// The descriptor. Writing to it raises the interrupt; while no message is routed (the vector
    /// is masked) the signal stays in it, and that is the vector's pending bit.
    fn event_fd(&self) -> &EventFd;

    /// Routes signals to `message`, or (`None`: masked) nowhere. A signal that came while nothing was
    /// routed is delivered once when something is.
    ///
    /// # Errors
    /// When the machine refuses the route; the vector is then masked.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;
}

/// The level-triggered line that a function's interrupt pin drives.
pub trait IntxLine: Send + Sync + fmt::Debug {
    /// Asserts or releases the function's share of the line. Cheap when nothing changes.
    fn set_level(&self, asserted: bool);
}
