//! What the driver needs from the machine it runs on.

use core::fmt;

/// How many bytes one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Eight bytes.
    U64,
}

impl Width {
    /// The number of bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

/// Bus, device and function number of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    bus: u8,
    /// Device number in bits 7..3, function number in bits 2..0.
    devfn: u8,
}

impl PciAddress {
    /// The function `function` (0 to 7) of device `device` (0 to 31) on `bus`; `None` if out of
    /// range.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                bus,
                devfn: device << 3 | function,
            })
        } else {
            None
        }
    }

    /// From the two bytes that hardware uses: `devfn` is device times 8 plus function.
    #[must_use]
    pub const fn from_devfn(bus: u8, devfn: u8) -> Self {
        Self { bus, devfn }
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number times 8 plus function number.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus,
            self.device(),
            self.function()
        )
    }
}

/// How configuration space is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigMechanism {
    /// Configuration mechanism 1: ports 0xcf8 and 0xcfc. Reaches the first 256 bytes.
    Ports,
    /// PCI Express's memory-mapped space, with bus 0 at `base`. Reaches all 4096 bytes.
    Ecam {
        /// Bus address of the configuration space of 00:00.0.
        base: u64,
    },
}

/// The machine as the driver sees it: configuration space, BARs, and memory that the device
/// reaches too.
///
/// Methods take `&self`, so that a driver may hold a reference and its owner may look at the
/// machine meanwhile. Nothing fails: what real hardware answers to an access that nobody claims is
/// all ones. Values are numbers in the CPU's byte order; a 2-byte read of the bytes `34 12` is
/// 0x1234.
pub trait Platform {
    /// How configuration space is reached; what [`config_read`](Self::config_read) and
    /// [`config_write`](Self::config_write) do unless they are replaced.
    fn config_mechanism(&self) -> ConfigMechanism {
        ConfigMechanism::Ports
    }

    /// Reads from memory space at bus address `address`, aligned to `width`, unless a test means
    /// it otherwise.
    fn mmio_read(&self, address: u64, width: Width) -> u64;

    /// Writes to memory space.
    fn mmio_write(&self, address: u64, width: Width, value: u64);

    /// Reads from an I/O port; at most four bytes.
    fn port_read(&self, port: u16, width: Width) -> u32;

    /// Writes to an I/O port; at most four bytes.
    fn port_write(&self, port: u16, width: Width, value: u32);

    /// Reads memory shared with the device, at a guest-physical address.
    fn memory_read(&self, address: u64, data: &mut [u8]);

    /// Writes memory shared with the device, at a guest-physical address.
    fn memory_write(&self, address: u64, data: &[u8]);

    /// Loads two bytes of shared memory in one access that later reads stay behind (acquire):
    /// ring indices and flags. `address` is even.
    fn memory_load_u16(&self, address: u64) -> u16;

    /// Stores two bytes of shared memory in one access that earlier writes stay before
    /// (release). `address` is even.
    fn memory_store_u16(&self, address: u64, value: u16);

    /// A full barrier: writes before it are seen by the device before reads after it are made.
    fn barrier(&self);

    /// Reads a function's configuration space. `offset` is aligned to `width`, which is at most
    /// four bytes.
    fn config_read(&self, function: PciAddress, offset: u16, width: Width) -> u32 {
        match self.config_mechanism() {
            ConfigMechanism::Ports => {
                self.port_write(CONFIG_ADDRESS, Width::U32, config_address(function, offset));
                self.port_read(CONFIG_DATA + (offset & 3), width)
            }
            ConfigMechanism::Ecam { base } => {
                #[expect(clippy::cast_possible_truncation, reason = "at most four bytes wide")]
                let value = self.mmio_read(ecam_address(base, function, offset), width) as u32;
                value
            }
        }
    }

    /// Writes a function's configuration space. `offset` is aligned to `width`, which is at most
    /// four bytes.
    fn config_write(&self, function: PciAddress, offset: u16, width: Width, value: u32) {
        match self.config_mechanism() {
            ConfigMechanism::Ports => {
                self.port_write(CONFIG_ADDRESS, Width::U32, config_address(function, offset));
                self.port_write(CONFIG_DATA + (offset & 3), width, value);
            }
            ConfigMechanism::Ecam { base } => {
                self.mmio_write(ecam_address(base, function, offset), width, value.into());
            }
        }
    }
}

impl<P: Platform + ?Sized> Platform for &P {
    fn config_mechanism(&self) -> ConfigMechanism {
        (**self).config_mechanism()
    }

    fn mmio_read(&self, address: u64, width: Width) -> u64 {
        (**self).mmio_read(address, width)
    }

    fn mmio_write(&self, address: u64, width: Width, value: u64) {
        (**self).mmio_write(address, width, value);
    }

    fn port_read(&self, port: u16, width: Width) -> u32 {
        (**self).port_read(port, width)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) {
        (**self).port_write(port, width, value);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        (**self).memory_read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        (**self).memory_write(address, data);
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        (**self).memory_load_u16(address)
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        (**self).memory_store_u16(address, value);
    }

    fn barrier(&self) {
        (**self).barrier();
    }

    fn config_read(&self, function: PciAddress, offset: u16, width: Width) -> u32 {
        (**self).config_read(function, offset, width)
    }

    fn config_write(&self, function: PciAddress, offset: u16, width: Width, value: u32) {
        (**self).config_write(function, offset, width, value);
    }
}

/// Port of mechanism 1's address register.
const CONFIG_ADDRESS: u16 = 0xcf8;
/// First port of mechanism 1's data register.
const CONFIG_DATA: u16 = 0xcfc;

/// The value for the address register: enable bit, bus, devfn, dword.
fn config_address(function: PciAddress, offset: u16) -> u32 {
    1 << 31
        | u32::from(function.bus()) << 16
        | u32::from(function.devfn()) << 8
        | u32::from(offset & 0xfc)
}

/// Where a register lies in PCI Express's memory-mapped space: 4 KiB a function.
fn ecam_address(base: u64, function: PciAddress, offset: u16) -> u64 {
    let function = u64::from(function.bus()) << 20 | u64::from(function.devfn()) << 12;
    base.wrapping_add(function)
        .wrapping_add(u64::from(offset & 0xfff))
}
