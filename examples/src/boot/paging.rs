//! The descriptor and page tables that a 64-bit entry needs.

use vm_memory::{Bytes, GuestAddress};

use super::place::{GDT, PAGE_TABLES, STACK_TOP};
use super::{BootError, Entry};
use crate::machine::Memory;

/// Writes flat segments and an identity map of the first 4 GiB; gives an entry without its address.
pub(super) fn write_tables(memory: &Memory) -> Result<Entry, BootError> {
    for (at, descriptor) in (0..).zip(DESCRIPTORS) {
        memory.write_obj(descriptor.to_le(), GuestAddress(GDT.0 + at * 8))?;
    }

    let page = |index: u64| GuestAddress(PAGE_TABLES.0 + index * PAGE_SIZE);
    let entry = |table: GuestAddress, index: u64| GuestAddress(table.0 + index * 8);
    memory.write_obj((page(1).0 | PRESENT | WRITABLE).to_le(), page(0))?;
    for gigabyte in 0..4 {
        let directory = page(2 + gigabyte);
        memory.write_obj(
            (directory.0 | PRESENT | WRITABLE).to_le(),
            entry(page(1), gigabyte),
        )?;
        for large in 0..512 {
            let address = (gigabyte * 512 + large) * LARGE_PAGE_SIZE;
            memory.write_obj(
                (address | PRESENT | WRITABLE | LARGE).to_le(),
                entry(directory, large),
            )?;
        }
    }
    Ok(Entry {
        rsp: STACK_TOP.0,
        page_table: PAGE_TABLES.0,
        gdt: GDT.0,
        gdt_limit: GDT_LEN - 1,
        code_selector: 0x10,
        data_selector: 0x18,
        ..Entry::default()
    })
}

/// Linux's boot protocol has its code segment at 0x10 and its data segment at 0x18.
const DESCRIPTORS: [u64; 4] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // 64-bit code
    0x00cf_9300_0000_ffff, // data
];
const GDT_LEN: u16 = 8 * 4;
const PAGE_SIZE: u64 = 0x1000;
const LARGE_PAGE_SIZE: u64 = 0x20_0000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const LARGE: u64 = 1 << 7;
