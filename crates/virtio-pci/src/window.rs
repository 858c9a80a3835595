//! The PCI configuration access capability: the modern BARs through configuration space (virtio 1.4, 4.1.4.9).

use std::ops::Range;

use vm_pci::ConfigSpace;

use crate::layout::CAP_LEN;

/// Where the capability is in configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    at: u16,
}

/// The access to a BAR that the driver has set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowAccess {
    pub(crate) bar: u8,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl Window {
    pub(crate) fn new(capability: u8) -> Self {
        Self {
            at: capability.into(),
        }
    }

    /// Whether an access to configuration space touches `pci_cfg_data`.
    pub(crate) fn is_touched(&self, offset: u16, len: usize) -> bool {
        let Range { start, end } = self.data();
        let offset = usize::from(offset);
        offset < usize::from(end) && usize::from(start) < offset.saturating_add(len)
    }

    /// What the driver has set up: 1, 2 or 4 aligned bytes within the virtio structures, which fill a BAR whose
    /// size `size_of` says. Any other BAR, length or offset is none: such a write is ignored, and such a read
    /// finds 0. The capability itself is in no BAR, so it cannot point at itself.
    pub(crate) fn access(
        &self,
        config: &ConfigSpace,
        size_of: impl Fn(u8) -> Option<u64>,
    ) -> Option<WindowAccess> {
        let len = match config.u32(self.at + 12) {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => return None,
        };
        let offset = config.u32(self.at + 8);
        let aligned = offset.is_multiple_of(len);
        let bar = config.byte(self.at + 4);
        let size = size_of(bar)?;
        let inside = u64::from(offset) + u64::from(len) <= size;
        (aligned && inside).then_some(WindowAccess {
            bar,
            offset: offset.into(),
            len: usize::try_from(len).ok()?,
        })
    }

    /// `pci_cfg_data`.
    pub(crate) fn data(&self) -> Range<u16> {
        let start = self.at + u16::from(CAP_LEN);
        start..start + 4
    }
}
