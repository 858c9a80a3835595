//! The two strings of the main job, with a real tap in a network namespace of the test's own.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use vm_pci::DevFn;

use crate::machine::{Rig, devfn};

/// Set in the process that runs inside of the namespace.
const INSIDE: &str = "VIRTIO_PCI_PROXIES_TEST_INSIDE";
const TEST: &str = "tap::a_real_tap_and_its_nic_are_peers_until_either_goes";

#[test]
fn a_real_tap_and_its_nic_are_peers_until_either_goes() {
    if std::env::var_os(INSIDE).is_some() {
        return tap_and_nic();
    }
    if let Err(missing) = namespaces() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "{TEST}: {missing}"
        );
        println!("{TEST}: not run: {missing}");
        return;
    }
    let inside = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(inside.success(), "inside of the namespace: {inside}");
}

/// Whether a namespace can be had and `/dev/net/tun` opened in it.
fn namespaces() -> Result<(), String> {
    let tried = Command::new("unshare")
        .args(["-Urn", "sh", "-c", ": <>/dev/net/tun"])
        .output()
        .map_err(|error| format!("no unshare: {error}"))?;
    if tried.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned())
    }
}

fn interfaces() -> String {
    std::fs::read_to_string("/proc/net/dev").unwrap()
}

fn tap_and_nic() {
    let rig = Rig::new();
    net_tap::register(&rig.netdevs);
    rig.netdev("tap,id=tap0");
    assert!(interfaces().contains("tap0:"));
    rig.device("virtio-net-pci,netdev=tap0,id=net0").unwrap();
    assert_eq!(rig.slots(), [DevFn::from_byte(0), devfn(1)]);
    let tap = rig.netdevs.find("tap0").unwrap();
    let port = &tap.ports()[0];
    let nic = port.peer().expect("the tap has no peer");
    assert!(
        Arc::ptr_eq(&nic.peer().unwrap(), port),
        "the NIC has another"
    );

    rig.machine.device_del("net0").unwrap();
    rig.assert_empty("after device_del");
    // A legacy driver is told of all kinds of large frames at once (bit 6), where there are all.
    for (properties, expected) in [("", 0x40), (",gso=off", 0), (",host_tso6=off", 0)] {
        let device = format!("virtio-net-pci,netdev=tap0,id=net0{properties}");
        rig.device(&device).unwrap();
        assert_eq!(rig.legacy_features(devfn(1)) & 0x40, expected, "{device}");
        rig.machine.device_del("net0").unwrap();
    }
    rig.device("virtio-net-pci,netdev=tap0,id=net0").unwrap();
    drop((tap, nic));
    rig.netdevs.remove("tap0").unwrap();
    assert_eq!(rig.slots().len(), 2, "the NIC stays, without a peer");
    let _ = rig.context.turn(Some(Duration::ZERO));
    assert!(!interfaces().contains("tap0:"), "the interface is left");
}
