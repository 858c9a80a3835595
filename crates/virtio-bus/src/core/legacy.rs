//! The legacy interface: the registers of drivers from before virtio 1.0, as every transport has them.
//!
//! Such a driver sees 32 features, has no FEATURES_OK, places each queue by the number of its first page, and
//! may use the device before it says DRIVER_OK (virtio 1.4, 3.1.2): the device runs from the first kick on
//! at the latest. Numbers are little-endian here, as the guests that this workspace runs are.

use std::sync::Arc;

use virtio::{DeviceStatus, F, le128};
use virtqueue::{QueueConfig, QueueIndex};
use vm_memory::GuestAddressSpace;

use super::{Interface, StatusEffect, VirtioCore, lend, signal};

/// VIRTIO_F_ANY_LAYOUT: buffers may be cut into descriptors in any way, as they always may with the modern
/// interface. A transitional device must offer it to legacy drivers (virtio 1.4, 6.3).
#[doc(alias = "VIRTIO_F_ANY_LAYOUT")]
pub const ANY_LAYOUT: F = F::from_bits_retain(le128::from_ne(1 << 27));

/// Bytes of a page, in which legacy drivers count addresses; a legacy queue's device area begins on the next one.
const PAGE: u64 = 4096;

/// The status bits that a legacy driver has.
const LEGACY_STATUS: DeviceStatus = DeviceStatus::ACKNOWLEDGE
    .union(DeviceStatus::DRIVER)
    .union(DeviceStatus::DRIVER_OK)
    .union(DeviceStatus::FAILED);

impl<M: GuestAddressSpace> VirtioCore<M> {
    /// Lets drivers use the legacy interface, which offers `adds` beside the device's own features. To be
    /// called before the first driver comes.
    pub fn offer_legacy(&mut self, adds: F) {
        self.legacy = Some(adds);
    }

    /// Device features: bits 0 to 31 of what is offered, with what only this interface offers.
    pub fn legacy_features(&self) -> u32 {
        let adds = self.legacy.unwrap_or_default();
        low_word(self.features.offered | adds)
    }

    /// Driver features: bits 0 to 31 of what the driver chose.
    pub fn legacy_driver_features(&self) -> u32 {
        low_word(self.features.chosen)
    }

    /// Sets the driver's choice. Bits that are not offered stay clear, since the driver cannot be told
    /// otherwise; "Feature Bits 32 to 63 are not acknowledged" (virtio 1.4, 4.1.4.10). Ignored once the device runs:
    /// "devices finalized features on first-use" (3.1.2).
    pub fn set_legacy_driver_features(&mut self, value: u32) {
        if self.claim_legacy() && !self.health.is_live() {
            let chosen = value & self.legacy_features();
            self.features.chosen = F::from_bits_retain(le128::from_ne(chosen.into()));
        }
    }

    /// The number of the page that the selected queue begins with; 0 before it has one.
    pub fn queue_pfn(&self) -> u32 {
        let desc = self.queue_address(super::QueueArea::Descriptor);
        u32::try_from(desc / PAGE).unwrap_or(0)
    }

    /// Places the selected queue, whose size is the device's choice, and enables it: descriptors, then what the
    /// driver makes available, then on the next page what the device has used (virtio 1.4, 2.7.2). A queue
    /// that the device has stays where it is. 0 gives up all queues: the device is reset (QEMU 7.2).
    pub fn set_queue_pfn(&mut self, pfn: u32) -> StatusEffect {
        if !self.claim_legacy() {
            return StatusEffect::Noted;
        }
        if pfn == 0 {
            self.reset();
            return StatusEffect::Reset;
        }
        let index = self.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return StatusEffect::Noted;
        };
        let [desc, driver, device] = areas(pfn, queue.slot.config());
        queue.slot.enable_at(desc, driver, device);
        if !self.health.is_live() || self.health.is_broken() {
            return StatusEffect::Noted;
        }
        // The device runs already, for a driver that used one queue before it set up the next.
        match lend(QueueIndex(index), queue, self.features.chosen) {
            Some(active) => {
                let kick = Arc::clone(&queue.kick);
                if let Err(refused) = self.device.start_queue(active) {
                    self.take_back(refused);
                    return StatusEffect::Noted;
                }
                signal(&kick);
                StatusEffect::Live
            }
            None => StatusEffect::Noted,
        }
    }

    /// Device status as a legacy driver reads it.
    pub fn legacy_status(&self) -> DeviceStatus {
        self.status & LEGACY_STATUS
    }

    /// The driver writes device status. 0 resets; otherwise its bits are noted, in any order, and DRIVER_OK has
    /// the device run. As with the other interface no bit is cleared but by a reset.
    pub fn write_legacy_status(&mut self, value: u8) -> StatusEffect {
        if value == 0 {
            self.reset();
            return StatusEffect::Reset;
        }
        if !self.claim_legacy() {
            return StatusEffect::Noted;
        }
        let written = DeviceStatus::from_bits_retain(value) & LEGACY_STATUS;
        let starts = (written - self.status).contains(DeviceStatus::DRIVER_OK);
        self.status |= written;
        if starts {
            self.start()
        } else {
            StatusEffect::Noted
        }
    }

    /// The driver notifies the device of buffers in `queue`. Where the device does not run yet, this is its
    /// first use: "The transitional device MUST support the driver using the device before the step" that sets DRIVER_OK
    /// (virtio 1.4, 3.1.2). A queue that the driver has not placed is ignored.
    pub fn legacy_notify(&mut self, queue: QueueIndex) -> StatusEffect {
        let is_placed =
            (self.queues.get(usize::from(queue.0))).is_some_and(|queue| queue.slot.is_enabled());
        if !is_placed || !self.claim_legacy() {
            return StatusEffect::Noted;
        }
        if !self.health.is_live() {
            return self.start();
        }
        if let Some((_, kick)) = self.live_queues().find(|(live, _)| *live == queue) {
            signal(kick);
        }
        StatusEffect::Noted
    }

    fn claim_legacy(&mut self) -> bool {
        self.legacy.is_some() && self.claim(Interface::Legacy)
    }

    /// The device runs with the features as they are now, unless it does already or its driver gave up.
    fn start(&mut self) -> StatusEffect {
        let gave_up = self.status.contains(DeviceStatus::FAILED) || self.health.is_broken();
        if self.health.is_live() || gave_up {
            return StatusEffect::Noted;
        }
        if let Err(refused) = self.device.negotiate(self.features.chosen) {
            tracing::debug!(%refused, "a legacy driver's features");
            if let Some(transport) = self.transport.upgrade() {
                transport.needs_reset(&refused.to_string());
            }
            return StatusEffect::Noted;
        }
        if self.activate() {
            StatusEffect::Live
        } else {
            StatusEffect::Noted
        }
    }
}

/// Descriptor, driver and device area of a queue whose first page is `pfn`. Each sum is below 2^45.
fn areas(pfn: u32, config: &QueueConfig) -> [u64; 3] {
    let size = u64::from(config.size);
    let desc = u64::from(pfn) * PAGE;
    let driver = desc + 16 * size;
    // Flags, index, ring, used_event.
    let end = driver + 6 + 2 * size;
    [desc, driver, end.next_multiple_of(PAGE)]
}

fn low_word(features: F) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bits 0 to 31 are asked for"
    )]
    let word = features.bits().to_ne() as u32;
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_lies_as_the_legacy_layout_says() {
        // (page, size, descriptors, available, used)
        let table = [
            (0x100, 256, 0x10_0000, 0x10_1000, 0x10_2000),
            (1, 8, 0x1000, 0x1080, 0x2000),
            (1, 128, 0x1000, 0x1800, 0x2000),
            (2, 1024, 0x2000, 0x6000, 0x7000),
            (
                u32::MAX,
                0x8000,
                0xfff_ffff_f000,
                0x1000_0007_f000,
                0x1000_0009_0000,
            ),
        ];
        for (pfn, size, desc, driver, device) in table {
            let config = QueueConfig {
                size,
                max_size: size,
                ..QueueConfig::default()
            };
            assert_eq!(
                areas(pfn, &config),
                [desc, driver, device],
                "{pfn:#x} {size}"
            );
        }
    }
}
