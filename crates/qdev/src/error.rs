//! Why a device cannot be added, moved or removed.
//!
//! The words are what QEMU prints; an error of another crate goes in as [`Error::other`], with its own words.

use qom::{BoxedError, PropertyError};

use crate::Phase;

/// Why a device cannot be added, moved or removed; worded as QEMU words it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The option string.
    #[error(transparent)]
    Options(#[from] keyval::Error),
    /// A property.
    #[error(transparent)]
    Property(#[from] PropertyError),
    /// A type cannot be made into an object.
    #[error(transparent)]
    Type(qom::Error),
    /// The option string asks for help, which the caller prints; it names no device.
    #[error("help was asked for, and no device")]
    WantsHelp,
    /// No device type of this name is registered.
    #[error("'{0}' is not a valid device model name")]
    NotADeviceModel(String),
    /// The type is abstract.
    #[error("Parameter 'driver' expects a non-abstract device type")]
    AbstractDriver,
    /// Help was asked of a type that has no devices.
    #[error("Parameter 'typename' expects a non-abstract device type")]
    NotAConcreteType,
    /// QEMU has devices of this type; here there are none yet.
    #[error("'{driver}' is not supported: {reason}")]
    NotBuilt {
        /// The type.
        driver: String,
        /// What is missing.
        reason: &'static str,
    },
    /// The type is not for users to add, or not any more.
    #[error("Parameter 'driver' expects a pluggable device type")]
    NotPluggable,
    /// Another device has this id.
    #[error("Duplicate ID '{0}' for device")]
    DuplicateId(String),
    /// Another device has this id, and the machine runs: QEMU then words it otherwise.
    #[error("Duplicate device ID '{0}'")]
    DuplicateDeviceId(String),
    /// No bus of this name.
    #[error("Bus '{0}' not found")]
    BusNotFound(String),
    /// The path names a device as if it were a bus, and it has no bus.
    #[error("Device '{0}' has no child bus")]
    NoChildBus(String),
    /// The path names a device as if it were a bus, and it has several.
    #[error("Device '{0}' has multiple child buses")]
    SeveralChildBuses(String),
    /// The bus is of another type than the device needs.
    #[error("Device '{device}' can't go on {bus} bus")]
    WrongBus {
        /// Type of the device.
        device: String,
        /// Type of the bus.
        bus: String,
    },
    /// There is no bus, or no bus with room, that the device could go on.
    #[error("No '{bus}' bus found for device '{device}'")]
    NoBus {
        /// Type of the bus that was looked for.
        bus: String,
        /// Type of the device.
        device: String,
    },
    /// The bus that was asked for has no room.
    #[error("Bus '{0}' is full")]
    BusFull(String),
    /// The machine runs, and the bus cannot take or give devices any more.
    #[error("Bus '{0}' does not support hotplugging")]
    BusNotHotpluggable(String),
    /// The device cannot be removed.
    #[error("Device '{0}' does not support hotplugging")]
    DeviceNotHotpluggable(String),
    /// The object that is to be removed is no device.
    #[error("{0} is not a hotpluggable device")]
    NotAHotpluggableDevice(String),
    /// No device of this id.
    #[error("Device '{0}' not found")]
    DeviceNotFound(String),
    /// The path leads to several objects.
    #[error("Path '{0}' is ambiguous")]
    AmbiguousPath(String),
    /// The device was asked to leave already.
    #[error("Device {0} is already in the process of unplug")]
    UnplugPending(String),
    /// The device is not in a phase from which it could do this.
    #[error("device '{device}' cannot go from {from} to {to}")]
    IllegalMove {
        /// Type of the device.
        device: String,
        /// Where it is.
        from: Phase,
        /// Where it was to go.
        to: Phase,
    },
    /// The device is being realized or unrealized at this moment.
    #[error("device '{0}' is busy")]
    Busy(String),
    /// The machine does not have what the device needs.
    #[error("the machine provides no {0}")]
    MissingService(&'static str),
    /// The object is no device.
    #[error("object of type '{0}' is no device")]
    NotADevice(String),
    /// The object is no bus.
    #[error("object of type '{0}' is no bus")]
    NotABus(String),
    /// What a level or a bus reports, in its own words.
    #[error(transparent)]
    Hook(BoxedError),
}

impl Error {
    /// An error of the device's or the bus's own.
    pub fn other(error: impl Into<BoxedError>) -> Self {
        Self::Hook(error.into())
    }
}

impl From<qom::Error> for Error {
    fn from(error: qom::Error) -> Self {
        match error {
            qom::Error::Property(error) => Self::Property(error),
            error => Self::Type(error),
        }
    }
}
