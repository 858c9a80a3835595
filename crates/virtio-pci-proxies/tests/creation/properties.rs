//! Properties: QEMU's names, and what is not built refused by name.

use std::time::Duration;

use keyval::Options;
use qdev::help;
use virtio_bus::VirtioDevice;
use virtio_net::{RateLimit, VirtioNet};

use crate::machine::{Memory, Rig};

/// What `qemu-system-x86_64 -M pc -device virtio-net-pci,help` of Debian's QEMU 7.2.22 prints.
const QEMU_7_2: &str = include_str!("qemu-7.2-virtio-net-pci-help.txt");
/// As `virtio-net-device,help`.
const QEMU_7_2_MODEL: &str = include_str!("qemu-7.2-virtio-net-device-help.txt");

#[test]
fn help_of_a_type_has_each_line_of_qemus_and_nothing_else_but_later_names() {
    let rig = Rig::new();
    let newer = [
        "guest_tunnel",
        "guest_tunnel_csum",
        "host_tunnel",
        "host_tunnel_csum",
        "guest_uso4",
        "guest_uso6",
        "host_uso",
        "in_order",
    ];
    let without_interface: String = (QEMU_7_2.split_inclusive('\n'))
        .filter(|line| !line.starts_with("  disable-"))
        .collect();
    let table = [
        ("virtio-net-pci", QEMU_7_2),
        ("virtio-net", QEMU_7_2),
        ("virtio-net-device", QEMU_7_2_MODEL),
        ("virtio-net-pci-non-transitional", &without_interface),
        ("virtio-net-pci-transitional", &without_interface),
    ];
    for (driver, qemus) in table {
        let ours = help::device_help(rig.machine.registry(), driver).unwrap();
        let (first, ours) = ours.split_once('\n').unwrap();
        let name = driver
            .strip_suffix("net")
            .map_or(driver, |_| "virtio-net-pci");
        assert_eq!(first, format!("{name} options:"));
        // What follows the empty line is ours.
        let ours: Vec<_> = (ours.lines().take_while(|line| !line.is_empty()))
            .filter(|line| {
                !newer
                    .iter()
                    .any(|name| line.starts_with(&format!("  {name}=")))
            })
            .collect();
        let qemus: Vec<_> = qemus.lines().skip(1).collect();
        assert_eq!(ours, qemus, "{driver}");
    }
}

#[test]
fn help_tells_what_is_not_built_apart() {
    let rig = Rig::new();
    let text = help::device_help(rig.machine.registry(), "virtio-net-pci").unwrap();
    let head = "virtio-net-pci options that are not built and take nothing else than:\n";
    let mut parts = text.split("\n\n");
    let unbuilt = parts.find_map(|part| part.strip_prefix(head)).unwrap();
    for line in unbuilt.lines() {
        let option = line.trim();
        let (property, value) = match option.strip_suffix(" (no value)") {
            Some(property) => (property, None),
            None => option
                .split_once('=')
                .map(|(name, value)| (name, Some(value)))
                .unwrap(),
        };
        for value in value.iter().flat_map(|values| values.split('|')) {
            let taken = rig.device(&format!("virtio-net-pci,id=a,{property}={value}"));
            taken.unwrap_or_else(|error| panic!("{option}: {error}"));
            rig.machine.device_del("a").unwrap();
        }
        let other = if value == Some("off") { "on" } else { "off" };
        let is_number = |value: &str| value.split('|').all(|value| value.parse::<i64>().is_ok());
        let other = if value.is_some_and(is_number) {
            "7"
        } else {
            other
        };
        let refused = rig
            .device(&format!("virtio-net-pci,{property}={other}"))
            .unwrap_err();
        let refused = refused.to_string();
        assert!(
            refused.contains(&format!(".{property}' is not supported")),
            "{option}: {refused}"
        );
    }
}

#[test]
fn each_default_of_qemus_is_taken_when_it_is_written_out() {
    let rig = Rig::new();
    let mut tried = 0;
    for line in QEMU_7_2.lines().skip(1) {
        let (name, rest) = line.trim_start().split_once('=').unwrap();
        let Some((_, default)) = rest.split_once("(default: ") else {
            continue;
        };
        let value = match default.trim_end_matches(')').trim_matches('"') {
            "true" => "on",
            "false" => "off",
            value => value,
        };
        let taken = rig.device(&format!("virtio-net-pci,id=a,{name}={value}"));
        // QEMU 7.2 does not take it either: it stands for no address, which is not written down.
        if name == "addr" {
            let refused = taken.unwrap_err().to_string();
            assert_eq!(
                refused,
                "Property 'virtio-net-pci.addr' doesn't take value '-1'"
            );
            continue;
        }
        taken.unwrap_or_else(|error| panic!("{line}: {error}"));
        rig.machine.device_del("a").unwrap();
        tried += 1;
    }
    assert_eq!(tried, 66);
}

#[test]
fn the_list_of_types_has_qemus_lines() {
    let rig = Rig::new();
    // (what is asked, what is printed)
    let list = "Network devices:\n\
        name \"failing-net-pci\", bus PCI\n\
        name \"virtio-net-device\", bus virtio-bus\n\
        name \"virtio-net-pci\", bus PCI, alias \"virtio-net\"\n\
        name \"virtio-net-pci-non-transitional\", bus PCI\n\
        name \"virtio-net-pci-transitional\", bus PCI\n";
    for asked in ["help", "?", "help,foo=1", "driver=help"] {
        let options = Options::parse(asked, Some("driver"));
        let text = help::help(rig.machine.registry(), &options).unwrap();
        assert_eq!(text.as_deref(), Some(list), "{asked}");
    }
}

#[test]
fn what_has_no_help_says_why() {
    let rig = Rig::new();
    let table = [
        ("nosuch,help", "Device 'nosuch' not found"),
        (
            "pci-device,help",
            "Parameter 'typename' expects a non-abstract device type",
        ),
        (
            "container,help",
            "Parameter 'typename' expects a non-abstract device type",
        ),
    ];
    for (asked, expected) in table {
        let options = Options::parse(asked, Some("driver"));
        let error = help::help(rig.machine.registry(), &options).unwrap_err();
        assert_eq!(error.to_string(), expected, "{asked}");
    }
    let no_help = Options::parse("virtio-net-pci,csum=on", Some("driver"));
    assert_eq!(help::help(rig.machine.registry(), &no_help).unwrap(), None);
    assert_eq!(
        help::help(rig.machine.registry(), &Options::default()).unwrap(),
        None
    );
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    // (property, its type, the end of the message)
    let none = "is not supported";
    let table = [
        (
            "bootindex=1",
            "virtio-net-device",
            "is not supported with any value but '-1'",
        ),
        ("romfile=none", "virtio-net-pci", none),
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
    let device = "virtio-net-pci,packed=off,iommu_platform=off,disable-legacy=on,disable-modern=off,tx=bh,\
                  page-per-vq=off,ioeventfd=on,vectors=4294967295,any_layout=on,romfile=,rombar=0";
    rig.device(device).unwrap();
    let device = "virtio-net-pci,disable-legacy=auto";
    rig.device(device).unwrap();
}

#[test]
fn what_is_sent_is_taken_at_the_kick_or_after_a_time_and_in_no_other_way() {
    let rig = Rig::new();
    for (tx, taken) in [("bh", true), ("timer", true), ("", false), ("Timer", false)] {
        let made = rig.device(&format!("virtio-net-pci,id=a,tx={tx},x-txtimer=200000"));
        if taken {
            made.unwrap();
            let read = rig.machine.qom_get("a", "x-txtimer").unwrap();
            assert_eq!(read.to_string(), "200000");
            rig.machine.device_del("a").unwrap();
        } else {
            let error = made.unwrap_err().to_string();
            assert_eq!(error, "'tx' must be 'timer' or 'bh'", "{tx}");
            rig.assert_empty(tx);
        }
    }
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

#[test]
fn what_the_host_allows_can_be_changed_while_the_device_is_there() {
    let rig = Rig::new();
    let device = rig
        .device("virtio-net-pci,id=net0,tx_limit_packets=5")
        .unwrap();
    let backend = device.child("virtio-backend").unwrap();
    let model = backend.part::<VirtioNet<Memory>>().unwrap();
    let limits = || model.limits();
    assert_eq!(limits().1.packets, 5);
    for (property, value) in [
        ("rx_limit_bytes", "1000000"),
        ("rx_limit_packets", "100"),
        ("tx_limit_bytes", "2000000"),
        ("tx_limit_packets", "0"),
        ("limit_burst_ms", "7"),
        ("anti_spoof", "on"),
    ] {
        qdev::set_text(&device, property, value).unwrap();
        let read = rig.machine.qom_get("net0", property).unwrap().to_string();
        assert_eq!(read, value.replace("on", "true"), "{property}");
    }
    let burst = Duration::from_millis(7);
    let limit = |bytes, packets| RateLimit {
        bytes,
        packets,
        burst,
    };
    assert_eq!(limits(), (limit(1_000_000, 100), limit(2_000_000, 0)));
    // With it on, the driver of a legacy NIC cannot write another address.
    let mac = || {
        let mut mac = [0; 6];
        model.read_config(0, &mut mac);
        mac
    };
    let before = mac();
    model.write_config(0, &[2]);
    assert_eq!(mac(), before);
    qdev::set_text(&device, "anti_spoof", "off").unwrap();
    model.write_config(0, &[2]);
    assert_ne!(mac(), before);
}

#[test]
fn what_a_nic_tells_of_itself_is_read_of_its_proxy() {
    let rig = Rig::new();
    rig.device("virtio-net-pci,id=net0").unwrap();
    // (property, how it begins)
    let table = [
        ("statistics", "rx0: kicks="),
        ("features", "offered: "),
        ("standby", "false"),
    ];
    for (property, expected) in table {
        let text = rig.machine.qom_get("net0", property).unwrap().to_string();
        assert!(text.starts_with(expected), "{property}: {text}");
    }
}
