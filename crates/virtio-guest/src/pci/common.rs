//! The registers of the common configuration structure.

use crate::Width;

/// A register of `virtio_pci_common_cfg` (virtio 1.4, 4.1.4.3).
///
/// The three 64-bit addresses are two registers each, as the driver must write them (4.1.3.1).
#[doc(alias = "virtio_pci_common_cfg")]
#[expect(missing_docs, reason = "the specification's names, in its order")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommonRegister {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    QueueNotifConfigData,
    QueueReset,
}

impl CommonRegister {
    /// Offset in the structure and width.
    #[must_use]
    pub const fn place(self) -> (u32, Width) {
        match self {
            Self::DeviceFeatureSelect => (0x00, Width::U32),
            Self::DeviceFeature => (0x04, Width::U32),
            Self::DriverFeatureSelect => (0x08, Width::U32),
            Self::DriverFeature => (0x0c, Width::U32),
            Self::ConfigMsixVector => (0x10, Width::U16),
            Self::NumQueues => (0x12, Width::U16),
            Self::DeviceStatus => (0x14, Width::U8),
            Self::ConfigGeneration => (0x15, Width::U8),
            Self::QueueSelect => (0x16, Width::U16),
            Self::QueueSize => (0x18, Width::U16),
            Self::QueueMsixVector => (0x1a, Width::U16),
            Self::QueueEnable => (0x1c, Width::U16),
            Self::QueueNotifyOff => (0x1e, Width::U16),
            Self::QueueDescLow => (0x20, Width::U32),
            Self::QueueDescHigh => (0x24, Width::U32),
            Self::QueueDriverLow => (0x28, Width::U32),
            Self::QueueDriverHigh => (0x2c, Width::U32),
            Self::QueueDeviceLow => (0x30, Width::U32),
            Self::QueueDeviceHigh => (0x34, Width::U32),
            Self::QueueNotifConfigData => (0x38, Width::U16),
            Self::QueueReset => (0x3a, Width::U16),
        }
    }
}

/// How much of the structure every device has: up to and with `queue_device`.
pub(super) const COMMON_LENGTH: u32 = 0x38;
