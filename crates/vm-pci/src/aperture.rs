//! Address ranges of the host.

use crate::Error;

/// A range of addresses that the host forwards to functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aperture {
    /// First address.
    pub base: u64,
    /// Bytes; none for a range that the machine does not have.
    pub size: u64,
}

impl Aperture {
    /// `size` bytes from `base` on.
    pub const fn new(base: u64, size: u64) -> Self {
        Self { base, size }
    }

    /// Whether the `size` bytes from `base` on are all in it.
    pub fn holds(&self, base: u64, size: u64) -> bool {
        let Some(offset) = base.checked_sub(self.base) else {
            return false;
        };
        offset.checked_add(size).is_some_and(|end| end <= self.size)
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: u64) -> bool {
        self.holds(address, 1)
    }

    /// Whether a byte is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.size != 0
            && other.size != 0
            && (self.contains(other.base) || other.contains(self.base))
    }

    /// Whether its end can be said and is not above `limit`.
    pub(crate) fn check(&self, limit: u64) -> Result<(), Error> {
        match self.base.checked_add(self.size) {
            Some(end) if end <= limit => Ok(()),
            _ => Err(self.bad()),
        }
    }

    pub(crate) fn bad(&self) -> Error {
        Error::BadAperture {
            base: self.base,
            size: self.size,
        }
    }
}
