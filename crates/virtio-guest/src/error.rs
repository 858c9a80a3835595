//! What can keep a driver from working.

use core::fmt;

use crate::PciAddress;

/// Why the driver cannot do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No function answers at this address, or it is not a virtio device.
    NotVirtio(PciAddress),
    /// The capability list loops or leaves configuration space.
    BadCapabilityList,
    /// A structure that the driver cannot do without has no usable capability: which one
    /// (`cfg_type` of virtio 1.4, 4.1.4).
    MissingCapability(u8),
    /// A structure lies in a base address register that is not implemented or has no address.
    BarUnassigned(u8),
    /// The device did not come back from reset in time.
    ResetTimeout,
    /// The device does not offer `VIRTIO_F_VERSION_1`: it is legacy only.
    Legacy,
    /// Features that the driver insists on and the device does not offer, or that need others
    /// which are missing (all 128 bits).
    Features(u128),
    /// The device did not accept the features that were written.
    FeaturesRefused,
    /// The device has no queue with this index.
    NoQueue(u16),
    /// The device has no MSI-X capability, or not that many vectors.
    NoVector(u16),
    /// The device did not take the vector for what it was to signal.
    VectorRefused(u16),
    /// A queue size of 0, above what device or driver can hold, or that the ring's format does not have (split: no
    /// power of two).
    QueueSize(u16),
    /// Memory for rings or buffers ran out at a piece of this length.
    OutOfMemory {
        /// Length of the piece that was asked for, in bytes.
        len: u32,
    },
    /// Every descriptor or buffer is in flight; reap completions and try again.
    QueueFull,
    /// The frame is longer than the driver's buffers.
    FrameTooLong(usize),
    /// The device wrote something into the used ring that no device may: the queue is lost until
    /// the device is reset.
    BrokenRing(u16),
    /// The device did not answer a control command before the caller gave up.
    ControlTimeout,
    /// Asked for something whose feature was not negotiated.
    NotNegotiated,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVirtio(address) => write!(f, "{address} is not a virtio device"),
            Self::BadCapabilityList => f.write_str("the capability list is malformed"),
            Self::MissingCapability(kind) => {
                write!(f, "no usable virtio capability of type {kind}")
            }
            Self::BarUnassigned(bar) => write!(f, "base address register {bar} has no address"),
            Self::ResetTimeout => f.write_str("the device stays in reset"),
            Self::Legacy => f.write_str("the device does not offer VIRTIO_F_VERSION_1"),
            Self::Features(bits) => {
                write!(
                    f,
                    "features {bits:#x} are not offered or lack what they need"
                )
            }
            Self::FeaturesRefused => f.write_str("the device refused the features"),
            Self::NoQueue(index) => write!(f, "the device has no queue {index}"),
            Self::NoVector(vector) => write!(f, "the device has no MSI-X vector {vector}"),
            Self::VectorRefused(vector) => write!(f, "the device refused MSI-X vector {vector}"),
            Self::QueueSize(size) => write!(f, "a queue cannot have {size} entries"),
            Self::OutOfMemory { len } => write!(f, "no memory left for {len} bytes"),
            Self::QueueFull => f.write_str("all buffers are in flight"),
            Self::FrameTooLong(len) => write!(f, "a frame of {len} bytes is too long"),
            Self::BrokenRing(index) => write!(f, "the device broke the used ring of queue {index}"),
            Self::ControlTimeout => f.write_str("no answer to a control command"),
            Self::NotNegotiated => f.write_str("the feature was not negotiated"),
        }
    }
}

impl core::error::Error for Error {}
