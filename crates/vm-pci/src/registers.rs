//! The registers of a type 0 configuration header (PCI 3.0, 6.1), and capability ids.

use bitflags::bitflags;

/// Bytes in one function's configuration space.
pub const CONFIG_SIZE: u16 = 0x1000;
/// Bytes that configuration mechanism 1 reaches; extended capabilities start here.
pub const CONVENTIONAL_SIZE: u16 = 0x100;

/// Vendor id, 2 bytes.
pub const VENDOR_ID: u16 = 0x00;
/// Device id, 2 bytes.
pub const DEVICE_ID: u16 = 0x02;
/// [`Command`], 2 bytes.
pub const COMMAND: u16 = 0x04;
/// [`Status`], 2 bytes.
pub const STATUS: u16 = 0x06;
/// Revision id, 1 byte.
pub const REVISION_ID: u16 = 0x08;
/// Programming interface, subclass, base class: 3 bytes.
pub const CLASS_CODE: u16 = 0x09;
/// Cache line size in dwords, 1 byte.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Layout of the header, 1 byte; bit 7 says that the device has several functions.
pub const HEADER_TYPE: u16 = 0x0e;
/// The first of six base address registers, 4 bytes each.
pub const BAR_0: u16 = 0x10;
/// One past the last base address register.
pub const BARS_END: u16 = 0x28;
/// Subsystem vendor id, 2 bytes.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Subsystem id, 2 bytes.
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// Offset of the first capability, 1 byte.
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Where the firmware noted the interrupt, 1 byte, meaning nothing to the device.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// 0 for none, 1 to 4 for INTA# to INTD#, 1 byte.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// The first byte behind the header, where capabilities go.
pub const HEADER_END: u16 = 0x40;

/// The bit of [`HEADER_TYPE`] that says that functions above 0 are there.
pub const MULTI_FUNCTION: u8 = 0x80;

/// Capability id: power management.
pub const CAP_POWER_MANAGEMENT: u8 = 0x01;
/// Capability id: vendor specific; virtio's structures are such.
pub const CAP_VENDOR: u8 = 0x09;
/// Capability id: PCI Express.
pub const CAP_EXPRESS: u8 = 0x10;
/// Capability id: MSI-X.
pub const CAP_MSIX: u8 = 0x11;

bitflags! {
    /// The command register (PCI 3.0, 6.2.2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Command: u16 {
        /// The function decodes its I/O BARs.
        const IO = 1 << 0;
        /// The function decodes its memory BARs.
        const MEMORY = 1 << 1;
        /// The function may read and write memory and send messages.
        const BUS_MASTER = 1 << 2;
        /// The function reacts to parity errors; kept, without effect.
        const PARITY_ERROR = 1 << 6;
        /// The function may drive SERR#; kept, without effect.
        const SERR = 1 << 8;
        /// The function does not assert its interrupt pin.
        const INTX_DISABLE = 1 << 10;
    }
}

bitflags! {
    /// The status register (PCI 3.0, 6.2.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Status: u16 {
        /// The function has an interrupt pending, whether or not it may assert its pin.
        const INTERRUPT = 1 << 3;
        /// The function has a capability list.
        const CAPABILITIES = 1 << 4;
        /// Master data parity error; write one to clear.
        const MASTER_PARITY_ERROR = 1 << 8;
        /// Signalled target abort; write one to clear.
        const SIGNALLED_TARGET_ABORT = 1 << 11;
        /// Received target abort; write one to clear.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// Received master abort; write one to clear.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// Signalled system error; write one to clear.
        const SIGNALLED_SYSTEM_ERROR = 1 << 14;
        /// Detected parity error; write one to clear.
        const PARITY_ERROR = 1 << 15;
    }
}

impl Status {
    /// The bits that software clears by writing ones.
    pub const WRITE_1_TO_CLEAR: Self = Self::MASTER_PARITY_ERROR
        .union(Self::SIGNALLED_TARGET_ABORT)
        .union(Self::RECEIVED_TARGET_ABORT)
        .union(Self::RECEIVED_MASTER_ABORT)
        .union(Self::SIGNALLED_SYSTEM_ERROR)
        .union(Self::PARITY_ERROR);
}
