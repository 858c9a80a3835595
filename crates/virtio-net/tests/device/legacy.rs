//! Drivers from before virtio 1.0: no VERSION_1.

use virtio::net::F as NetF;
use virtio::{F, le128};
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;

use crate::harness::{HEADER, Nic, TX};

fn mac(nic: &Nic) -> [u8; 6] {
    let mut mac = [0; 6];
    nic.device.read_config(0, &mut mac);
    mac
}

#[test]
fn the_address_is_written_through_configuration_space_where_there_is_no_command_for_it() {
    let legacy = NetF::all() - NetF::VERSION_1;
    // (features, whether a write counts)
    let table = [
        (legacy - NetF::CTRL_MAC_ADDR, true),
        (legacy, false),
        (NetF::all() - NetF::CTRL_MAC_ADDR, false),
        (NetF::all(), false),
    ];
    for (features, counts) in table {
        let nic = Nic::with(&|_| {}, features);
        let before = mac(&nic);
        for (at, byte) in (0..).zip([2, 0, 0, 0, 0, 9, 0xff, 0xff]) {
            nic.device.write_config(at, &[byte]);
        }
        let expected = if counts { [2, 0, 0, 0, 0, 9] } else { before };
        assert_eq!(mac(&nic), expected, "{features:?}");
        let mut status = [0; 2];
        nic.device.read_config(6, &mut status);
        assert_eq!(status, [1, 0], "only the address is written");
        nic.device.reset();
        assert_eq!(mac(&nic), before, "after a reset");
    }
}

#[test]
fn an_address_that_was_written_before_negotiation_stays_a_legacy_drivers() {
    for (features, stays) in [(NetF::all(), false), (NetF::all() - NetF::VERSION_1, true)] {
        let nic = Nic::idle(&|_| {}, features);
        let before = mac(&nic);
        nic.device.write_config(0, &[2, 0, 0, 0, 0, 9]);
        nic.device.negotiate(nic.features).unwrap();
        let expected = if stays { [2, 0, 0, 0, 0, 9] } else { before };
        assert_eq!(mac(&nic), expected, "{features:?}");
    }
}

#[test]
fn gso_lets_a_legacy_driver_send_what_it_stands_for() {
    const GSO: F = F::from_bits_retain(le128::from_ne(1 << 6));
    let parts = NetF::HOST_TSO4 | NetF::HOST_TSO6 | NetF::HOST_ECN | NetF::HOST_USO;
    let wanted = NetF::all() - NetF::VERSION_1 - NetF::HOST_UFO - parts;
    for gso in [true, false] {
        let mut nic = Nic::idle(&|_| {}, wanted);
        assert_eq!(nic.device.legacy_features(), GSO);
        if gso {
            nic.features |= GSO;
        }
        nic.device.negotiate(nic.features).unwrap();
        nic.activate();
        for gso_type in [1, 4, 0x81, 0x84] {
            let mut bytes = vec![1, gso_type, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
            bytes.resize(HEADER + 4000, 0);
            nic.add_tx(&bytes, &[]);
            nic.kick(TX);
            assert_eq!(nic.used(TX).len(), 1);
            let expected = if gso { vec![bytes] } else { vec![] };
            assert_eq!(nic.peer.take(), expected, "{gso}, {gso_type:#x}");
        }
    }
    let config = VirtioNetConfig {
        gso: false,
        ..Default::default()
    };
    let off = Nic::idle_of(config, &|_| {}, wanted);
    assert_eq!(off.device.legacy_features(), F::empty());
}

#[test]
fn without_merged_buffers_the_header_has_10_bytes() {
    for (features, len) in [
        (NetF::all() - NetF::VERSION_1 - NetF::MRG_RXBUF, 10),
        (NetF::all() - NetF::VERSION_1, 12),
    ] {
        let mut nic = Nic::with(&|_| {}, features);
        let frame: Vec<u8> = (0..60).collect();
        let mut bytes = vec![0; len];
        bytes.extend(&frame);
        nic.add_tx(&bytes, &[]);
        nic.kick(TX);
        nic.turn();
        let sent = nic.peer.take();
        assert_eq!(sent.len(), 1, "{features:?}");
        assert_eq!(sent[0], bytes, "{features:?}");
    }
}
