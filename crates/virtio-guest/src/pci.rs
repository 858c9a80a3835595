//! PCI as a driver sees it: which functions there are, their capabilities and base addresses.

mod bar;
mod capability;
mod common;
mod legacy;
mod msix;
mod transport;

pub use bar::{Bar, BarKind};
pub use capability::{Capabilities, Capability, VirtioCapability};
pub use common::CommonRegister;
pub use msix::{Msix, MsixMessage};
pub use transport::{InterruptStatus, NO_VECTOR, Structure, VirtioPciTransport};

use crate::{PciAddress, Platform, Width};

/// The functions on one bus, in order of their numbers; no bridge is crossed.
///
/// Functions 1 to 7 of a device are looked at only where its function 0 says that it has more.
pub fn functions<P: Platform>(platform: &P, bus: u8) -> impl Iterator<Item = PciAddress> {
    let mut multifunction = false;
    (0..=u8::MAX).filter_map(move |devfn| {
        let address = PciAddress::from_devfn(bus, devfn);
        if address.function() == 0 {
            multifunction = false;
        } else if !multifunction {
            return None;
        }
        if platform.config_read(address, VENDOR_ID, Width::U16) == 0xffff {
            return None;
        }
        if address.function() == 0 {
            multifunction = platform.config_read(address, HEADER_TYPE, Width::U8) & 0x80 != 0;
        }
        Some(address)
    })
}

/// Vendor and device id of a function.
pub fn identity<P: Platform>(platform: &P, address: PciAddress) -> (u16, u16) {
    let word = platform.config_read(address, VENDOR_ID, Width::U32);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a dword")]
    let halves = (word as u16, (word >> 16) as u16);
    halves
}

/// Whether a function is a virtio network device: 1af4:1041, or 1af4:1000 if it is transitional
/// (virtio 1.4, 4.1.2 and 5.1.1).
pub fn is_virtio_net<P: Platform>(platform: &P, address: PciAddress) -> bool {
    matches!(
        identity(platform, address),
        (VENDOR_VIRTIO, 0x1041 | 0x1000)
    )
}

/// Sets and clears bits of the command register, and returns what it was.
pub fn change_command<P: Platform>(platform: &P, address: PciAddress, set: u16, clear: u16) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "read with two bytes")]
    let old = platform.config_read(address, COMMAND, Width::U16) as u16;
    platform.config_write(address, COMMAND, Width::U16, ((old & !clear) | set).into());
    old
}

/// Command register: answer to I/O space.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command register: answer to memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: may reach memory by itself, interrupts by message included.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command register: leave the interrupt line alone.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Vendor id of all virtio functions.
pub const VENDOR_VIRTIO: u16 = 0x1af4;

// Offsets in configuration space (PCI Local Bus 3.0, 6.1).
const VENDOR_ID: u16 = 0x00;
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const HEADER_TYPE: u16 = 0x0e;
const BASE_ADDRESS_0: u16 = 0x10;
const CAPABILITIES_POINTER: u16 = 0x34;
