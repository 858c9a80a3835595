//! The way of that driver to the registers: its own walk through configuration space, and each
//! register accessed as a processor would.
//!
//! The crate's `PciTransport` reads and writes BARs through pointers. Here nothing is behind such a
//! pointer, so that this transport makes the same accesses, of the same widths and in the same order,
//! by calls into the machine.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only what is marked as a test for one"
)]

use std::sync::Arc;

use examples::machine::Machine;
use virtio_drivers::transport::pci::bus::{
    Command, ConfigurationAccess, DeviceFunction, PCI_CAP_ID_VNDR, PciRoot,
};
use virtio_drivers::transport::pci::{
    VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_CAP_DEVICE_CFG, VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG, virtio_device_type,
};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Configuration space by mechanism 1.
pub(crate) struct ConfigPorts(pub(crate) Arc<Machine>);

impl ConfigPorts {
    fn select(&self, function: DeviceFunction, register: u8) {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(register & 0xfc);
        self.0.port_write(0xcf8, &address.to_le_bytes());
    }
}

impl ConfigurationAccess for ConfigPorts {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        self.select(function, register);
        let mut data = [0; 4];
        self.0.port_read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, data: u32) {
        self.select(function, register);
        self.0.port_write(0xcfc, &data.to_le_bytes());
    }

    #[expect(unsafe_code, reason = "the trait says so")]
    unsafe fn unsafe_clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The registers of one function.
#[derive(Debug)]
pub(crate) struct MachineTransport {
    machine: Arc<Machine>,
    device_type: DeviceType,
    common: Structure,
    notify: Structure,
    notify_multiplier: u32,
    isr: Structure,
    device: Structure,
}

/// Where a structure lies in memory space.
#[derive(Clone, Copy, Debug)]
struct Structure {
    address: u64,
    len: u64,
}

impl MachineTransport {
    /// Finds the first virtio function on bus 0, and switches it on.
    pub(crate) fn find(machine: &Arc<Machine>) -> Self {
        let mut root = PciRoot::new(ConfigPorts(machine.clone()));
        let (function, device_type) = root
            .enumerate_bus(0)
            .find_map(|(function, info)| Some((function, virtio_device_type(&info)?)))
            .expect("configuration space shows a virtio function");
        root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);

        let capabilities: Vec<_> = root
            .capabilities(function)
            .filter(|capability| capability.id == PCI_CAP_ID_VNDR)
            .collect();
        let ports = ConfigPorts(machine.clone());
        let place = |kind: u8| {
            capabilities
                .iter()
                .find(|capability| capability.private_header.to_le_bytes()[1] == kind)
                .map(|capability| capability.offset)
                .expect("the function has the capability")
        };
        let mut structure = |kind: u8| {
            let at = place(kind);
            let bar = ports.read_word(function, at + 4).to_le_bytes()[0];
            let offset = u64::from(ports.read_word(function, at + 8));
            let len = u64::from(ports.read_word(function, at + 12));
            // Sizes the BAR, with decoding off.
            let info = root.bar_info(function, bar).unwrap().expect("a BAR");
            let (address, size) = info.memory_address_size().expect("in memory space");
            assert_ne!(address, 0, "BAR {bar} has no address");
            assert!(offset + len <= size, "structure {kind} is in BAR {bar}");
            Structure {
                address: address + offset,
                len,
            }
        };
        let [common, notify, isr, device] = [
            VIRTIO_PCI_CAP_COMMON_CFG,
            VIRTIO_PCI_CAP_NOTIFY_CFG,
            VIRTIO_PCI_CAP_ISR_CFG,
            VIRTIO_PCI_CAP_DEVICE_CFG,
        ]
        .map(&mut structure);
        Self {
            machine: machine.clone(),
            device_type,
            common,
            notify,
            notify_multiplier: ports.read_word(function, place(VIRTIO_PCI_CAP_NOTIFY_CFG) + 16),
            isr,
            device,
        }
    }

    fn read<const N: usize>(&self, structure: Structure, offset: u64) -> [u8; N] {
        assert!(offset + N as u64 <= structure.len);
        let mut data = [0; N];
        self.machine
            .mmio_read(structure.address + offset, &mut data);
        data
    }

    fn write<const N: usize>(&self, structure: Structure, offset: u64, data: [u8; N]) {
        assert!(offset + N as u64 <= structure.len);
        self.machine.mmio_write(structure.address + offset, &data);
    }

    fn select_queue(&self, queue: u16) {
        self.write(self.common, QUEUE_SELECT, queue.to_le_bytes());
    }
}

impl Transport for MachineTransport {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        let [low, high] = [0_u32, 1].map(|select| {
            self.write(self.common, DEVICE_FEATURE_SELECT, select.to_le_bytes());
            u32::from_le_bytes(self.read(self.common, DEVICE_FEATURE))
        });
        u64::from(high) << 32 | u64::from(low)
    }

    fn write_driver_features(&mut self, features: u64) {
        let [low, high]: [[u8; 4]; 2] = zerocopy::transmute!(features.to_le_bytes());
        for (select, half) in [(0_u32, low), (1, high)] {
            self.write(self.common, DRIVER_FEATURE_SELECT, select.to_le_bytes());
            self.write(self.common, DRIVER_FEATURE, half);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.select_queue(queue);
        u16::from_le_bytes(self.read(self.common, QUEUE_SIZE)).into()
    }

    fn notify(&mut self, queue: u16) {
        self.select_queue(queue);
        let unit = u16::from_le_bytes(self.read(self.common, QUEUE_NOTIFY_OFF));
        let offset = u64::from(unit) * u64::from(self.notify_multiplier);
        self.write(self.notify, offset, queue.to_le_bytes());
    }

    fn get_status(&self) -> DeviceStatus {
        let [status] = self.read(self.common, DEVICE_STATUS);
        DeviceStatus::from_bits_truncate(status.into())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let status = u8::try_from(status.bits()).unwrap();
        self.write(self.common, DEVICE_STATUS, [status]);
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let size = u16::try_from(size).unwrap();
        self.select_queue(queue);
        self.write(self.common, QUEUE_SIZE, size.to_le_bytes());
        self.write(self.common, QUEUE_DESC, descriptors.to_le_bytes());
        self.write(self.common, QUEUE_DRIVER, driver_area.to_le_bytes());
        self.write(self.common, QUEUE_DEVICE, device_area.to_le_bytes());
        self.write(self.common, QUEUE_ENABLE, [1, 0]);
    }

    /// A queue of a PCI device goes with all others, when the device is reset.
    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.select_queue(queue);
        self.read(self.common, QUEUE_ENABLE) == [1, 0]
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let [status] = self.read(self.isr, 0);
        InterruptStatus::from_bits_retain(status.into())
    }

    fn read_config_generation(&self) -> u32 {
        let [generation] = self.read(self.common, CONFIG_GENERATION);
        generation.into()
    }

    /// A number at once, anything else byte by byte.
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let offset = offset as u64;
        if offset + size_of::<T>() as u64 > self.device.len {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let mut value = T::new_zeroed();
        match value.as_mut_bytes() {
            [a, b] => [*a, *b] = self.read(self.device, offset),
            [a, b, c, d] => [*a, *b, *c, *d] = self.read(self.device, offset),
            bytes => {
                for (at, byte) in (offset..).zip(bytes) {
                    [*byte] = self.read(self.device, at);
                }
            }
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        for (at, byte) in (offset as u64..).zip(value.as_bytes()) {
            if at >= self.device.len {
                return Err(Error::ConfigSpaceTooSmall);
            }
            self.write(self.device, at, [*byte]);
        }
        Ok(())
    }
}

/// The driver relies on it: its rings are given back right after.
impl Drop for MachineTransport {
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
        while self.get_status() != DeviceStatus::empty() {}
    }
}

// Offsets in the common configuration (virtio 1.4, 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const DEVICE_STATUS: u64 = 20;
const CONFIG_GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFF: u64 = 30;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;
