//! The control of a running machine, in QEMU's words.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one"
)]

mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use examples::machine::{Event, RunState};
use examples::monitor::{Channel, Console, Monitor};
use net_client::Loopback;
use support::Rig;

/// A machine without processors: a NIC on a loopback, and a netdev that nobody uses.
fn rig() -> (Rig, Console) {
    let rig = Rig::new();
    for id in ["n0", "n1"] {
        rig.devices.netdevs().insert(id, Loopback::new(id)).unwrap();
    }
    rig.devices
        .device_add("virtio-net-pci,id=net0,netdev=n0")
        .unwrap();
    rig.devices.complete();
    let control = rig.machine.control().clone();
    let console = Console {
        devices: rig.devices.clone(),
        run_state: Arc::new(RunState::new(control.clone(), true)),
        control,
    };
    (rig, console)
}

/// What is typed, and what QEMU 7.2 answers; a netdev of the kind `user` there is `loopback` here, and the root bus
/// of `-M q35`, `pcie.0`, is `pci.0`.
const QEMUS: &[(&str, &str)] = &[
    ("", ""),
    ("   ", ""),
    ("nosuch", "unknown command: 'nosuch'\n"),
    ("info nosuch", "unknown command: 'info nosuch'\n"),
    ("info st", "unknown command: 'info st'\n"),
    (
        "help set_link",
        "set_link name on|off -- change the link status of a network adapter\n",
    ),
    ("help help", "help|? [cmd] -- show the help\n"),
    ("help nosuch", "unknown command: 'nosuch'\n"),
    (
        "help info network",
        "info network  -- show the network state\n",
    ),
    ("help info nosuch", "unknown command: 'info nosuch'\n"),
    ("? qom-get", "qom-get path property -- print QOM property\n"),
    (
        "set_link",
        "set_link: string expected\nTry \"help set_link\" for more information\n",
    ),
    (
        "set_link n0",
        "Expected 'on' or 'off'\nTry \"help set_link\" for more information\n",
    ),
    (
        "set_link n0 maybe",
        "Expected 'on' or 'off'\nTry \"help set_link\" for more information\n",
    ),
    (
        "set_link n0 on extra",
        "set_link: extraneous characters at the end of line\nTry \"help set_link\" for more \
         information\n",
    ),
    ("announce_self", ""),
    ("announce_self net0,nosuch", ""),
    ("announce_self nosuch", ""),
    ("set_link nosuch on", "Error: Device 'nosuch' not found\n"),
    ("set_link \"n0\" off", ""),
    (" set_link   n0   on ", ""),
    ("set_link net0 on", ""),
    ("qom-list", "/\n"),
    ("qom-list /nosuch", "Error: Device '/nosuch' not found\n"),
    (
        "qom-list /machine/peripheral",
        "net0 (child<virtio-net-pci>)\ntype (string)\n",
    ),
    (
        "qom-get /machine/peripheral/net0",
        "qom-get: string expected\nTry \"help qom-get\" for more information\n",
    ),
    (
        "qom-get /machine/peripheral/net0 nosuch",
        "Error: Property 'virtio-net-pci.nosuch' not found\n",
    ),
    (
        "qom-get /machine/peripheral/net0 mac",
        "\"52:54:00:12:34:56\"\n",
    ),
    ("qom-get net0 csum", "true\n"),
    ("qom-get net0 duplex", "\"\"\n"),
    (
        "qom-get net0 virtio-backend",
        "\"/machine/peripheral/net0/virtio-backend\"\n",
    ),
    (
        "qom-set /machine/peripheral/net0 mac",
        "qom-set: string expected\nTry \"help qom-set\" for more information\n",
    ),
    (
        "qom-set /machine/peripheral/net0 mac 52:54:00:00:00:01",
        "Error: Attempt to set property 'mac' on anonymous device (type 'virtio-net-device') after \
         it was realized\n",
    ),
    (
        "qom-set net0 nosuch 1",
        "Error: Property 'virtio-net-pci.nosuch' not found\n",
    ),
    (
        "info qom-tree /nosuch",
        "Path '/nosuch' could not be resolved.\n",
    ),
    ("netdev_add", "Error: Parameter 'id' is missing\n"),
    (
        "netdev_add nosuch,id=x",
        "Error: Parameter 'type' does not accept value 'nosuch'\n",
    ),
    ("netdev_add tap", "Error: Parameter 'id' is missing\n"),
    (
        "netdev_add tap,id=n9,foo=bar",
        "Error: Invalid parameter 'foo'\n",
    ),
    ("netdev_add help", "Available netdev backend types:\ntap\n"),
    (
        "netdev_del",
        "netdev_del: string expected\nTry \"help netdev_del\" for more information\n",
    ),
    ("netdev_del net0", "Error: Device 'net0' not found\n"),
    ("device_add", "Error: Parameter 'driver' is missing\n"),
    (
        "device_add nosuch",
        "Error: 'nosuch' is not a valid device model name\n",
    ),
    (
        "device_add virtio-net-pci,id=net1",
        "Error: Bus 'pci.0' does not support hotplugging\n",
    ),
    (
        "device_add virtio-net-pci,id=net0,nosuch=1",
        "Error: Bus 'pci.0' does not support hotplugging\n",
    ),
    (
        "device_add virtio-net-pci,bus=zz",
        "Error: Bus 'zz' not found\n",
    ),
    (
        "device_add virtio-net-device,bus=virtio-bus",
        "Error: Bus 'virtio-bus' is full\n",
    ),
    (
        "device_del net0",
        "Error: Bus 'pci.0' does not support hotplugging\n",
    ),
    (
        "device_del /machine/peripheral/net0",
        "Error: Bus 'pci.0' does not support hotplugging\n",
    ),
    (
        "device_del net0/virtio-backend",
        "Error: Bus 'virtio-bus' does not support hotplugging\n",
    ),
    (
        "device_del /machine",
        "Error: /machine is not a hotpluggable device\n",
    ),
    (
        "device_del",
        "device_del: string expected\nTry \"help device_del\" for more information\n",
    ),
    ("device_del nosuch", "Error: Device 'nosuch' not found\n"),
    (
        "object_add",
        "object_add: string expected\nTry \"help object_add\" for more information\n",
    ),
    (
        "object_add nosuch,id=f0",
        "Error: Parameter 'qom-type' does not accept value 'nosuch'\n",
    ),
    (
        "object_add filter-dump,id=f0",
        "Error: Parameter 'netdev' is missing\n",
    ),
    (
        "object_add filter-dump,id=f0,netdev=zz,file=/nonexistent",
        "Error: Parameter 'netdev' expects a network backend id\n",
    ),
    ("object_del nosuch", "Error: object 'nosuch' not found\n"),
    ("info status", "VM status: paused (prelaunch)\n"),
    (
        "info qtree extra",
        "qtree: extraneous characters at the end of line\nTry \"help info qtree\" for more \
         information\n",
    ),
    (
        "stop x",
        "stop|s: extraneous characters at the end of line\nTry \"help stop\" for more information\n",
    ),
    (
        "q x",
        "quit|q: extraneous characters at the end of line\nTry \"help q\" for more information\n",
    ),
];

#[test]
fn each_line_is_answered_in_qemus_words() {
    let (_rig, console) = rig();
    for (line, expected) in QEMUS {
        assert_eq!(console.execute(line), *expected, "{line}");
    }
}

#[test]
fn help_names_each_command_and_each_topic() {
    let (_rig, console) = rig();
    for (list, prefix) in [("help", ""), ("info", "info "), ("help info", "info ")] {
        let text = console.execute(list);
        assert!(text.lines().count() >= 5, "{text}");
        for line in text.lines() {
            let name = line.strip_prefix(prefix).unwrap();
            let name = name.split([' ', '|']).next().unwrap();
            let help = console.execute(&format!("help {prefix}{name}"));
            // Of `info` it lists the topics.
            if name != "info" {
                assert_eq!(help, format!("{line}\n"));
            }
        }
    }
}

#[test]
fn info_network_tells_who_is_connected_and_which_link_is_down() {
    let (_rig, console) = rig();
    let nic = "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56";
    // (what is typed before, the lines)
    let table = [
        (
            "",
            format!("n1: index=0,type=loopback\n{nic}\n \\ n0: index=0,type=loopback\n"),
        ),
        (
            "set_link n0 off",
            format!("n1: index=0,type=loopback\n{nic}\n \\ n0: index=0,type=loopback,link=down\n"),
        ),
        (
            "set_link net0 off",
            format!(
                "n1: index=0,type=loopback\n{nic},link=down\n \\ n0: index=0,type=loopback,link=down\n"
            ),
        ),
        (
            "set_link n0 on",
            format!("n1: index=0,type=loopback\n{nic},link=down\n \\ n0: index=0,type=loopback\n"),
        ),
        (
            "netdev_del n1",
            format!("{nic},link=down\n \\ n0: index=0,type=loopback\n"),
        ),
        ("netdev_del n0", format!("{nic},link=down\n")),
    ];
    for (line, expected) in table {
        assert_eq!(console.execute(line), "", "{line}");
        assert_eq!(console.execute("info network"), expected, "{line}");
    }
}

#[test]
fn filters_come_and_go_and_are_listed() {
    let (_rig, console) = rig();
    let file = std::env::temp_dir().join(format!("vmm-monitor-{}.pcap", std::process::id()));
    let file = file.display();
    let add = |id: &str, more: &str| {
        console.execute(&format!(
            "object_add filter-dump,id={id},netdev=n0,file={file}{more}"
        ))
    };
    assert_eq!(add("f0", ""), "");
    assert_eq!(add("f0", ""), "Error: Duplicate ID 'f0' for object\n");
    assert_eq!(add("f1", ",maxlen=100,queue=rx"), "");
    let filters = |console: &Console| {
        let text = console.execute("info network");
        let (_, filters) = text.split_once("filters:\n").unwrap_or_default();
        filters.to_owned()
    };
    let line = |id: &str, maxlen: &str, queue: &str| {
        format!(
            "  - {id}: type=filter-dump,file={file},maxlen={maxlen},position=tail,status=on,\
             insert=behind,netdev=n0,queue={queue}\n"
        )
    };
    let [f0, f1] = [line("f0", "65536", "all"), line("f1", "100", "rx")];
    assert_eq!(filters(&console), format!("{f0}{f1}"));
    assert_eq!(console.execute("object_del f0"), "");
    assert_eq!(filters(&console), f1);
    // A filter goes with its netdev.
    assert_eq!(console.execute("netdev_del n0"), "");
    assert_eq!(filters(&console), "");
    std::fs::remove_file(file.to_string()).unwrap();
}

#[test]
fn info_qtree_shows_buses_devices_and_what_their_properties_came_to() {
    let (_rig, console) = rig();
    let text = console.execute("info qtree");
    for line in [
        "bus: pci.0",
        "  type PCI",
        "  dev: virtio-net-pci, id \"net0\"",
        "    ioeventfd = true",
        "    bus: virtio-bus",
        "      type virtio-pci-bus",
        "      dev: virtio-net-device, id \"\"",
        "        mac = \"52:54:00:12:34:56\"",
        "        rx_queue_size = 256 (0x100)",
        "        speed = -1 (0xffffffffffffffff)",
    ] {
        assert!(
            text.lines().any(|printed| printed == line),
            "{line}\nin\n{text}"
        );
    }
}

#[test]
fn a_socket_takes_one_client_after_another_and_goes_with_the_monitor() {
    let (rig, console) = rig();
    let path: PathBuf =
        std::env::temp_dir().join(format!("vmm-monitor-{}.sock", std::process::id()));
    let text = format!("unix:{},server=on,wait=off", path.display());
    let (never, _end) = UnixStream::pair().unwrap();
    let channel = Channel::open(&text, never.as_fd()).unwrap().unwrap();
    // Who comes second does not take the first one's place.
    let taken = Channel::open(&text, never.as_fd()).unwrap_err();
    assert!(
        taken.to_string().starts_with("Failed to bind socket to "),
        "{taken}"
    );
    let monitor = Monitor::start(Arc::new(channel), console).unwrap();
    for last in ["info status\r\n", "quit\n"] {
        let mut client = BufReader::new(UnixStream::connect(&path).unwrap());
        let mut banner = String::new();
        client.read_line(&mut banner).unwrap();
        assert!(banner.ends_with(" monitor - type 'help' for more information\n"));
        let long = "x".repeat(5000);
        let lines = format!("info status\n\n{long}\nset_link nosuch on\n{last}");
        client.get_mut().write_all(lines.as_bytes()).unwrap();
        client
            .get_mut()
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        let answers: Vec<_> = said.split("(vmm) ").collect();
        let expected = [
            "",
            "VM status: paused (prelaunch)\n",
            "",
            "Command line has more than 4096 bytes\n",
            "Error: Device 'nosuch' not found\n",
        ];
        assert_eq!(answers.get(..5).unwrap(), expected);
    }
    assert_eq!(rig.machine.control().take(), Some(Event::Quit));
    // One that reads nothing does not keep the monitor from its end.
    let mut deaf = UnixStream::connect(&path).unwrap();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(b"info qtree\n").is_ok() {}
    drop(monitor);
    assert!(!path.exists());
    drop(rig);
}

#[test]
fn a_channel_that_cannot_be_had_is_refused_in_qemus_words() {
    let (never, _end) = UnixStream::pair().unwrap();
    let table = [
        ("nosuch", "'nosuch' is not a valid char driver"),
        ("nosuch:x,y", "'nosuch' is not a valid char driver"),
        ("unix:", "parse error: unix:"),
        (
            "unix:/nonexistent/x",
            "Failed to connect to '/nonexistent/x': No such file or directory (os error 2)",
        ),
        (
            "unix:/nonexistent/x,server=on,wait=off",
            "Failed to bind socket to /nonexistent/x: No such file or directory (os error 2)",
        ),
        (
            "unix:/x,server=maybe",
            "Parameter 'server' expects 'on' or 'off'",
        ),
        ("unix:/x,nosuch=on", "Invalid parameter 'nosuch'"),
        ("tcp:localhost", "parse error: tcp:localhost"),
        ("tcp::99999,server=on", "parse error: tcp::99999,server=on"),
    ];
    for (text, expected) in table {
        let error = Channel::open(text, never.as_fd()).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
    assert!(Channel::open("none", never.as_fd()).unwrap().is_none());
}

#[test]
fn a_server_waits_for_its_client_unless_told_not_to() {
    let path = std::env::temp_dir().join(format!("vmm-monitor-wait-{}", std::process::id()));
    let text = format!("unix:{},server=on", path.display());
    let (never, end) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| Channel::open(&text, never.as_fd()).map(drop));
        support::wait_until("it listens", || path.exists());
        assert!(!opener.is_finished());
        // What interrupts it ends the wait, and leaves the rest to the caller.
        (&end).write_all(b"x").unwrap();
        opener.join().unwrap().unwrap();
    });
    let (never, _end) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| Channel::open(&text, never.as_fd()).map(drop));
        let connected = || UnixStream::connect(&path).map(drop);
        let mut result: io::Result<()> = connected();
        support::wait_until("a client is taken", || {
            if result.is_err() {
                result = connected();
            }
            opener.is_finished()
        });
    });
}
