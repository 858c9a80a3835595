//! The embedded guest program, by its own boot protocol: an ELF image, entered in 64-bit mode with the
//! address of a [`BootInfo`] in RDI.

use std::io::Cursor;
use std::net::Ipv4Addr;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use payload::BootInfo;
use virtio_guest::DmaRegion;
use vm_memory::{Address, Bytes, GuestAddress};

use super::paging::write_tables;
use super::place::BOOT_INFO;
use super::{BootError, Entry};
use crate::machine::Memory;
use crate::machine::layout::MIB;

/// The embedded guest program and what it is to do.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    /// The ELF image.
    pub image: &'static [u8],
    /// What it is to do.
    pub info: BootInfo,
}

impl Payload {
    pub(super) fn load(&self, memory: &Memory) -> Result<Entry, BootError> {
        let mut image = Cursor::new(self.image);
        let loaded = Elf::load(&**memory, None, &mut image, None).map_err(|error| {
            BootError::NotAKernel {
                path: "(embedded guest)".into(),
                reason: error.to_string(),
            }
        })?;
        memory.write_slice(&self.info.to_bytes(), GuestAddress(BOOT_INFO.0))?;
        Ok(Entry {
            rip: loaded.kernel_load.raw_value(),
            rdi: BOOT_INFO.0,
            ..write_tables(memory)?
        })
    }
}

/// What the default run does: a few pings each way between 10.0.2.15 and 10.0.2.2.
pub const DEFAULT_INFO: BootInfo = BootInfo {
    pings: 10,
    requests: 3,
    guest: Ipv4Addr::new(10, 0, 2, 15),
    host: Ipv4Addr::new(10, 0, 2, 2),
    prefix_len: 24,
    // Behind the image, and within the least memory that a machine can have.
    dma: DmaRegion {
        address: 4 * MIB,
        len: 2 << 20,
    },
};
