//! What the two strings make.

use std::sync::Arc;

use qdev::Phase;
use qom::OnOffAuto;
use vm_pci::DevFn;

use crate::machine::{Rig, devfn};

#[test]
fn two_strings_become_a_function_whose_nic_and_netdev_are_peers() {
    let rig = Rig::new();
    rig.netdev("loopback,id=tap0");
    let device = rig.device("virtio-net-pci,netdev=tap0").unwrap();
    let at = devfn(1);
    assert_eq!(rig.slots(), [DevFn::from_byte(0), at]);

    assert_eq!(rig.config::<4>(at, 0), [0xf4, 0x1a, 0x00, 0x10]);
    assert_eq!(rig.config::<4>(at, 8), [0, 0, 0, 2], "revision and class");
    assert_eq!(rig.config::<4>(at, 0x2c), [0xf4, 0x1a, 0x01, 0x00]);
    assert_eq!(rig.config::<4>(at, 0x10), [1, 0, 0, 0], "BAR 0: ports");
    assert_eq!(rig.config::<4>(at, 0x14), [0; 4], "BAR 1: 32-bit memory");
    assert_eq!(
        rig.config::<1>(at, 0x20),
        [0xc],
        "BAR 4: 64-bit prefetchable"
    );

    let mut capabilities = Vec::new();
    let mut next = rig.config::<1>(at, 0x34)[0];
    while next != 0 {
        let [id, after, _, kind] = rig.config::<4>(at, next.into());
        capabilities.push((id, if id == 9 { kind } else { 0 }));
        next = after;
    }
    assert_eq!(
        capabilities,
        [(0x11, 0), (9, 5), (9, 2), (9, 4), (9, 3), (9, 1)]
    );
    assert_eq!(rig.config::<2>(at, 0x9a), [3, 0], "four vectors");

    let netdev = rig.netdevs.find("tap0").unwrap();
    let port = &netdev.ports()[0];
    let nic = port.peer().expect("the netdev has no peer");
    assert!(
        Arc::ptr_eq(&nic.peer().unwrap(), port),
        "the NIC has another"
    );

    assert_eq!(rig.machine.devices().len(), 2, "the proxy and its model");
    assert!(
        rig.machine
            .devices()
            .iter()
            .all(|device| device.phase == Phase::Plugged)
    );
    let path = device.path().unwrap();
    assert_eq!(path, "/machine/peripheral-anon/device[0]");
    let model = rig
        .machine
        .resolve(&format!("{path}/virtio-backend"))
        .unwrap();
    assert_eq!(&**model.type_name(), "virtio-net-device");
}

#[test]
fn the_driver_finds_the_mac_that_was_given_and_qemus_where_none_was() {
    let rig = Rig::new();
    for device in [
        "virtio-net-pci",
        "virtio-net-pci,mac=52:54:00:12:34:57",
        "virtio-net-pci",
        "virtio-net-pci-non-transitional,mac=02:00:00:00:00:01",
    ] {
        rig.device(device).unwrap();
    }
    rig.host.assign_resources().unwrap();
    let macs: Vec<[u8; 6]> = (1..5)
        .map(|device| {
            let at = devfn(device);
            let low = u32::from_le_bytes(rig.config(at, 0x20)) & !0xf;
            let high = u32::from_le_bytes(rig.config(at, 0x24));
            let bar = u64::from(high) << 32 | u64::from(low);
            rig.host.config_write(0, at, 4, &[2, 0]);
            let mut mac = [0; 6];
            assert!(rig.host.mmio_read(bar + 0x2000, &mut mac));
            mac
        })
        .collect();
    assert_eq!(
        macs,
        [
            [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            [0x52, 0x54, 0, 0x12, 0x34, 0x57],
            [0x52, 0x54, 0, 0x12, 0x34, 0x58],
            [2, 0, 0, 0, 0, 1],
        ]
    );
}

#[test]
fn which_interfaces_there_are_is_the_types_or_the_users_choice() {
    // (device, device id, BAR 0 is ports, `disable-legacy` as it reads then)
    let table = [
        ("virtio-net-pci", 0x1000, true, Some("off")),
        (
            "virtio-net-pci,disable-legacy=auto",
            0x1000,
            true,
            Some("off"),
        ),
        (
            "virtio-net-pci,disable-legacy=off",
            0x1000,
            true,
            Some("off"),
        ),
        (
            "virtio-net-pci,disable-legacy=on",
            0x1041,
            false,
            Some("on"),
        ),
        (
            "virtio-net-pci,disable-modern=on",
            0x1000,
            true,
            Some("off"),
        ),
        ("virtio-net-pci-transitional", 0x1000, true, None),
        ("virtio-net-pci-non-transitional", 0x1041, false, None),
    ];
    for (device, id, has_ports, disabled) in table {
        let rig = Rig::new();
        let object = rig.device(device).unwrap();
        let at = devfn(1);
        assert_eq!(u16::from_le_bytes(rig.config(at, 2)), id, "{device}");
        assert_eq!(rig.config::<1>(at, 0x10) == [1], has_ports, "{device}");
        let has_modern = rig.config::<1>(at, 0x20) == [0xc];
        assert_eq!(has_modern, !device.contains("disable-modern"), "{device}");
        let read = (object.class().property("disable-legacy"))
            .map(|_| object.get::<OnOffAuto>("disable-legacy").unwrap());
        assert_eq!(read.map(OnOffAuto::as_str), disabled, "{device}");
    }
    let rig = Rig::new();
    let neither = rig.device("virtio-net-pci,disable-legacy=on,disable-modern=on");
    assert_eq!(
        neither.unwrap_err().to_string(),
        "device cannot work as neither modern nor legacy mode is enabled"
    );
    rig.assert_empty("neither interface");
}

#[test]
fn what_only_the_legacy_interface_offers_is_the_users_choice() {
    // (properties, bits 6, 24 and 27). Without a backend there are no large frames, for which bit 6 stands.
    let table = [
        ("", 0x0900_0000),
        (",notify_on_empty=off", 0x0800_0000),
        (",any_layout=off", 0x0100_0000),
    ];
    for (properties, expected) in table {
        let rig = Rig::new();
        rig.device(&format!("virtio-net-pci{properties}")).unwrap();
        let offered = rig.legacy_features(devfn(1));
        assert_eq!(offered & 0x0900_0040, expected, "{properties}");
    }
}

#[test]
fn a_device_has_several_functions_if_its_first_says_so() {
    let single = "PCI: single function device can't be populated in function 3.1";
    let populated = "PCI: 3.0 indicates single function, but 3.1 is already populated.";
    // (first, second, why the second is refused)
    let table = [
        ("addr=3.0", "addr=3.1", Some(single)),
        ("addr=3.1", "addr=3.0", Some(populated)),
        ("addr=3.1,multifunction=on", "addr=3.0", Some(populated)),
        ("addr=3.0,multifunction=on", "addr=3.1", None),
        ("addr=3.1", "addr=3.0,multifunction=on", None),
        ("addr=3.1", "addr=3.2", None),
        ("addr=3.0", "addr=4.1", None),
    ];
    for (first, second, refused) in table {
        let rig = Rig::new();
        rig.device(&format!("virtio-net-pci,{first}")).unwrap();
        let added = rig.device(&format!("virtio-net-pci,{second}"));
        let error = added.err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), refused, "{first} {second}");
    }
    let rig = Rig::new();
    rig.device("virtio-net-pci,addr=3.0,multifunction=on")
        .unwrap();
    assert_eq!(rig.config::<1>(devfn(3), 0xe), [0x80], "alone too");
}

#[test]
fn a_platform_with_an_iommu_is_the_modern_interfaces_alone() {
    let refused = "VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device";
    for properties in ["", ",disable-legacy=off", ",disable-modern=on"] {
        let rig = Rig::new();
        let device = format!("virtio-net-pci,iommu_platform=on{properties}");
        let error = rig.device(&device).unwrap_err().to_string();
        assert_eq!(error, refused, "{properties}");
        rig.assert_empty(properties);
    }
    // (properties, bits 33, 36, 38, 39 and 43 of what is offered)
    let table = [
        ("", 0),
        (",iommu_platform=on", 1 << 1),
        (",order_platform=on", 1 << 4),
        (",notification_data=on", 1 << 6),
        (",notif_config_data=on", 1 << 7),
        (",suspend=on", 1 << 11),
    ];
    for (properties, expected) in table {
        let rig = Rig::new();
        let device = format!("virtio-net-pci-non-transitional{properties}");
        rig.device(&device).unwrap();
        rig.host.assign_resources().unwrap();
        let at = devfn(1);
        let low = u32::from_le_bytes(rig.config(at, 0x20)) & !0xf;
        let high = u32::from_le_bytes(rig.config(at, 0x24));
        let bar = u64::from(high) << 32 | u64::from(low);
        let mut offered = [0; 4];
        assert!(rig.host.mmio_write(bar, &[1, 0, 0, 0]));
        assert!(rig.host.mmio_read(bar + 4, &mut offered));
        let offered = u32::from_le_bytes(offered) & 0x8d2;
        assert_eq!(offered, expected, "{properties}");
    }
}

#[test]
fn the_pci_express_form_has_what_the_properties_say() {
    let dword = |properties: &str, offset| {
        let rig = Rig::new();
        rig.device(&format!("virtio-net-pci{properties}")).unwrap();
        u32::from_le_bytes(rig.config(devfn(1), offset))
    };
    // (properties, offset, what is read)
    let table = [
        (",aer=on,ats=on", 0x40, 0x0110_0009),
        (",aer=on,ats=on", 0x100, 0),
        (",express=on", 0x40, 0x0092_0010),
        (",express=on", 0x44, 0x1000_8000),
        (",express=on,x-pcie-flr-init=off", 0x44, 0x8000),
        (",express=on", 0x7c, 0x0003_4001),
        (",express=on", 0x100, 0),
        (",express=on,aer=on", 0x100, 0x0002_0001),
        (",express=on,ats=on", 0x100, 0x0001_000f),
        (",express=on,ats=on", 0x104, 0x20),
        (",express=on,ats=on,x-ats-page-aligned=off", 0x104, 0),
        (",express=on,x-disable-pcie=on", 0x40, 0x0110_0009),
    ];
    for (properties, offset, expected) in table {
        let read = dword(properties, offset);
        assert_eq!(read, expected, "{properties} {offset:#x}: {read:#x}");
    }
}

#[test]
fn addr_says_where_the_function_goes() {
    // (addr, device, function)
    let table = [
        ("5", 5, 0),
        ("06.0", 6, 0),
        ("1f.7", 31, 7),
        ("0x1f.0x7", 31, 7),
        ("0x", 0, 0),
        ("0x0x5", 0, 0),
    ];
    for (addr, device, function) in table {
        let rig = Rig::new();
        let added = rig.device(&format!("virtio-net-pci,addr={addr}"));
        if device == 0 {
            assert_eq!(
                added.unwrap_err().to_string(),
                format!("Property 'virtio-net-pci.addr' doesn't take value '{addr}'")
            );
            continue;
        }
        added.unwrap();
        let at = DevFn::new(device, function).unwrap();
        assert_eq!(rig.slots().last(), Some(&at), "{addr}");
    }
}

#[test]
fn vectors_are_as_many_as_asked() {
    // (property, message control)
    let table = [("vectors=1", 0), ("vectors=3", 2), ("vectors=2048", 2047)];
    for (property, control) in table {
        let rig = Rig::new();
        rig.device(&format!("virtio-net-pci,{property}")).unwrap();
        let read = u16::from_le_bytes(rig.config(devfn(1), 0x9a));
        assert_eq!(read, control, "{property}");
    }
    let rig = Rig::new();
    rig.device("virtio-net-pci,vectors=0").unwrap();
    assert_eq!(rig.config::<1>(devfn(1), 0x34), [0x84], "no MSI-X");
}

#[test]
fn a_device_goes_as_it_came_and_may_come_again() {
    let rig = Rig::new();
    rig.netdev("loopback,id=tap0");
    for _ in 0..3 {
        rig.device("virtio-net-pci,netdev=tap0,id=net0").unwrap();
        assert!(rig.in_use("tap0"));
        rig.machine.device_del("net0").unwrap();
        rig.assert_empty("after device_del");
    }
}

#[test]
fn nothing_is_left_when_the_machine_goes_with_its_devices() {
    let rig = Rig::new();
    rig.netdev("loopback,id=tap0");
    let device = rig.device("virtio-net-pci,netdev=tap0,id=net0").unwrap();
    let proxy = Arc::downgrade(&device);
    let model = Arc::downgrade(&device.child("virtio-backend").unwrap());
    drop(device);
    let Rig {
        machine,
        host,
        msi,
        netdevs,
        memory,
        context,
        recorder,
    } = rig;
    drop((machine, host, recorder));
    assert!(proxy.upgrade().is_none(), "the proxy");
    assert!(model.upgrade().is_none(), "the model");
    assert_eq!(msi.held(), 0, "vectors");
    assert!(!netdevs.find("tap0").unwrap().is_in_use(), "the netdev");
    drop(context);
    assert_eq!(Arc::strong_count(&memory), 1, "guest memory");
}

#[test]
fn a_reset_of_the_machine_resets_the_function() {
    let rig = Rig::new();
    rig.device("virtio-net-pci").unwrap();
    rig.host.assign_resources().unwrap();
    let at = devfn(1);
    rig.host.config_write(0, at, 4, &[7, 0]);
    assert_eq!(rig.config::<2>(at, 4), [7, 0]);
    rig.machine.reset();
    assert_eq!(rig.config::<2>(at, 4), [0, 0]);
    assert_eq!(rig.config::<4>(at, 0x20), [0xc, 0, 0, 0]);
}
