//! The legacy interface: where the registers of the common configuration are in BAR 0, as far as
//! they exist there (virtio 1.4, 4.1.4.10).

use super::{Bar, BarKind, CommonRegister, identity};
use crate::{PciAddress, Platform, Width};

/// The page that legacy drivers count addresses in.
pub(super) const PAGE: u64 = 4096;
/// Where the queue's page number is.
pub(super) const QUEUE_PFN: u32 = 8;
/// Where the one notification register for all queues is.
pub(super) const QUEUE_NOTIFY: u32 = 16;
/// Where the ISR status is.
pub(super) const ISR: u32 = 19;

/// Where the device's configuration is: it moves while MSI-X is on.
pub(super) const fn config_offset(msix: bool) -> u32 {
    if msix { 24 } else { 20 }
}

/// The place of a register, if there is one; the vectors' are there only while MSI-X is on.
pub(super) const fn place(register: CommonRegister) -> Option<(u32, Width)> {
    Some(match register {
        CommonRegister::DeviceFeature => (0, Width::U32),
        CommonRegister::DriverFeature => (4, Width::U32),
        CommonRegister::QueueSize => (12, Width::U16),
        CommonRegister::QueueSelect => (14, Width::U16),
        CommonRegister::DeviceStatus => (18, Width::U8),
        CommonRegister::ConfigMsixVector => (20, Width::U16),
        CommonRegister::QueueMsixVector => (22, Width::U16),
        _ => return None,
    })
}

/// The first port of the registers of `function`, if it has a legacy interface: a device id from 0x1000 to
/// 0x103f, and BAR 0 in ports.
pub(super) fn find<P: Platform>(platform: &P, function: PciAddress) -> Option<Bar> {
    let (_, device) = identity(platform, function);
    Bar::read(platform, function, 0)
        .filter(|bar| bar.kind == BarKind::Io && (0x1000..0x1040).contains(&device))
}
