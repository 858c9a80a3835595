//! Where a function is on its bus.

use std::fmt;

use crate::Error;

/// Device number (0 to 31) and function number (0 to 7) on one bus.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevFn(u8);

impl DevFn {
    /// Puts the two numbers together.
    ///
    /// # Errors
    /// [`Error::NoSuchDevFn`] for a device above 31 or a function above 7.
    pub const fn new(device: u8, function: u8) -> Result<Self, Error> {
        if device > 31 || function > 7 {
            return Err(Error::NoSuchDevFn { device, function });
        }
        Ok(Self(device << 3 | function))
    }

    /// From the byte that a configuration address has it in; every byte is one.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }

    /// The byte that a configuration address has it in.
    pub const fn to_byte(self) -> u8 {
        self.0
    }

    /// The device number.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device(), self.function())
    }
}

impl fmt::Debug for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevFn({self})")
    }
}
