//! A device goes while its driver has it active, in the middle of traffic.

mod support;

use std::sync::{Arc, Weak};

use net_client::Loopback;
use support::Rig;

#[test]
fn a_device_removed_while_its_driver_has_it_active_leaves_nothing() {
    let rig = Rig::new();
    let netdevs = rig.devices.netdevs();
    netdevs.register(
        "loopback",
        Box::new(|_| Ok(Box::new(|id| Ok(Loopback::new(id))))),
    );
    rig.devices.netdev_add("loopback,id=peer").unwrap();
    for round in 0..3_u8 {
        let device = rig
            .devices
            .device_add("virtio-net-pci,id=net0,netdev=peer")
            .unwrap();
        rig.machine.assign_resources().unwrap();
        let left: Vec<Weak<_>> = [Some(device.clone()), device.child("virtio-backend")]
            .iter()
            .flatten()
            .map(Arc::downgrade)
            .collect();
        assert_eq!(left.len(), 2);
        drop(device);

        let mut driver = rig.driver();
        let frame = [round; 64];
        driver.ask(&frame, |answer| answer == frame);
        // Some are on their way when it goes.
        for _ in 0..16 {
            driver.net.transmit(&frame).unwrap();
        }
        // As when somebody pulls it out: the machine's bus lets nothing leave in a gentler way.
        let device = rig.devices.tree().device("net0").unwrap();
        rig.devices.tree().finish_unplug(&device).unwrap();
        drop(device);

        assert!(rig.devices.tree().devices().is_empty(), "{round}");
        assert_eq!(rig.machine.pci().bus().slots().len(), 1, "{round}");
        assert_eq!(rig.interrupts.vectors(), (0, 0), "{round}");
        assert!(!netdevs.find("peer").unwrap().is_in_use(), "{round}");
        assert!(
            left.iter().all(|object| object.strong_count() == 0),
            "{round}"
        );
        // The driver finds nobody, and that is all.
        let _ = driver.net.transmit(&frame);
        let mut buffer = [0; 64];
        let mut late = 0;
        let _ = driver.net.poll_receive(&mut buffer, |_| late += 1);
        assert!(late <= 16, "{late}");
    }
}
