//! Large frames inside UDP tunnels (virtio 1.4, 5.1.9.2 and 5.1.9.4).

use net_client::Offloads;
use virtio::net::F as NetF;
use virtio_net::HeaderFault;

use crate::harness::{ERR, Nic, OK, PeerState, RX, TX};

/// `struct virtio_net_hdr_v1_hash_tunnel`
const HEADER: usize = 24;

fn able(peer: &mut PeerState) {
    peer.can = Offloads::ALL;
    peer.max_frame = HEADER + 9000;
}

/// NEEDS_CSUM, TCP over IPv4 in a tunnel with IPv4 inside, segments of 1400 bytes, the checksum's place; behind the
/// number of buffers and the hash the two offsets.
fn frame(flags: u8, gso_type: u8) -> Vec<u8> {
    let mut frame = vec![flags, gso_type, 118, 0, 0x78, 5, 84, 0, 16, 0];
    frame.resize(20, 0);
    frame.extend([34, 0, 64, 0]);
    frame.resize(HEADER + 4000, 7);
    frame
}

#[test]
fn frames_that_the_driver_sends_in_tunnels_go_to_the_backend_as_they_are() {
    let mut nic = Nic::with(&able, NetF::all());
    assert_eq!(nic.peer.state().header_len, Some(HEADER));
    for (flags, gso_type) in [(1, 0x21), (9, 0x21), (1, 0x25), (1, 0xa1)] {
        nic.add_tx(&frame(flags, gso_type), &[]);
        nic.kick(TX);
        assert_eq!(nic.peer.take(), [frame(flags, gso_type)], "{gso_type:#x}");
    }
    for (flags, gso_type) in [(1, 0x61), (1, 0x20), (0, 0x21), (3, 0x21), (9, 1)] {
        nic.add_tx(&frame(flags, gso_type), &[]);
        nic.kick(TX);
        assert!(nic.peer.take().is_empty(), "{flags:#x}, {gso_type:#x}");
    }
    let counted = nic.device.tx_statistics(0).unwrap();
    assert_eq!(counted.dropped(HeaderFault::Tunnel), 5);
    // What is in no tunnel has no offsets.
    let plain = [&[0; 20][..], &[34, 0, 64, 0], &[7; 60]].concat();
    nic.add_tx(&plain, &[]);
    nic.kick(TX);
    assert_eq!(nic.peer.take()[0][..HEADER], [0; HEADER]);
}

#[test]
fn received_frames_in_tunnels_are_told_to_a_driver_that_takes_them() {
    let csum = NetF::GUEST_UDP_TUNNEL_GSO_CSUM;
    let tunnel = NetF::GUEST_UDP_TUNNEL_GSO | csum;
    // Without, flags and type as they come, and as they are told.
    let table = [
        (NetF::empty(), (1, 0x21), (1, 0x21)),
        (NetF::empty(), (9, 0x21), (9, 0x21)),
        (NetF::empty(), (1, 0x44), (1, 0x44)),
        (csum, (9, 0x21), (1, 0x21)),
        (NetF::empty(), (1, 0x61), (1, 0)),
        (NetF::empty(), (1, 0x20), (1, 0)),
        (NetF::empty(), (1, 1), (1, 1)),
        (tunnel, (1, 0x21), (1, 0)),
        (tunnel, (1, 1), (1, 1)),
    ];
    for (without, (flags, gso_type), expected) in table {
        let mut nic = Nic::with(&able, NetF::all() - without);
        let (_, at) = nic.add_rx(10_000);
        nic.kick(RX);
        let _ = nic.peer.give_frames([frame(flags, gso_type)]);
        assert_eq!(nic.used(RX).len(), 1);
        let header = nic.bytes(at, HEADER);
        let case = format!("{flags:#x}, {gso_type:#x} without {without:?}");
        assert_eq!((header[0], header[1]), expected, "{case}");
        assert_eq!(header[10..20], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0], "{case}");
        let offsets = if expected.1 & 0x60 != 0 {
            [34, 0, 64, 0]
        } else {
            [0; 4]
        };
        assert_eq!(header[20..], offsets, "{case}");
        // The frame is as the backend has it, with whatever checksums are in it.
        assert_eq!(nic.bytes(at + 24, 4000), [7; 4000], "{case}");
    }
}

#[test]
fn the_driver_switches_them_by_bits_of_their_own() {
    let mut nic = Nic::with(&able, NetF::all());
    assert_eq!(nic.peer.state().offloads.last(), Some(&Offloads::ALL));
    let segments = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 54 | 1 << 55_u64;
    let plain = Offloads {
        ecn: false,
        ufo: false,
        udp_tunnel: false,
        udp_tunnel_csum: false,
        ..Offloads::ALL
    };
    let tunnel = Offloads {
        udp_tunnel: true,
        ..plain
    };
    let both = Offloads {
        udp_tunnel_csum: true,
        ..tunnel
    };
    for (bits, expected) in [
        (segments, plain),
        (segments | 1 << 46, tunnel),
        (segments | 3 << 46, both),
    ] {
        let command = [&[5, 0][..], &u64::to_le_bytes(bits)].concat();
        assert_eq!(nic.command(&command), OK, "{bits:#x}");
        assert_eq!(nic.peer.state().offloads.last(), Some(&expected));
    }
    let without = NetF::all() - NetF::GUEST_UDP_TUNNEL_GSO - NetF::GUEST_UDP_TUNNEL_GSO_CSUM;
    let mut nic = Nic::with(&able, without);
    for bits in [1_u64 << 46, 1 << 47] {
        let command = [&[5, 0][..], &bits.to_le_bytes()].concat();
        assert_eq!(nic.command(&command), ERR, "{bits:#x}");
    }
}

#[test]
fn they_are_not_offered_where_the_backend_lacks_them() {
    let tunnels = NetF::HOST_UDP_TUNNEL_GSO
        | NetF::HOST_UDP_TUNNEL_GSO_CSUM
        | NetF::GUEST_UDP_TUNNEL_GSO
        | NetF::GUEST_UDP_TUNNEL_GSO_CSUM;
    let nic = Nic::new();
    assert!(!NetF::from(nic.features).intersects(tunnels));
    let nic = Nic::with(&able, NetF::all());
    assert!(NetF::from(nic.features).contains(tunnels));
}
