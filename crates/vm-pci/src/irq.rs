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

/// Makes interrupts of messages. The machine has one; a VMM makes it of its hypervisor's irqfds and routes.
pub trait MsiSink: Send + Sync + fmt::Debug {
    /// Makes one vector for the function `requester`, not routed. Dropping it frees what it holds.
    ///
    /// # Errors
    /// When the machine has no more interrupt routes or descriptors.
    fn vector(&self, requester: DevFn) -> io::Result<Arc<dyn MsiVector>>;
}

/// One vector: a descriptor that, once signalled, sends the message routed at that time.
pub trait MsiVector: Send + Sync + fmt::Debug {
    /// The descriptor, non-blocking. Writing to it raises the interrupt; while no message is routed (the vector
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

/// Which of the four interrupt pins of a device a function drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IntxPin {
    /// INTA#, what a device of one function uses.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl IntxPin {
    /// The value of the Interrupt Pin register: 1 to 4.
    pub const fn register(self) -> u8 {
        self.index() + 1
    }

    /// 0 to 3.
    pub const fn index(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::C => 2,
            Self::D => 3,
        }
    }
}

/// The machine's interrupt lines, as an interrupt controller numbers them.
pub trait IrqLines: Send + Sync + fmt::Debug {
    /// Asserts or releases line `gsi`. The PCI host calls it once per change of the line, which
    /// is the OR of all functions that share it, under that line's own lock and with the locks
    /// of the function that caused the change: it must not call back into the PCI host.
    fn set(&self, gsi: u32, asserted: bool);
}
