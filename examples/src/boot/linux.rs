//! Linux by its 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;

use linux_loader::bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bzimage::{self, BzImage};
use linux_loader::loader::elf::{self, Elf};
use linux_loader::loader::{self, KernelLoader, KernelLoaderResult};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::paging::write_tables;
use super::place::{ACPI, COMMAND_LINE, COMMAND_LINE_MAX, HIGH, LOW_END, ZERO_PAGE};
use super::{BootError, Entry, acpi};
use crate::machine::Memory;
use crate::machine::layout::{IOAPIC, PCI_ECAM};

/// A Linux kernel, what it is told, and its initial file system.
#[derive(Clone, Debug, Default)]
pub struct LinuxImage {
    /// A bzImage with a 64-bit entry, or an ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub command_line: String,
}

impl LinuxImage {
    pub(super) fn load(&self, memory: &Memory, vcpus: u8) -> Result<Entry, BootError> {
        let kernel = self.load_kernel(memory)?;
        let mut header = kernel.header;
        let initrd = self.load_initrd(memory, &kernel)?;
        if let Some((address, size)) = initrd {
            header.ramdisk_image = address;
            header.ramdisk_size = size;
        }

        let line = self.command_line.as_bytes();
        let max = usize::try_from(header.cmdline_size)
            .unwrap_or(0)
            .clamp(255, COMMAND_LINE_MAX - 1);
        if line.len() > max {
            return Err(BootError::CommandLineTooLong {
                len: line.len(),
                max,
            });
        }
        memory.write_slice(line, COMMAND_LINE)?;
        // RAM is zeroed, so the line ends with a zero already.
        header.cmd_line_ptr = low_u32(COMMAND_LINE.0);

        let mut params = boot_params {
            hdr: header,
            acpi_rsdp_addr: acpi::write(memory, vcpus)?,
            ..Default::default()
        };
        let map = e820(memory);
        for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
            *slot = *entry;
        }
        params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
        LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, ZERO_PAGE), &**memory)
            .map_err(|_| BootError::DoesNotFit {
                what: "the zero page",
            })?;

        Ok(Entry {
            rip: kernel.entry,
            rsi: ZERO_PAGE.0,
            ..write_tables(memory)?
        })
    }

    fn load_kernel(&self, memory: &Memory) -> Result<Kernel, BootError> {
        let read_error = |source| BootError::File {
            option: "-kernel",
            path: self.kernel.clone(),
            source,
        };
        let not_a_kernel = |reason: String| BootError::NotAKernel {
            path: self.kernel.clone(),
            reason,
        };
        let mut file = open_file(&self.kernel).map_err(read_error)?;
        let mut start = Vec::new();
        (&mut file)
            .take(XLOADFLAGS as u64 + 2)
            .read_to_end(&mut start)
            .map_err(read_error)?;
        file.rewind().map_err(read_error)?;
        if start.starts_with(b"\x7fELF") {
            let loaded = Elf::load(&**memory, None, &mut file, None).map_err(|error| match error {
                loader::Error::Elf(elf::Error::ReadKernelImage) => not_a_kernel(
                    "it is cut off, or does not fit into the machine's memory: it takes more with -m"
                        .into(),
                ),
                loader::Error::Elf(error) => not_a_kernel(own_words(&error)),
                error => not_a_kernel(own_words(&error)),
            })?;
            return Ok(Kernel::from_elf(&loaded));
        }
        check_protocol(&start).map_err(not_a_kernel)?;
        let loaded =
            BzImage::load(&**memory, None, &mut file, Some(HIGH)).map_err(|error| match error {
                loader::Error::Bzimage(bzimage::Error::InvalidBzImage) => {
                    not_a_kernel("neither a bzImage nor an ELF kernel".into())
                }
                loader::Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel) => {
                    BootError::DoesNotFit { what: "the kernel" }
                }
                loader::Error::Bzimage(error) => not_a_kernel(own_words(&error)),
                error => not_a_kernel(own_words(&error)),
            })?;
        let kernel = Kernel::from_bzimage(&loaded).map_err(not_a_kernel)?;
        if kernel.end > low_ram_end(memory) {
            return Err(BootError::DoesNotFit { what: "the kernel" });
        }
        Ok(kernel)
    }

    /// Puts the initial file system as high as it may be, where the kernel will not unpack itself.
    fn load_initrd(
        &self,
        memory: &Memory,
        kernel: &Kernel,
    ) -> Result<Option<(u32, u32)>, BootError> {
        let Some(path) = &self.initrd else {
            return Ok(None);
        };
        let read_error = |source| BootError::File {
            option: "-initrd",
            path: path.clone(),
            source,
        };
        let too_large = || BootError::DoesNotFit { what: "the initrd" };
        let mut file = open_file(path).map_err(read_error)?;
        let size = file.metadata().map_err(read_error)?.len();
        let limit = low_ram_end(memory).min(kernel.initrd_max);
        let address = limit.checked_sub(size).ok_or_else(too_large)? & !0xfff;
        if address < kernel.end {
            return Err(too_large());
        }
        let (Ok(at), Ok(len), Ok(count)) = (
            u32::try_from(address),
            u32::try_from(size),
            usize::try_from(size),
        ) else {
            return Err(too_large());
        };
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut file, count)
            .map_err(|error| read_error(io::Error::other(error)))?;
        Ok(Some((at, len)))
    }
}

/// What was loaded, whatever the file's format.
struct Kernel {
    header: setup_header,
    entry: u64,
    /// The first address that the kernel leaves alone while it unpacks itself.
    end: u64,
    /// The initial file system ends at or below this.
    initrd_max: u64,
}

impl Kernel {
    fn from_elf(loaded: &KernelLoaderResult) -> Self {
        // An ELF image has no header of its own; the kernel looks at these fields only.
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: 0x20c,
            type_of_loader: LOADER_UNKNOWN,
            loadflags: LOADED_HIGH,
            kernel_alignment: 0x100_0000,
            cmdline_size: 2047,
            ..Default::default()
        };
        Self {
            header,
            entry: loaded.kernel_load.raw_value(),
            end: loaded.kernel_end,
            initrd_max: 1 << 31,
        }
    }

    fn from_bzimage(loaded: &KernelLoaderResult) -> Result<Self, String> {
        let mut header = loaded
            .setup_header
            .ok_or_else(|| "it has no setup header".to_owned())?;
        header.type_of_loader = LOADER_UNKNOWN;
        // In units of 16 bytes, the last of which need not be whole.
        let whole = u64::from(header.syssize).saturating_sub(1) * 16;
        let there = (loaded.kernel_end).saturating_sub(loaded.kernel_load.raw_value());
        if there < whole {
            return Err(format!("it is cut off after {there} of {whole} bytes"));
        }
        let load = loaded.kernel_load.raw_value();
        let (preferred, init_size) = (header.pref_address, header.init_size);
        let unpacked = preferred.max(load).saturating_add(init_size.into());
        Ok(Self {
            header,
            entry: load.saturating_add(ENTRY_64),
            end: loaded.kernel_end.max(unpacked),
            initrd_max: u64::from(header.initrd_addr_max) + 1,
        })
    }
}

/// Whether a bzImage that begins so may be entered without a BIOS. Of what is none nothing is said.
fn check_protocol(start: &[u8]) -> Result<(), String> {
    let word = |at: usize| {
        let bytes = start.get(at..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    };
    if start
        .get(HEADER..)
        .is_none_or(|at| !at.starts_with(b"HdrS"))
    {
        return Ok(());
    }
    match (word(VERSION), word(XLOADFLAGS)) {
        (Some(0x20c..), Some(flags)) if flags & XLF_KERNEL_64 != 0 => Ok(()),
        (Some(version), _) => Err(format!(
            "it has no 64-bit entry point, and the other one wants a BIOS: its boot protocol is {}.{:02}, of which 2.12 \
             has one",
            version >> 8,
            version & 0xff
        )),
        (None, _) => Err("it is cut off in its header".into()),
    }
}

/// What a loader's error says, without the loader's name.
fn own_words(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    text.strip_prefix("Kernel Loader: ")
        .unwrap_or(&text)
        .to_owned()
}

/// Opens a file of bytes: of a directory or the like the loaders would say something odd.
fn open_file(path: &std::path::Path) -> io::Result<File> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// What BIOS would say of the address map.
fn e820(memory: &Memory) -> Vec<boot_e820_entry> {
    let entry = |addr: u64, end: u64, r#type: u32| boot_e820_entry {
        addr,
        size: end - addr,
        r#type,
    };
    let mut map = vec![
        entry(0, LOW_END, E820_RAM),
        entry(ACPI.0, HIGH.0, E820_RESERVED),
        entry(HIGH.0, low_ram_end(memory), E820_RAM),
        entry(PCI_ECAM.start, PCI_ECAM.end, E820_RESERVED),
        entry(IOAPIC, 1 << 32, E820_RESERVED),
    ];
    for region in memory.iter().skip(1) {
        let start = region.start_addr().raw_value();
        map.push(entry(start, start + region.len(), E820_RAM));
    }
    map
}

fn low_ram_end(memory: &Memory) -> u64 {
    memory.iter().next().map_or(0, GuestMemoryRegion::len)
}

/// The low half of an address that is known to be below 4 GiB.
fn low_u32(address: u64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the address is below 4 GiB"
    )]
    let low = address as u32;
    low
}

// Offsets in a bzImage (boot.rst, "The Real-Mode Kernel Header").
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS"
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNKNOWN: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
/// The 64-bit entry point, relative to where the kernel is loaded.
const ENTRY_64: u64 = 0x200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::layout::{GIB, MIB};
    use crate::machine::memory;

    #[test]
    fn the_map_tells_of_all_ram_once_and_in_order() {
        for bytes in [256 * MIB, 4 * GIB] {
            let map = e820(&memory::allocate(bytes).unwrap());
            let mut last = 0;
            let mut ram = 0;
            for entry in map.iter().filter(|entry| { entry.r#type } == E820_RAM) {
                let (addr, size) = (entry.addr, entry.size);
                assert!(addr >= last);
                last = addr + size;
                ram += size;
            }
            assert_eq!(
                ram,
                bytes - (HIGH.0 - LOW_END),
                "all but the hole below 1 MiB"
            );
        }
    }

    #[test]
    fn a_bzimage_that_wants_a_bios_says_so() {
        let image = |version: u16, flags: u16| {
            let mut start = vec![0; XLOADFLAGS + 2];
            start[HEADER..VERSION].copy_from_slice(b"HdrS");
            start[VERSION..VERSION + 2].copy_from_slice(&version.to_le_bytes());
            start[XLOADFLAGS..].copy_from_slice(&flags.to_le_bytes());
            start
        };
        for good in [image(0x20c, 1), image(0x20f, 0x7f), b"no kernel".to_vec()] {
            assert_eq!(check_protocol(&good), Ok(()));
        }
        // As iPXE's ipxe.lkrn, and as a kernel for 32 bits.
        for (version, flags, said) in [(0x207, 0, "2.07"), (0x20f, 0, "2.15"), (0x20b, 1, "2.11")] {
            let error = check_protocol(&image(version, flags)).unwrap_err();
            assert!(error.contains("wants a BIOS"), "{error}");
            assert!(error.contains(said), "{error}");
        }
        let cut = check_protocol(&image(0x20c, 1)[..VERSION + 1]).unwrap_err();
        assert_eq!(cut, "it is cut off in its header");
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let memory = memory::allocate(64 * MIB).unwrap();
        let dir = std::env::temp_dir();
        let text = dir.join(format!("vmm-not-a-kernel-{}", std::process::id()));
        std::fs::write(&text, "no kernel").unwrap();
        let broken = dir.join(format!("vmm-broken-elf-{}", std::process::id()));
        std::fs::write(&broken, [b"\x7fELF".as_slice(), &[0; 100]].concat()).unwrap();
        // File, part of the message.
        let table = [
            (
                PathBuf::from("/nonexistent/kernel"),
                "-kernel /nonexistent/kernel: No such file",
            ),
            (dir, "not a regular file"),
            (text.clone(), ": neither a bzImage nor an ELF kernel"),
            (broken.clone(), "-kernel "),
        ];
        for (kernel, expected) in table {
            let image = LinuxImage {
                kernel: kernel.clone(),
                ..Default::default()
            };
            let error = image.load(&memory, 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{kernel:?}: {error}");
            assert!(!error.contains('\n'));
            assert!(!error.contains("Kernel Loader"), "{error}");
        }
        std::fs::remove_file(text).unwrap();
        std::fs::remove_file(broken).unwrap();
    }
}
