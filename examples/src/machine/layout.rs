//! Where things are in the machine: the address map, the ports and the interrupt lines.
//!
//! A PC as guests know it, without firmware: the VMM writes its tables and assigns its BARs.

use std::ops::Range;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// The most RAM that lies below the 32-bit windows; the rest goes above 4 GiB.
pub const LOW_RAM_MAX: u64 = 3 * GIB;

/// Where RAM goes on above the 32-bit windows.
pub const HIGH_RAM_START: u64 = 4 * GIB;

/// The most RAM that a machine can have: up to the 64-bit window.
pub const RAM_MAX: u64 = PCI_MMIO64.start - HIGH_RAM_START + LOW_RAM_MAX;

/// The least RAM that a machine can have.
pub const RAM_MIN: u64 = 16 * MIB;

/// Memory BARs with 32-bit addresses.
pub const PCI_MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;

/// The enhanced configuration access mechanism (PCI Express 6.0, 7.2.2), all 256 buses.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xf000_0000;

/// Memory BARs with 64-bit addresses. Below 2^39, which every host that runs 64-bit guests can map.
pub const PCI_MMIO64: Range<u64> = 0x40_0000_0000..0x80_0000_0000;

/// I/O BARs.
pub const PCI_IO: Range<u64> = 0xc000..0x1_0000;

/// Configuration mechanism 1: the address register, then the data register.
pub const PCI_CONFIG_PORTS: Range<u16> = 0xcf8..0xd00;

/// The reset control register, which is inside the address register but is accessed by bytes.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

/// What the firmware tables tell a guest to write into the reset control register.
pub const RESET_CONTROL_VALUE: u8 = 0x06;

/// The I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;

/// The local APICs.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Three pages that KVM needs on Intel hosts while a vCPU is in real mode.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// One page that KVM needs on Intel hosts while a vCPU has paging off.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;

/// The line of the first serial port.
pub const SERIAL_GSI: u32 = 4;

/// The system control interrupt of ACPI. No event of this machine raises it.
pub const SCI_GSI: u32 = 9;

/// The keyboard controller's command and status register.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// The real-time clock's index register, then its data register.
pub const CMOS_PORT: u16 = 0x70;

/// ACPI's fixed hardware: PM1 events, PM1 control, the timer.
pub const PM_BASE: u16 = 0x600;

/// Offset of the PM1a event block.
pub const PM1_EVENT: u16 = 0;

/// Offset of the PM1a control block.
pub const PM1_CONTROL: u16 = 4;

/// Offset of the power management timer.
pub const PM_TIMER: u16 = 8;

/// Ports of ACPI's fixed hardware.
pub const PM_LEN: u16 = 12;

/// The sleep type that means S5 in the PM1 control register.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The first of the four lines that interrupt pins are routed to.
pub const PCI_FIRST_GSI: u32 = 16;

/// How many of them there are.
pub const PCI_GSI_COUNT: u32 = 4;

/// Inputs of the I/O APIC; message-signalled interrupts are numbered from here on.
pub const IOAPIC_PINS: u32 = 24;

/// The ranges of RAM in a machine with `bytes` of it, as (start, length).
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_MAX);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM_START, bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_never_reaches_into_a_window() {
        let table: [(u64, &[(u64, u64)]); 4] = [
            (256 * MIB, &[(0, 256 * MIB)]),
            (3 * GIB, &[(0, 3 * GIB)]),
            (3 * GIB + MIB, &[(0, 3 * GIB), (4 * GIB, MIB)]),
            (
                RAM_MAX,
                &[(0, 3 * GIB), (4 * GIB, PCI_MMIO64.start - 4 * GIB)],
            ),
        ];
        for (bytes, expected) in table {
            let ranges = ram_ranges(bytes);
            assert_eq!(ranges, expected, "{bytes:#x}");
            let (start, len) = *ranges.last().unwrap();
            assert!(start + len <= PCI_MMIO64.start);
        }
    }
}
