//! What the embedded guest does, apart from how it does so on bare hardware.
//!
//! [`run`] finds the first virtio-net function, brings it up, answers ARP and ping on it, and pings
//! the other end, over any [`Machine`]. The guest program is one such machine; a process that has
//! no KVM is another, with the device in it. [`BootInfo`] is what the VMM hands to the program.

#![no_std]
#![forbid(unsafe_code)]

mod boot;
mod session;

pub use boot::{BootInfo, EXIT_PORT, ExitStatus, LOAD_ADDRESS};
pub use session::{Summary, run};

use core::fmt;

use virtio_guest::{MsixMessage, Platform};

/// A machine with a clock, somewhere to write to, and something to wait for.
pub trait Machine: Platform {
    /// Milliseconds since some moment.
    fn now(&self) -> u64;

    /// Returns when a message came from the device, or after some milliseconds, or at any time in
    /// between. A message that came since the last call counts.
    fn sleep(&self);

    /// Where the device's messages go, one for each vector: configuration, receive, transmit,
    /// control. Without any the device is polled each time [`sleep`](Self::sleep) returns.
    fn messages(&self) -> &[MsixMessage];

    /// How many messages have come.
    fn messages_received(&self) -> u32;

    /// Writes a line of text for the user.
    fn print(&self, line: fmt::Arguments<'_>);
}
