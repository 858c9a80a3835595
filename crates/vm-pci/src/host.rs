//! The host bridge: how ports and memory of the machine reach configuration space and BARs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;
use crate::address::DevFn;
use crate::aperture::Aperture;
use crate::bar::BarSpace;
use crate::bridge::HostBridge;
use crate::bus::PciBus;
use crate::intx::IntxRouter;
use crate::irq::IrqLines;
use crate::registers::CONFIG_SIZE;
use crate::windows::{Hit, WindowMap};

/// Port of the configuration address register (PCI 3.0, 3.2.2.3.2).
const CONFIG_ADDRESS: u16 = 0xcf8;
/// First port of the configuration data register.
const CONFIG_DATA: u16 = 0xcfc;
/// Last port of the configuration data register.
const CONFIG_DATA_LAST: u16 = 0xcff;
/// Configuration address: accesses to the data register are configuration accesses.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Configuration address: the bits that are not wired to zero.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;
/// ECAM bytes of one bus (PCI Express 6.0, 7.2.2).
const ECAM_BUS_SIZE: u64 = 1 << 20;
/// The number of the bus behind the host bridge.
const ROOT_BUS: u8 = 0;

/// The addresses and interrupt lines that a machine gives its PCI host.
///
/// The default is a PC with up to 3 GiB of RAM below 4 GiB and 24 interrupt lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciHostConfig {
    /// Where configuration space is in memory, 1 MiB a bus, up to 256 buses.
    pub ecam: Aperture,
    /// Memory below 4 GiB for BARs.
    pub mmio32: Aperture,
    /// Memory above 4 GiB for 64-bit BARs.
    pub mmio64: Aperture,
    /// I/O ports for BARs.
    pub io: Aperture,
    /// The interrupt lines that INTA# to INTD# of device 0 end in; each next device is rotated by
    /// one.
    pub intx_gsis: [u32; 4],
}

impl Default for PciHostConfig {
    fn default() -> Self {
        Self {
            ecam: Aperture::new(0xe000_0000, 0x1000_0000),
            mmio32: Aperture::new(0xc000_0000, 0x2000_0000),
            // Within 39 bits, the least that current processors address.
            mmio64: Aperture::new(0x40_0000_0000, 0x20_0000_0000),
            io: Aperture::new(0xc000, 0x4000),
            intx_gsis: [16, 17, 18, 19],
        }
    }
}

impl PciHostConfig {
    fn check(&self) -> Result<(), Error> {
        const GIB_4: u64 = 1 << 32;
        self.ecam.check(u64::MAX)?;
        self.mmio32.check(GIB_4)?;
        self.mmio64.check(u64::MAX)?;
        self.io.check(0x1_0000)?;
        let ecam_whole = self.ecam.base.is_multiple_of(ECAM_BUS_SIZE)
            && self.ecam.size.is_multiple_of(ECAM_BUS_SIZE)
            && self.ecam.size <= 256 * ECAM_BUS_SIZE;
        let memory = [self.ecam, self.mmio32, self.mmio64];
        let [ecam, mmio32, mmio64] = &memory;
        if !ecam_whole || ecam.overlaps(mmio32) {
            return Err(ecam.bad());
        }
        if mmio64.overlaps(ecam) || mmio64.overlaps(mmio32) {
            return Err(mmio64.bad());
        }
        let mechanism_1 = Aperture::new(CONFIG_ADDRESS.into(), 8);
        if self.io.overlaps(&mechanism_1) {
            return Err(self.io.bad());
        }
        Ok(())
    }
}

/// A host bridge with the root bus behind it.
///
/// The machine forwards ports and memory to it; accesses of any length and alignment are split
/// here, so that functions see only what [`PciFunction`](crate::PciFunction) promises. Bytes that nobody decodes
/// read as ones and are not written.
#[derive(Debug)]
pub struct PciHost {
    config: PciHostConfig,
    windows: Arc<WindowMap>,
    root: Arc<PciBus>,
    /// The configuration address register.
    address: AtomicU32,
}

impl PciHost {
    /// A host whose root bus has nothing but the host bridge's own function, at 00.0.
    ///
    /// # Errors
    /// [`Error::BadAperture`] when the ranges overlap or do not fit where they belong.
    pub fn new(config: PciHostConfig, irqs: Arc<dyn IrqLines>) -> Result<Self, Error> {
        config.check()?;
        let memory = vec![config.mmio32, config.mmio64];
        let windows = Arc::new(WindowMap::new(memory, config.io));
        let intx = IntxRouter::new(config.intx_gsis, &irqs);
        let root = Arc::new(PciBus::new(ROOT_BUS, windows.clone(), intx));
        root.attach(DevFn::from_byte(0), Arc::new(HostBridge::new()))?;
        Ok(Self {
            config,
            windows,
            root,
            address: AtomicU32::new(0),
        })
    }

    /// The root bus.
    pub fn bus(&self) -> &Arc<PciBus> {
        &self.root
    }

    /// The bus that has `number` now. There is one; bridges will add theirs here.
    pub fn find_bus(&self, number: u8) -> Option<Arc<PciBus>> {
        (number == self.root.number()).then(|| self.root.clone())
    }

    /// The addresses and lines that the machine gave.
    pub fn config(&self) -> &PciHostConfig {
        &self.config
    }

    /// Reads configuration space: ones if there is no such bus, function or byte.
    pub fn config_read(&self, bus: u8, devfn: DevFn, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(bus) = self.find_bus(bus) else {
            return;
        };
        for (offset, part) in dwords(offset, data.len()) {
            if let Some(data) = data.get_mut(part).filter(|_| offset < CONFIG_SIZE) {
                bus.config_read(devfn, offset, data);
            }
        }
    }

    /// Writes configuration space.
    pub fn config_write(&self, bus: u8, devfn: DevFn, offset: u16, data: &[u8]) {
        let Some(bus) = self.find_bus(bus) else {
            return;
        };
        for (offset, part) in dwords(offset, data.len()) {
            if let Some(data) = data.get(part).filter(|_| offset < CONFIG_SIZE) {
                bus.config_write(devfn, offset, data);
            }
        }
    }

    /// Reads ports 0xcf8 to 0xcff, configuration mechanism 1, and says whether the access is one.
    ///
    /// An access of other than four bytes to the address register is not: such ports are other
    /// devices' (0xcf9 resets a PC). Nor is one to the data register while the address register
    /// does not enable it. An access that starts in the data register and leaves it reads ones
    /// behind it.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) -> bool {
        if port == CONFIG_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            return true;
        }
        let Some((bus, devfn, offset)) = self.mechanism_1(port) else {
            return false;
        };
        data.fill(0xff);
        let len = data.len().min(usize::from(CONFIG_DATA_LAST - port) + 1);
        self.config_read(bus, devfn, offset, &mut data[..len]);
        true
    }

    /// Writes ports 0xcf8 to 0xcff, under the same rules as [`pio_read`](Self::pio_read).
    pub fn pio_write(&self, port: u16, data: &[u8]) -> bool {
        if port == CONFIG_ADDRESS
            && let Ok(address) = <[u8; 4]>::try_from(data)
        {
            let address = u32::from_le_bytes(address) & ADDRESS_WRITABLE;
            self.address.store(address, Ordering::Relaxed);
            return true;
        }
        let Some((bus, devfn, offset)) = self.mechanism_1(port) else {
            return false;
        };
        let len = data.len().min(usize::from(CONFIG_DATA_LAST - port) + 1);
        self.config_write(bus, devfn, offset, &data[..len]);
        true
    }

    /// Reads ECAM, `offset` bytes behind its start: ones where there is no function.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (offset, part) in dwords(offset, data.len()) {
            if let (Some((bus, devfn, offset)), Some(data)) =
                (self.ecam_place(offset), data.get_mut(part))
            {
                self.config_read(bus, devfn, offset, data);
            }
        }
    }

    /// Writes ECAM, `offset` bytes behind its start.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        for (offset, part) in dwords(offset, data.len()) {
            if let (Some((bus, devfn, offset)), Some(data)) =
                (self.ecam_place(offset), data.get(part))
            {
                self.config_write(bus, devfn, offset, data);
            }
        }
    }

    /// Reads memory that is not RAM: ECAM and memory BARs. Says whether a byte of it is decoded;
    /// those that are not read as ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some(offset) = self.ecam_offset(address) {
            self.ecam_read(offset, data);
            return true;
        }
        self.bar_read(BarSpace::Memory, address, data)
    }

    /// Writes memory that is not RAM, and says whether a byte of it is decoded.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        if let Some(offset) = self.ecam_offset(address) {
            self.ecam_write(offset, data);
            return true;
        }
        self.bar_write(BarSpace::Memory, address, data)
    }

    /// Reads ports: configuration mechanism 1 and I/O BARs. Says whether a byte of it is decoded;
    /// those that are not read as ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.pio_read(port, data) || self.bar_read(BarSpace::Io, port.into(), data)
    }

    /// Writes ports, and says whether a byte of it is decoded.
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        self.pio_write(port, data) || self.bar_write(BarSpace::Io, port.into(), data)
    }

    /// Resets all functions and the host, as power-on and a machine's reset do. No BAR has an
    /// address then: [`assign_resources`](Self::assign_resources) gives them new ones.
    ///
    /// A machine whose bus is in a tree of devices ([`object::add_bus`](crate::object::add_bus)) resets
    /// the functions with the tree, and of the host only [`reset_registers`](Self::reset_registers).
    pub fn reset(&self) {
        self.reset_registers();
        self.root.reset();
    }

    /// Resets what is the host's alone: the configuration address register.
    pub fn reset_registers(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    fn mechanism_1(&self, port: u16) -> Option<(u8, DevFn, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        if !(CONFIG_DATA..=CONFIG_DATA_LAST).contains(&port) || address & ADDRESS_ENABLE == 0 {
            return None;
        }
        let [register, devfn, bus, _] = address.to_le_bytes();
        let offset = u16::from(register & 0xfc) | port & 3;
        Some((bus, DevFn::from_byte(devfn), offset))
    }

    fn ecam_offset(&self, address: u64) -> Option<u64> {
        let ecam = &self.config.ecam;
        ecam.contains(address).then(|| address - ecam.base)
    }

    fn ecam_place(&self, offset: u64) -> Option<(u8, DevFn, u16)> {
        if offset >= self.config.ecam.size {
            return None;
        }
        let [devfn, bus, ..] = (offset / u64::from(CONFIG_SIZE)).to_le_bytes();
        let register = u16::try_from(offset % u64::from(CONFIG_SIZE)).ok()?;
        Some((bus, DevFn::from_byte(devfn), register))
    }

    fn bar_read(&self, space: BarSpace, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let mut decoded = false;
        let mut at = 0;
        while at < data.len() {
            let hit = self.hit(space, address, at);
            let len = span(&hit, data.len() - at);
            if let Some(hit) = hit {
                hit.function
                    .bar_read(hit.bar, hit.offset, &mut data[at..at + len]);
                decoded = true;
            }
            at += len;
        }
        decoded
    }

    fn bar_write(&self, space: BarSpace, address: u64, data: &[u8]) -> bool {
        let mut decoded = false;
        let mut at = 0;
        while at < data.len() {
            let hit = self.hit(space, address, at);
            let len = span(&hit, data.len() - at);
            if let Some(hit) = hit {
                hit.function
                    .bar_write(hit.bar, hit.offset, &data[at..at + len]);
                decoded = true;
            }
            at += len;
        }
        decoded
    }

    /// What is `at` bytes behind `address`: nothing past the end of the address space.
    fn hit(&self, space: BarSpace, address: u64, at: usize) -> Option<Hit> {
        let address = address.checked_add(u64::try_from(at).ok()?)?;
        self.windows.lookup(space, address)
    }
}

/// How many of `left` bytes one function takes at once: to the end of its window, or one
/// byte that nobody takes.
fn span(hit: &Option<Hit>, left: usize) -> usize {
    match hit {
        Some(hit) => usize::try_from(hit.len).map_or(left, |len| len.min(left)),
        None => 1,
    }
}

/// Splits `len` bytes from `offset` on where dwords end. What is past the offset's type is left out.
fn dwords<O>(offset: O, len: usize) -> impl Iterator<Item = (O, Range<usize>)>
where
    O: Copy + Into<u64> + TryFrom<u64>,
{
    let start: u64 = offset.into();
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let from = at;
        let place = start.checked_add(u64::try_from(from).ok()?)?;
        let to_end = usize::try_from(4 - place % 4).ok()?;
        at = from.saturating_add(to_end).min(len);
        Some((O::try_from(place).ok()?, from..at))
    })
}
