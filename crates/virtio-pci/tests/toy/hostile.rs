//! A guest that does what it must not.

use std::sync::Arc;

use virtio::F;
use virtio_pci::VirtioPciConfig;
use vm_pci::{DevFn, Express};

use crate::driver::{Driver, IO_MEMORY_MASTER};
use crate::machine::{DEVFN, Machine};

#[test]
fn registers_of_live_queues_do_not_move() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    driver.set_common(0x16, 0_u16.to_le_bytes());
    let before = driver.common::<32>(0x18);
    driver.set_common(0x18, 8_u16.to_le_bytes());
    driver.set_common(0x1c, 0_u16.to_le_bytes());
    driver.set_common(0x1c, 1_u16.to_le_bytes());
    driver.set_common(0x1e, 9_u16.to_le_bytes());
    driver.set_common(0x20, [0xff; 8]);
    driver.set_common(0x28, [0xff; 8]);
    driver.set_common(0x30, [0xff; 8]);
    driver.set_common(0x3a, 1_u16.to_le_bytes());
    assert_eq!(driver.common::<32>(0x18), before);
    assert_eq!(machine.toy.lent(), 2);
}

#[test]
fn a_ring_outside_of_memory_needs_a_reset_and_the_driver_is_told() {
    for address in [0xffff_0000_u64, u64::MAX - 15, 0x10_0000 - 16] {
        let machine = Machine::usual();
        let driver = Driver::find(&machine);
        driver.command(IO_MEMORY_MASTER);
        driver.enable_msix(3);
        driver.negotiate(F::empty());
        driver.set_common(0x10, 0_u16.to_le_bytes());
        driver.set_common(0x16, 0_u16.to_le_bytes());
        driver.set_common(0x20, address.to_le_bytes());
        driver.set_common(0x28, 0x1000_u64.to_le_bytes());
        driver.set_common(0x30, 0x2000_u64.to_le_bytes());
        driver.set_common(0x1c, 1_u16.to_le_bytes());
        driver.set_status(0xf);
        assert_eq!(driver.status(), 0x4f, "{address:#x}");
        assert_eq!(machine.msi.deliver().len(), 1, "{address:#x}");
        assert_eq!(machine.toy.lent(), 0);
        driver.start();
    }
}

#[test]
fn a_device_that_breaks_says_so_once_to_a_live_driver() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    machine.toy.transport().needs_reset("test");
    machine.toy.transport().needs_reset("test");
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(machine.msi.deliver().len(), 1);
    assert_eq!(driver.isr(), 2);
    driver.start();
}

#[test]
fn notifications_to_queues_that_are_not_live_do_nothing() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.command(IO_MEMORY_MASTER);
    let notify = driver.structure(2);
    for offset in [0, 4, 8, 0xffc, 0xfff] {
        driver.write(notify + offset, [0; 1]);
    }
    driver.start();
    machine.toy.turn();
    for offset in [8, 9, 0xffc] {
        driver.write(notify + offset, [0; 2]);
    }
    assert!(machine.toy.kick(0).read().is_err());
    assert!(machine.toy.kick(1).read().is_err());
}

/// A fixed stream of numbers.
fn numbers(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    }
}

#[test]
fn any_access_to_any_bar_has_an_answer() {
    let machine = Machine::usual();
    let driver = Driver::find(&machine);
    driver.start();
    let mut next = numbers(0x2545_f491_4f6c_dd1d);
    for _ in 0..200_000 {
        let bits = next();
        let (bar, size) = [(4, 0x4000), (1, 0x1000), (0, 0x20)][usize::try_from(bits % 3).unwrap()];
        let region = if bits & 2 == 0 { 0x48 } else { size };
        let len = usize::try_from(1 + (bits >> 8) % 9).unwrap();
        let offset = ((bits >> 16) % region).min(size - len as u64);
        let address = driver.bar(bar) + offset;
        let mut data = next().to_le_bytes().to_vec();
        data.push(0xff);
        data.truncate(len);
        if bar == 0 {
            let port = u16::try_from(address).unwrap();
            if bits & 4 == 0 {
                assert!(machine.host.port_read(port, &mut data));
            } else {
                assert!(machine.host.port_write(port, &data));
            }
        } else if bits & 4 == 0 {
            assert!(machine.host.mmio_read(address, &mut data));
        } else {
            assert!(machine.host.mmio_write(address, &data));
        }
    }
    driver.start();
    assert_eq!(machine.toy.lent(), 2);
}

/// One access out of a stream, to configuration space, a BAR where it is now, or a register of note.
fn disturb(machine: &Machine, driver: &Driver<'_>, next: &mut impl FnMut() -> u64) {
    let devfn = DevFn::new(DEVFN.0, DEVFN.1).unwrap();
    let bits = next();
    let value = next().to_le_bytes();
    let window = driver.structures.iter().find(|found| found.kind == 5);
    let window = window.unwrap().at;
    match bits % 16 {
        0..4 => {
            let len = 1_usize << ((bits >> 8) % 3);
            let offset = u16::try_from((bits >> 16) % 0x100).unwrap();
            machine.host.config_write(0, devfn, offset, &value[..len]);
        }
        4 => driver.set_config(window + 4, [4]),
        5 => driver.set_config(
            window + 12,
            [[1, 2, 4, 3][usize::from(value[0] & 3)], 0, 0, 0],
        ),
        6 => driver.set_config(window + 8, [value[0] & 0x3f, value[1] & 0x30, 0, 0]),
        7 => drop(driver.config::<4>(window + 16)),
        8 => driver.command(u16::from(value[0] & 7)),
        9 => {
            machine
                .host
                .mmio_write(driver.structure(1) + 0x14, &[value[0] & 0x1f]);
        }
        10 => machine.pci.pause(),
        11 => machine.pci.resume(),
        12 => {
            machine.toy.turn();
        }
        13 => {
            let port = driver.bar(0) + (bits >> 16) % 0x20;
            let port = u16::try_from(port).unwrap_or(u16::MAX);
            machine
                .host
                .port_write(port, &value[..1 + usize::from(value[7] % 4)]);
        }
        _ => {
            let offset = (bits >> 16) % 0x3fff;
            machine.host.mmio_write(driver.bar(4) + offset, &value[..4]);
        }
    }
}

/// What the transport offers beyond bit 31.
fn offered(driver: &Driver<'_>) -> F {
    driver.command(IO_MEMORY_MASTER);
    driver.set_common(0, 1_u32.to_le_bytes());
    let word = u128::from(u32::from_le_bytes(driver.common(4)));
    F::from_bits_retain(virtio::le128::from_ne(word << 32))
}

#[test]
fn no_sequence_of_accesses_loses_a_kick_a_queue_or_the_function() {
    let all = VirtioPciConfig {
        page_per_vq: true,
        modern_pio_notify: true,
        notification_data: true,
        suspend: true,
        express: Some(Express::default()),
        ..VirtioPciConfig::default()
    };
    for seed in 1..40_u64 {
        let config = if seed & 1 == 0 {
            all
        } else {
            VirtioPciConfig::default()
        };
        let machine = Machine::with(config);
        let driver = Driver::find(&machine);
        let mut next = numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for round in 0..20 {
            driver.start_with(F::SUSPEND & offered(&driver));
            for _ in 0..100 {
                disturb(&machine, &driver, &mut next);
            }
            machine.host.reset();
            assert_eq!(machine.toy.lent(), 0, "seed {seed}, round {round}");
            assert!(
                machine.binder.addresses().is_empty(),
                "seed {seed}, round {round}"
            );
            machine.host.assign_resources().unwrap();
        }
        machine.pci.resume();
        driver.start();
        machine.toy.turn();
        assert!(!machine.toy.is_paused(), "seed {seed}");
        let binder = Arc::clone(&machine.binder);
        drop(machine);
        assert!(binder.addresses().is_empty(), "seed {seed}");
    }
}
