//! What virtio 1.4 says that a device on PCI MUST do, statement by statement: the tests are in the order of its
//! section 4.1, with the number of the section and its words, and each runs on all forms that it is about. The rings are
//! split; `conformance_packed.rs` runs the same tests on packed ones.
//!
//! | section | statement | here |
//! |---|---|---|
//! | 4.1.2.1 to 4.1.5.4.1 | every "device MUST" that is not below | a test |
//! | 2, 3, 6 | those of any device that show in registers: `virtio-bus/tests/conformance` has the table | a test |
//! | 4.1.4.3.1 | `admin_queue_index`, `admin_queue_num` | VIRTIO_F_ADMIN_VQ is not offered |
//! | 4.1.4.7.1 | shared memory regions | there are none |
//! | 4.1.4.8.1 | vendor data | there is none |
//! | 6.4 | the SR-IOV capability | VIRTIO_F_SR_IOV is not offered |
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]
#![allow(dead_code, reason = "the scaffold is the toy's, which uses all of it")]

#[path = "toy/device.rs"]
pub(crate) mod device;
#[path = "toy/driver.rs"]
pub(crate) mod driver;
#[path = "toy/machine.rs"]
pub(crate) mod machine;

use virtio::F;
use virtio_pci::VirtioPciConfig;
use virtqueue::mock::Buffer;
use vm_pci::Express;

use crate::driver::{Driver, IO_MEMORY_MASTER};
use crate::machine::{GSI, Machine};

type Forms = Vec<(&'static str, VirtioPciConfig)>;

fn usual() -> VirtioPciConfig {
    VirtioPciConfig::default()
}

fn transitional() -> Forms {
    let express = Some(Express::default());
    vec![
        ("transitional", usual()),
        (
            "transitional, express",
            VirtioPciConfig { express, ..usual() },
        ),
    ]
}

/// Those with the modern interface.
fn modern() -> Forms {
    let modern = VirtioPciConfig {
        legacy: false,
        ..usual()
    };
    let all = VirtioPciConfig {
        page_per_vq: true,
        modern_pio_notify: true,
        notification_data: true,
        notif_config_data: true,
        suspend: true,
        order_platform: true,
        iommu_platform: true,
        express: Some(Express::default()),
        ..modern
    };
    let mut forms = transitional();
    forms.push(("modern", modern));
    forms.push(("modern, with all", all));
    forms
}

/// Those with the legacy interface.
fn legacy() -> Forms {
    let legacy = VirtioPciConfig {
        modern: false,
        ..usual()
    };
    let mut forms = transitional();
    forms.push(("legacy", legacy));
    forms
}

fn each(forms: Forms, check: impl Fn(&str, &Machine, &Driver<'_>)) {
    for (name, config) in forms {
        let machine = Machine::with(config);
        let driver = Driver::find(&machine);
        driver.command(IO_MEMORY_MASTER);
        check(name, &machine, &driver);
    }
}

/// What drivers must accept where it is offered, beside `features`.
fn needed(driver: &Driver<'_>, features: F) -> F {
    driver.set_common(0, 1_u32.to_le_bytes());
    let word = u32::from_le_bytes(driver.common(4));
    if word & 2 != 0 {
        features | F::ACCESS_PLATFORM
    } else {
        features
    }
}

/// Notifies of a queue, through each structure that there is for it.
fn notify(machine: &Machine, driver: &Driver<'_>, queue: u16) {
    driver.set_common(0x16, queue.to_le_bytes());
    let off = u32::from(u16::from_le_bytes(driver.common(0x1e)));
    for notify in driver.structures.iter().filter(|found| found.kind == 2) {
        let multiplier = u32::from_le_bytes(driver.config(notify.at + 16));
        let at = driver.bar(notify.bar) + u64::from(notify.offset + off * multiplier);
        let is_port = driver.config::<1>(0x10 + 4 * u16::from(notify.bar))[0] & 1 != 0;
        let data = queue.to_le_bytes();
        let written = if is_port {
            machine.host.port_write(at.try_into().unwrap(), &data)
        } else {
            machine.host.mmio_write(at, &data)
        };
        assert!(written, "{notify:?}");
    }
}

fn port(driver: &Driver<'_>) -> u16 {
    u16::try_from(driver.bar(0)).unwrap()
}

fn legacy_read<const N: usize>(machine: &Machine, driver: &Driver<'_>, register: u16) -> [u8; N] {
    let mut data = [0xa5; N];
    assert!(machine.host.port_read(port(driver) + register, &mut data));
    data
}

fn legacy_write<const N: usize>(machine: &Machine, driver: &Driver<'_>, at: u16, data: [u8; N]) {
    assert!(machine.host.port_write(port(driver) + at, &data));
}

/// 2.2.2: "The device MUST NOT offer feature bits corresponding to features it would not support if accepted by the driver
/// [...] this refers to feature bits not described in this specification, reserved feature bits and feature bits reserved
/// or not supported for the specific transport". 6.2: "SHOULD offer VIRTIO_F_ACCESS_PLATFORM if its access to memory is
/// through bus addresses", "MUST NOT offer VIRTIO_F_SR_IOV". The toy offers SR_IOV and NOTIFICATION_DATA in any form.
#[test]
fn s2_2_2_only_features_that_are_supported_are_offered() {
    for (name, config) in modern() {
        let mut expected = F::EVENT_IDX | F::INDIRECT_DESC | F::RING_RESET | F::VERSION_1;
        expected |= driver::format();
        for (wanted, feature) in [
            (config.notification_data, F::NOTIFICATION_DATA),
            (config.notif_config_data, F::NOTIF_CONFIG_DATA),
            (config.suspend, F::SUSPEND),
            (config.order_platform, F::ORDER_PLATFORM),
            (config.iommu_platform, F::ACCESS_PLATFORM),
        ] {
            if wanted {
                expected |= feature;
            }
        }
        let machine = Machine::with(config);
        let driver = Driver::find(&machine);
        driver.command(IO_MEMORY_MASTER);
        let mut offered = 0_u128;
        for select in 0..4_u32 {
            driver.set_common(0, select.to_le_bytes());
            let word = u32::from_le_bytes(driver.common(4));
            offered |= u128::from(word) << (32 * select);
        }
        assert_eq!(offered, expected.bits().to_ne(), "{name}: {offered:#x}");
    }
}

/// 2.2.2: a device that "has successfully negotiated a set of features at least once [...] SHOULD NOT fail re-negotiation of
/// the same set of features after a device or system reset".
#[test]
fn s2_2_2_a_choice_is_accepted_again_after_a_reset() {
    for choice in [F::empty(), F::RING_RESET | F::EVENT_IDX | F::INDIRECT_DESC] {
        each(modern(), |name, machine, driver| {
            for round in 0..4 {
                driver.start_with(needed(driver, choice));
                let negotiated = machine.toy.features().unwrap();
                assert!(negotiated.contains(choice), "{name} {round}");
                if round % 2 == 0 {
                    driver.set_status(0);
                } else {
                    machine.host.reset();
                    machine.host.assign_resources().unwrap();
                    driver.command(IO_MEMORY_MASTER);
                }
                assert_eq!(driver.status(), 0, "{name} {round}");
            }
        });
    }
}

/// 2.4.1: "A device MUST NOT send notifications or interact with the queues after indicating completion of the reset by
/// reinitializing device status to 0, until the driver re-initializes the device."
#[test]
fn s2_4_1_nothing_is_notified_or_used_after_a_reset() {
    for with_msix in [true, false] {
        each(modern(), |name, machine, driver| {
            let [mut fill, _] = driver.start_with(needed(driver, F::empty()));
            if !with_msix {
                driver.msix_control(0);
            }
            let kick = machine.toy.kick(0);
            fill.add(&[Buffer::writable(0x8000, 4)]);
            driver.set_status(0);
            kick.write(1).unwrap();
            notify(machine, driver, 0);
            machine.toy.transport().config_changed();
            assert_eq!(machine.toy.turn(), 0, "{name}");
            assert_eq!(fill.take_used(), None, "{name}");
            assert!(machine.msi.deliver().is_empty(), "{name}");
            assert!(!machine.lines.level(GSI), "{name}");
            // And none that was due before.
            let [mut fill, _] = driver.start_with(needed(driver, F::empty()));
            assert!(machine.msi.deliver().is_empty(), "{name}");
            fill.add(&[Buffer::writable(0x8000, 4)]);
            notify(machine, driver, 0);
            assert_eq!(machine.toy.turn(), 1, "{name}");
            assert_eq!(machine.msi.deliver().len(), 1, "{name}");
        });
    }
}

/// 2.5.2: "The device MUST allow reading of any device-specific configuration field before FEATURES_OK is set by the driver."
#[test]
fn s2_5_2_configuration_is_read_before_features_ok() {
    each(modern(), |name, machine, driver| {
        *machine.toy.config.lock().unwrap() = [1, 2, 3, 4, 5];
        let device = driver.structure(4);
        for status in [0, 1, 3] {
            driver.set_status(status);
            assert_eq!(driver.status(), status, "{name}");
            assert_eq!(driver.read::<4>(device), [1, 2, 3, 4], "{name} {status}");
            assert_eq!(driver.read::<2>(device + 2), [3, 4], "{name} {status}");
            assert_eq!(driver.read::<1>(device + 4), [5], "{name} {status}");
        }
    });
    each(legacy(), |name, machine, driver| {
        *machine.toy.config.lock().unwrap() = [1, 2, 3, 4, 5];
        for status in [0, 1, 3] {
            legacy_write(machine, driver, 18, [status]);
            let read = legacy_read(machine, driver, 20);
            assert_eq!(read, [1, 2, 3, 4, 5], "{name} {status}");
        }
    });
}

/// 2.6.1.1.1: "After a queue has been reset by the driver, the device MUST NOT execute any requests from that virtqueue, or
/// notify the driver for it."
#[test]
fn s2_6_1_1_1_a_queue_that_was_reset_does_nothing() {
    each(modern(), |name, machine, driver| {
        let [mut fill, _] = driver.start_with(needed(driver, F::RING_RESET));
        machine.toy.turn();
        let (kick, call) = (machine.toy.kick(0), machine.toy.call(0));
        fill.add(&[Buffer::writable(0x8000, 4)]);
        driver.set_common(0x16, 0_u16.to_le_bytes());
        driver.set_common(0x3a, 1_u16.to_le_bytes());
        kick.write(1).unwrap();
        notify(machine, driver, 0);
        call.notify();
        assert_eq!(machine.toy.turn(), 0, "{name}");
        assert_eq!(fill.take_used(), None, "{name}");
        assert!(machine.msi.deliver().is_empty(), "{name}");
        assert!(!machine.lines.level(GSI), "{name}");
    });
}

/// 2.6.1.2.1: "The device MUST observe any queue configuration that may have been changed by the driver, like the maximum
/// queue size."
#[test]
fn s2_6_1_2_1_a_queue_is_enabled_again_in_another_size_and_place() {
    each(modern(), |name, machine, driver| {
        driver.start_with(needed(driver, F::RING_RESET));
        for (size, base, vector) in [
            (8_u16, 0x3_0000, 2_u16),
            (64, 0x4_0000, 0),
            (1, 0x1_0000, 1),
        ] {
            driver.set_common(0x16, 0_u16.to_le_bytes());
            driver.set_common(0x3a, 1_u16.to_le_bytes());
            driver.set_common(0x18, size.to_le_bytes());
            assert_eq!(driver.common(0x18), size.to_le_bytes(), "{name}");
            let mut fill = driver.set_up(0, base, vector);
            machine.toy.turn();
            machine.msi.deliver();
            // More than once around.
            for round in 0..3 * size {
                let head = fill.add(&[Buffer::writable(0x8000, 4)]);
                machine.toy.kick(0).write(1).unwrap();
                assert_eq!(machine.toy.turn(), 1, "{name} {size} {round}");
                assert_eq!(fill.take_used(), Some((head.into(), 4)), "{name} {size}");
                let sent: Vec<_> = machine.msi.deliver().iter().map(|msi| msi.data).collect();
                assert_eq!(sent, [u32::from(vector)], "{name} {size} {round}");
            }
        }
    });
}

/// 4.1.2.1: "Devices MUST have the PCI Vendor ID 0x1AF4. Devices MUST either have the PCI Device ID calculated by
/// adding 0x1040 to the Virtio Device ID [...] or have the Transitional PCI Device ID depending on the device
/// type".
#[test]
fn s4_1_2_1_vendor_and_device_id() {
    for (forms, ids) in [(modern(), [0x1044, 0x1005]), (legacy(), [0x1005, 0x1005])] {
        each(forms, |name, _, driver| {
            assert_eq!(driver.config::<2>(0), [0xf4, 0x1a], "{name}");
            let id = u16::from_le_bytes(driver.config(2));
            assert!(ids.contains(&id), "{name}: {id:#x}");
        });
    }
}

/// 4.1.2.3: "Transitional devices MUST have a PCI Revision ID of 0. Transitional devices MUST have the PCI
/// Subsystem Device ID matching the Virtio Device ID [...] MUST have the Transitional PCI Device ID in the range
/// 0x1000 to 0x103f."
#[test]
fn s4_1_2_3_identity_of_transitional_devices() {
    each(legacy(), |name, _, driver| {
        assert_eq!(driver.config::<1>(8), [0], "{name}");
        assert_eq!(driver.config::<2>(0x2e), [4, 0], "{name}");
        assert_eq!(driver.config::<2>(2), [0x05, 0x10], "{name}");
    });
}

/// 4.1.3.2: "For 64-bit device configuration fields, the device MUST allow driver independent access to high and
/// low 32-bit parts of the field." Here of the 64-bit registers as well.
#[test]
fn s4_1_3_2_halves_of_64_bit_fields() {
    each(modern(), |name, _, driver| {
        driver.negotiate(needed(driver, F::empty()));
        for register in [0x20, 0x28, 0x30] {
            driver.set_common(register, 0x1111_1111_u32.to_le_bytes());
            driver.set_common(register + 4, 0x2222_2222_u32.to_le_bytes());
            driver.set_common(register, 0x3333_3333_u32.to_le_bytes());
            let whole = u64::from_le_bytes(driver.common(register));
            assert_eq!(whole, 0x2222_2222_3333_3333, "{name} {register:#x}");
        }
    });
}

/// 4.1.4.2: "The device MUST include any extra data (from the beginning of the cap_vndr field through end of the
/// extra data fields if any) in cap_len."
#[test]
fn s4_1_4_2_cap_len() {
    each(modern(), |name, _, driver| {
        for structure in &driver.structures {
            let least = if matches!(structure.kind, 2 | 5) {
                20
            } else {
                16
            };
            let [len] = driver.config::<1>(structure.at + 2);
            assert_eq!(len, least, "{name} {structure:?}");
        }
    });
}

/// 4.1.4.3.1, 4.1.4.4.1, 4.1.4.5.1, 4.1.4.6, 4.1.4.9.1: "The device MUST present at least one" of each; and the
/// alignments of their offsets.
#[test]
fn s4_1_4_one_capability_of_each_kind_at_least() {
    each(modern(), |name, _, driver| {
        for (kind, alignment) in [(1, 4), (2, 4), (3, 1), (4, 4), (5, 1)] {
            let of_kind = driver.structures.iter().filter(|found| found.kind == kind);
            let offsets: Vec<u32> = of_kind.map(|found| found.offset).collect();
            assert!(!offsets.is_empty(), "{name}: {kind}");
            for offset in offsets {
                assert!(
                    offset.is_multiple_of(alignment),
                    "{name}: {kind} {offset:#x}"
                );
            }
        }
    });
}

/// 4.1.4.3.1: "The device MUST present the feature bits it is offering in device_feature, starting at bit
/// device_feature_select * 32 for any device_feature_select written by the driver."
#[test]
fn s4_1_4_3_1_feature_bits_by_any_select() {
    each(modern(), |name, _, driver| {
        let word = |select: u32| {
            driver.set_common(0, select.to_le_bytes());
            u32::from_le_bytes(driver.common(4))
        };
        assert_eq!(word(0), 0x3000_0000, "{name}");
        assert_eq!(word(1) & 0x101, 0x101, "{name}: VERSION_1, RING_RESET");
        // SR_IOV (37) and ADMIN_VQ (41) are not offered.
        assert_eq!(word(1) & 0x220, 0, "{name}");
        for select in [2, 3, 4, 32, u32::MAX] {
            assert_eq!(word(select), 0, "{name} {select}");
        }
    });
}

/// 4.1.4.3.1: "The device MUST present any valid feature bits the driver has written in driver_feature".
#[test]
fn s4_1_4_3_1_feature_bits_read_back() {
    each(modern(), |name, _, driver| {
        for (select, bits) in [(0_u32, 0x1000_0000_u32), (1, 0x101)] {
            driver.set_common(8, select.to_le_bytes());
            driver.set_common(12, bits.to_le_bytes());
        }
        for (select, bits) in [(0_u32, 0x1000_0000_u32), (1, 0x101), (7, 0)] {
            driver.set_common(8, select.to_le_bytes());
            assert_eq!(u32::from_le_bytes(driver.common(12)), bits, "{name}");
        }
    });
}

/// 4.1.4.3.1: "The device MUST present a changed config_generation after the driver has read a device-specific
/// configuration value which has changed since any part of the device-specific configuration was last read."
#[test]
fn s4_1_4_3_1_config_generation() {
    each(modern(), |name, machine, driver| {
        let device = driver.structure(4);
        let mut seen = driver.common::<1>(0x15);
        // More often than the register can count.
        for round in 0..300_u16 {
            machine.toy.config.lock().unwrap()[0] = round.to_le_bytes()[0];
            machine.toy.transport().config_changed();
            driver.read::<1>(device);
            let now = driver.common::<1>(0x15);
            assert_ne!(now, seen, "{name} {round}");
            driver.read::<1>(device);
            assert_eq!(driver.common::<1>(0x15), now, "{name} {round}");
            seen = now;
        }
    });
}

/// 4.1.4.3.1: "The device MUST reset when 0 is written to device_status, and present a 0 in device_status once
/// that is done. The device MUST present a 0 in queue_enable on reset. If VIRTIO_F_RING_RESET has been negotiated,
/// the device MUST present a 0 in queue_reset on reset." 4.1.5.1.2.1: "The device MUST have all queue and
/// configuration change events are unmapped upon reset."
#[test]
fn s4_1_4_3_1_reset() {
    each(modern(), |name, machine, driver| {
        driver.start_with(needed(driver, F::RING_RESET));
        driver.set_status(0);
        assert_eq!((driver.status(), machine.toy.lent()), (0, 0), "{name}");
        assert_eq!(driver.common::<2>(0x10), [0xff; 2], "{name}");
        for queue in [0_u16, 1] {
            driver.set_common(0x16, queue.to_le_bytes());
            assert_eq!(driver.common::<2>(0x1a), [0xff; 2], "{name} {queue}");
            assert_eq!(driver.common::<2>(0x1c), [0; 2], "{name} {queue}");
            assert_eq!(driver.common::<2>(0x3a), [0; 2], "{name} {queue}");
        }
    });
}

/// 4.1.4.3.1: "The device MUST reset the queue when 1 is written to queue_reset. [...] The device MUST present 0 in
/// both queue_reset and queue_enable when queue reset has completed", and "in queue_reset after the virtqueue is
/// enabled with queue_enable."
#[test]
fn s4_1_4_3_1_queue_reset_and_the_queue_enabled_anew_under_traffic() {
    each(modern(), |name, machine, driver| {
        let [mut fill, mut choose] = driver.start_with(needed(driver, F::RING_RESET));
        for round in 0..5 {
            fill.add(&[Buffer::writable(0x8000, 4)]);
            driver.set_common(0x16, 0_u16.to_le_bytes());
            driver.set_common(0x3a, 1_u16.to_le_bytes());
            assert_eq!(machine.toy.lent(), 1, "{name} {round}");
            assert_eq!(driver.common::<2>(0x1c), [0; 2], "{name} {round}");
            assert_eq!(driver.common::<2>(0x3a), [0; 2], "{name} {round}");
            choose.add(&[Buffer::readable(0x9000, 1)]);
            machine.toy.kick(1).write(1).unwrap();
            assert_eq!(machine.toy.turn(), 1, "{name} {round}: the other goes on");
            fill = driver.set_up(0, 0x1_0000, 1);
            assert_eq!(driver.common::<2>(0x3a), [0; 2], "{name} {round}");
            fill.add(&[Buffer::writable(0x8000, 4)]);
            machine.toy.kick(0).write(1).unwrap();
            assert_eq!(machine.toy.turn(), 1, "{name} {round}");
            assert!(fill.take_used().is_some(), "{name} {round}");
        }
    });
}

/// 4.1.4.3.1: "The device MUST present a 0 in queue_size if the virtqueue corresponding to the current queue_select
/// is unavailable. If VIRTIO_F_RING_PACKED has not been negotiated, the device MUST present either a value of 0 or a
/// power of 2 in queue_size."
#[test]
fn s4_1_4_3_1_queue_size() {
    each(modern(), |name, _, driver| {
        driver.negotiate(needed(driver, F::empty()));
        for queue in [0_u16, 1, 2, 3, 0x3ff, 0x400, 0xffff] {
            driver.set_common(0x16, queue.to_le_bytes());
            for written in [0_u16, 3, 5, 8, 0xffff] {
                driver.set_common(0x18, written.to_le_bytes());
                let size = u16::from_le_bytes(driver.common(0x18));
                assert_eq!(size == 0, queue > 1, "{name} {queue}");
                let any_size = driver::format() == F::RING_PACKED;
                assert!(
                    any_size || size == 0 || size.is_power_of_two(),
                    "{name} {queue} {size}"
                );
            }
        }
    });
}

/// 4.1.4.4.1: "The device MUST either present notify_off_multiplier as an even power of 2, or present
/// notify_off_multiplier as 0", with VIRTIO_F_NOTIFICATION_DATA "as a number that is a power of 2 that is also a
/// multiple 4, or [...] 0"; "For all queues, the value cap.length presented by the device MUST satisfy:
/// cap.length >= queue_notify_off * notify_off_multiplier + 2", or 4.
#[test]
fn s4_1_4_4_1_notification_capability() {
    each(modern(), |name, _, driver| {
        for notify in driver.structures.iter().filter(|found| found.kind == 2) {
            let multiplier = u32::from_le_bytes(driver.config(notify.at + 16));
            let is_legal = multiplier.is_power_of_two() && multiplier.is_multiple_of(4);
            assert!(multiplier == 0 || is_legal, "{name} {multiplier}");
            for queue in [0_u16, 1] {
                driver.set_common(0x16, queue.to_le_bytes());
                let off = u32::from(u16::from_le_bytes(driver.common(0x1e)));
                assert!(notify.length >= off * multiplier + 4, "{name} {notify:?}");
            }
        }
    });
}

/// 4.1.4.5.1: "The device MUST set the Device Configuration Interrupt bit in ISR status before sending a device
/// configuration change notification to the driver. If MSI-X capability is disabled, the device MUST set the Queue
/// Interrupt bit in ISR status before sending a virtqueue notification [...] MUST set the Interrupt Status bit in
/// the PCI Status register [...] to the logical OR of all bits in ISR status [...]. The device MUST reset ISR status
/// to 0 on driver read."
#[test]
fn s4_1_4_5_1_isr_status() {
    each(modern(), |name, machine, driver| {
        driver.start_with(needed(driver, F::empty()));
        machine.toy.transport().config_changed();
        assert_eq!(driver.isr(), 2, "{name}: with MSI-X too");
        driver.msix_control(0);
        for (queue, config, expected) in [(true, false, 1), (false, true, 2), (true, true, 3)] {
            if queue {
                machine.toy.call(0).notify();
            }
            if config {
                machine.toy.transport().config_changed();
            }
            assert!(machine.lines.level(GSI), "{name}");
            assert_eq!(driver.config::<1>(6)[0] & 8, 8, "{name}");
            driver.command(IO_MEMORY_MASTER | 0x400);
            assert!(!machine.lines.level(GSI), "{name}: the pin is disabled");
            assert_eq!(driver.config::<1>(6)[0] & 8, 8, "{name}: the status is not");
            driver.command(IO_MEMORY_MASTER);
            assert!(machine.lines.level(GSI), "{name}");
            assert_eq!(driver.isr(), expected, "{name}");
            assert_eq!(driver.isr(), 0, "{name}");
            assert!(!machine.lines.level(GSI), "{name}");
            assert_eq!(driver.config::<1>(6)[0] & 8, 0, "{name}");
        }
    });
}

/// 4.1.4.9.1: "Upon detecting driver write access to pci_cfg_data, the device MUST execute a write access at offset
/// cap.offset at BAR selected by cap.bar using the first cap.length bytes from pci_cfg_data", and likewise a read.
#[test]
fn s4_1_4_9_1_access_through_configuration_space() {
    each(modern(), |name, machine, driver| {
        driver.command(0);
        let window = driver
            .structures
            .iter()
            .find(|found| found.kind == 5)
            .unwrap()
            .at;
        let common = driver
            .structures
            .iter()
            .find(|found| found.kind == 1)
            .unwrap();
        let point = |bar: u8, offset: u32, len: u32| {
            driver.set_config(window + 4, [bar]);
            driver.set_config(window + 8, offset.to_le_bytes());
            driver.set_config(window + 12, len.to_le_bytes());
        };
        for len in [1, 2, 4] {
            point(common.bar, common.offset, 4);
            driver.set_config(window + 16, [0; 4]);
            point(common.bar, common.offset, len);
            driver.set_config(window + 16, [1, 2, 3, 4]);
            let mut expected = [0; 4];
            let bytes = usize::try_from(len).unwrap();
            expected[..bytes].copy_from_slice(&[1, 2, 3, 4][..bytes]);
            assert_eq!(driver.config::<4>(window + 16), expected, "{name} {len}");
            point(common.bar, common.offset, 4);
            assert_eq!(driver.config::<4>(window + 16), expected, "{name} {len}");
        }
        assert_eq!(machine.toy.lent(), 0);
    });
}

/// 4.1.4.10: "Transitional devices MUST present part of configuration registers in a legacy configuration structure
/// in BAR0 in the first I/O region of the PCI device"; 4.1.5.1.1.1: "MUST expose the Legacy Interface in I/O space
/// in BAR0."
#[test]
fn s4_1_4_10_registers_in_ports_of_bar_0() {
    each(legacy(), |name, machine, driver| {
        assert_eq!(driver.config::<1>(0x10)[0] & 1, 1, "{name}");
        // (register, 2 bytes, writable)
        let table = [
            (12, 64, false),
            (14, 0, true),
            (16, 0, false),
            (0, 0, false),
            (2, 0x3900, false),
        ];
        for (register, value, writable) in table {
            let read = u16::from_le_bytes(legacy_read(machine, driver, register));
            assert_eq!(read, value, "{name} {register}");
            if writable {
                legacy_write(machine, driver, register, [1, 0]);
                assert_eq!(legacy_read(machine, driver, register), [1, 0], "{name}");
                legacy_write(machine, driver, register, [0, 0]);
            }
        }
    });
}

/// 4.1.4.10: "the driver MAY access the device-specific configuration region using any width accesses, and a
/// transitional device MUST present driver with the same results as when accessed using the natural access
/// method"; "MUST present the device-specific configuration space if any at an offset immediately following the
/// general headers."
#[test]
fn s4_1_4_10_device_configuration_behind_the_header_in_any_width() {
    each(legacy(), |name, machine, driver| {
        *machine.toy.config.lock().unwrap() = [1, 2, 3, 4, 5];
        for (msix, base) in [(0, 20), (0x8000, 24), (0, 20)] {
            driver.msix_control(msix);
            assert_eq!(legacy_read(machine, driver, base), [1, 2, 3, 4], "{name}");
            assert_eq!(legacy_read(machine, driver, base + 1), [2, 3], "{name}");
            assert_eq!(legacy_read(machine, driver, base + 4), [5], "{name}");
            assert_eq!(
                legacy_read(machine, driver, base),
                [1, 2, 3, 4, 5],
                "{name}"
            );
        }
    });
}

/// 4.1.4.10: "Transitional Devices MUST assume that Feature Bits 32 to 63 are not acknowledged by Driver"; 6.3:
/// "Transitional devices MUST offer [...] VIRTIO_F_ANY_LAYOUT (27)".
#[test]
fn s4_1_4_10_features_of_legacy_drivers() {
    each(legacy(), |name, machine, driver| {
        legacy_write(machine, driver, 18, [3]);
        legacy_write(machine, driver, 4, [0xff; 4]);
        let chosen = u32::from_le_bytes(legacy_read(machine, driver, 4));
        assert_eq!(chosen, 0x3900_0000, "{name}: nothing that is not offered");
        legacy_write(machine, driver, 8, [0x10, 0, 0, 0]);
        legacy_write(machine, driver, 18, [7]);
        let features = machine.toy.features().unwrap().bits().to_ne();
        assert_eq!(features, 0x3900_0000, "{name}");
    });
}

/// 3.1.2: "The transitional device MUST support the driver writing device configuration fields before the step 4",
/// and "using the device before the step 8".
#[test]
fn s3_1_2_configuration_before_features_and_kicks_before_driver_ok() {
    each(legacy(), |name, machine, driver| {
        legacy_write(machine, driver, 20, [7, 8]);
        assert_eq!(machine.toy.config.lock().unwrap()[..2], [7, 8], "{name}");
        legacy_write(machine, driver, 18, [3]);
        legacy_write(machine, driver, 8, [0x10, 0, 0, 0]);
        legacy_write(machine, driver, 16, [0, 0]);
        assert_eq!(machine.toy.lent(), 1, "{name}");
        assert_eq!(legacy_read(machine, driver, 18), [3], "{name}");
    });
}

/// 4.1.5.1.2.1: "Device MUST support mapping any event type to any valid vector 0 to MSI-X Table Size. Device MUST
/// support unmapping any event type. The device MUST return vector mapped to a given event, (NO_VECTOR if unmapped)
/// [...]. Devices MUST report mapping failures by returning the NO_VECTOR value".
#[test]
fn s4_1_5_1_2_1_vectors() {
    each(modern(), |name, _, driver| {
        driver.enable_msix(3);
        driver.set_common(0x16, 0_u16.to_le_bytes());
        for register in [0x10, 0x1a] {
            for vector in [0, 1, 2, 0xffff, 3, 0x7ff, 0x800, 0xfffe, 0] {
                driver.set_common(register, u16::to_le_bytes(vector));
                let read = u16::from_le_bytes(driver.common(register));
                let expected = if vector < 3 { vector } else { 0xffff };
                assert_eq!(read, expected, "{name} {register:#x} {vector:#x}");
            }
        }
    });
    each(legacy(), |name, machine, driver| {
        driver.enable_msix(3);
        for register in [20, 22] {
            for vector in [0, 1, 2, 0xffff, 3, 0x7ff, 0x800, 0xfffe, 0] {
                legacy_write(machine, driver, register, u16::to_le_bytes(vector));
                let read = u16::from_le_bytes(legacy_read(machine, driver, register));
                let expected = if vector < 3 { vector } else { 0xffff };
                assert_eq!(read, expected, "{name} {register} {vector:#x}");
            }
        }
    });
}

/// 4.1.5.1.2.1: "Device MUST report the number of vectors supported in Table Size in the MSI-X Capability".
#[test]
fn s4_1_5_1_2_1_table_size() {
    for vectors in [1, 2, 3, 2048] {
        for (name, config) in modern() {
            let config = VirtioPciConfig {
                vectors: Some(vectors),
                ..config
            };
            let machine = Machine::with(config);
            let driver = Driver::find(&machine);
            let msix = driver.others.iter().find(|(id, _)| *id == 0x11).unwrap().1;
            let control = u16::from_le_bytes(driver.config(msix + 2));
            assert_eq!(control & 0x7ff, vectors - 1, "{name}");
        }
    }
}

/// 4.1.5.3.1 and 4.1.5.4.1: "If MSI-X capability is enabled and queue_msix_vector is NO_VECTOR for a virtqueue, the
/// device MUST NOT deliver an interrupt for that virtqueue", and likewise config_msix_vector.
#[test]
fn s4_1_5_3_1_and_4_1_no_vector_no_interrupt() {
    each(modern(), |name, machine, driver| {
        driver.start_with(needed(driver, F::empty()));
        driver.set_common(0x10, [0xff; 2]);
        driver.set_common(0x16, 0_u16.to_le_bytes());
        driver.set_common(0x1a, [0xff; 2]);
        machine.toy.call(0).notify();
        machine.toy.transport().config_changed();
        assert!(machine.msi.deliver().is_empty(), "{name}");
        assert!(!machine.lines.level(GSI), "{name}");
    });
}

/// 6.2: "A device MUST offer VIRTIO_F_VERSION_1", and fails the negotiation of a driver that does not accept it or, where
/// addresses are an IOMMU's, VIRTIO_F_ACCESS_PLATFORM, as it may.
#[test]
fn s6_2_features_without_which_negotiation_fails() {
    each(modern(), |name, _, driver| {
        driver.set_common(0, 1_u32.to_le_bytes());
        let offered = u32::from_le_bytes(driver.common(4));
        for (missing, fails) in [(1, true), (2, offered & 2 != 0), (0, false)] {
            driver.set_status(0);
            driver.set_status(3);
            driver.set_common(8, 1_u32.to_le_bytes());
            driver.set_common(12, (offered & !missing).to_le_bytes());
            driver.set_status(0xb);
            assert_eq!(driver.status() == 3, fails, "{name} {missing}");
        }
    });
}
