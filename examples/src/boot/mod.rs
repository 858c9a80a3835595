//! What is in RAM before the first instruction, and where that is.
//!
//! There is no firmware: the VMM loads the kernel, writes the tables that firmware would, and starts
//! the first processor in 64-bit mode with the first 4 GiB mapped to themselves.

mod acpi;
mod linux;
mod paging;
mod payload;

pub use linux::LinuxImage;
pub use payload::{DEFAULT_INFO, Payload};

use std::path::PathBuf;

use vm_memory::{GuestAddress, GuestMemoryError};

use crate::machine::Memory;

/// Something a machine can boot.
#[derive(Debug)]
pub enum Image {
    /// A Linux kernel.
    Linux(LinuxImage),
    /// The embedded guest program.
    Payload(Payload),
}

impl Image {
    /// Writes the image and all tables into zeroed `memory`.
    ///
    /// # Errors
    /// When a file cannot be read, is no kernel, or does not fit.
    pub fn load(&self, memory: &Memory, vcpus: u8) -> Result<Entry, BootError> {
        match self {
            Self::Linux(image) => image.load(memory, vcpus),
            Self::Payload(payload) => payload.load(memory),
        }
    }
}

/// How the first processor starts: 64-bit mode, flat segments, interrupts off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// Stack.
    pub rsp: u64,
    /// What the boot protocol passes in RSI.
    pub rsi: u64,
    /// What the boot protocol passes in RDI.
    pub rdi: u64,
    /// Address of the top-level page table.
    pub page_table: u64,
    /// Address of the global descriptor table.
    pub gdt: u64,
    /// Its last byte, relative to its first.
    pub gdt_limit: u16,
    /// Selector of its 64-bit code segment.
    pub code_selector: u16,
    /// Selector of its data segment.
    pub data_selector: u16,
}

/// Why a machine cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("{option} {}: {source}", path.display())]
    File {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// The file is no kernel that can be booted.
    #[error("-kernel {}: {reason}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something does not fit into RAM.
    #[error("{what} does not fit into the machine's memory: it takes more with -m")]
    DoesNotFit {
        /// What.
        what: &'static str,
    },
    /// The command line is longer than the kernel takes.
    #[error("-append: {len} bytes are too many: this kernel takes {max}")]
    CommandLineTooLong {
        /// Its length.
        len: usize,
        /// The longest that the kernel takes.
        max: usize,
    },
    /// Guest memory cannot be written.
    #[error("cannot write guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Where the boot loader's own tables are: all below 640 KiB, where no kernel is loaded.
mod place {
    use super::GuestAddress;

    pub(super) const GDT: GuestAddress = GuestAddress(0x500);
    pub(super) const BOOT_INFO: GuestAddress = GuestAddress(0x6000);
    pub(super) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
    pub(super) const STACK_TOP: GuestAddress = GuestAddress(0x8ff0);
    /// Six pages: one top level, one of gigabytes, four of 2 MiB pages.
    pub(super) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
    pub(super) const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
    pub(super) const COMMAND_LINE_MAX: usize = 0x1_0000;
    /// The end of memory that a PC calls conventional, less a page as for firmware's data.
    pub(super) const LOW_END: u64 = 0x9_fc00;
    pub(super) const ACPI: GuestAddress = GuestAddress(0xe_0000);
    pub(super) const HIGH: GuestAddress = GuestAddress(0x10_0000);
}
