//! A device that its driver has suspended (virtio 1.4, 3.4).

use virtio::{DeviceStatus, F};
use vm_memory::GuestAddressSpace;

use super::{StatusEffect, VirtioCore};

impl<M: GuestAddressSpace> VirtioCore<M> {
    /// Whether the driver has suspended the device: it does no I/O, its configuration space stands still, and
    /// registers but for the status are not written.
    pub fn is_suspended(&self) -> bool {
        self.suspended.is_some()
    }

    /// A write to the status field that suspends the device or has it resume; `None` for any other.
    ///
    /// "The device MUST ignore any operations on the SUSPEND bit from the driver if the device has not been
    /// completely initialized", and it has the bit only with VIRTIO_F_SUSPEND.
    pub(super) fn suspend_or_resume(&mut self, written: DeviceStatus) -> Option<StatusEffect> {
        if self.is_suspended() {
            // A driver that gives up says so at any time.
            self.status |= written & DeviceStatus::FAILED;
            if !written.contains(DeviceStatus::DRIVER_OK) {
                return Some(StatusEffect::Noted);
            }
            self.status = (self.status - DeviceStatus::SUSPEND) | DeviceStatus::DRIVER_OK;
            if self.end_suspension()
                && let Some(transport) = self.transport.upgrade()
            {
                transport.config_changed();
            }
            return Some(StatusEffect::Live);
        }
        let may_suspend = self.negotiated().contains(F::SUSPEND)
            && self.status().contains(DeviceStatus::DRIVER_OK)
            && !(self.status()).intersects(DeviceStatus::FAILED | DeviceStatus::DEVICE_NEEDS_RESET);
        if !may_suspend || !written.contains(DeviceStatus::SUSPEND) {
            return None;
        }
        let was_held = self.is_held();
        self.health.suspend();
        let mut config = vec![0; self.device.config_len()];
        if !config.is_empty() {
            self.device.read_config(0, &mut config);
        }
        self.suspended = Some(config.into());
        self.follow_hold(was_held);
        self.status = (self.status - DeviceStatus::DRIVER_OK) | DeviceStatus::SUSPEND;
        Some(StatusEffect::Noted)
    }

    /// The device goes on if nothing else holds it. Whether a change of its configuration is to be told.
    pub(super) fn end_suspension(&mut self) -> bool {
        let was_held = self.is_held();
        if self.suspended.take().is_none() {
            return false;
        }
        self.follow_hold(was_held);
        self.health.resume()
    }
}
