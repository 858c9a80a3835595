//! The tiny driver: configuration mechanism 1, capabilities, BARs.

use virtio::F;
use virtqueue::mock;
use vm_memory::GuestAddress;
use vm_pci::PciHost;

use crate::machine::{DEVFN, Machine, Memory};

pub(crate) const COMMAND: u16 = 4;
pub(crate) const IO_MEMORY_MASTER: u16 = 7;

/// Rings are packed in test programs whose name says so, else split.
pub(crate) fn format() -> F {
    if env!("CARGO_CRATE_NAME").ends_with("_packed") {
        F::RING_PACKED
    } else {
        F::empty()
    }
}

/// Where a structure is, as its capability says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Structure {
    pub(crate) kind: u8,
    pub(crate) at: u16,
    pub(crate) bar: u8,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

pub(crate) struct Driver<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) structures: Vec<Structure>,
    /// The other capabilities: id and offset.
    pub(crate) others: Vec<(u8, u16)>,
}

impl<'a> Driver<'a> {
    pub(crate) fn find(machine: &'a Machine) -> Self {
        let mut driver = Self {
            machine,
            structures: Vec::new(),
            others: Vec::new(),
        };
        let mut at = u16::from(driver.config::<1>(0x34)[0]);
        while at != 0 {
            let [id, next, _, kind] = driver.config::<4>(at);
            if id == 9 {
                driver.structures.push(Structure {
                    kind,
                    at,
                    bar: driver.config::<1>(at + 4)[0],
                    offset: u32::from_le_bytes(driver.config(at + 8)),
                    length: u32::from_le_bytes(driver.config(at + 12)),
                });
            } else {
                driver.others.push((id, at));
            }
            at = next.into();
        }
        driver
    }

    fn host(&self) -> &PciHost {
        &self.machine.host
    }

    fn address(offset: u16) -> [u8; 4] {
        let device = u32::from(DEVFN.0) << 11;
        (1 << 31 | device | u32::from(offset & 0xfc)).to_le_bytes()
    }

    pub(crate) fn config<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.host().pio_write(0xcf8, &Self::address(offset)));
        assert!(self.host().pio_read(0xcfc + (offset & 3), &mut data));
        data
    }

    pub(crate) fn set_config<const N: usize>(&self, offset: u16, data: [u8; N]) {
        assert!(self.host().pio_write(0xcf8, &Self::address(offset)));
        assert!(self.host().pio_write(0xcfc + (offset & 3), &data));
    }

    pub(crate) fn command(&self, value: u16) {
        self.set_config(COMMAND, value.to_le_bytes());
    }

    pub(crate) fn bar(&self, bar: u8) -> u64 {
        let register = 0x10 + 4 * u16::from(bar);
        let low = u32::from_le_bytes(self.config(register));
        let high = if low & 4 != 0 {
            u32::from_le_bytes(self.config(register + 4))
        } else {
            0
        };
        let type_bits = if low & 1 != 0 { 3 } else { 0xf };
        u64::from(high) << 32 | u64::from(low & !type_bits)
    }

    /// Address of a structure.
    pub(crate) fn structure(&self, kind: u8) -> u64 {
        let found = (self.structures.iter()).find(|structure| structure.kind == kind);
        let structure = found.unwrap();
        self.bar(structure.bar) + u64::from(structure.offset)
    }

    pub(crate) fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0xa5; N];
        assert!(self.host().mmio_read(address, &mut data), "{address:#x}");
        data
    }

    pub(crate) fn write<const N: usize>(&self, address: u64, data: [u8; N]) {
        assert!(self.host().mmio_write(address, &data), "{address:#x}");
    }

    pub(crate) fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.read(self.structure(1) + offset)
    }

    pub(crate) fn set_common<const N: usize>(&self, offset: u64, data: [u8; N]) {
        self.write(self.structure(1) + offset, data);
    }

    pub(crate) fn status(&self) -> u8 {
        self.common::<1>(0x14)[0]
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.set_common(0x14, [status]);
    }

    pub(crate) fn isr(&self) -> u8 {
        self.read::<1>(self.structure(3))[0]
    }

    pub(crate) fn notify(&self, queue: u16) {
        let off = u64::from(u16::from_le_bytes(self.common(0x1e)));
        assert_eq!(off, u64::from(queue), "select the queue first");
        self.write(self.structure(2) + off * 4, queue.to_le_bytes());
    }

    /// MSI-X on, vector N open and sending N.
    pub(crate) fn enable_msix(&self, vectors: u16) {
        let table = self.bar(1);
        for vector in 0..vectors {
            let entry = table + u64::from(vector) * 16;
            self.write(entry, 0xfee0_0000_u64.to_le_bytes());
            self.write(entry + 8, u32::from(vector).to_le_bytes());
            self.write(entry + 12, 0_u32.to_le_bytes());
        }
        self.msix_control(0x8000);
    }

    pub(crate) fn msix_control(&self, value: u16) {
        let capability = self.others.iter().find(|(id, _)| *id == 0x11).unwrap().1;
        self.set_config(capability + 2, value.to_le_bytes());
    }

    pub(crate) fn negotiate(&self, features: F) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        let bits = (features | F::VERSION_1 | format()).bits().to_ne();
        for word in 0..4_u32 {
            self.set_common(8, word.to_le_bytes());
            let value = u32::try_from(bits >> (32 * word) & 0xffff_ffff).unwrap();
            self.set_common(12, value.to_le_bytes());
        }
        self.set_status(0xb);
        assert_eq!(self.status(), 0xb);
    }

    /// Sets a queue up at `base` with MSI-X vector `vector`.
    pub(crate) fn set_up(&self, queue: u16, base: u64, vector: u16) -> mock::Driver<Memory> {
        let ring = self.arrange(queue, base, vector);
        self.set_common(0x1c, 1_u16.to_le_bytes());
        ring
    }

    /// Sets a queue up but for `queue_enable`.
    pub(crate) fn arrange(&self, queue: u16, base: u64, vector: u16) -> mock::Driver<Memory> {
        self.set_common(0x16, queue.to_le_bytes());
        let size = u16::from_le_bytes(self.common(0x18));
        let memory = self.machine.memory.clone();
        let features = F::VERSION_1 | format();
        let ring = mock::Driver::new(memory, GuestAddress(base), size, features);
        let config = ring.config();
        self.set_common(0x1a, vector.to_le_bytes());
        self.set_common(0x20, config.desc.to_le_bytes());
        self.set_common(0x28, config.driver.to_le_bytes());
        self.set_common(0x30, config.device.to_le_bytes());
        ring
    }

    /// All the way to DRIVER_OK, with a vector for each queue.
    pub(crate) fn start(&self) -> [mock::Driver<Memory>; 2] {
        self.start_with(F::empty())
    }

    /// The same, with `features` negotiated.
    pub(crate) fn start_with(&self, features: F) -> [mock::Driver<Memory>; 2] {
        self.command(IO_MEMORY_MASTER);
        self.enable_msix(3);
        self.negotiate(features);
        self.set_common(0x10, 0_u16.to_le_bytes());
        let rings = [self.set_up(0, 0x1_0000, 1), self.set_up(1, 0x2_0000, 2)];
        self.set_status(0xf);
        assert_eq!(self.status(), 0xf);
        rings
    }
}
