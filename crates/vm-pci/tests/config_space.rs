//! Configuration space alone: masks, capability lists, sizing of BARs.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use vm_pci::registers::{
    BAR_0, CAPABILITIES_POINTER, CONFIG_SIZE, CONVENTIONAL_SIZE, Command, DEVICE_ID, STATUS,
    VENDOR_ID,
};
use vm_pci::{BarIndex, BarKind, BarSpace, BarWindow, Bars, ConfigSpace, Error, PciIdentity};

const NIC: PciIdentity = PciIdentity {
    vendor: 0x1af4,
    device: 0x1041,
    revision: 1,
    class: 0x02_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

fn bar(index: u8) -> BarIndex {
    BarIndex::new(index).unwrap()
}

#[test]
fn the_identity_is_where_the_header_has_it() {
    let config = ConfigSpace::new(&NIC);
    for (offset, expected) in [
        (0x00, 0x1041_1af4),
        (0x04, 0),
        (0x08, 0x0200_0001),
        (0x0c, 0),
        (0x2c, 0x1100_1af4),
        (0x34, 0),
    ] {
        assert_eq!(config.u32(offset), expected, "dword {offset:#x}");
    }
}

#[test]
fn software_changes_only_what_the_masks_let_it_in_any_width() {
    let mut before = [0; CONFIG_SIZE as usize];
    ConfigSpace::new(&NIC).read(0, &mut before);
    for width in 1..=4usize {
        for offset in 0..CONFIG_SIZE {
            let mut config = ConfigSpace::new(&NIC);
            let _ = config.write(offset, &vec![0xff; width]);
            let mut expected = before;
            for (at, byte) in expected
                .iter_mut()
                .enumerate()
                .skip(offset.into())
                .take(width)
            {
                *byte |= match at {
                    0x04 => 0x47,
                    0x05 => 0x05,
                    0x0c | 0x3c => 0xff,
                    _ => 0,
                };
            }
            let mut after = [0; CONFIG_SIZE as usize];
            config.read(0, &mut after);
            assert!(after == expected, "{width} at {offset:#x}");
        }
    }
}

#[test]
fn accesses_past_the_end_read_ones_and_write_nothing() {
    let mut config = ConfigSpace::new(&NIC);
    config.set_write_mask(0xfff, &[0xff; 8]);
    let mut data = [0; 4];
    let _ = config.write(0xffe, &[1, 2, 3, 4]);
    config.read(0xffe, &mut data);
    assert_eq!(data, [0, 2, 0xff, 0xff]);
    let _ = config.write(0xffff, &[1; 4]);
    config.read(0xffff, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn ones_clear_and_zeros_keep_bits_that_are_cleared_by_ones() {
    let mut config = ConfigSpace::new(&NIC);
    config.store(STATUS, &0xf910u16.to_le_bytes());
    for (write, expected) in [
        (0x0000u16, 0xf910u16),
        (0x0010, 0xf910),
        (0x8000, 0x7910),
        (0x0100, 0x7810),
        (0xffff, 0x0010),
    ] {
        let _ = config.write(STATUS, &write.to_le_bytes());
        assert_eq!(config.u16(STATUS), expected, "after {write:#x}");
    }
}

#[test]
fn reset_restores_what_was_set_but_not_what_was_stored_or_written() {
    let mut config = ConfigSpace::new(&NIC);
    config.set(0x50, &[7]);
    config.set_write_mask(0x50, &[0xff]);
    config.store(0x51, &[8]);
    let _ = config.write(0x50, &[9]);
    assert_eq!((config.byte(0x50), config.byte(0x51)), (9, 8));
    config.reset();
    assert_eq!((config.byte(0x50), config.byte(0x51)), (7, 0));
    assert_eq!(config.u16(DEVICE_ID), 0x1041);
}

#[test]
fn a_write_tells_what_it_changed() {
    let mut config = ConfigSpace::new(&NIC);
    let mut bars = Bars::new();
    bars.register(&mut config, bar(0), BarKind::Io, 32).unwrap();
    let written = config.write(0x04, &[0x05]);
    assert_eq!(written.old_command, Command::empty());
    assert_eq!(written.command, Command::IO | Command::BUS_MASTER);
    assert!(!written.bars_changed);
    assert!(config.write(BAR_0, &[0, 0xc0]).bars_changed);
    assert!(!config.write(BAR_0, &[0, 0xc0]).bars_changed);
    assert!(!config.write(BAR_0 + 4, &[0xff; 4]).bars_changed);
}

#[test]
fn the_last_added_capability_is_the_first_of_the_list() {
    let mut config = ConfigSpace::new(&NIC);
    assert_eq!(config.u16(STATUS) & 0x10, 0);
    let first = config.add_capability(0x09, &[1, 2, 3]).unwrap();
    let second = config.add_capability(0x11, &[4; 10]).unwrap();
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(config.u16(STATUS) & 0x10, 0x10);
    assert_eq!(config.byte(CAPABILITIES_POINTER), 0x48);
    assert_eq!(config.u32(0x48), 0x0404_4011);
    assert_eq!(config.u32(0x40), 0x0201_0009);
    assert_eq!(config.byte(0x44), 3);
}

#[test]
fn capabilities_end_within_the_conventional_space() {
    let mut config = ConfigSpace::new(&NIC);
    config.add_capability(9, &[0; 0xbc - 2]).unwrap();
    let error = config.add_capability(9, &[0; 3]).unwrap_err();
    assert!(matches!(error, Error::NoCapabilityRoom { id: 9, len: 5 }));
    assert_eq!(config.byte(CAPABILITIES_POINTER), 0x40);
    config.add_capability(9, &[0; 2]).unwrap();
    assert!(config.add_capability(9, &[]).is_err());
}

#[test]
fn extended_capabilities_are_a_list_from_0x100_in_order() {
    let mut config = ConfigSpace::new(&NIC);
    assert_eq!(config.u32(CONVENTIONAL_SIZE), 0);
    assert_eq!(
        config.add_extended_capability(1, 2, &[5; 5]).unwrap(),
        0x100
    );
    assert_eq!(config.add_extended_capability(3, 1, &[]).unwrap(), 0x10c);
    assert_eq!(config.u32(0x100), 0x10c2_0001);
    assert_eq!(config.u32(0x10c), 0x0001_0003);
    assert!(config.add_extended_capability(4, 1, &[0; 0xf00]).is_err());
}

#[test]
fn each_kind_of_bar_is_sized_by_writing_ones() {
    let io = BarKind::Io;
    let m32 = |prefetchable| BarKind::Memory32 { prefetchable };
    let m64 = |prefetchable| BarKind::Memory64 { prefetchable };
    let none = 0;
    for (kind, size, unsized_, low, high) in [
        (io, 4, 0x1, 0xffff_fffd_u32, none),
        (io, 32, 0x1, 0xffff_ffe1, none),
        (io, 0x8000, 0x1, 0xffff_8001, none),
        (m32(false), 16, 0x0, 0xffff_fff0, none),
        (m32(true), 0x1000, 0x8, 0xffff_f008, none),
        (m32(false), 1 << 31, 0x0, 0x8000_0000, none),
        (m64(false), 16, 0x4, 0xffff_fff4, 0xffff_ffff),
        (m64(true), 0x4000, 0xc, 0xffff_c00c, 0xffff_ffff),
        (m64(true), 1 << 32, 0xc, 0x0000_000c, 0xffff_ffff),
        (m64(true), 1 << 36, 0xc, 0x0000_000c, 0xffff_fff0),
        (m64(true), 1 << 63, 0xc, 0x0000_000c, 0x8000_0000),
    ] {
        let mut config = ConfigSpace::new(&NIC);
        let mut bars = Bars::new();
        bars.register(&mut config, bar(2), kind, size).unwrap();
        assert_eq!(config.u32(BAR_0 + 8), unsized_, "{kind:?} {size:#x}");
        let _ = config.write(0x04, &[0x03]);
        let _ = config.write(BAR_0 + 8, &[0xff; 4]);
        assert_eq!(config.u32(BAR_0 + 8), low, "{kind:?} {size:#x}");
        assert_eq!(bars.windows(&config), [], "while half sized: {kind:?}");
        let _ = config.write(BAR_0 + 12, &[0xff; 4]);
        assert_eq!(config.u32(BAR_0 + 12), high, "{kind:?} {size:#x}");
        assert_eq!(bars.windows(&config), [], "while sized: {kind:?}");
    }
}

#[test]
fn a_bar_that_cannot_be_is_refused() {
    let m32 = BarKind::Memory32 {
        prefetchable: false,
    };
    let m64 = BarKind::Memory64 { prefetchable: true };
    for (kind, size) in [
        (BarKind::Io, 2),
        (BarKind::Io, 0x1_0000),
        (BarKind::Io, 0),
        (m32, 8),
        (m32, 24),
        (m32, 1 << 32),
        (m64, 0),
    ] {
        let refused = Bars::new().register(&mut ConfigSpace::new(&NIC), bar(0), kind, size);
        assert!(
            matches!(refused, Err(Error::BarSize { .. })),
            "{kind:?} {size:#x}"
        );
    }
    let mut config = ConfigSpace::new(&NIC);
    let mut bars = Bars::new();
    bars.register(&mut config, bar(3), m32, 16).unwrap();
    bars.register(&mut config, bar(0), m64, 16).unwrap();
    for (index, kind) in [(0, m32), (1, m32), (2, m64), (3, m64), (5, m64)] {
        let refused = bars.register(&mut config, bar(index), kind, 16);
        assert!(
            matches!(refused, Err(Error::BarInUse(_))),
            "{index} {kind:?}"
        );
    }
    bars.register(&mut config, bar(4), m64, 16).unwrap();
}

#[test]
fn windows_follow_the_registers_and_the_command() {
    let mut config = ConfigSpace::new(&NIC);
    let mut bars = Bars::new();
    let m64 = BarKind::Memory64 { prefetchable: true };
    let m32 = BarKind::Memory32 {
        prefetchable: false,
    };
    bars.register(&mut config, bar(0), BarKind::Io, 32).unwrap();
    bars.register(&mut config, bar(1), m32, 0x1000).unwrap();
    bars.register(&mut config, bar(4), m64, 0x4000).unwrap();
    let _ = config.write(BAR_0, &0xc123_u32.to_le_bytes());
    let _ = config.write(BAR_0 + 4, &0xc000_0fff_u32.to_le_bytes());
    let _ = config.write(BAR_0 + 16, &0x12_3456_7000_u64.to_le_bytes());
    let io = BarWindow {
        bar: bar(0),
        space: BarSpace::Io,
        base: 0xc120,
        size: 32,
    };
    let low = BarWindow {
        bar: bar(1),
        space: BarSpace::Memory,
        base: 0xc000_0000,
        size: 0x1000,
    };
    let high = BarWindow {
        bar: bar(4),
        base: 0x12_3456_4000,
        size: 0x4000,
        ..low
    };
    for (command, expected) in [
        (0, vec![]),
        (1, vec![io]),
        (2, vec![low, high]),
        (3, vec![io, low, high]),
        (4, vec![]),
    ] {
        let _ = config.write(0x04, &[command]);
        assert_eq!(bars.windows(&config), expected, "command {command}");
    }
    let _ = config.write(0x04, &[3]);
    // No address: zero, and ports above 64 KiB.
    let _ = config.write(BAR_0, &0x1_c120_u32.to_le_bytes());
    let _ = config.write(BAR_0 + 4, &[0; 4]);
    assert_eq!(bars.windows(&config), [high]);
    assert_eq!(config.u16(VENDOR_ID), NIC.vendor);
}
