//! What the function looks like before a driver does anything.

use std::sync::Arc;

use virtio_bus::NoKickBinder;
use virtio_pci::{VirtioPci, VirtioPciConfig};

use crate::driver::{Driver, Structure};
use crate::machine::{Binder, Machine};

/// Legacy and modern interface.
fn forms() -> [(&'static str, VirtioPciConfig); 3] {
    let form = |legacy, modern| VirtioPciConfig {
        legacy,
        modern,
        ..VirtioPciConfig::default()
    };
    [
        ("transitional", form(true, true)),
        ("modern", form(false, true)),
        ("legacy", form(true, false)),
    ]
}

#[test]
fn a_function_with_the_legacy_interface_has_the_identity_of_before_virtio_1() {
    // (device id, revision, subsystem id)
    let expected = [
        ([0x05, 0x10], 0, [0x04, 0]),
        ([0x44, 0x10], 1, [0x00, 0x11]),
        ([0x05, 0x10], 0, [0x04, 0]),
    ];
    for ((name, config), (device, revision, subsystem)) in forms().into_iter().zip(expected) {
        let machine = Machine::with(config);
        let driver = Driver::find(&machine);
        assert_eq!(driver.config::<2>(0), [0xf4, 0x1a], "{name}");
        assert_eq!(driver.config::<2>(2), device, "{name}");
        assert_eq!(driver.config::<4>(8), [revision, 0, 0xff, 0], "{name}");
        assert_eq!(driver.config::<2>(0x2c), [0xf4, 0x1a], "{name}");
        assert_eq!(driver.config::<2>(0x2e), subsystem, "{name}");
        assert_eq!(driver.config::<1>(0x3d), [1], "{name}: INTA#");
    }
}

#[test]
fn a_legacy_function_has_no_virtio_capability_and_msix_first() {
    let [.., (_, config)] = forms();
    let machine = Machine::with(config);
    let driver = Driver::find(&machine);
    assert!(driver.structures.is_empty());
    assert_eq!(driver.others, [(0x11, 0x40)]);
}

#[test]
fn a_function_without_any_interface_is_refused() {
    let config = VirtioPciConfig {
        legacy: false,
        modern: false,
        ..VirtioPciConfig::default()
    };
    let memory = Machine::usual().memory;
    let msi = vm_pci::test_utils::RecordingMsiSink::new();
    let refused = VirtioPci::new(config, memory, msi, Arc::new(NoKickBinder)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "device cannot work as neither modern nor legacy mode is enabled"
    );
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
    // What sizing reads, in the order of BARs.
    let expected = [
        [0xffff_ffe1, 0xffff_f000, 0, 0, 0xffff_c00c, 0xffff_ffff],
        [0, 0xffff_f000, 0, 0, 0xffff_c00c, 0xffff_ffff],
        [0xffff_ffe1, 0xffff_f000, 0, 0, 0, 0],
    ];
    for ((name, config), sizes) in forms().into_iter().zip(expected) {
        let machine = Machine::with(config);
        assert_eq!(bar_sizes(&machine), sizes, "{name}");
    }
}

fn bar_sizes(machine: &Machine) -> [u32; 6] {
    let driver = Driver::find(machine);
    driver.command(0);
    [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map(|register| {
        driver.set_config(register, [0xff; 4]);
        u32::from_le_bytes(driver.config(register))
    })
}

#[test]
fn a_page_for_each_queue_and_a_notify_port_look_as_qemus() {
    let config = VirtioPciConfig {
        page_per_vq: true,
        modern_pio_notify: true,
        ..VirtioPciConfig::default()
    };
    let machine = Machine::with(config);
    let driver = Driver::find(&machine);
    let notify: Vec<_> = (driver.structures.iter())
        .filter(|structure| structure.kind == 2)
        .map(|at| {
            (
                at.at,
                at.bar,
                at.offset,
                at.length,
                driver.config::<4>(at.at + 16),
            )
        })
        .collect();
    assert_eq!(
        notify,
        [
            (0x84, 2, 0, 4, [0; 4]),
            (0x70, 4, 0x3000, 0x40_0000, [0, 0x10, 0, 0]),
        ]
    );
    assert_eq!(driver.others, [(0x11, 0xac)]);
    assert_eq!(
        bar_sizes(&machine),
        [
            0xffff_ffe1,
            0xffff_f000,
            0xffff_fffd,
            0,
            0xff80_000c,
            0xffff_ffff
        ]
    );
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
