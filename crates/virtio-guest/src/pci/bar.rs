//! Base address registers.

use super::{BASE_ADDRESS_0, COMMAND_IO, COMMAND_MEMORY, change_command};
use crate::{PciAddress, Platform, Width};

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory within 32 bits.
    Memory32,
    /// Memory within 64 bits; takes the next register too.
    Memory64,
}

/// A base address register as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// What it maps.
    pub kind: BarKind,
    /// Where, on the bus; 0 where nobody has assigned an address.
    pub address: u64,
}

impl Bar {
    /// Reads register `index`; `None` where the index is above 5 or a 64-bit register has no
    /// second half. A register that is not implemented reads as 32-bit memory at address 0.
    pub fn read<P: Platform>(platform: &P, function: PciAddress, index: u8) -> Option<Self> {
        let low = platform.config_read(function, offset(index)?, Width::U32);
        if low & 1 != 0 {
            return Some(Self {
                kind: BarKind::Io,
                address: (low & !3).into(),
            });
        }
        let address = u64::from(low & !0xf);
        if low & 6 != 4 {
            return Some(Self {
                kind: BarKind::Memory32,
                address,
            });
        }
        let high = platform.config_read(function, offset(index + 1)?, Width::U32);
        Some(Self {
            kind: BarKind::Memory64,
            address: address | u64::from(high) << 32,
        })
    }

    /// How many bytes register `index` maps; 0 if it is not implemented.
    ///
    /// Decoding is off meanwhile, since the register holds all ones for a moment; the address and
    /// the command register are afterwards what they were.
    pub fn size<P: Platform>(platform: &P, function: PciAddress, index: u8) -> Option<u64> {
        let low_offset = offset(index)?;
        let kind = Self::read(platform, function, index)?.kind;
        let command = change_command(platform, function, 0, COMMAND_IO | COMMAND_MEMORY);

        let probe = |offset| {
            let old = platform.config_read(function, offset, Width::U32);
            platform.config_write(function, offset, Width::U32, u32::MAX);
            let mask = platform.config_read(function, offset, Width::U32);
            platform.config_write(function, offset, Width::U32, old);
            mask
        };
        let low = probe(low_offset);
        let mask = match kind {
            // The upper half of an I/O register may be hardwired to zero.
            BarKind::Io => u64::from(low & !3) | !0xffff,
            BarKind::Memory32 => u64::from(low & !0xf) | !0xffff_ffff,
            BarKind::Memory64 => u64::from(low & !0xf) | u64::from(probe(offset(index + 1)?)) << 32,
        };
        change_command(
            platform,
            function,
            command & (COMMAND_IO | COMMAND_MEMORY),
            0,
        );
        let implemented = low & !0xf != 0;
        Some(if implemented { mask.wrapping_neg() } else { 0 })
    }

    /// Puts register `index` at `address`, as firmware would. The caller has turned decoding off.
    pub fn assign<P: Platform>(platform: &P, function: PciAddress, index: u8, address: u64) {
        let (Some(bar), Some(low)) = (Self::read(platform, function, index), offset(index)) else {
            return;
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the two halves of an address"
        )]
        let halves = (address as u32, (address >> 32) as u32);
        platform.config_write(function, low, Width::U32, halves.0);
        if let (BarKind::Memory64, Some(high)) = (bar.kind, offset(index + 1)) {
            platform.config_write(function, high, Width::U32, halves.1);
        }
    }
}

/// Offset of register `index` in configuration space.
fn offset(index: u8) -> Option<u16> {
    (index < 6).then(|| BASE_ADDRESS_0 + u16::from(index) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FUNCTION, Fake};

    #[test]
    fn bars_read_as_what_they_map() {
        let fake = Fake::new();
        let cases = [
            (0, BarKind::Io, 0xc000, 0x20),
            (1, BarKind::Memory32, 0xfebf_0000, 0x1000),
            (4, BarKind::Memory64, 0x80_0000_4000, 0x4000),
        ];
        for (index, kind, address, size) in cases {
            let bar = Bar::read(&fake, FUNCTION, index);
            assert_eq!(bar, Some(Bar { kind, address }), "BAR {index}");
            assert_eq!(Bar::size(&fake, FUNCTION, index), Some(size), "BAR {index}");
            assert_eq!(
                Bar::read(&fake, FUNCTION, index),
                bar,
                "BAR {index} after sizing"
            );
        }
        assert_eq!(
            Bar::size(&fake, FUNCTION, 2),
            Some(0),
            "a register that is not there"
        );
        assert_eq!(Bar::read(&fake, FUNCTION, 6), None);
    }

    #[test]
    fn sizing_leaves_decoding_as_it_was() {
        let fake = Fake::new();
        change_command(&fake, FUNCTION, COMMAND_MEMORY, 0);
        Bar::size(&fake, FUNCTION, 4);
        assert_eq!(change_command(&fake, FUNCTION, 0, 0), COMMAND_MEMORY);
        assert!(!fake.sized_while_decoding.get());
    }

    #[test]
    fn an_assigned_address_is_read_back() {
        let fake = Fake::new();
        Bar::assign(&fake, FUNCTION, 4, 0x1_2345_0000);
        let bar = Bar::read(&fake, FUNCTION, 4);
        assert_eq!(bar.map(|bar| bar.address), Some(0x1_2345_0000));
    }
}
