//! The order of hooks, which is QEMU's: parents first, the model inside of the proxy's realize, the
//! PCI bus last.

use crate::machine::Rig;

#[test]
fn classes_initialize_from_device_to_the_leaf_and_only_once() {
    let rig = Rig::new();
    rig.device("virtio-net-pci").unwrap();
    let events = rig.recorder.take_lines();
    let classes: Vec<_> = (events.iter())
        .filter_map(|event| event.strip_prefix("class_init "))
        .filter(|class| class.contains("pci") || class.contains("virtio") || *class == "device")
        .collect();
    assert_eq!(
        classes,
        [
            "device",
            "pci-device",
            "virtio-pci",
            "virtio-net-pci-base",
            "virtio-net-pci",
            "virtio-device",
            "virtio-net-device",
            "virtio-bus",
            "virtio-pci-bus",
        ]
    );
    rig.device("virtio-net-pci").unwrap();
    let again = rig.recorder.take_lines();
    assert!(!again.iter().any(|event| event.starts_with("class_init")));
}

#[test]
fn realize_goes_from_the_pci_function_to_the_model_and_plugs_it_before_the_function() {
    let rig = Rig::new();
    rig.device("virtio-net-pci,id=net0").unwrap();
    rig.recorder.take();
    rig.machine.device_del("net0").unwrap();
    let undone = rig.recorder.take_lines();
    rig.device("virtio-net-pci").unwrap();
    let done: Vec<_> = (rig.recorder.take_lines().into_iter())
        .filter(|event| !event.starts_with("instance_init"))
        .collect();
    assert_eq!(
        done,
        [
            "pre_plug PCI of virtio-net-pci",
            "realize pci-device of virtio-net-pci",
            "realize virtio-pci of virtio-net-pci",
            "realize virtio-net-pci-base of virtio-net-pci",
            "pre_plug virtio-pci-bus of virtio-net-device",
            "realize virtio-device of virtio-net-device",
            "realize virtio-net-device",
            "plug virtio-pci-bus of virtio-net-device",
            "plug PCI of virtio-net-pci",
        ]
    );
    let undone: Vec<_> = (undone.iter().map(String::as_str))
        .filter(|event| !event.starts_with("instance_finalize"))
        .collect();
    assert_eq!(
        undone,
        [
            "unplug_request PCI of virtio-net-pci",
            "unplug PCI of virtio-net-pci",
            "unplug virtio-pci-bus of virtio-net-device",
            "unrealize virtio-net-device",
            "unrealize virtio-device of virtio-net-device",
            "withdraw virtio-pci-bus of virtio-net-device",
            "unrealize virtio-net-pci-base of virtio-net-pci",
            "unrealize virtio-pci of virtio-net-pci",
            "unrealize pci-device of virtio-net-pci",
            "withdraw PCI of virtio-net-pci",
        ]
    );
}

#[test]
fn instances_initialize_parents_first_and_the_model_within_its_proxy() {
    let rig = Rig::new();
    rig.device("virtio-net-pci").unwrap();
    let inits: Vec<_> = (rig.recorder.take_lines().into_iter())
        .filter(|event| event.starts_with("instance_init") && event.contains("virtio-net"))
        .collect();
    assert_eq!(
        inits,
        [
            "instance_init object of virtio-net-pci",
            "instance_init device of virtio-net-pci",
            "instance_init pci-device of virtio-net-pci",
            "instance_init virtio-pci of virtio-net-pci",
            "instance_init virtio-net-pci-base of virtio-net-pci",
            "instance_init object of virtio-net-device",
            "instance_init device of virtio-net-device",
            "instance_init virtio-device of virtio-net-device",
            "instance_init virtio-net-device",
            "instance_init virtio-net-pci",
        ]
    );
}
