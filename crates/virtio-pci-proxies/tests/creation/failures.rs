//! A failure at each step leaves nothing behind.

use crate::machine::{Rig, Without};

/// Adds a device that must fail, then looks at what is left, then (where the machine is whole) shows that
/// the very same netdev and place are free.
fn fails(case: &str, without: Without, device: &str, message: &str) {
    let rig = Rig::without(without);
    rig.netdev("loopback,id=tap0");
    let error = rig.device(device).expect_err(case);
    assert_eq!(error.to_string(), message, "{case}");
    rig.assert_empty(case);
    if without == Without::default() {
        rig.device("virtio-net-pci,netdev=tap0,id=net0,addr=4")
            .unwrap();
        assert!(rig.in_use("tap0"), "{case}");
    }
}

#[test]
fn a_failure_in_the_strings_leaves_nothing() {
    // (device, message)
    let table = [
        (
            "virtio-nut-pci",
            "'virtio-nut-pci' is not a valid device model name",
        ),
        (
            "virtio-pci",
            "Parameter 'driver' expects a non-abstract device type",
        ),
        ("virtio-net-pci,bus=pci.7", "Bus 'pci.7' not found"),
        (
            "virtio-net-pci,netdev=tap0,id=net0,disable-legacy=on,disable-modern=on",
            "device cannot work as neither modern nor legacy mode is enabled",
        ),
        (
            "virtio-net-pci,netdev=tap0,nettest=1",
            "Property 'virtio-net-pci.nettest' not found",
        ),
        (
            "virtio-net-pci,netdev=tap0,csum=maybe",
            "Parameter 'csum' expects 'on' or 'off'",
        ),
        (
            "virtio-net-pci,netdev=tap0,mac=nonsense",
            "Property 'virtio-net-device.mac' doesn't take value 'nonsense'",
        ),
    ];
    for (device, message) in table {
        fails(device, Without::default(), device, message);
    }
}

#[test]
fn a_failure_in_realize_leaves_nothing() {
    // (device, message)
    let table = [
        (
            "virtio-net-pci,netdev=tap0,addr=0",
            "PCI: slot 0 function 0 not available for virtio-net-pci, in use by the machine",
        ),
        (
            "virtio-net-pci,netdev=tap1",
            "Property 'virtio-net-device.netdev' can't find value 'tap1'",
        ),
        (
            "failing-net-pci,netdev=tap0,id=net0,addr=4",
            "this device always fails",
        ),
    ];
    for (device, message) in table {
        fails(device, Without::default(), device, message);
    }
    let rig = Rig::new();
    rig.netdev("loopback,id=tap0");
    for queue in ["rx_queue_size=300", "tx_queue_size=0", "host_mtu=9"] {
        let device = format!("virtio-net-pci,netdev=tap0,{queue}");
        rig.device(&device).expect_err(queue);
        rig.assert_empty(queue);
    }
    rig.device("virtio-net-pci,netdev=tap0").unwrap();
}

#[test]
fn a_machine_that_lacks_something_is_left_as_it_was() {
    let table = [
        Without {
            memory: true,
            ..Without::default()
        },
        Without {
            msi: true,
            ..Without::default()
        },
        Without {
            kicks: true,
            ..Without::default()
        },
        Without {
            netdevs: true,
            ..Without::default()
        },
        Without {
            context: true,
            ..Without::default()
        },
    ];
    for without in table {
        let rig = Rig::without(without);
        rig.netdev("loopback,id=tap0");
        let error = rig
            .device("virtio-net-pci,netdev=tap0")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the machine provides no "),
            "{without:?}: {error}"
        );
        rig.assert_empty(&format!("{without:?}"));
    }
}

#[test]
fn a_bus_that_cannot_take_the_function_leaves_nothing() {
    for vectors in 0..4 {
        let without = Without {
            vectors_beyond: Some(vectors),
            ..Without::default()
        };
        fails(
            "vectors",
            without,
            "virtio-net-pci,netdev=tap0,addr=4",
            &format!("cannot get MSI-X vector {vectors} for function 04.0: quota exceeded"),
        );
    }
}

#[test]
fn a_netdev_or_a_place_that_has_a_user_stays_the_users() {
    let rig = Rig::new();
    rig.netdev("loopback,id=tap0");
    rig.netdev("loopback,id=tap1");
    rig.device("virtio-net-pci,netdev=tap0,id=net0,addr=3")
        .unwrap();
    // (device, message)
    let table = [
        (
            "virtio-net-pci,netdev=tap0",
            "Property 'virtio-net-device.netdev' can't take value 'tap0', it's in use",
        ),
        (
            "virtio-net-pci,netdev=tap1,addr=3",
            "PCI: slot 3 function 0 not available for virtio-net-pci, in use by \
             virtio-net-pci,id=net0",
        ),
        (
            "virtio-net-pci,netdev=tap1,id=net0",
            "Duplicate ID 'net0' for device",
        ),
    ];
    for (device, message) in table {
        let error = rig.device(device).unwrap_err();
        assert_eq!(error.to_string(), message, "{device}");
        assert_eq!(rig.machine.devices().len(), 2, "{device}");
        assert!(rig.in_use("tap0") && !rig.in_use("tap1"), "{device}");
        assert_eq!(rig.slots().len(), 2, "{device}");
    }
}
