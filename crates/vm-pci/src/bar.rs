//! Base address registers: their kinds, and the windows they decode.

use crate::Error;

/// Which of the six base address registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BarIndex(u8);

impl BarIndex {
    /// BAR `index`.
    ///
    /// # Errors
    /// [`Error::NoSuchBar`] above 5.
    pub const fn new(index: u8) -> Result<Self, Error> {
        if index > 5 {
            Err(Error::NoSuchBar(index))
        } else {
            Ok(Self(index))
        }
    }

    /// All six, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..6).map(Self)
    }

    /// The number, 0 to 5.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// The address space a BAR is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarSpace {
    /// I/O ports.
    Io,
    /// Memory.
    Memory,
}

/// A stretch of addresses that a function decodes for one of its BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarWindow {
    /// Which BAR.
    pub bar: BarIndex,
    /// Ports or memory.
    pub space: BarSpace,
    /// First address.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
}
