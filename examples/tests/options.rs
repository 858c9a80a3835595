//! What the VMM says of options that cannot be had, in QEMU's words, and what help prints.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one"
)]

mod support;

use std::ffi::OsString;
use std::fs;

use examples::cli::{self, Command};
use examples::devices::{device_help, netdev_help, object_help};
use examples::vmm;
use support::{in_own_network, interfaces, wait_until};

/// What the VMM prints after its name, and after which it exits with status 1.
fn line(words: &str) -> String {
    let arguments = words.split_whitespace().map(OsString::from);
    match cli::parse(arguments) {
        Ok(Command::Run(options)) => vmm::run(&options).map(|_| ()).unwrap_err().to_string(),
        Ok(other) => panic!("{words}: {other:?}"),
        Err(error) => error.to_string(),
    }
}

/// Options, and what QEMU 7.2 prints after its name. `user` there is `tap` here.
const QEMUS: &[(&str, &str)] = &[
    (
        "-device virtio-nothing-pci",
        "-device virtio-nothing-pci: 'virtio-nothing-pci' is not a valid device model name",
    ),
    (
        "-device pci-device",
        "-device pci-device: Parameter 'driver' expects a non-abstract device type",
    ),
    (
        "-device id=a",
        "-device id=a: Parameter 'driver' is missing",
    ),
    (
        "-device ,",
        "-device ,: '' is not a valid device model name",
    ),
    (
        "-device virtio-net-device",
        "-device virtio-net-device: No 'virtio-bus' bus found for device 'virtio-net-device'",
    ),
    (
        "-device virtio-net-device,bus=pci.0",
        "-device virtio-net-device,bus=pci.0: Device 'virtio-net-device' can't go on PCI bus",
    ),
    (
        "-device virtio-net-pci,nosuch=1",
        "-device virtio-net-pci,nosuch=1: Property 'virtio-net-pci.nosuch' not found",
    ),
    (
        "-device virtio-net,nosuch=1",
        "-device virtio-net,nosuch=1: Property 'virtio-net-pci.nosuch' not found",
    ),
    (
        "-device virtio-net-pci,virtio-backend=x",
        "-device virtio-net-pci,virtio-backend=x: Property 'virtio-net-pci.virtio-backend' is not \
         writable",
    ),
    (
        "-device virtio-net-pci,type=on",
        "-device virtio-net-pci,type=on: Property 'virtio-net-pci.type' is not writable",
    ),
    (
        "-device virtio-net-pci,csum=maybe",
        "-device virtio-net-pci,csum=maybe: Parameter 'csum' expects 'on' or 'off'",
    ),
    (
        "-device virtio-net-pci,multifunction=1",
        "-device virtio-net-pci,multifunction=1: Parameter 'multifunction' expects 'on' or 'off'",
    ),
    (
        "-device virtio-net-pci,disable-legacy=maybe",
        "-device virtio-net-pci,disable-legacy=maybe: Parameter 'disable-legacy' does not accept \
         value 'maybe'",
    ),
    (
        "-device virtio-net-pci,x-txburst=99999999999",
        "-device virtio-net-pci,x-txburst=99999999999: Parameter 'x-txburst' expects int32_t",
    ),
    (
        "-device virtio-net-pci,rx_queue_size=abc",
        "-device virtio-net-pci,rx_queue_size=abc: Parameter 'rx_queue_size' expects integer",
    ),
    (
        "-device virtio-net-pci,rx_queue_size=70000",
        "-device virtio-net-pci,rx_queue_size=70000: Parameter 'rx_queue_size' expects uint16_t",
    ),
    (
        "-device virtio-net-pci,rx_queue_size=-1",
        "-device virtio-net-pci,rx_queue_size=-1: Parameter 'rx_queue_size' expects uint16_t",
    ),
    (
        "-device virtio-net-pci,mac=1:2:3",
        "-device virtio-net-pci,mac=1:2:3: Property 'virtio-net-device.mac' doesn't take value \
         '1:2:3'",
    ),
    (
        "-device virtio-net-pci,mac=",
        "-device virtio-net-pci,mac=: Property 'virtio-net-device.mac' doesn't take value ''",
    ),
    (
        "-device virtio-net-pci,mac=52:54:00:12:34:56:78",
        "-device virtio-net-pci,mac=52:54:00:12:34:56:78: Property 'virtio-net-device.mac' doesn't \
         take value '52:54:00:12:34:56:78'",
    ),
    (
        "-device virtio-net-pci,netdev=nosuch",
        "-device virtio-net-pci,netdev=nosuch: Property 'virtio-net-device.netdev' can't find value \
         'nosuch'",
    ),
    (
        "-device virtio-net-pci,netdev=",
        "-device virtio-net-pci,netdev=: Property 'virtio-net-device.netdev' can't find value ''",
    ),
    (
        "-netdev tap,id=a -device virtio-net-pci,netdev=a,netdev=b",
        "-device virtio-net-pci,netdev=a,netdev=b: Property 'virtio-net-device.netdev' can't find \
         value 'b'",
    ),
    (
        "-netdev tap,id=a -device virtio-net-pci,netdev=a -device virtio-net-pci,netdev=a",
        "-device virtio-net-pci,netdev=a: Property 'virtio-net-device.netdev' can't take value 'a', \
         it's in use",
    ),
    (
        "-device virtio-net-pci,id=a -device virtio-net-pci,id=a",
        "-device virtio-net-pci,id=a: Duplicate ID 'a' for device",
    ),
    (
        "-device virtio-net-pci,addr=40",
        "-device virtio-net-pci,addr=40: Property 'virtio-net-pci.addr' doesn't take value '40'",
    ),
    (
        "-device virtio-net-pci,addr=5,id=a -device virtio-net-pci,addr=5",
        "-device virtio-net-pci,addr=5: PCI: slot 5 function 0 not available for virtio-net-pci, in \
         use by virtio-net-pci,id=a",
    ),
    (
        "-device virtio-net-pci,bus=pci.9",
        "-device virtio-net-pci,bus=pci.9: Bus 'pci.9' not found",
    ),
    (
        "-device virtio-net-pci,bus=",
        "-device virtio-net-pci,bus=: Bus '' not found",
    ),
    (
        "-device virtio-net-pci,bus=nosuch/x",
        "-device virtio-net-pci,bus=nosuch/x: Bus 'nosuch' not found",
    ),
    (
        "-device virtio-net-pci,id=n -device virtio-net-pci,bus=virtio-bus",
        "-device virtio-net-pci,bus=virtio-bus: Bus 'virtio-bus' is full",
    ),
    (
        "-netdev nosuch,id=a",
        "-netdev nosuch,id=a: Parameter 'type' does not accept value 'nosuch'",
    ),
    ("-netdev tap", "-netdev tap: Parameter 'id' is missing"),
    ("-netdev id=a", "-netdev id=a: Parameter 'type' is missing"),
    (
        "-netdev tap,id=a,nosuch=1",
        "-netdev tap,id=a,nosuch=1: Invalid parameter 'nosuch'",
    ),
    (
        "-netdev tap,id=a -netdev tap,id=a",
        "-netdev tap,id=a: Duplicate ID 'a' for netdev",
    ),
    (
        "-netdev tap,id=a,vnet_hdr=maybe",
        "-netdev tap,id=a,vnet_hdr=maybe: Parameter 'vnet_hdr' expects 'on' or 'off'",
    ),
];

/// Where QEMU says something else, or takes what is not built here.
const OURS: &[(&str, &str)] = &[
    // It says how identifiers look on a line of its own.
    (
        "-device virtio-net-pci,id=1a",
        "-device virtio-net-pci,id=1a: Parameter 'id' expects an identifier: letters, digits, '-', \
         '.', '_', starting with a letter",
    ),
    // There it is "i440FX,id=(null)".
    (
        "-device virtio-net-pci,addr=0",
        "-device virtio-net-pci,addr=0: PCI: slot 0 function 0 not available for virtio-net-pci, in \
         use by the machine",
    ),
    (
        "-device virtio-net-pci,migrate-extra=off",
        "-device virtio-net-pci,migrate-extra=off: Property 'virtio-net-pci.migrate-extra' is not supported \
         with any value but 'on'",
    ),
    (
        "-device virtio-net-pci,romfile=x",
        "-device virtio-net-pci,romfile=x: Property 'virtio-net-pci.romfile' is not supported",
    ),
    (
        "-netdev tap,id=a,helper=x",
        "-netdev tap,id=a,helper=x: Parameter 'helper' is not supported",
    ),
    (
        "-netdev tap,id=a,ip=10.0.2.2",
        "-netdev tap,id=a,ip=10.0.2.2: Parameter 'ip' expects an address and a prefix length",
    ),
];

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn each_mistake_is_one_line_in_qemus_words_and_leaves_nothing() {
    in_own_network(
        "each_mistake_is_one_line_in_qemus_words_and_leaves_nothing",
        || {
            let before = interfaces();
            // What is made once and stays is there from here on.
            line("-device virtio-nothing-pci");
            let (files, tasks) = (open_files(), threads());
            for (words, expected) in QEMUS.iter().chain(OURS) {
                let said = line(words);
                assert!(said.starts_with(expected), "{words}:\n{said}");
                assert!(!said.contains('\n'), "{words}:\n{said}");
                wait_until(words, || interfaces() == before && threads() == tasks);
                assert_eq!(open_files(), files, "{words}");
            }
        },
    );
}

/// Captures, and what QEMU 7.2 says of them; at its end nothing is told of the file but its name there.
#[test]
fn a_capture_that_cannot_be_made_is_refused_in_qemus_words() {
    in_own_network(
        "a_capture_that_cannot_be_made_is_refused_in_qemus_words",
        || {
            let table = [
                (
                    "nosuch,id=f",
                    "Parameter 'qom-type' does not accept value 'nosuch'",
                ),
                ("id=f", "Parameter 'qom-type' is missing"),
                ("filter-dump", "Parameter 'id' is missing"),
                ("filter-dump,id=f", "Parameter 'netdev' is missing"),
                ("filter-dump,id=f,netdev=zz", "Parameter 'file' is missing"),
                (
                    "filter-dump,id=f,netdev=zz,file=/x",
                    "Parameter 'netdev' expects a network backend id",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/nonexistent/x",
                    "net dump: can't open /nonexistent/x: No such file or directory",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/x,foo=1",
                    "Invalid parameter 'foo'",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/x,maxlen=0",
                    "Property 'filter-dump.maxlen' doesn't take value '0'",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/x,maxlen=y",
                    "Parameter 'maxlen' expects a uint64 value",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/x,status=off",
                    "Parameter 'status' is not supported by this filter",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/x,insert=before",
                    "Parameter 'insert' is not supported by this filter",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/nonexistent/x,insert=behind,status=on",
                    "net dump: can't open /nonexistent/x: No such file or directory",
                ),
                (
                    "filter-dump,id=f,netdev=a,file=/x,queue=zz",
                    "Parameter 'queue' does not accept value 'zz'",
                ),
            ];
            for (object, expected) in table {
                let said = line(&format!("-netdev tap,id=a -object {object}"));
                let expected = format!("-object {object}: {expected}");
                assert!(said.starts_with(&expected), "{object}: {said}");
            }
            let twice = "-object filter-dump,id=f,netdev=a,file=/dev/null";
            let said = line(&format!("-netdev tap,id=a {twice} {twice}"));
            assert_eq!(said, format!("{twice}: Duplicate ID 'f' for object"));
        },
    );
}

#[test]
fn a_machine_that_does_not_start_leaves_no_file_of_its_options() {
    in_own_network(
        "a_machine_that_does_not_start_leaves_no_file_of_its_options",
        || {
            let place = std::env::temp_dir().join(format!("vmm-options-{}", std::process::id()));
            fs::create_dir(&place).unwrap();
            let [new, old, link, linked] =
                ["new", "old", "link", "linked"].map(|name| place.join(name));
            fs::write(&old, "somebody's").unwrap();
            std::os::unix::fs::symlink(&linked, &link).unwrap();
            let dump = |id: &str, file: &std::path::Path| {
                format!(
                    "-object filter-dump,id={id},netdev=a,file={}",
                    file.display()
                )
            };
            let dumps = [dump("f", &new), dump("g", &old), dump("h", &link)].join(" ");
            let serial = place.join("serial");
            let wrong_later = [
                "-device nosuch".to_owned(),
                "-object nosuch,id=x".to_owned(),
                format!("-kernel /nonexistent -serial file:{}", serial.display()),
                format!(
                    "-kernel /nonexistent -serial file:{} -device nosuch",
                    serial.display()
                ),
            ];
            for wrong in wrong_later {
                line(&format!("-netdev tap,id=a {dumps} {wrong}"));
                assert!(!new.exists(), "{wrong}");
                assert!(!linked.exists(), "{wrong}");
                assert!(link.is_symlink(), "{wrong}");
                assert!(!serial.exists(), "{wrong}");
                assert!(old.exists(), "{wrong}");
            }
            fs::remove_dir_all(&place).unwrap();
        },
    );
}

#[test]
fn a_queue_size_is_refused_in_qemus_words() {
    for (option, end) in [("rx_queue_size", "."), ("tx_queue_size", "")] {
        for size in ["0", "100", "128", "1000", "40000"] {
            let device = format!("-device virtio-net-pci,{option}={size}");
            let said = line(&device);
            let start = format!(
                "{device}: Invalid {option} (= {size}), must be a power of 2 between 256 and "
            );
            let largest = said
                .strip_prefix(&start)
                .unwrap_or_else(|| panic!("{said}"));
            let largest = largest
                .strip_suffix(end)
                .unwrap_or_else(|| panic!("{said}"));
            assert!(matches!(largest, "1024" | "32768"), "{said}");
        }
    }
}

#[test]
fn help_lists_devices_netdevs_and_the_options_of_each() {
    // (what is asked of -device, lines of the answer)
    let devices = [
        (
            "help",
            &[
                "Network devices:",
                "name \"virtio-net-device\", bus virtio-bus",
                "name \"virtio-net-pci\", bus PCI, alias \"virtio-net\"",
                "name \"virtio-net-pci-non-transitional\", bus PCI",
            ][..],
        ),
        (
            "virtio-net-pci,help",
            &[
                "virtio-net-pci options:",
                "  acpi-index=<uint32>    -  (default: 0)",
                "  addr=<int32>           - Slot and optional function number, example: 06.0 or 06 \
                 (default: -1)",
                "  disable-legacy=<OnOffAuto> - on/off/auto (default: \"auto\")",
                "  bootindex=<int32>",
                "  virtio-backend=<child<virtio-net-device>>",
            ],
        ),
    ];
    for (asked, lines) in devices {
        let text = device_help(asked).unwrap();
        for line in lines {
            assert!(
                text.lines().any(|printed| printed == *line),
                "{line}\nin\n{text}"
            );
        }
    }
    assert_eq!(
        netdev_help("help").unwrap(),
        "Available netdev backend types:\ntap\n"
    );
    assert_eq!(
        object_help("help").unwrap(),
        "List of user creatable objects:\n  filter-dump\n"
    );
    assert_eq!(
        object_help("nosuch,help").unwrap_err().to_string(),
        "-object nosuch,help: Parameter 'qom-type' does not accept value 'nosuch'"
    );
    assert_eq!(
        device_help("nosuch,help").unwrap_err().to_string(),
        "-device nosuch,help: Device 'nosuch' not found"
    );
    assert_eq!(
        netdev_help("nosuch,help").unwrap_err().to_string(),
        "-netdev nosuch,help: Parameter 'type' does not accept value 'nosuch'"
    );
}

#[test]
fn the_tap_has_each_option_that_its_help_lists() {
    let text = netdev_help("tap,help").unwrap();
    assert!(text.starts_with("tap options:\n"), "{text}");
    let (_, ours) = text
        .split_once("\n\ntap options that QEMU does not have:\n")
        .unwrap();
    assert!(ours.contains("  ip=<str>"), "{ours}");
    let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
    let known: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once('=')).collect();
    assert!(known.iter().any(|(name, _)| *name == "ifname"), "{known:?}");
    for (name, rest) in known {
        // Nothing is opened: one option is unknown.
        let said = line(&format!("-netdev tap,id=a,nosuch=x,{name}=-"));
        let unknown = format!("Invalid parameter '{name}'");
        assert!(!said.contains(&unknown), "{said}");
        let refused = format!("'{name}' is not supported");
        assert!(
            !said.contains(&refused) || rest.contains("not supported"),
            "{said}"
        );
    }
}
