//! A PCI function as its bus sees it.

use std::fmt;
use std::sync::Arc;

use crate::address::DevFn;
use crate::bar::{BarIndex, BarWindow};
use crate::irq::{IntxLine, IntxPin};

/// What a write into a function's configuration space changed for its bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ConfigEffect {
    /// The windows that the function decodes have changed: a BAR moved, or decoding was switched.
    pub windows_changed: bool,
}

/// Where a function was put, told to it when it goes on its bus.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its device and function number.
    pub devfn: DevFn,
    /// The line that the function's interrupt pin drives, after the bus has routed it.
    pub intx: Arc<dyn IntxLine>,
    /// What the bus makes of the function's windows.
    pub forwarding: Arc<dyn Forwarding>,
}

/// What a bus does with the windows of a function on it. Takes no lock of a function.
pub trait Forwarding: Send + Sync + fmt::Debug {
    /// Whether accesses to `window` come down to the bus at all. A guest may put a BAR over RAM or over
    /// a device of the machine, and the function must not have the machine do anything there.
    ///
    /// Where windows of two functions overlap, both are forwarded as far as this says: with such a layout
    /// a guest harms no one but its own functions.
    fn forwards(&self, window: &BarWindow) -> bool;

    /// The windows of `function`, which was told of this bus, have changed without a write to its
    /// configuration space: the bus asks for them. Not to be called under the function's lock. Does
    /// nothing while the function is on its way to or from the bus, which asks then anyway.
    fn windows_changed(&self, function: &dyn PciFunction);
}

/// One function on a PCI bus: configuration space and up to six BARs.
///
/// All methods take `&self`, are called from any vCPU thread, and may run at the same time; the
/// function has one lock of its own. A bus holds no lock of its own while it calls a function.
pub trait PciFunction: Send + Sync + fmt::Debug {
    /// The function goes on its bus. Called before any access; again only after
    /// [`detached`](Self::detached), and then the function is as after power-on. An error keeps it off.
    ///
    /// # Errors
    /// Whatever keeps the function from working at this place.
    fn attached(&self, attachment: Attachment) -> Result<(), crate::Error>;

    /// The function leaves its bus. No access is begun after it, but one that was already on its way
    /// may still arrive from another thread.
    fn detached(&self);

    /// Which interrupt pin the function drives, if it has one: what its Interrupt Pin register
    /// says. The bus asks before [`attached`](Self::attached), to route the line.
    fn interrupt_pin(&self) -> IntxPin {
        IntxPin::A
    }

    /// Reads configuration space. `offset + data.len()` is within 4096 and the access does not
    /// cross a dword (PCI 3.0, 3.2.2.3.2; PCI Express 6.0, 7.2).
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space, under the same promises as
    /// [`config_read`](Self::config_read).
    fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffect;

    /// The windows decoded now: BARs with an address whose decoding is enabled in the command
    /// register. The bus asks after each [`ConfigEffect::windows_changed`].
    fn windows(&self) -> Vec<BarWindow>;

    /// Reads from a decoded BAR. `offset` is within it; the access may be of any length that
    /// does not leave it.
    fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// Writes to a decoded BAR, under the same promises as [`bar_read`](Self::bar_read).
    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]);

    /// Back to the state after power-on: BARs unassigned, decoding off, MSI-X off, the device reset.
    fn reset(&self);
}
