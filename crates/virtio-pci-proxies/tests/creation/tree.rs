//! What the tree shows of a device, and what its properties came to.

use crate::machine::Rig;

#[test]
fn a_device_and_its_model_are_listed_below_peripheral() {
    let rig = Rig::new();
    rig.device("virtio-net,id=net0").unwrap();
    let tree = "\
/peripheral (container)
  /net0 (virtio-net-pci)
    /virtio-backend (virtio-net-device)
    /virtio-bus (virtio-pci-bus)
";
    assert_eq!(rig.machine.qom_tree("/machine/peripheral").unwrap(), tree);
}

#[test]
fn properties_read_as_what_they_came_to() {
    let rig = Rig::new();
    rig.netdev("loopback,id=u0");
    rig.device("virtio-net-pci,id=net0,netdev=u0,addr=2")
        .unwrap();
    rig.device("virtio-net-pci,id=net1").unwrap();
    rig.device("virtio-net-pci,id=net2,vectors=0,mac=52-54-00-AB-CD-EF")
        .unwrap();
    // (path, property, value): as QEMU 7.2 reads them, but for what the legacy interface is about
    let table = [
        ("net0", "mac", "\"52:54:00:12:34:56\""),
        ("net0/virtio-backend", "mac", "\"52:54:00:12:34:56\""),
        ("net1", "mac", "\"52:54:00:12:34:57\""),
        ("net2", "mac", "\"52:54:00:ab:cd:ef\""),
        ("net0", "vectors", "4"),
        ("net2", "vectors", "0"),
        ("net0", "addr", "16"),
        ("net0", "legacy-addr", "\"02.0\""),
        ("net1", "addr", "8"),
        ("net0", "netdev", "\"u0\""),
        ("net1", "netdev", "\"\""),
        ("net0", "duplex", "\"\""),
        ("net0", "speed", "-1"),
        ("net0", "bootindex", "-1"),
        ("net0", "disable-legacy", "\"off\""),
        ("net0", "disable-modern", "false"),
        ("net0", "queue_reset", "true"),
        ("net0", "notify_on_empty", "true"),
        ("net0", "parent_bus", "\"/machine/pci.0\""),
        (
            "net0",
            "virtio-backend",
            "\"/machine/peripheral/net0/virtio-backend\"",
        ),
        (
            "net0/virtio-bus",
            "child[0]",
            "\"/machine/peripheral/net0/virtio-backend\"",
        ),
        (
            "net0/virtio-backend",
            "parent_bus",
            "\"/machine/peripheral/net0/virtio-bus\"",
        ),
        ("net0", "hotplugged", "false"),
        ("net0", "hotpluggable", "true"),
        ("net0", "realized", "true"),
        ("net0", "type", "\"virtio-net-pci\""),
    ];
    for (path, property, value) in table {
        let read = rig.machine.qom_get(path, property).unwrap();
        assert_eq!(read.json().to_string(), value, "{path} {property}");
    }
}

#[test]
fn a_device_that_came_while_the_machine_ran_says_so() {
    let rig = Rig::new();
    rig.machine.set_running();
    rig.device("virtio-net-pci,id=net0").unwrap();
    let hotplugged = rig.machine.qom_get("net0", "hotplugged").unwrap();
    assert_eq!(hotplugged.to_string(), "true");
    rig.machine.device_del("net0").unwrap();
    rig.assert_empty("device_del");
}
