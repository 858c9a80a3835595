//! One queue's region of the memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

/// The part of a mapping that is one queue's. Fields are in the host's byte order, each written at once, and in
/// the order of the program: a process that dies has written all up to some point.
#[derive(Debug)]
pub(super) struct Shared {
    mapping: Arc<MmapRegion>,
    at: usize,
}

impl Shared {
    /// The `len` bytes at `at`, if they are there.
    pub(super) fn new(mapping: Arc<MmapRegion>, at: usize, len: usize) -> Option<Self> {
        let end = at.checked_add(len)?;
        (end <= mapping.size()).then_some(Self { mapping, at })
    }

    /// Offsets are those of fields of entries that the region has, and aligned as C aligns them.
    pub(super) fn load<T: AtomicAccess + Default>(&self, offset: usize) -> T {
        let slice = self.mapping.as_volatile_slice();
        let value = slice.load(self.at + offset, Ordering::Acquire);
        debug_assert!(value.is_ok(), "nothing at {offset}");
        value.unwrap_or_default()
    }

    pub(super) fn store<T: AtomicAccess>(&self, offset: usize, value: T) {
        let slice = self.mapping.as_volatile_slice();
        let stored = slice.store(value, self.at + offset, Ordering::Release);
        debug_assert!(stored.is_ok(), "{offset}: {stored:?}");
        #[cfg(test)]
        super::tests::after_store();
    }
}
