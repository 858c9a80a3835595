//! Properties: QEMU's names, and what is not built refused by name.

use crate::machine::Rig;

/// All that `qemu-system-x86_64 -device virtio-net-pci,help` of QEMU 7.2 lists, but for the child.
const QEMU_7_2: &[&str] = &[
    "acpi-index",
    "addr",
    "aer",
    "any_layout",
    "ats",
    "bootindex",
    "csum",
    "ctrl_guest_offloads",
    "ctrl_mac_addr",
    "ctrl_rx",
    "ctrl_rx_extra",
    "ctrl_vlan",
    "ctrl_vq",
    "disable-legacy",
    "disable-modern",
    "duplex",
    "event_idx",
    "failover",
    "failover_pair_id",
    "gso",
    "guest_announce",
    "guest_csum",
    "guest_ecn",
    "guest_rsc_ext",
    "guest_tso4",
    "guest_tso6",
    "guest_ufo",
    "hash",
    "host_ecn",
    "host_mtu",
    "host_tso4",
    "host_tso6",
    "host_ufo",
    "indirect_desc",
    "ioeventfd",
    "iommu_platform",
    "mac",
    "migrate-extra",
    "modern-pio-notify",
    "mq",
    "mrg_rxbuf",
    "multifunction",
    "netdev",
    "notify_on_empty",
    "packed",
    "page-per-vq",
    "queue_reset",
    "rombar",
    "romfile",
    "romsize",
    "rsc_interval",
    "rss",
    "rx_queue_size",
    "speed",
    "status",
    "tx",
    "tx_queue_size",
    "use-disabled-flag",
    "use-started",
    "vectors",
    "virtio-pci-bus-master-bug-migration",
    "x-ats-page-aligned",
    "x-disable-legacy-check",
    "x-disable-pcie",
    "x-ignore-backend-features",
    "x-mtu-bypass-backend",
    "x-pcie-deverr-init",
    "x-pcie-extcap-init",
    "x-pcie-flr-init",
    "x-pcie-lnkctl-init",
    "x-pcie-lnksta-dllla",
    "x-pcie-pm-init",
    "x-txburst",
    "x-txtimer",
];

#[test]
fn every_property_of_qemu_is_known_by_name() {
    let rig = Rig::new();
    let device = rig.device("virtio-net-pci").unwrap();
    let missing: Vec<_> = (QEMU_7_2.iter())
        .filter(|name| !device.has_property(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(device.child("virtio-backend").is_some());
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    // (property, its type, the end of the message)
    let off = "is not supported with any value but 'off'";
    let none = "is not supported";
    let table = [
        ("packed=on", "virtio-net-device", off),
        ("mq=on", "virtio-net-device", off),
        ("rss=on", "virtio-net-device", off),
        ("ctrl_rx=on", "virtio-net-device", off),
        ("guest_ufo=on", "virtio-net-device", off),
        ("iommu_platform=on", "virtio-net-device", off),
        ("bootindex=1", "virtio-net-device", none),
        ("speed=1000", "virtio-net-device", none),
        ("duplex=full", "virtio-net-device", none),
        ("romfile=none", "virtio-net-pci", none),
        ("page-per-vq=on", "virtio-net-pci", off),
        ("multifunction=on", "virtio-net-pci", off),
        ("ats=on", "virtio-net-pci", off),
        ("disable-modern=on", "virtio-net-pci", off),
        (
            "disable-legacy=off",
            "virtio-net-pci",
            "is not supported with value 'off': there is no legacy interface",
        ),
        (
            "vectors=2049",
            "virtio-net-pci",
            "is more than the 2048 vectors that MSI-X has",
        ),
    ];
    let rig = Rig::new();
    for (property, type_name, reason) in table {
        let (name, _) = property.split_once('=').unwrap();
        let error = rig
            .device(&format!("virtio-net-pci,{property}"))
            .unwrap_err();
        let expected = format!("Property '{type_name}.{name}' {reason}");
        assert_eq!(error.to_string(), expected, "{property}");
        rig.assert_empty(property);
    }
}

#[test]
fn values_that_are_what_the_device_does_anyway_are_taken() {
    let rig = Rig::new();
    let device = "virtio-net-pci,packed=off,mq=off,disable-legacy=on,disable-modern=off,tx=bh,\
                  page-per-vq=off,ioeventfd=on,vectors=4294967295,any_layout=on";
    rig.device(device).unwrap();
    let device = "virtio-net-pci,disable-legacy=auto";
    rig.device(device).unwrap();
}

#[test]
fn a_property_cannot_be_set_once_the_device_is_realized() {
    let rig = Rig::new();
    let device = rig.device("virtio-net-pci,id=net0").unwrap();
    assert_eq!(
        device.set("vectors", 3_u32).unwrap_err().to_string(),
        "Attempt to set property 'vectors' on device 'net0' (type 'virtio-net-pci') after it was \
         realized"
    );
    assert!(device.set("csum", false).is_err());
}
