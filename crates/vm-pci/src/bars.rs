//! The base address registers of one function: what they are, and what they decode.

use crate::Error;
use crate::bar::{BarIndex, BarSpace, BarWindow};
use crate::config::ConfigSpace;
use crate::registers::{BAR_0, Command};

/// What a base address register claims (PCI 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports, within the 64 KiB that there are.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// Memory anywhere; the register after this one holds the upper half of the address.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

impl BarKind {
    /// Ports or memory.
    pub const fn space(self) -> BarSpace {
        match self {
            Self::Io => BarSpace::Io,
            Self::Memory32 { .. } | Self::Memory64 { .. } => BarSpace::Memory,
        }
    }

    /// The read-only bits in the low end of the register.
    const fn type_bits(self) -> u32 {
        match self {
            Self::Io => 0x1,
            Self::Memory32 { prefetchable } => (prefetchable as u32) << 3,
            Self::Memory64 { prefetchable } => 0x4 | (prefetchable as u32) << 3,
        }
    }

    const fn sizes(self) -> std::ops::RangeInclusive<u64> {
        match self {
            Self::Io => 4..=0x8000,
            Self::Memory32 { .. } => 16..=1 << 31,
            Self::Memory64 { .. } => 16..=1 << 63,
        }
    }
}

/// The BARs that a function has. Their addresses are in its [`ConfigSpace`], where software sizes
/// and moves them through nothing but the write mask.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    bars: [Option<Bar>; 6],
}

#[derive(Clone, Copy, Debug)]
enum Bar {
    Claim { kind: BarKind, size: u64 },
    UpperHalf,
}

impl Bars {
    /// No BARs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a BAR of `size` bytes, a power of two, and sets it up in `config`, unassigned.
    ///
    /// # Errors
    /// [`Error::BarSize`], or [`Error::BarInUse`] when the register or the next one, for a
    /// 64-bit BAR, is not free.
    pub fn register(
        &mut self,
        config: &mut ConfigSpace,
        bar: BarIndex,
        kind: BarKind,
        size: u64,
    ) -> Result<(), Error> {
        if !size.is_power_of_two() || !kind.sizes().contains(&size) {
            return Err(Error::BarSize { bar, size });
        }
        let index = usize::from(bar.get());
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let taken = |at: usize| !matches!(self.bars.get(at), Some(None));
        if taken(index) || wide && taken(index + 1) {
            return Err(Error::BarInUse(bar));
        }
        self.bars[index] = Some(Bar::Claim { kind, size });
        let mask = (!(size - 1)).to_le_bytes();
        let register = register_of(bar);
        config.set(register, &kind.type_bits().to_le_bytes());
        config.set_write_mask(register, &mask[..4]);
        if wide {
            self.bars[index + 1] = Some(Bar::UpperHalf);
            config.set(register + 4, &[0; 4]);
            config.set_write_mask(register + 4, &mask[4..]);
        }
        Ok(())
    }

    /// The size in bytes of `bar`, if the function has it.
    pub fn size(&self, bar: BarIndex) -> Option<u64> {
        match self.bars[usize::from(bar.get())] {
            Some(Bar::Claim { size, .. }) => Some(size),
            _ => None,
        }
    }

    /// What `bar` is, if the function has it.
    pub fn kind(&self, bar: BarIndex) -> Option<BarKind> {
        match self.bars[usize::from(bar.get())] {
            Some(Bar::Claim { kind, .. }) => Some(kind),
            _ => None,
        }
    }

    /// The windows that are decoded with `config` as it is: those of BARs whose space is switched
    /// on in the command register and which have an address.
    ///
    /// A BAR has no address while it is zero, while it ends at the top of its space (the value
    /// that sizing leaves in it), and, with ports, when it is above 64 KiB.
    pub fn windows(&self, config: &ConfigSpace) -> Vec<BarWindow> {
        let command = config.command();
        self.claims()
            .filter(|(_, kind, _)| {
                command.contains(match kind.space() {
                    BarSpace::Io => Command::IO,
                    BarSpace::Memory => Command::MEMORY,
                })
            })
            .filter_map(|(bar, kind, size)| {
                Some(BarWindow {
                    bar,
                    space: kind.space(),
                    base: address(config, bar, kind, size)?,
                    size,
                })
            })
            .collect()
    }

    fn claims(&self) -> impl Iterator<Item = (BarIndex, BarKind, u64)> + '_ {
        BarIndex::all().filter_map(|bar| Some((bar, self.kind(bar)?, self.size(bar)?)))
    }
}

fn register_of(bar: BarIndex) -> u16 {
    BAR_0 + 4 * u16::from(bar.get())
}

fn address(config: &ConfigSpace, bar: BarIndex, kind: BarKind, size: u64) -> Option<u64> {
    let register = register_of(bar);
    let low = u64::from(config.u32(register));
    let high = match kind {
        BarKind::Io | BarKind::Memory32 { .. } => 0,
        BarKind::Memory64 { .. } => u64::from(config.u32(register + 4)) << 32,
    };
    // The least size of each kind covers its type bits.
    let base = (high | low) & !(size - 1);
    let last = base.checked_add(size - 1)?;
    let fits = match kind {
        BarKind::Io => last <= 0xffff,
        BarKind::Memory32 { .. } => last < 0xffff_ffff,
        BarKind::Memory64 { .. } => last != 0xffff_ffff && last != u64::MAX,
    };
    (base != 0 && fits).then_some(base)
}
