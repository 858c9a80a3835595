//! Memory that driver and device share.

use crate::{Error, Platform};

/// A range of memory that the device can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRegion {
    /// Guest-physical address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

impl DmaRegion {
    /// The `index`-th piece of `len` bytes; `None` past the end.
    #[must_use]
    pub fn piece(&self, index: u16, len: u32) -> Option<Self> {
        let start = u32::from(index).checked_mul(len)?;
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Self {
            address: self.address.wrapping_add(start.into()),
            len,
        })
    }

    /// Fills the range with zeros.
    pub fn clear<P: Platform>(&self, platform: &P) {
        let zeros = [0; 256];
        let mut done = 0;
        while done < self.len {
            let step = (self.len - done).min(256);
            platform.memory_write(
                self.address.wrapping_add(done.into()),
                &zeros[..step as usize],
            );
            done += step;
        }
    }
}

/// Hands out pieces of one region, front to back; nothing comes back.
///
/// The driver takes its rings and buffers from it once, when it starts. A driver that starts anew
/// gets the whole region anew.
#[derive(Debug)]
pub struct DmaMemory {
    rest: DmaRegion,
}

impl DmaMemory {
    /// All of `region` is to be given out.
    #[must_use]
    pub const fn new(region: DmaRegion) -> Self {
        Self { rest: region }
    }

    /// Takes `len` bytes aligned to `align`, a power of two.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] when the region has not got them.
    pub fn take(&mut self, len: u32, align: u32) -> Result<DmaRegion, Error> {
        let mask = u64::from(align.max(1)) - 1;
        let pad = self.rest.address.wrapping_neg() & mask;
        let needed = pad + u64::from(len);
        let left = u64::from(self.rest.len)
            .checked_sub(needed)
            .ok_or(Error::OutOfMemory { len })?;
        let taken = DmaRegion {
            address: self.rest.address.wrapping_add(pad),
            len,
        };
        self.rest.address = self.rest.address.wrapping_add(needed);
        self.rest.len = u32::try_from(left).map_err(|_| Error::OutOfMemory { len })?;
        Ok(taken)
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        self.rest.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_do_not_overlap() {
        let mut memory = DmaMemory::new(DmaRegion {
            address: 0x1004,
            len: 0x100,
        });
        assert_eq!(
            memory.take(6, 2),
            Ok(DmaRegion {
                address: 0x1004,
                len: 6
            })
        );
        assert_eq!(
            memory.take(16, 16),
            Ok(DmaRegion {
                address: 0x1010,
                len: 16
            })
        );
        assert_eq!(memory.remaining(), 0x1104 - 0x1020);
    }

    #[test]
    fn a_piece_that_only_its_padding_does_not_fit_is_refused() {
        let mut memory = DmaMemory::new(DmaRegion {
            address: 0x1001,
            len: 16,
        });
        assert_eq!(memory.take(16, 16), Err(Error::OutOfMemory { len: 16 }));
        assert_eq!(memory.remaining(), 16);
    }

    #[test]
    fn a_piece_past_the_end_is_none() {
        let region = DmaRegion {
            address: 0x1000,
            len: 100,
        };
        assert_eq!(
            region.piece(1, 40),
            Some(DmaRegion {
                address: 0x1028,
                len: 40
            })
        );
        assert_eq!(region.piece(2, 40), None);
        assert_eq!(region.piece(u16::MAX, u32::MAX), None);
    }
}
