//! What can go wrong between a function and its bus.

use std::io;

use crate::address::DevFn;

/// What can go wrong between a function and its bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device or function number that no bus has.
    #[error("no such place on a PCI bus: device {device}, function {function}")]
    NoSuchDevFn {
        /// The device number asked for.
        device: u8,
        /// The function number asked for.
        function: u8,
    },
    /// A BAR number above 5.
    #[error("a PCI function has BARs 0 to 5, not {0}")]
    NoSuchBar(u8),
    /// The place is taken.
    #[error("PCI: slot {0} is in use")]
    SlotInUse(DevFn),
    /// All 32 device numbers of the bus are taken.
    #[error("PCI: no slot is free on the bus")]
    NoFreeSlot,
    /// The machine refused an interrupt vector.
    #[error("cannot get MSI-X vector {vector} for function {devfn}: {source}")]
    Vector {
        /// Which vector.
        vector: u16,
        /// For which function.
        devfn: DevFn,
        /// What the machine said.
        source: io::Error,
    },
}
