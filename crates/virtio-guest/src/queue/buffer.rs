//! One buffer on its way into the rings.

use super::{Descriptor, SplitRing};

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) len: u32,
    /// `SplitRing::WRITE`, or 0.
    pub(super) write: u16,
    /// It is not the last.
    pub(super) more: bool,
}

impl Buffer {
    pub(super) fn next(self) -> u16 {
        if self.more { SplitRing::NEXT } else { 0 }
    }

    pub(super) fn split(self, next: u16) -> Descriptor {
        Descriptor {
            address: self.address,
            len: self.len,
            flags: self.write | self.next(),
            next: if self.more { next } else { 0 },
        }
    }
}
