//! The ACPI tables of the machine (ACPI 6.5, 5.2): what firmware would tell of it.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use super::place::{ACPI, HIGH};
use crate::machine::Memory;
use crate::machine::layout::{
    IOAPIC, LOCAL_APIC, PCI_CONFIG_PORTS, PCI_ECAM, PCI_FIRST_GSI, PCI_GSI_COUNT, PCI_IO,
    PCI_MMIO32, PCI_MMIO64, PM_BASE, PM_TIMER, PM1_CONTROL, PM1_EVENT, RESET_CONTROL_PORT,
    RESET_CONTROL_VALUE, SCI_GSI, SERIAL_GSI, SERIAL_PORT, SLEEP_TYPE_S5,
};

/// Writes the tables of a machine with `vcpus` processors and gives the address of the first.
pub(super) fn write(memory: &Memory, vcpus: u8) -> Result<u64, BootError> {
    // The root pointer comes first, where an operating system without a boot protocol looks.
    let mut writer = Writer {
        memory,
        next: ACPI.0 + 64,
    };
    let facs = writer.put(&FACS::new())?;
    let dsdt = writer.put(&dsdt())?;
    let fadt = writer.put(&fadt(facs, dsdt).finalize())?;
    let madt = writer.put(&madt(vcpus))?;
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(PCI_ECAM.start, 0, 0, 255);
    let mcfg = writer.put(&mcfg)?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = writer.put(&xsdt)?;
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    memory.write_slice(&rsdp, ACPI)?;
    Ok(ACPI.0)
}

struct Writer<'a> {
    memory: &'a Memory,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<u64, BootError> {
        let bytes = bytes(table);
        let address = self.next;
        let end = address + bytes.len() as u64;
        if end > HIGH.0 {
            return Err(BootError::DoesNotFit {
                what: "the ACPI tables",
            });
        }
        self.memory.write_slice(&bytes, GuestAddress(address))?;
        // FACS wants 64 bytes, the most of all.
        self.next = end.next_multiple_of(64);
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed hardware: PM1 registers and a timer, no SMI command port, so ACPI mode is always on.
fn fadt(facs: u64, dsdt: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // There are no buttons of either kind.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "below the I/O APIC's 24 inputs"
    )]
    let sci = SCI_GSI as u16;
    fadt.sci_int = sci.into();
    let port = |offset: u16| u32::from(PM_BASE + offset);
    let register = |offset: u16, bits: u8, width: AccessSize| {
        GAS::new(GasSpace::SystemIo, bits, 0, width, port(offset).into())
    };
    fadt.pm1a_evt_blk = port(PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = register(PM1_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = port(PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = register(PM1_CONTROL, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = port(PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = register(PM_TIMER, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CMOS_CENTURY;
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA).into();
    fadt.reset_reg = GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        RESET_CONTROL_PORT.into(),
    );
    fadt.reset_value = RESET_CONTROL_VALUE;
    fadt
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(low_u32(LOCAL_APIC)),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // No source override: each ISA line is the input of its own number.
    madt.add_structure(IoApic::new(IOAPIC_ID, low_u32(IOAPIC), 0));
    madt
}

fn dsdt() -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes(&Scope::new(
        Path::new("_SB_"),
        vec![&PciBus, &Motherboard, &Com1],
    )));
    // Sleep type of PM1a, of PM1b, two reserved (ACPI 6.5, 7.4.2).
    dsdt.append_slice(&bytes(&Name::new(
        Path::new("_S5_"),
        &Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]),
    )));
    dsdt
}

/// The host bridge: its windows, and where its interrupt pins go.
struct PciBus;

impl Aml for PciBus {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let mut routes = PackageBuilder::new();
        for device in 0..32u32 {
            for pin in 0..4u32 {
                let gsi = PCI_FIRST_GSI + (device + pin) % PCI_GSI_COUNT;
                // All functions of the device; the pin; no link device; the line.
                let address = device << 16 | 0xffff;
                routes.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
            }
        }
        let config = PCI_CONFIG_PORTS;
        let [io_start, io_last] = [PCI_IO.start, PCI_IO.end - 1].map(low_u16);
        Device::new(
            Path::new("PCI0"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
                &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(Path::new("_BBN"), &0u8),
                &Name::new(Path::new("_SEG"), &0u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &AddressSpace::new_bus_number(0u16, 255u16),
                        &IO::new(config.start, config.start, 1, 8),
                        &AddressSpace::new_io(io_start, io_last, None),
                        &AddressSpace::new_memory(
                            AddressSpaceCacheable::NotCacheable,
                            true,
                            low_u32(PCI_MMIO32.start),
                            low_u32(PCI_MMIO32.end - 1),
                            None,
                        ),
                        &AddressSpace::new_memory(
                            AddressSpaceCacheable::NotCacheable,
                            true,
                            PCI_MMIO64.start,
                            PCI_MMIO64.end - 1,
                            None,
                        ),
                    ]),
                ),
                &Name::new(Path::new("_PRT"), &routes),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Claims what belongs to no device: without it Linux does not believe in the MCFG table.
struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let ecam = PCI_ECAM;
        Device::new(
            Path::new("MBRD"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&Memory32Fixed::new(
                        true,
                        low_u32(ecam.start),
                        low_u32(ecam.end - ecam.start),
                    )]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The serial port.
struct Com1;

impl Aml for Com1 {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &0u8),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![
                        &Interrupt::new(true, true, false, false, SERIAL_GSI),
                        &IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
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

/// The low part of an address that is known to be a port.
fn low_u16(address: u64) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the address is a port")]
    let low = address as u16;
    low
}

const OEM_ID: [u8; 6] = *b"VNETVM";
const OEM_TABLE_ID: [u8; 8] = *b"VNETVMM ";
const OEM_REVISION: u32 = 1;
const SDT_HEADER: u32 = 36;
const IOAPIC_ID: u8 = 0xf0;
/// Latencies that mean "not supported" (ACPI 6.5, table 5.9).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
const CMOS_CENTURY: u8 = 0x32;
/// Devices on an ISA bus: the serial port.
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::layout::MIB;
    use crate::machine::memory;

    fn read(memory: &Memory, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn table(memory: &Memory, address: u64) -> Vec<u8> {
        let header = read(memory, address, 8);
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
        read(memory, address, len as usize)
    }

    #[test]
    fn every_table_is_reached_from_the_root_and_sums_to_zero() {
        let memory = memory::allocate(64 * MIB).unwrap();
        let rsdp = read(&memory, write(&memory, 8).unwrap(), 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum(&rsdp), 0);
        assert_eq!(sum(&rsdp[..20]), 0);
        let u64_at =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let xsdt = table(&memory, u64_at(&rsdp, 24));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let found = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            names.push(found[..4].to_vec());
            assert_eq!(sum(&found), 0, "{:?}", String::from_utf8_lossy(&found[..4]));
            if &found[..4] == b"FACP" {
                let dsdt = table(&memory, u64_at(&found, 140));
                assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
                let facs = read(&memory, u64_at(&found, 132), 4);
                assert_eq!(facs, b"FACS");
            }
        }
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
    }

    #[test]
    fn the_processor_table_has_an_entry_for_each_vcpu() {
        for vcpus in [1, 2, 8] {
            let bytes = bytes(&madt(vcpus));
            // Header and flags, then 8 bytes a processor, then 12 for the I/O APIC.
            assert_eq!(bytes.len(), 44 + 8 * usize::from(vcpus) + 12);
        }
    }
}
