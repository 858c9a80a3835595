//! The header in front of received frames (virtio 1.4, 5.1.9.4.1).

use virtio::net::F as NetF;

use crate::harness::{HEADER, Nic, PLAIN, RX};

/// What the driver finds in front of a frame whose header from the backend is this.
fn told(wanted: NetF, flags: u8, gso_type: u8) -> (u8, u8) {
    told_of_size(wanted, flags, gso_type, 1448)
}

fn told_of_size(wanted: NetF, flags: u8, gso_type: u8, gso_size: u16) -> (u8, u8) {
    let mut nic = Nic::with(
        &|peer| {
            peer.can.ufo = true;
            peer.can.uso4 = true;
            peer.can.uso6 = true;
        },
        wanted,
    );
    let (_, at) = nic.add_rx(2000);
    nic.kick(RX);
    let mut frame = PLAIN.to_vec();
    frame[0] = flags;
    frame[1] = gso_type;
    frame[4..6].copy_from_slice(&gso_size.to_le_bytes());
    frame.resize(HEADER + 60, 0);
    let _ = nic.peer.give_frames([frame]);
    assert_eq!(nic.used(RX).len(), 1);
    let header = nic.bytes(at, 2);
    (header[0], header[1])
}

const SEGMENTS: NetF = NetF::GUEST_TSO4
    .union(NetF::GUEST_TSO6)
    .union(NetF::GUEST_ECN)
    .union(NetF::GUEST_UFO)
    .union(NetF::GUEST_USO4)
    .union(NetF::GUEST_USO6);

#[test]
fn flags_are_those_that_the_driver_knows() {
    // NEEDS_CSUM and DATA_VALID; RSC_INFO, UDP_TUNNEL_CSUM and those of IPsec it cannot know.
    for flags in 0..=u8::MAX {
        assert_eq!(told(NetF::all(), flags, 0), (flags & 3, 0), "{flags:#x}");
    }
    let without = NetF::all() - NetF::GUEST_CSUM - SEGMENTS;
    for flags in [0, 1, 2, 3, 0xff] {
        assert_eq!(told(without, flags, 0), (0, 0), "{flags:#x}");
    }
}

#[test]
fn no_gso_type_is_told_that_was_not_negotiated() {
    let table = [
        (1, NetF::GUEST_TSO4 | NetF::GUEST_ECN),
        (0x81, NetF::GUEST_TSO4 | NetF::GUEST_ECN),
        (4, NetF::GUEST_TSO6 | NetF::GUEST_ECN),
        (3, NetF::GUEST_UFO),
        (5, NetF::GUEST_USO4 | NetF::GUEST_USO6),
    ];
    for (gso_type, needs) in table {
        // A legacy driver has no bits for USO.
        let as_type = if crate::harness::legacy() && gso_type == 5 {
            0
        } else {
            gso_type
        };
        assert_eq!(
            told(NetF::all(), 1, gso_type),
            (1, as_type),
            "{gso_type:#x}"
        );
        let without = NetF::all() - needs;
        assert_eq!(told(without, 1, gso_type), (1, 0), "{gso_type:#x}");
    }
    // Unknown, and those of tunnels.
    for gso_type in [2, 6, 7, 8, 0x1f, 0x21, 0x41, 0x61] {
        assert_eq!(told(NetF::all(), 1, gso_type), (1, 0), "{gso_type:#x}");
    }
}

#[test]
fn a_large_frame_has_its_checksum_to_be_made_and_the_size_of_its_segments() {
    // (flags, gso_type, gso_size, told flags, told gso_type)
    let table = [
        (1, 1, 1448, 1, 1),
        (3, 1, 1448, 3, 1),
        (1, 0x81, 1, 1, 0x81),
        (1, 4, 0xff00, 1, 4),
        (0, 1, 1448, 0, 0),
        (2, 1, 1448, 2, 0),
        (1, 1, 0, 1, 0),
        (1, 0x84, 0, 1, 0),
        (1, 0, 0, 1, 0),
        (2, 0, 1448, 2, 0),
    ];
    for (flags, gso_type, gso_size, told_flags, told_type) in table {
        assert_eq!(
            told_of_size(NetF::all(), flags, gso_type, gso_size),
            (told_flags, told_type),
            "{flags:#x}, {gso_type:#x}, {gso_size}"
        );
    }
}

#[test]
fn num_buffers_is_1_where_frames_are_not_merged() {
    if crate::harness::legacy() {
        // There the header has no such field: `legacy.rs`.
        return;
    }
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::MRG_RXBUF);
    for _ in 0..3 {
        let (_, at) = nic.add_rx(2000);
        nic.kick(RX);
        let mut frame = vec![0; HEADER + 1514];
        // Whatever the backend has there.
        frame[10..12].copy_from_slice(&[7, 7]);
        let _ = nic.peer.give_frames([frame]);
        assert_eq!(nic.used(RX).len(), 1);
        assert_eq!(nic.bytes(at + 10, 2), [1, 0]);
    }
}
