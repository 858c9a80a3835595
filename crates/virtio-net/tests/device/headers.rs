//! The header in front of received frames (virtio 1.4, 5.1.9.4.1).

use net_client::Received;
use virtio::net::F as NetF;

use crate::harness::{HEADER, Nic, PLAIN, RX, frame};

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

/// 5.1.9.4.1: of a frame with NEEDS_CSUM the device "MUST set the packet checksum stored in the receive buffer to the TCP/UDP
/// pseudo header", "MUST set csum_start and csum_offset"; with DATA_VALID it "MUST validate the packet checksum". All of
/// that is the backend's to know: the driver has its word, unchanged, and the frame as it was; the device says neither of
/// its own accord.
#[test]
fn what_the_backend_says_of_a_checksum_reaches_the_driver_with_the_frame_unchanged() {
    for flags in [0, 1, 2, 3] {
        for (gso_type, gso_size) in [(0, 0), (1, 1448)] {
            for in_place in [true, false] {
                let mut nic = Nic::with(&|_| {}, NetF::all());
                let (_, at) = nic.add_rx(2000);
                nic.kick(RX);
                let [size, more] = u16::to_le_bytes(gso_size);
                let header = [flags, gso_type, 54, 0, size, more, 34, 0, 16, 0, 0, 0];
                let bytes = frame(header, 1514, 3);
                if in_place {
                    let _ = nic.peer.give_frames([bytes.clone()]);
                } else {
                    assert_eq!(nic.peer.port.send_bytes(&bytes), Received::Taken);
                    nic.peer.port.flush(&mut |_| {});
                }
                assert_eq!(nic.used(RX).len(), 1);
                let mut expected = bytes;
                expected[10] = 1;
                if flags & 1 == 0 {
                    // No large frame without a checksum to be made.
                    expected[1] = 0;
                }
                let case = format!("{flags} {gso_type} {in_place}");
                assert_eq!(nic.bytes(at, expected.len()), expected, "{case}");
            }
        }
    }
}

/// 5.1.9.4.1: "The device SHOULD NOT send to the driver TCP packets requiring segmentation offload which have the Explicit
/// Congestion Notification bit set, unless the VIRTIO_NET_F_GUEST_ECN feature is negotiated, in which case the device MUST
/// set the VIRTIO_NET_HDR_GSO_ECN bit".
#[test]
fn congestion_in_large_frames_is_told_and_the_backend_hears_whether_the_driver_takes_it() {
    let ecn = |nic: &Nic| nic.peer.state().offloads.last().unwrap().ecn;
    let with = Nic::with(&|_| {}, NetF::all());
    assert!(ecn(&with));
    assert!(!ecn(&Nic::with(&|_| {}, NetF::all() - NetF::GUEST_ECN)));
    for gso_type in [0x81, 0x84] {
        assert_eq!(told(NetF::all(), 1, gso_type), (1, gso_type));
    }
}
