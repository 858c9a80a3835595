//! The registers of one queue, and who holds the queue.

use virtqueue::QueueConfig;

use crate::core::QueuePhase;

/// One queue's registers. What a phase must not change it does not hand out for writing: only
/// [`Setup`](Self::Setup) has registers, the others a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueSlot {
    /// The driver is still writing.
    Setup(QueueConfig),
    /// `queue_enable` was written; the queue goes to the device at DRIVER_OK.
    Enabled(QueueConfig),
    /// The device has the queue.
    Live(QueueConfig),
}

impl QueueSlot {
    /// As after a reset: the largest size, no addresses (virtio 1.4, 4.1.4.3).
    pub(crate) fn new(max_size: u16) -> Self {
        Self::Setup(QueueConfig {
            max_size,
            size: max_size,
            ..QueueConfig::default()
        })
    }

    /// As it was saved.
    pub(crate) fn restored(phase: QueuePhase, config: QueueConfig) -> Self {
        match phase {
            QueuePhase::Setup => Self::Setup(config),
            // The device gets what it had when it is activated.
            QueuePhase::Enabled | QueuePhase::Live => Self::Enabled(config),
        }
    }

    pub(crate) fn phase(&self) -> QueuePhase {
        match self {
            Self::Setup(_) => QueuePhase::Setup,
            Self::Enabled(_) => QueuePhase::Enabled,
            Self::Live(_) => QueuePhase::Live,
        }
    }

    pub(crate) fn config(&self) -> &QueueConfig {
        match self {
            Self::Setup(config) | Self::Enabled(config) | Self::Live(config) => config,
        }
    }

    /// The registers, while the driver may write them.
    pub(crate) fn registers(&mut self) -> Option<&mut QueueConfig> {
        match self {
            Self::Setup(config) => Some(config),
            Self::Enabled(_) | Self::Live(_) => None,
        }
    }

    pub(crate) fn is_enabled(&self) -> bool {
        !matches!(self, Self::Setup(_))
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// `queue_enable` <- 1. A queue that does not exist (largest size 0) stays as it is, and so does
    /// one that is enabled already.
    pub(crate) fn enable(&mut self) {
        if let Self::Setup(config) = *self
            && config.max_size != 0
        {
            *self = Self::Enabled(config);
        }
    }

    /// As [`enable`](Self::enable) with these addresses, for a driver that writes all of them at once, and may do
    /// so again until the device has the queue.
    pub(crate) fn enable_at(&mut self, desc: u64, driver: u64, device: u64) {
        if let Self::Setup(config) | Self::Enabled(config) = *self
            && config.max_size != 0
        {
            *self = Self::Enabled(QueueConfig {
                desc,
                driver,
                device,
                ..config
            });
        }
    }

    /// The device takes an enabled queue.
    pub(crate) fn lend(&mut self) -> Option<QueueConfig> {
        let Self::Enabled(config) = *self else {
            return None;
        };
        *self = Self::Live(config);
        Some(config)
    }

    /// A queue that the device could not start stays enabled, and frozen.
    pub(crate) fn give_back(&mut self) {
        if let Self::Live(config) = *self {
            *self = Self::Enabled(config);
        }
    }
}

/// Whether a driver may write `size` into `queue_size`: 1 to the largest, and a power of two
/// unless rings are packed (virtio 1.4, 4.1.4.3.2).
pub(crate) fn size_is_legal(size: u16, max_size: u16, packed: bool) -> bool {
    size != 0 && size <= max_size && (packed || size.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_size_is_refused_unless_it_is_a_power_of_two_within_the_largest() {
        // (size, largest, packed, legal)
        let table = [
            (0, 256, false, false),
            (1, 256, false, true),
            (3, 256, false, false),
            (3, 256, true, true),
            (0, 256, true, false),
            (256, 256, false, true),
            (512, 256, false, false),
            (257, 256, true, false),
            (0x8000, 0x8000, false, true),
            (0xffff, 0x8000, false, false),
            (1, 0, false, false),
        ];
        for (size, max, packed, legal) in table {
            assert_eq!(size_is_legal(size, max, packed), legal, "{size} of {max}");
        }
    }

    #[test]
    fn only_a_queue_in_setup_hands_out_its_registers() {
        let mut slot = QueueSlot::new(256);
        assert!(slot.registers().is_some());
        slot.enable();
        assert!(slot.registers().is_none() && slot.is_enabled() && !slot.is_live());
        assert!(slot.lend().is_some());
        assert!(slot.registers().is_none() && slot.is_live());
        assert!(slot.lend().is_none(), "lent twice");
        slot.give_back();
        assert!(slot.registers().is_none() && slot.is_enabled());
    }

    #[test]
    fn a_queue_that_does_not_exist_cannot_be_enabled() {
        let mut slot = QueueSlot::new(0);
        slot.enable();
        assert!(!slot.is_enabled());
    }
}
