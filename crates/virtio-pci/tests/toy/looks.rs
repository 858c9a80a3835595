//! What the function looks like before a driver does anything.

use virtio_pci::VirtioPciConfig;

use crate::driver::{Driver, Structure};
use crate::machine::{Binder, Machine};

#[test]
fn identity_is_that_of_a_modern_device_of_its_type() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    assert_eq!(driver.config::<4>(0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(driver.config::<4>(8), [1, 0, 0xff, 0], "revision and class");
    assert_eq!(driver.config::<4>(0x2c), [0xf4, 0x1a, 0x00, 0x11]);
    assert_eq!(driver.config::<1>(0x3d), [1], "INTA#");
}

#[test]
fn capabilities_are_met_last_added_first_where_qemu_has_them() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    assert_eq!(driver.config::<1>(0x34), [0x98]);
    assert_eq!(driver.others, [(0x11, 0x98)]);
    let structure = |kind, at, bar, offset, length| Structure {
        kind,
        at,
        bar,
        offset,
        length,
    };
    assert_eq!(
        driver.structures,
        [
            structure(5, 0x84, 0, 0, 0),
            structure(2, 0x70, 4, 0x3000, 0x1000),
            structure(4, 0x60, 4, 0x2000, 0x1000),
            structure(3, 0x50, 4, 0x1000, 0x1000),
            structure(1, 0x40, 4, 0, 0x1000),
        ]
    );
    assert_eq!(driver.config::<4>(0x80), [4, 0, 0, 0], "notify multiplier");
    let lengths: Vec<u8> = (driver.structures.iter())
        .map(|structure| driver.config::<1>(structure.at + 2)[0])
        .collect();
    assert_eq!(lengths, [20, 20, 16, 16, 16]);
}

#[test]
fn bars_have_the_sizes_and_kinds_that_qemu_gives_them() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(0);
    // (register, what sizing reads)
    let table = [
        (0x10, 0),
        (0x14, 0xffff_f000),
        (0x18, 0),
        (0x1c, 0),
        (0x20, 0xffff_c00c),
        (0x24, 0xffff_ffff),
    ];
    for (register, size) in table {
        driver.set_config(register, [0xff; 4]);
        let read = u32::from_le_bytes(driver.config(register));
        assert_eq!(read, size, "{register:#x}");
    }
}

#[test]
fn vectors_are_as_asked_and_by_default_one_more_than_queues() {
    // (asked, vectors, pending bits at, size of BAR 1)
    let table = [
        (None, 3, 0x800, 0x1000),
        (Some(1), 1, 0x800, 0x1000),
        (Some(128), 128, 0x800, 0x1000),
        (Some(129), 129, 0x810, 0x1000),
        (Some(2048), 2048, 0x8000, 0x1_0000),
    ];
    for (vectors, count, pba, size) in table {
        let config = VirtioPciConfig {
            vectors,
            ..VirtioPciConfig::default()
        };
        let machine = Machine::new(config, Binder::default());
        let driver = Driver::find(&machine);
        let control = u16::from_le_bytes(driver.config(0x9a));
        assert_eq!(control, count - 1, "{vectors:?}");
        assert_eq!(u32::from_le_bytes(driver.config(0x9c)), 1, "{vectors:?}");
        assert_eq!(u32::from_le_bytes(driver.config(0xa0)), pba | 1);
        driver.command(0);
        driver.set_config(0x14, [0xff; 4]);
        assert_eq!(u32::from_le_bytes(driver.config(0x14)), !(size - 1));
    }
}

#[test]
fn without_vectors_there_is_neither_msix_nor_bar_1() {
    let config = VirtioPciConfig {
        vectors: Some(0),
        ..VirtioPciConfig::default()
    };
    let machine = Machine::new(config, Binder::default());
    let driver = Driver::find(&machine);
    assert!(driver.others.is_empty());
    assert_eq!(driver.config::<1>(0x34), [0x84]);
    driver.set_config(0x14, [0xff; 4]);
    assert_eq!(driver.config::<4>(0x14), [0; 4]);
}

#[test]
fn common_registers_read_as_after_a_reset() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(crate::driver::IO_MEMORY_MASTER);
    // (offset, two bytes)
    let table = [
        (0x10, 0xffff),
        (0x12, 2),
        (0x14, 0),
        (0x16, 0),
        (0x18, 64),
        (0x1a, 0xffff),
        (0x1c, 0),
        (0x1e, 0),
        (0x38, 0),
        (0x3a, 0),
        (0x3c, 0),
        (0x3e, 0),
        (0x40, 0),
        (0xffe, 0),
    ];
    for (offset, value) in table {
        let read = u16::from_le_bytes(driver.common(offset));
        assert_eq!(read, value, "{offset:#x}");
    }
    driver.set_common(0, 1_u32.to_le_bytes());
    assert_eq!(
        driver.common::<4>(4),
        [1, 1, 0, 0],
        "VERSION_1 and RING_RESET, no SR_IOV"
    );
}
