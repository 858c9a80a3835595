//! The machine's RAM.
#![expect(
    unsafe_code,
    reason = "RAM is emptied by telling the kernel to drop its pages"
)]

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layout::ram_ranges;

/// Guest memory as the machine and all its devices hold it.
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// Makes `bytes` of zeroed RAM, a multiple of the page size.
///
/// # Errors
/// When the host has not got them.
pub fn allocate(bytes: u64) -> io::Result<Memory> {
    let mut ranges = Vec::new();
    for (start, len) in ram_ranges(bytes) {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        ranges.push((GuestAddress(start), len));
    }
    let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(io::Error::other)?;
    Ok(Arc::new(memory))
}

/// Fills all of `memory` with zeros, and gives its pages back to the host.
///
/// # Errors
/// When the host refuses.
pub(super) fn clear(memory: &Memory) -> io::Result<()> {
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        // SAFETY: the range is one mapping of `memory`, which is private and anonymous, so the pages
        // come back zeroed; Rust code reads and writes them as volatile only.
        let done = unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::machine::layout::MIB;

    #[test]
    fn cleared_ram_reads_as_zeros() {
        let memory = allocate(MIB).unwrap();
        memory.write_obj(7u64, GuestAddress(0x1000)).unwrap();
        clear(&memory).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
    }
}
