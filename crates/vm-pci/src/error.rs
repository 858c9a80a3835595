//! What can go wrong between a function and its bus.

use std::io;

use crate::address::DevFn;
use crate::bar::BarIndex;

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
    /// A size that a BAR of this kind cannot have.
    #[error("BAR {} cannot have {size:#x} bytes", .bar.get())]
    BarSize {
        /// Which BAR.
        bar: BarIndex,
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The BAR, or the register that its upper half needs, is in use or does not exist.
    #[error("BAR {} is in use, or has no room for its upper half", .0.get())]
    BarInUse(BarIndex),
    /// A capability does not fit behind those that are there.
    #[error("no room in configuration space for capability {id:#x} of {len} bytes")]
    NoCapabilityRoom {
        /// The capability's id.
        id: u16,
        /// Its length with its header, in bytes.
        len: usize,
    },
    /// A number of MSI-X vectors that no function can have.
    #[error("a function has 1 to 2048 MSI-X vectors, not {0}")]
    VectorCount(u16),
    /// MSI-X table or PBA misaligned, on top of each other, or outside of their BAR.
    #[error("the MSI-X table or PBA does not fit where it was put in BAR {}", .0.get())]
    MsixPlace(BarIndex),
    /// The place is taken.
    #[error("PCI: slot {0} is in use")]
    SlotInUse(DevFn),
    /// Nothing is at the place.
    #[error("PCI: slot {0} is empty")]
    SlotEmpty(DevFn),
    /// All 32 device numbers of the bus are taken.
    #[error("PCI: no slot is free on the bus")]
    NoFreeSlot,
    /// The host's address ranges overlap, wrap, or are misaligned.
    #[error("bad PCI host address range: {size:#x} bytes at {base:#x}")]
    BadAperture {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// The host's address ranges have no room for a BAR.
    #[error("no room for BAR {} of function {devfn}: {size:#x} bytes", .bar.get())]
    NoRoom {
        /// Whose BAR.
        devfn: DevFn,
        /// Which BAR.
        bar: BarIndex,
        /// Its size in bytes.
        size: u64,
    },
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
