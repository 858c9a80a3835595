//! The legacy interface: BAR 0, as drivers from before virtio 1.0 know it (virtio 1.4, 4.1.4.10).
//!
//! Its registers are a header, two more while MSI-X is on, and the device's configuration space right behind
//! them: that moves when a driver switches MSI-X.

use virtio_bus::{Interface, StatusEffect};
use virtqueue::QueueIndex;
use vm_memory::GuestAddressSpace;

use crate::plugged::{Plugged, low};
use crate::registers::{self, RegisterFile};

/// One register of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegacyRegister {
    DeviceFeatures,
    DriverFeatures,
    QueuePfn,
    QueueSize,
    QueueSelect,
    QueueNotify,
    DeviceStatus,
    IsrStatus,
    ConfigMsixVector,
    QueueMsixVector,
}

use LegacyRegister::{
    ConfigMsixVector, DeviceFeatures, DeviceStatus, DriverFeatures, IsrStatus, QueueMsixVector,
    QueueNotify, QueuePfn, QueueSelect, QueueSize,
};

/// Each register with its bytes, in order and without gaps. The last two are there while MSI-X is on.
const HEADER: [(LegacyRegister, u8); 10] = [
    (DeviceFeatures, 4),
    (DriverFeatures, 4),
    (QueuePfn, 4),
    (QueueSize, 2),
    (QueueSelect, 2),
    (QueueNotify, 2),
    (DeviceStatus, 1),
    (IsrStatus, 1),
    (ConfigMsixVector, 2),
    (QueueMsixVector, 2),
];

/// Where the notify register is.
pub(crate) const NOTIFY: u64 = 0x10;

/// The registers that are there, and their bytes.
fn header(msix: bool) -> (&'static [(LegacyRegister, u8)], usize) {
    if msix {
        (&HEADER, 24)
    } else {
        let (without, _) = HEADER.split_at(8);
        (without, 20)
    }
}

/// Bytes of BAR 0: what it takes with the longer header, if there is MSI-X to switch on.
pub(crate) fn size(has_msix: bool, config_len: usize) -> u64 {
    let (_, header) = header(has_msix);
    (header as u64)
        .saturating_add(config_len as u64)
        .next_power_of_two()
}

impl<M: GuestAddressSpace> Plugged<M> {
    /// Reads BAR 0. An access over the end of the header goes on in configuration space.
    pub(crate) fn legacy_read(&mut self, offset: u64, data: &mut [u8]) {
        let (table, header) = header(self.function.msix_enabled());
        let (part, rest) = data.split_at_mut(before(header, offset, data.len()));
        registers::read(self, table, offset, part);
        if !rest.is_empty() {
            let inside = offset.saturating_sub(header as u64);
            self.core.read_config(inside, rest);
        }
    }

    /// Writes BAR 0.
    pub(crate) fn legacy_write(&mut self, offset: u64, data: &[u8]) {
        let (table, header) = header(self.function.msix_enabled());
        let (part, rest) = data.split_at(before(header, offset, data.len()));
        registers::write(self, table, offset, part);
        // "The transitional device MUST support the driver writing device configuration fields before the step
        // [of reading features]" (virtio 1.4, 3.1.2), and so before it is a legacy driver's.
        if !rest.is_empty() && self.core.interface() != Some(Interface::Modern) {
            let inside = offset.saturating_sub(header as u64);
            self.core.write_config(inside, rest);
        }
    }
}

/// How many of `len` bytes from `offset` on are before `end`.
fn before(end: usize, offset: u64, len: usize) -> usize {
    usize::try_from(offset).map_or(0, |offset| end.saturating_sub(offset).min(len))
}

impl<M: GuestAddressSpace> RegisterFile<LegacyRegister> for Plugged<M> {
    fn read(&mut self, register: LegacyRegister) -> u32 {
        let core = &mut self.core;
        match register {
            DeviceFeatures => core.legacy_features(),
            DriverFeatures => core.legacy_driver_features(),
            QueuePfn => core.queue_pfn(),
            QueueSize => core.queue_size().into(),
            QueueSelect => core.queue_select().into(),
            QueueNotify => 0,
            DeviceStatus => core.legacy_status().bits().into(),
            IsrStatus => self.interrupts.take_isr().into(),
            ConfigMsixVector => self.interrupts.config_vector().into(),
            QueueMsixVector => self.interrupts.queue_vector(core.queue_select()).into(),
        }
    }

    fn write(&mut self, register: LegacyRegister, value: u32) {
        let core = &mut self.core;
        let is_modern = core.interface() == Some(Interface::Modern);
        let effect = match register {
            DeviceStatus => core.write_legacy_status(value.to_le_bytes()[0]),
            _ if is_modern => StatusEffect::Noted,
            DriverFeatures => {
                core.set_legacy_driver_features(value);
                StatusEffect::Noted
            }
            QueuePfn => core.set_queue_pfn(value),
            QueueNotify => core.legacy_notify(QueueIndex(low(value))),
            QueueSelect => {
                core.set_queue_select(low(value));
                StatusEffect::Noted
            }
            ConfigMsixVector => {
                self.interrupts.set_config_vector(low(value));
                StatusEffect::Noted
            }
            QueueMsixVector => {
                self.map_queue(low(value));
                StatusEffect::Noted
            }
            DeviceFeatures | QueueSize | IsrStatus => StatusEffect::Noted,
        };
        self.take_effect(effect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_as_long_as_their_registers() {
        for msix in [false, true] {
            let (table, len) = header(msix);
            let sum: usize = table.iter().map(|(_, size)| usize::from(*size)).sum();
            assert_eq!(sum, len);
        }
    }

    #[test]
    fn the_bar_has_room_for_either_header_and_the_configuration() {
        // (MSI-X, bytes of configuration, bytes of the BAR: QEMU 7.2's)
        let table = [
            (true, 8, 0x20),
            (true, 10, 0x40),
            (false, 12, 0x20),
            (false, 24, 0x40),
            (true, 0, 0x20),
        ];
        for (msix, config, expected) in table {
            assert_eq!(size(msix, config), expected, "{msix} {config}");
        }
    }
}
