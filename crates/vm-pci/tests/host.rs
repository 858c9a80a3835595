//! Configuration accesses through both mechanisms, and places on the bus.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::{Arc, Mutex};

use vm_pci::registers::CONFIG_SIZE;
use vm_pci::test_utils::{RecordingFunction, RecordingIrqLines, RecordingMsiSink};
use vm_pci::{
    Aperture, Attachment, BarIndex, BarWindow, ConfigEffect, DevFn, Error, FunctionState,
    PciFunction, PciHost, PciHostConfig, PciIdentity,
};

const ENABLE: u32 = 1 << 31;

fn host() -> PciHost {
    PciHost::new(PciHostConfig::default(), RecordingIrqLines::new()).unwrap()
}

fn function(device: u16) -> Arc<RecordingFunction> {
    let state = FunctionState::new(&PciIdentity {
        vendor: 0x1af4,
        device,
        ..PciIdentity::default()
    });
    RecordingFunction::new(state, RecordingMsiSink::new())
}

fn at(device: u8, function: u8) -> DevFn {
    DevFn::new(device, function).unwrap()
}

fn select(host: &PciHost, address: u32) {
    assert!(host.pio_write(0xcf8, &address.to_le_bytes()));
}

fn selected(host: &PciHost) -> u32 {
    let mut data = [0; 4];
    assert!(host.pio_read(0xcf8, &mut data));
    u32::from_le_bytes(data)
}

fn ecam(host: &PciHost, bus: u8, devfn: DevFn, offset: u16, len: usize) -> Vec<u8> {
    let place = u64::from(bus) << 20 | u64::from(devfn.to_byte()) << 12 | u64::from(offset);
    let mut data = vec![0xaa; len];
    host.ecam_read(place, &mut data);
    let mut by_address = vec![0xaa; len];
    assert!(host.mmio_read(0xe000_0000 + place, &mut by_address));
    assert_eq!(data, by_address);
    data
}

/// A function whose configuration space is its own pattern, and which knows its contract.
#[derive(Debug)]
struct Patterned {
    bytes: Mutex<Vec<u8>>,
}

impl Patterned {
    fn new() -> Arc<Self> {
        let bytes = (0..CONFIG_SIZE).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]);
        Arc::new(Self {
            bytes: Mutex::new(bytes.collect()),
        })
    }

    fn check(offset: u16, len: usize) -> usize {
        let offset = usize::from(offset);
        assert!(len > 0 && offset + len <= 4096, "{len} at {offset:#x}");
        assert!(
            offset % 4 + len <= 4,
            "{len} at {offset:#x} crosses a dword"
        );
        offset
    }
}

impl PciFunction for Patterned {
    fn attached(&self, _: Attachment) -> Result<(), Error> {
        Ok(())
    }

    fn detached(&self) {}

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let at = Self::check(offset, data.len());
        data.copy_from_slice(&self.bytes.lock().unwrap()[at..at + data.len()]);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        let at = Self::check(offset, data.len());
        self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        ConfigEffect::default()
    }

    fn windows(&self) -> Vec<BarWindow> {
        Vec::new()
    }

    fn bar_read(&self, _: BarIndex, _: u64, _: &mut [u8]) {
        unreachable!("no BARs");
    }

    fn bar_write(&self, _: BarIndex, _: u64, _: &[u8]) {
        unreachable!("no BARs");
    }

    fn reset(&self) {}
}

#[test]
fn only_a_dword_write_at_its_first_port_changes_the_address_register() {
    let host = host();
    select(&host, ENABLE | 0x1234_5678);
    for port in 0xcf8..0xcfc {
        for len in 1..=8usize {
            if (port, len) != (0xcf8, 4) {
                assert!(!host.pio_write(port, &vec![0; len]), "{len} at {port:#x}");
                assert!(
                    !host.pio_read(port, &mut vec![0; len]),
                    "{len} at {port:#x}"
                );
            }
        }
    }
    assert_eq!(selected(&host), 0x8034_5678);
}

#[test]
fn reserved_bits_of_the_address_register_are_zero() {
    let host = host();
    assert_eq!(selected(&host), 0);
    for (written, expected) in [(u32::MAX, 0x80ff_fffc), (0x7f00_0003, 0), (0x80, 0x80)] {
        select(&host, written);
        assert_eq!(selected(&host), expected, "{written:#x}");
    }
}

#[test]
fn the_data_register_is_nothing_while_not_enabled() {
    let host = host();
    let mut data = [0; 4];
    assert!(!host.pio_read(0xcfc, &mut data));
    assert!(!host.pio_write(0xcfc, &data));
    select(&host, ENABLE);
    assert!(host.pio_read(0xcfc, &mut data));
    assert_eq!(u32::from_le_bytes(data), 0x0d57_8086);
    assert!(!host.pio_read(0xd00, &mut data));
    host.reset();
    assert!(!host.pio_read(0xcfc, &mut data));
}

#[test]
fn both_mechanisms_read_the_same_bytes_in_every_width_and_alignment() {
    let host = host();
    host.bus().attach(at(7, 0), Patterned::new()).unwrap();
    for register in (0..0x100u16).step_by(4) {
        select(&host, ENABLE | 7 << 11 | u32::from(register));
        for lane in 0..4u16 {
            for len in 1..=8usize {
                let mut data = vec![0xaa; len];
                assert!(host.port_read(0xcfc + lane, &mut data));
                let inside = len.min(usize::from(4 - lane));
                let expected = ecam(&host, 0, at(7, 0), register + lane, inside);
                assert_eq!(data[..inside], expected, "{len} at {register:#x}+{lane}");
                assert!(data[inside..].iter().all(|byte| *byte == 0xff));
            }
        }
    }
}

#[test]
fn mechanism_1_writes_bytes_of_one_dword_alone() {
    for lane in 0..4u16 {
        for len in 1..=8usize {
            let host = host();
            host.bus().attach(at(7, 0), Patterned::new()).unwrap();
            let mut expected = ecam(&host, 0, at(7, 0), 0, 4096);
            let ones: Vec<u8> = (1..=8).take(len).collect();
            select(&host, ENABLE | 7 << 11 | 0x40);
            assert!(host.port_write(0xcfc + lane, &ones));
            for (byte, lane) in ones.iter().zip(lane..4) {
                expected[0x40 + usize::from(lane)] = *byte;
            }
            assert_eq!(ecam(&host, 0, at(7, 0), 0, 4096), expected, "{len}+{lane}");
        }
    }
}

#[test]
fn ecam_accesses_are_split_at_dwords_and_go_on_in_the_next_function() {
    let host = host();
    let pattern: Vec<u8> = (0..CONFIG_SIZE)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    host.bus().attach(at(7, 7), Patterned::new()).unwrap();
    let mut expected = pattern.clone();
    expected.extend([0xff; 16]);
    for offset in 0..CONFIG_SIZE {
        for len in 1..=16usize {
            let start = usize::from(offset);
            let read = ecam(&host, 0, at(7, 7), offset, len);
            assert_eq!(read, expected[start..start + len], "{len} at {offset:#x}");
        }
    }
    let place = u64::from(at(7, 7).to_byte()) << 12;
    host.ecam_write(place + 0xffd, &[1, 2, 3, 4, 5]);
    assert_eq!(
        ecam(&host, 0, at(7, 7), 0xffc, 4),
        [pattern[0xffc], 1, 2, 3]
    );
    host.ecam_write(place - 2, &[1, 2, 3, 4]);
    assert_eq!(ecam(&host, 0, at(7, 7), 0, 3), [3, 4, pattern[2]]);
}

#[test]
fn accesses_past_the_end_of_ecam_are_nothing() {
    let config = PciHostConfig {
        ecam: Aperture::new(0xe000_0000, 1 << 20),
        ..PciHostConfig::default()
    };
    let host = PciHost::new(config, RecordingIrqLines::new()).unwrap();
    let mut data = [0; 8];
    for offset in [(1 << 20) - 4, 1 << 20, u64::MAX - 3, u64::MAX] {
        host.ecam_write(offset, &[0; 8]);
        data.fill(0);
        host.ecam_read(offset, &mut data);
        assert_eq!(data, [0xff; 8], "{offset:#x}");
    }
    // Bus 256 is not bus 0 again.
    let whole = self::host();
    whole.ecam_read(1 << 28, &mut data);
    assert_eq!(data, [0xff; 8]);
    assert!(!host.mmio_read(0xe010_0000, &mut data));
    assert_eq!(data, [0xff; 8]);
    host.bus().attach(at(1, 0), Patterned::new()).unwrap();
    host.config_read(0, at(1, 0), 0xfff0, &mut data);
    assert_eq!(data, [0xff; 8]);
    host.config_write(0, at(1, 0), 0x1000, &data);
    host.config_write(0, at(1, 0), 0xffff, &data);
}

#[test]
fn every_place_is_found_by_both_mechanisms_under_its_own_number_alone() {
    let host = host();
    for byte in 1..=u8::MAX {
        let attached = function(u16::from(byte));
        host.bus().attach(DevFn::from_byte(byte), attached).unwrap();
    }
    for bus in [0u8, 1, 255] {
        for byte in 0..=u8::MAX {
            let devfn = DevFn::from_byte(byte);
            assert_eq!(DevFn::new(devfn.device(), devfn.function()).unwrap(), devfn);
            let id = match (bus, byte) {
                (0, 0) => 0x0d57_8086,
                (0, byte) => u32::from(byte) << 16 | 0x1af4,
                _ => u32::MAX,
            };
            select(&host, ENABLE | u32::from(bus) << 16 | u32::from(byte) << 8);
            let mut data = [0; 4];
            assert!(host.pio_read(0xcfc, &mut data));
            assert_eq!(u32::from_le_bytes(data), id, "{bus} {devfn}");
            assert_eq!(ecam(&host, bus, devfn, 0, 4), data, "{bus} {devfn}");
        }
    }
    assert!(matches!(
        host.bus().next_free_slot(),
        Err(Error::NoFreeSlot)
    ));
}

#[test]
fn device_and_function_numbers_that_no_bus_has_are_refused() {
    for device in 0..=u8::MAX {
        for function in 0..=u8::MAX {
            let devfn = DevFn::new(device, function);
            assert_eq!(devfn.is_ok(), device < 32 && function < 8);
        }
    }
}

#[test]
fn absent_functions_read_ones_and_take_no_writes() {
    let host = host();
    for len in 1..=8usize {
        for offset in 0..16u16 {
            assert_eq!(ecam(&host, 0, at(9, 0), offset, len), vec![0xff; len]);
            assert_eq!(ecam(&host, 9, at(0, 0), offset, len), vec![0xff; len]);
            host.config_write(0, at(9, 0), offset, &vec![0; len]);
            host.config_write(9, at(0, 0), offset, &vec![0; len]);
        }
    }
    assert!(host.find_bus(9).is_none());
    assert_eq!(host.find_bus(0).unwrap().number(), 0);
}

#[test]
fn a_device_says_that_it_has_several_functions_while_it_has() {
    let host = host();
    host.bus().attach(at(4, 0), function(1)).unwrap();
    let header_type = || {
        let byte = ecam(&host, 0, at(4, 0), 0x0e, 1)[0];
        assert_eq!(ecam(&host, 0, at(4, 0), 0x0c, 4)[2], byte);
        assert_eq!(ecam(&host, 0, at(4, 0), 0x0d, 2)[1], byte);
        byte
    };
    assert_eq!(header_type(), 0);
    host.bus().attach(at(4, 3), function(2)).unwrap();
    assert_eq!(header_type(), 0x80);
    assert_eq!(ecam(&host, 0, at(4, 3), 0x0e, 1), [0x80]);
    host.bus().detach(at(4, 3)).unwrap();
    assert_eq!(header_type(), 0);
}

#[test]
fn places_are_taken_and_freed() {
    let host = host();
    let bus = host.bus();
    assert_eq!(bus.next_free_slot().unwrap(), at(1, 0));
    bus.attach(at(1, 2), function(1)).unwrap();
    bus.attach(at(3, 0), function(2)).unwrap();
    assert_eq!(bus.next_free_slot().unwrap(), at(2, 0));
    let refused = bus.attach(at(3, 0), function(3));
    assert!(matches!(refused, Err(Error::SlotInUse(slot)) if slot == at(3, 0)));
    assert!(matches!(
        bus.attach(at(0, 0), function(3)),
        Err(Error::SlotInUse(_))
    ));
    let places: Vec<_> = bus.slots().iter().map(|(devfn, _)| *devfn).collect();
    assert_eq!(places, [at(0, 0), at(1, 2), at(3, 0)]);
    let leaving = bus.detach(at(1, 2)).unwrap();
    assert_eq!(Arc::strong_count(&leaving), 1);
    assert!(matches!(bus.detach(at(1, 2)), Err(Error::SlotEmpty(_))));
    assert!(bus.function(at(1, 2)).is_none());
    assert_eq!(bus.next_free_slot().unwrap(), at(1, 0));
    bus.attach(at(1, 2), leaving).unwrap();
}

#[test]
fn ranges_that_overlap_wrap_or_do_not_fit_are_refused() {
    let good = PciHostConfig::default();
    let none = Aperture::new(0, 0);
    let range = Aperture::new;
    for (config, ok) in [
        (good, true),
        (PciHostConfig { ecam: none, ..good }, true),
        (
            PciHostConfig {
                mmio64: none,
                ..good
            },
            true,
        ),
        (
            PciHostConfig {
                mmio32: none,
                io: none,
                ..good
            },
            true,
        ),
        (
            PciHostConfig {
                ecam: range(0xe000_0000, 0x1000),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                ecam: range(0xe008_0000, 1 << 20),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                ecam: range(0x1_0000_0000, 1 << 29),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                ecam: range(0xdff0_0000, 2 << 20),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                mmio32: range(0xf000_0000, 0x1000_0001),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                mmio32: range(0xc000_0000, 0x3000_0000),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                mmio64: range(0xc800_0000, 0x1000),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                mmio64: range(u64::MAX, 2),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                io: range(0xc000, 0x4001),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                io: range(0xc00, 0x100),
                ..good
            },
            false,
        ),
        (
            PciHostConfig {
                io: range(0xd00, 0x100),
                ..good
            },
            true,
        ),
    ] {
        let made = PciHost::new(config, RecordingIrqLines::new());
        assert_eq!(made.is_ok(), ok, "{config:x?}");
    }
}
