//! The creation way with no KVM: from option strings to a function on the bus, or to an error that
//! leaves nothing.

mod support;

use support::{Rig, in_own_network, interfaces, wait_until};

#[test]
fn the_option_strings_make_a_function_whose_nic_and_tap_are_peers() {
    in_own_network(
        "the_option_strings_make_a_function_whose_nic_and_tap_are_peers",
        || {
            let rig = Rig::with_nic(",id=net0,addr=5");
            let tap = rig.devices.netdevs().find("tap0").unwrap();
            assert!(tap.is_in_use());
            let peer = tap.ports()[0].peer().unwrap();
            assert_eq!(peer.peer().unwrap().name(), tap.ports()[0].name());
            let nic = rig.devices.tree().device("net0").unwrap();
            assert_eq!(nic.path().as_deref(), Some("/machine/peripheral/net0"));
            // Vendor and device; subclass and class; revision 0: transitional.
            let read = |offset: u64| {
                let mut data = [0; 4];
                rig.machine
                    .mmio_read(0xe000_0000 + (5 << 15) + offset, &mut data);
                u32::from_le_bytes(data)
            };
            assert_eq!(read(0), 0x1000_1af4);
            assert_eq!(read(8), 0x0200_0000);
        },
    );
}

/// As QEMU has it: zeros are none, and a group's is as good as any.
#[test]
fn an_address_is_taken_as_it_is_given_and_zeros_are_none() {
    let rig = Rig::new();
    let table = [
        ("a", ",mac=00:00:00:00:00:00", "52:54:00:12:34:56"),
        ("b", ",mac=01:00:5e:00:00:01", "01:00:5e:00:00:01"),
        ("c", ",mac=52-54-00-ab-cd-ef", "52:54:00:ab:cd:ef"),
        ("d", "", "52:54:00:12:34:57"),
    ];
    for (id, mac, expected) in table {
        rig.devices
            .device_add(&format!("virtio-net-pci,id={id}{mac}"))
            .unwrap();
        let got = rig.devices.tree().qom_get(id, "mac").unwrap();
        assert_eq!(got.to_string(), expected, "{mac}");
    }
}

#[test]
fn a_device_that_cannot_be_made_leaves_nothing() {
    in_own_network("a_device_that_cannot_be_made_leaves_nothing", || {
        let before = interfaces();
        let rig = Rig::new();
        rig.devices.netdev_add("tap,id=tap0").unwrap();
        let table = [
            ("virtio-net-pci,netdev=nosuch", "nosuch"),
            ("virtio-net-pci,netdev=tap0,nosuch=1", "nosuch"),
            ("virtio-net-pci,netdev=tap0,mac=1:2:3", "mac"),
            (
                "virtio-net-pci,netdev=tap0,disable-legacy=on,disable-modern=on",
                "neither modern nor legacy",
            ),
            ("virtio-net-pci,netdev=tap0,addr=0", "slot 0"),
            ("virtio-net-pci,netdev=tap0,addr=40", "addr"),
            ("virtio-net-pci,netdev=tap0,bus=nosuch", "nosuch"),
            ("virtio-nothing-pci", "virtio-nothing-pci"),
        ];
        for (text, expected) in table {
            let error = rig.devices.device_add(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("-device {text}: ")) && error.contains(expected),
                "{error}"
            );
            assert!(!error.contains('\n'), "{error:?}");
            assert!(rig.devices.tree().devices().is_empty(), "{text}");
            assert_eq!(rig.machine.pci().bus().slots().len(), 1, "{text}");
            assert_eq!(rig.interrupts.vectors(), (0, 0), "{text}");
            let tap = rig.devices.netdevs().find("tap0").unwrap();
            assert!(!tap.is_in_use(), "{text}");
        }
        // And nothing that was left keeps the right one from being made.
        rig.devices
            .device_add("virtio-net-pci,netdev=tap0")
            .unwrap();
        let error = rig
            .devices
            .device_add("virtio-net-pci,netdev=tap0")
            .unwrap_err();
        assert!(error.to_string().contains("tap0"), "{error}");
        drop(rig);
        wait_until("the tap is gone", || interfaces() == before);
    });
}

#[test]
fn a_netdev_that_cannot_be_made_leaves_nothing() {
    in_own_network("a_netdev_that_cannot_be_made_leaves_nothing", || {
        let before = interfaces();
        let rig = Rig::new();
        let table = [
            ("nosuch,id=a", "nosuch"),
            ("tap", "id"),
            ("tap,id=a,nosuch=1", "nosuch"),
            ("tap,id=a,ip=10.0.2.2", "ip"),
            ("tap,id=a,ifname=a-name-that-is-much-too-long", "ifname"),
        ];
        for (text, expected) in table {
            let error = rig.devices.netdev_add(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("-netdev {text}: ")) && error.contains(expected),
                "{error}"
            );
            assert!(rig.devices.netdevs().ids().is_empty(), "{text}");
            wait_until("no interface is left", || interfaces() == before);
        }
    });
}

#[test]
fn several_nics_each_have_their_own_tap() {
    in_own_network("several_nics_each_have_their_own_tap", || {
        let rig = Rig::new();
        for index in 0..4 {
            rig.devices
                .netdev_add(&format!("tap,id=net{index}"))
                .unwrap();
            rig.devices
                .device_add(&format!("virtio-net-pci,netdev=net{index}"))
                .unwrap();
        }
        rig.machine.assign_resources().unwrap();
        assert_eq!(rig.machine.pci().bus().slots().len(), 5);
        rig.driver();
    });
}

#[test]
fn a_nic_and_a_netdev_that_are_not_each_others_are_named() {
    in_own_network(
        "a_nic_and_a_netdev_that_are_not_each_others_are_named",
        || {
            let rig = Rig::with_nic(",id=net0");
            assert_eq!(rig.devices.without_peer(), [""; 0]);
            rig.devices.netdev_add("tap,id=tap1").unwrap();
            rig.devices.device_add("virtio-net-pci,id=net1").unwrap();
            rig.devices.device_add("virtio-net-pci").unwrap();
            // The third of its kind.
            let anonymous = "nic virtio-net-pci.2";
            assert_eq!(
                rig.devices.without_peer(),
                ["netdev tap1", "nic net1", anonymous]
            );
        },
    );
}
