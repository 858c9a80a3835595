//! The status field: which bit may be set when (virtio 1.4, 2.1).

use virtio::DeviceStatus;

/// What setting a status bit asks of the device before the bit shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: the bit is a note from the driver.
    Note,
    /// The device looks at the features and may refuse.
    Negotiate,
    /// The device runs.
    Activate,
}

/// One legal move: a bit that the driver may set, and what must be and must not be set before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) sets: DeviceStatus,
    pub(crate) after: DeviceStatus,
    pub(crate) unless: DeviceStatus,
    pub(crate) step: Step,
}

/// All moves, in the order of initialization (virtio 1.4, 3.1.1), which is the order in which several
/// bits of one write are taken.
///
/// What is not here is ignored: the driver "MUST NOT clear a device status bit" (2.1.1), so a bit
/// missing in a write stays set; DEVICE_NEEDS_RESET is the device's own; SUSPEND, which exists only
/// with VIRTIO_F_SUSPEND, and DRIVER_OK after it are looked at before. Writing 0 is no move but a reset.
pub(crate) const MOVES: [Move; 5] = [
    // "Set the ACKNOWLEDGE status bit: the guest OS has noticed the device." (3.1.1 step 2)
    Move {
        sets: DeviceStatus::ACKNOWLEDGE,
        after: DeviceStatus::empty(),
        unless: DeviceStatus::empty(),
        step: Step::Note,
    },
    // "Set the DRIVER status bit: the guest OS knows how to drive the device." (3.1.1 step 3)
    Move {
        sets: DeviceStatus::DRIVER,
        after: DeviceStatus::empty(),
        unless: DeviceStatus::empty(),
        step: Step::Note,
    },
    // "Set the FEATURES_OK status bit. The driver MUST NOT accept new feature bits after this step."
    // (3.1.1 step 5); "the driver MUST later reset the device before attempting to re-initialize"
    // after FAILED (2.1.1).
    Move {
        sets: DeviceStatus::FEATURES_OK,
        after: DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER),
        unless: DeviceStatus::FAILED.union(DeviceStatus::DEVICE_NEEDS_RESET),
        step: Step::Negotiate,
    },
    // "Set the DRIVER_OK status bit. At this point the device is “live”." (3.1.1 step 8), after
    // "Re-read device status to ensure the FEATURES_OK bit is still set: otherwise [...] the device is
    // unusable." (step 6)
    Move {
        sets: DeviceStatus::DRIVER_OK,
        after: DeviceStatus::ACKNOWLEDGE
            .union(DeviceStatus::DRIVER)
            .union(DeviceStatus::FEATURES_OK),
        unless: DeviceStatus::FAILED.union(DeviceStatus::DEVICE_NEEDS_RESET),
        step: Step::Activate,
    },
    // "If any of these steps go irrecoverably wrong, the driver SHOULD set the FAILED status bit to
    // indicate that it has given up on the device" (3.1.1)
    Move {
        sets: DeviceStatus::FAILED,
        after: DeviceStatus::empty(),
        unless: DeviceStatus::empty(),
        step: Step::Note,
    },
];

impl Move {
    /// Whether a driver that writes `written` while the field reads `current` makes this move.
    pub(crate) fn is_made(&self, current: DeviceStatus, written: DeviceStatus) -> bool {
        written.contains(self.sets)
            && !current.contains(self.sets)
            && current.contains(self.after)
            && !current.intersects(self.unless)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field after a write, had the device agreed to all.
    fn after(current: DeviceStatus, written: DeviceStatus) -> DeviceStatus {
        let mut status = current;
        for made in &MOVES {
            if made.is_made(status, written) {
                status |= made.sets;
            }
        }
        status
    }

    #[test]
    fn no_write_clears_a_bit_or_sets_one_that_is_not_the_drivers() {
        for current in 0..=u8::MAX {
            for written in 0..=u8::MAX {
                let before = DeviceStatus::from_bits_retain(current);
                let written = DeviceStatus::from_bits_retain(written);
                let now = after(before, written);
                assert!(now.contains(before), "{before:?} {written:?}");
                let set = now.difference(before);
                assert!(written.contains(set), "{before:?} {written:?}");
                assert!(
                    !set.intersects(DeviceStatus::from_bits_retain(0x70)),
                    "{before:?} {written:?}"
                );
                if set.contains(DeviceStatus::DRIVER_OK) {
                    assert!(now.contains(DeviceStatus::FEATURES_OK), "{written:?}");
                }
            }
        }
    }

    #[test]
    fn the_moves_a_driver_makes_and_the_ones_it_must_not() {
        // (field, written, field after)
        let table = [
            (0x00, 0x01, 0x01),
            (0x01, 0x03, 0x03),
            (0x03, 0x0b, 0x0b),
            (0x0b, 0x0f, 0x0f),
            (0x00, 0x0f, 0x0f),
            (0x01, 0x02, 0x03),
            (0x00, 0x04, 0x00),
            (0x03, 0x07, 0x03),
            (0x00, 0x08, 0x00),
            (0x0f, 0x01, 0x0f),
            (0x03, 0x83, 0x83),
            (0x83, 0x8b, 0x83),
            (0x8b, 0x8f, 0x8b),
            (0x4b, 0x0f, 0x4b),
            (0x0f, 0x4f, 0x0f),
            (0x0f, 0x1f, 0x0f),
        ];
        for (current, written, expected) in table {
            let now = after(
                DeviceStatus::from_bits_retain(current),
                DeviceStatus::from_bits_retain(written),
            );
            assert_eq!(now.bits(), expected, "{current:#x} <- {written:#x}");
        }
    }
}
