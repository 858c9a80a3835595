//! Turning a guest's write to a notify register into a signal without a trip through the VMM.

use std::fmt;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// A guest write to watch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KickAddress {
    /// Ports or memory.
    pub space: KickSpace,
    /// First byte of the register.
    pub address: u64,
    /// Width of the write in bytes (1, 2, 4, 8), or `None` for any.
    pub len: Option<u8>,
    /// The value written, or `None` for any. Only with a width. A legacy device has one register for all
    /// its queues, so there the value tells them apart.
    pub value: Option<u64>,
}

/// The address space that a notify register is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KickSpace {
    /// I/O ports.
    Port,
    /// Memory.
    Mmio,
}

/// Binds notify registers to descriptors. A hypervisor's ioeventfds do it.
///
/// The machine has one. Where a register is not bound, the guest's write reaches the BAR handler,
/// which signals the same descriptor: a binder that always refuses is slow, not wrong.
pub trait KickBinder: Send + Sync + fmt::Debug {
    /// Signals `kick` for each matching write from now on, instead of handing the write to the VMM.
    ///
    /// # Errors
    /// When the machine cannot; the caller goes on without.
    fn bind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()>;

    /// Undoes [`bind`](Self::bind) with the same arguments.
    ///
    /// # Errors
    /// When it was not bound.
    fn unbind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()>;
}

/// Binds nothing: each kick goes through the BAR handler.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKickBinder;

impl KickBinder for NoKickBinder {
    fn bind(&self, _at: KickAddress, _kick: &Arc<EventFd>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unbind(&self, _at: KickAddress, _kick: &Arc<EventFd>) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }
}
