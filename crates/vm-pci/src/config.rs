//! Configuration space: bytes with masks for what software may change, and capability lists.

use std::fmt;

use crate::Error;
use crate::registers::{
    BAR_0, BARS_END, CACHE_LINE_SIZE, CAPABILITIES_POINTER, CLASS_CODE, COMMAND, CONFIG_SIZE,
    CONVENTIONAL_SIZE, Command, DEVICE_ID, HEADER_END, INTERRUPT_LINE, REVISION_ID, STATUS,
    SUBSYSTEM_ID, SUBSYSTEM_VENDOR_ID, Status, VENDOR_ID,
};

/// What a function says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, subclass and programming interface, from the most significant byte of the
    /// lower three: a network controller for Ethernet is `0x02_00_00`.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// What a write into configuration space changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ConfigWritten {
    /// The command register before the write.
    pub old_command: Command,
    /// The command register after the write.
    pub command: Command,
    /// A byte of a base address register is another one now.
    pub bars_changed: bool,
}

/// The 4096 bytes of one function's configuration space.
///
/// Each byte has a mask of bits that software may write and a mask of bits that it clears by
/// writing ones; all other bits are read only. The owner builds the space with the `set_` and
/// `add_` methods, whose values are those after power-on ([`reset`](Self::reset) restores them).
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Block,
    power_on: Block,
    writable: Block,
    write_1_to_clear: Block,
    next_capability: u16,
    last_extended: Option<u16>,
    next_extended: u16,
}

type Block = Box<[u8; CONFIG_SIZE as usize]>;

impl ConfigSpace {
    /// A type 0 header with `identity`: no BARs, no capabilities, no interrupt pin.
    pub fn new(identity: &PciIdentity) -> Self {
        let zeroes = || Box::new([0; CONFIG_SIZE as usize]);
        let mut space = Self {
            bytes: zeroes(),
            power_on: zeroes(),
            writable: zeroes(),
            write_1_to_clear: zeroes(),
            next_capability: HEADER_END,
            last_extended: None,
            next_extended: CONVENTIONAL_SIZE,
        };
        space.set_identity(identity);
        space.set_write_mask(COMMAND, &Command::all().bits().to_le_bytes());
        space.set_clear_mask(STATUS, &Status::WRITE_1_TO_CLEAR.bits().to_le_bytes());
        space.set_write_mask(CACHE_LINE_SIZE, &[0xff]);
        space.set_write_mask(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Changes who the function says that it is.
    pub fn set_identity(&mut self, identity: &PciIdentity) {
        let [prog_if, subclass, base_class, _] = identity.class.to_le_bytes();
        self.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        self.set(DEVICE_ID, &identity.device.to_le_bytes());
        self.set(REVISION_ID, &[identity.revision]);
        self.set(CLASS_CODE, &[prog_if, subclass, base_class]);
        self.set(
            SUBSYSTEM_VENDOR_ID,
            &identity.subsystem_vendor.to_le_bytes(),
        );
        self.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
    }

    /// Sets bytes, now and after each reset, whatever their masks. Bytes past the end are dropped.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        copy_at(&mut self.power_on, offset, data);
        copy_at(&mut self.bytes, offset, data);
    }

    /// Sets bytes until the next reset, whatever their masks. Bytes past the end are dropped.
    pub fn store(&mut self, offset: u16, data: &[u8]) {
        copy_at(&mut self.bytes, offset, data);
    }

    /// Lets software write the bits that are one in `mask`, from `offset` on.
    pub fn set_write_mask(&mut self, offset: u16, mask: &[u8]) {
        copy_at(&mut self.writable, offset, mask);
    }

    /// Lets software clear, by writing ones, the bits that are one in `mask`, from `offset` on;
    /// this goes before [`set_write_mask`](Self::set_write_mask).
    pub fn set_clear_mask(&mut self, offset: u16, mask: &[u8]) {
        copy_at(&mut self.write_1_to_clear, offset, mask);
    }

    /// Adds a capability with `id`, whose `body` follows the two bytes of its header, and returns
    /// where it is. It goes to the head of the list: software meets the last added first. Its body
    /// is read only until [`set_write_mask`](Self::set_write_mask) says otherwise.
    ///
    /// # Errors
    /// [`Error::NoCapabilityRoom`] when it would end above 256 bytes.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<u8, Error> {
        let len = body.len().saturating_add(2);
        let no_room = || Error::NoCapabilityRoom { id: id.into(), len };
        let offset = u8::try_from(self.next_capability).map_err(|_| no_room())?;
        let end = usize::from(offset).saturating_add(len);
        let next = u16::try_from(end.next_multiple_of(4)).map_err(|_| no_room())?;
        if next > CONVENTIONAL_SIZE {
            return Err(no_room());
        }
        let head = self.byte(CAPABILITIES_POINTER);
        self.set(offset.into(), &[id, head]);
        self.set(u16::from(offset) + 2, body);
        self.set(CAPABILITIES_POINTER, &[offset]);
        let status = self.u16(STATUS) | Status::CAPABILITIES.bits();
        self.set(STATUS, &status.to_le_bytes());
        self.next_capability = next;
        Ok(offset)
    }

    /// Adds an extended capability (PCI Express 6.0, 7.6.3), whose `body` follows the four bytes
    /// of its header, to the end of the list that starts at 0x100; returns where it is.
    ///
    /// # Errors
    /// [`Error::NoCapabilityRoom`] when it would end above 4096 bytes.
    pub fn add_extended_capability(
        &mut self,
        id: u16,
        version: u8,
        body: &[u8],
    ) -> Result<u16, Error> {
        let len = body.len().saturating_add(4);
        let no_room = || Error::NoCapabilityRoom { id, len };
        let offset = self.next_extended;
        let end = usize::from(offset).saturating_add(len);
        let next = u16::try_from(end.next_multiple_of(4)).map_err(|_| no_room())?;
        if next > CONFIG_SIZE {
            return Err(no_room());
        }
        let header = u32::from(id) | u32::from(version & 0xf) << 16;
        self.set(offset, &header.to_le_bytes());
        self.set(offset + 4, body);
        if let Some(last) = self.last_extended {
            let header = self.u32(last) & 0x000f_ffff | u32::from(offset) << 20;
            self.set(last, &header.to_le_bytes());
        }
        self.last_extended = Some(offset);
        self.next_extended = next;
        Ok(offset)
    }

    /// Reads bytes; those past the end are ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let bytes = self.bytes.get(usize::from(offset)..).unwrap_or(&[]);
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Writes bytes as software does, through the masks; those past the end are dropped.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigWritten {
        let old_command = self.command();
        let bars = usize::from(BAR_0)..usize::from(BARS_END);
        let mut bars_changed = false;
        for (at, byte) in (usize::from(offset)..self.bytes.len()).zip(data) {
            let old = self.bytes[at];
            let writable = self.writable[at] & !self.write_1_to_clear[at];
            let new = (old & !writable | byte & writable) & !(byte & self.write_1_to_clear[at]);
            self.bytes[at] = new;
            bars_changed |= bars.contains(&at) && new != old;
        }
        ConfigWritten {
            old_command,
            command: self.command(),
            bars_changed,
        }
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.u16(COMMAND))
    }

    /// One byte; ones past the end.
    pub fn byte(&self, offset: u16) -> u8 {
        let mut data = [0];
        self.read(offset, &mut data);
        data[0]
    }

    /// Two bytes as a little-endian number; ones past the end.
    pub fn u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Four bytes as a little-endian number; ones past the end.
    pub fn u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// All bytes, as they are now.
    pub(crate) fn bytes(&self) -> &[u8; CONFIG_SIZE as usize] {
        &self.bytes
    }

    /// Sets all bytes to what they were in a function that is made as this one: what software can change is as it
    /// was there, and the rest has to be the same.
    ///
    /// # Errors
    /// The first byte where it is not; nothing has changed then.
    pub(crate) fn restore(&mut self, bytes: &[u8; CONFIG_SIZE as usize]) -> Result<(), usize> {
        let fixed = self.writable.iter().zip(self.write_1_to_clear.iter());
        let fixed = fixed.map(|(writable, cleared)| !(writable | cleared));
        let both = self.power_on.iter().zip(bytes).zip(fixed);
        let differs = |((mine, other), fixed): ((&u8, &u8), u8)| (mine ^ other) & fixed != 0;
        if let Some(at) = both.map(differs).position(|differs| differs) {
            return Err(at);
        }
        self.bytes.copy_from_slice(bytes);
        Ok(())
    }

    /// Back to the values after power-on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.power_on[..]);
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("id", &format_args!("{:08x}", self.u32(VENDOR_ID)))
            .field("command", &self.command())
            .finish_non_exhaustive()
    }
}

fn copy_at(block: &mut Block, offset: u16, data: &[u8]) {
    for (to, from) in block.iter_mut().skip(offset.into()).zip(data) {
        *to = *from;
    }
}
