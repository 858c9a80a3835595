//! The PCI host on the machine's ports and memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};
use vm_pci::PciHost;

use super::control::{Control, Event};
use super::layout::RESET_CONTROL_PORT;

/// Configuration mechanism 1, and the reset control register in its midst.
#[derive(Debug)]
pub(super) struct PciConfigPorts {
    host: Arc<PciHost>,
    control: Arc<Control>,
    reset_control: AtomicU8,
}

impl PciConfigPorts {
    pub(super) fn new(host: Arc<PciHost>, control: Arc<Control>) -> Self {
        Self {
            host,
            control,
            reset_control: AtomicU8::new(0),
        }
    }
}

impl DevicePio for PciConfigPorts {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        match (base.0.wrapping_add(offset), &mut *data) {
            (RESET_CONTROL_PORT, [value]) => *value = self.reset_control.load(Ordering::Relaxed),
            (port, data) => {
                if !self.host.pio_read(port, data) {
                    data.fill(0xff);
                }
            }
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        match (base.0.wrapping_add(offset), data) {
            (RESET_CONTROL_PORT, [value]) => {
                self.reset_control
                    .store(value & !RESET_CPU, Ordering::Relaxed);
                if value & RESET_CPU != 0 {
                    self.control.report(Event::Reset);
                }
            }
            (port, data) => {
                self.host.pio_write(port, data);
            }
        }
    }
}

/// BARs and ECAM.
#[derive(Debug)]
pub(super) struct PciWindow(pub(super) Arc<PciHost>);

impl DevicePio for PciWindow {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // What nobody decodes reads as ones.
        self.0.port_read(base.0.wrapping_add(offset), data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.0.port_write(base.0.wrapping_add(offset), data);
    }
}

impl DeviceMmio for PciWindow {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        // What nobody decodes reads as ones.
        self.0.mmio_read(base.0.wrapping_add(offset), data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.mmio_write(base.0.wrapping_add(offset), data);
    }
}

/// The bit whose rise resets the processors.
const RESET_CPU: u8 = 1 << 2;

#[cfg(test)]
mod tests {
    use crate::machine::layout::{MIB, PCI_ECAM, RESET_CONTROL_VALUE};
    use crate::machine::{Machine, MachineConfig, ManualInterrupts};

    use super::*;

    fn machine() -> Arc<Machine> {
        let config = MachineConfig {
            ram: 16 * MIB,
            exit_port: None,
        };
        let interrupts = ManualInterrupts::new().interrupts();
        Machine::new(&config, interrupts, Box::new(std::io::sink())).unwrap()
    }

    #[test]
    fn both_mechanisms_show_the_same_host_bridge() {
        let machine = machine();
        machine.port_write(0xcf8, &0x8000_0000u32.to_le_bytes());
        let (mut by_port, mut by_memory) = ([0; 4], [0; 4]);
        machine.port_read(0xcfc, &mut by_port);
        machine.mmio_read(PCI_ECAM.start, &mut by_memory);
        assert_eq!(by_port, by_memory);
        assert_ne!(by_port, [0xff; 4]);
    }

    #[test]
    fn the_reset_register_resets_and_is_no_part_of_a_dword_access() {
        let machine = machine();
        machine.port_write(0xcf8, &0x8000_0600u32.to_le_bytes());
        machine.port_write(RESET_CONTROL_PORT, &[0x02]);
        assert_eq!(machine.control().take(), None);
        machine.port_write(RESET_CONTROL_PORT, &[RESET_CONTROL_VALUE]);
        assert_eq!(machine.control().take(), Some(Event::Reset));
    }

    #[test]
    fn nothing_reads_as_ones() {
        let machine = machine();
        for (port, len) in [(0x80, 1), (0x1f0, 2), (0xcffe, 4), (0xffff, 2), (0xc000, 4)] {
            let mut data = vec![0; len];
            machine.port_read(port, &mut data);
            assert_eq!(data, vec![0xff; len], "{port:#x}");
        }
        let mut data = [0; 8];
        for address in [0xfed0_0000, 0xc000_0000, u64::MAX] {
            data.fill(0);
            machine.mmio_read(address, &mut data);
            assert_eq!(data, [0xff; 8], "{address:#x}");
        }
    }
}
