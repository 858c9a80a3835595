//! MSI-X: interrupts by message (PCI Local Bus 3.0, 6.8.2).

use super::{Bar, BarKind, Capability};
use crate::{Error, PciAddress, Platform, Width};

/// What the function writes, and where, to raise one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixMessage {
    /// Bus address that is written to.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// The MSI-X capability of a function, with the addresses of its table and pending bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    function: PciAddress,
    capability: u8,
    vectors: u16,
    table: u64,
    pending: u64,
}

impl Msix {
    /// Reads the capability and the BARs that it names.
    ///
    /// # Errors
    ///
    /// [`Error::BarUnassigned`] if one of the BARs is not in memory space or has no address.
    pub fn read<P: Platform>(
        platform: &P,
        function: PciAddress,
        capability: Capability,
    ) -> Result<Self, Error> {
        let offset = u16::from(capability.offset);
        let control = platform.config_read(function, offset + 2, Width::U16);
        let locate = |field| {
            let word = platform.config_read(function, offset + field, Width::U32);
            let index = (word & 7) as u8;
            match Bar::read(platform, function, index) {
                Some(Bar {
                    kind: BarKind::Memory32 | BarKind::Memory64,
                    address,
                }) if address != 0 => Ok(address.wrapping_add(u64::from(word & !7))),
                _ => Err(Error::BarUnassigned(index)),
            }
        };
        let vectors = (control & 0x7ff) as u16 + 1;
        Ok(Self {
            function,
            capability: capability.offset,
            vectors,
            table: locate(4)?,
            pending: locate(8)?,
        })
    }

    /// How many vectors the table has, 1 to 2048.
    #[must_use]
    pub const fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Bus address of a table entry of 16 bytes; nothing checks that there is such a vector.
    #[must_use]
    pub fn entry_address(&self, vector: u16) -> u64 {
        self.table.wrapping_add(u64::from(vector) * 16)
    }

    /// Writes the message of a vector, which is masked while it changes and unmasked afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::NoVector`] above the table's end.
    pub fn set_message<P: Platform>(
        &self,
        platform: &P,
        vector: u16,
        message: MsixMessage,
    ) -> Result<(), Error> {
        self.set_masked(platform, vector, true)?;
        let entry = self.entry_address(vector);
        platform.mmio_write(entry, Width::U32, message.address & 0xffff_ffff);
        platform.mmio_write(entry + 4, Width::U32, message.address >> 32);
        platform.mmio_write(entry + 8, Width::U32, message.data.into());
        self.set_masked(platform, vector, false)
    }

    /// Masks or unmasks one vector.
    ///
    /// # Errors
    ///
    /// [`Error::NoVector`] above the table's end.
    pub fn set_masked<P: Platform>(
        &self,
        platform: &P,
        vector: u16,
        masked: bool,
    ) -> Result<(), Error> {
        if vector >= self.vectors {
            return Err(Error::NoVector(vector));
        }
        let control = self.entry_address(vector) + 12;
        let old = platform.mmio_read(control, Width::U32);
        platform.mmio_write(control, Width::U32, (old & !1) | u64::from(masked));
        Ok(())
    }

    /// Whether a vector was to be raised while it was masked.
    pub fn is_pending<P: Platform>(&self, platform: &P, vector: u16) -> bool {
        let word = self.pending.wrapping_add(u64::from(vector / 64) * 8);
        platform.mmio_read(word, Width::U64) >> (vector % 64) & 1 != 0
    }

    /// Whether MSI-X is on.
    pub fn is_enabled<P: Platform>(&self, platform: &P) -> bool {
        let control = u16::from(self.capability) + 2;
        platform.config_read(self.function, control, Width::U16) & 0x8000 != 0
    }

    /// Turns MSI-X on or off, with or without all vectors masked (message control, bits 15
    /// and 14).
    pub fn set_enabled<P: Platform>(&self, platform: &P, enabled: bool, mask_all: bool) {
        let offset = u16::from(self.capability) + 2;
        let old = platform.config_read(self.function, offset, Width::U16);
        let bits = u32::from(enabled) << 15 | u32::from(mask_all) << 14;
        platform.config_write(self.function, offset, Width::U16, (old & 0x3fff) | bits);
    }
}
