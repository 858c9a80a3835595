//! Device memory that the VMM has not mapped.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Maps the 2 MiB around `address` to itself, uncached, in the tables that CR3 points at.
///
/// Gives up silently when it would need more tables than there are; the access that follows then
/// ends in a page fault, which is printed.
pub(crate) fn map(address: u64) {
    let mut table: u64;
    // SAFETY: reading CR3 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) table, options(nomem, nostack, preserves_flags)) };
    table &= ADDRESS;
    for shift in [39, 30] {
        let entry = entry(table, address >> shift);
        // SAFETY: the tables are mapped to themselves, as the boot protocol says, and only this
        // function changes them, on the only processor.
        let value = unsafe { entry.read_volatile() };
        if value & PRESENT != 0 {
            table = value & ADDRESS;
            continue;
        }
        let Some(new) = SPARE.take() else { return };
        // SAFETY: as above; the new table holds zeros.
        unsafe { entry.write_volatile(new | PRESENT | WRITABLE) };
        table = new;
    }
    let page = address & !(LARGE_PAGE - 1) | PRESENT | WRITABLE | UNCACHED | LARGE;
    // SAFETY: as above. What was not present is in no translation cache.
    unsafe { entry(table, address >> 21).write_volatile(page) };
}

fn entry(table: u64, index: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut((table + (index & 511) * 8) as usize)
}

/// Zeroed pages for tables.
#[repr(align(4096))]
struct Spare {
    pages: UnsafeCell<[[u64; 512]; 6]>,
    taken: AtomicUsize,
}

// SAFETY: each page is given out once, and afterwards belongs to the processor's page walk.
unsafe impl Sync for Spare {}

static SPARE: Spare = Spare {
    pages: UnsafeCell::new([[0; 512]; 6]),
    taken: AtomicUsize::new(0),
};

impl Spare {
    /// The address of the next page, virtual and physical.
    fn take(&self) -> Option<u64> {
        let index = self.taken.load(Ordering::Relaxed);
        if index >= 6 {
            return None;
        }
        self.taken.store(index + 1, Ordering::Relaxed);
        // The cell comes first in an aligned structure.
        Some((self.pages.get().expose_provenance() + index * 4096) as u64)
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
/// Write-through and cache disable.
const UNCACHED: u64 = 3 << 3;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE_PAGE: u64 = 2 << 20;
