//! The MTU that the driver has agreed to (virtio 1.4, 5.1.4.1).

use net_client::DropReason;
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;

use crate::harness::{HEADER, Nic, PLAIN, PeerState, RX, TX};

fn nic(wanted: NetF, prepare: &dyn Fn(&mut PeerState)) -> Nic {
    let config = VirtioNetConfig {
        host_mtu: 1400,
        ..Default::default()
    };
    let nic = Nic::idle_of(
        config,
        &|peer| {
            peer.max_frame = HEADER + 9000;
            prepare(peer);
        },
        wanted,
    );
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    nic
}

/// A frame of `len` bytes of this type behind a header with this `gso_type`.
fn frame(gso_type: u8, kind: [u8; 2], len: usize) -> Vec<u8> {
    let mut frame = PLAIN.to_vec();
    frame[1] = gso_type;
    frame.extend([0xff; 12]);
    frame.extend(kind);
    frame.resize(HEADER + len, 0);
    frame
}

const IP: [u8; 2] = [8, 0];
const TAG: [u8; 2] = [0x81, 0];
const SERVICE_TAG: [u8; 2] = [0x88, 0xa8];

#[test]
fn a_frame_over_the_mtu_is_dropped_unless_it_is_to_be_segmented() {
    // (gso_type, type, length, taken)
    let table = [
        (0, IP, 1414, true),
        (0, IP, 1415, false),
        (0, IP, 8000, false),
        // ECN alone says nothing of segments.
        (0x80, IP, 1415, false),
        (0x81, IP, 1415, true),
        (1, IP, 8000, true),
        (4, IP, 8000, true),
        (0, TAG, 1418, true),
        (0, TAG, 1419, false),
        (0, SERVICE_TAG, 1422, true),
        (0, SERVICE_TAG, 1423, false),
    ];
    // In place with buffers of several sizes, or copied.
    for (copied, buffer) in [(false, 10_000), (false, 300), (true, 10_000), (true, 300)] {
        for (gso_type, kind, len, taken) in table {
            let mut nic = nic(NetF::all(), &|_| {});
            for _ in 0..40 {
                nic.add_rx(buffer);
            }
            nic.kick(RX);
            let bytes = frame(gso_type, kind, len);
            if copied {
                let _ = nic.peer.port.send_bytes(&bytes);
                nic.peer.port.flush(&mut |_| {});
            } else {
                let _ = nic.peer.give_frames([bytes]);
            }
            let case = format!("{gso_type:#x}, {kind:x?}, {len} in {buffer}, copied: {copied}");
            let counted = nic.device.rx_statistics(0).unwrap();
            assert_eq!(counted.frames, u64::from(taken), "{case}");
            assert_eq!(counted.dropped_over_mtu, u64::from(!taken), "{case}");
            let received = nic.device.ports()[0].statistics().received;
            assert_eq!(
                received.dropped(DropReason::TooLong),
                u64::from(!taken),
                "{case}"
            );
            assert_eq!(nic.used(RX).is_empty(), !taken, "{case}");
        }
    }
}

/// "The device MUST forward transmitted packets of up to mtu (plus low level ethernet header length) size with gso_type NONE or
/// ECN, and do so without fragmentation".
#[test]
fn a_frame_of_up_to_the_mtu_is_sent_in_one() {
    let mut nic = nic(NetF::all(), &|_| {});
    assert!(NetF::from(nic.features).contains(NetF::MTU));
    for (kind, len) in [(IP, 60), (IP, 1413), (IP, 1414), (TAG, 1418)] {
        let bytes = frame(0, kind, len);
        nic.add_tx(&bytes, &[HEADER, 700]);
        nic.kick(TX);
        assert_eq!(nic.peer.take(), [bytes], "{len}");
        assert_eq!(nic.used(TX).len(), 1);
    }
}

#[test]
fn reads_that_end_late_and_backends_without_a_header_meet_it_too() {
    let mut nic = nic(NetF::all(), &|peer| peer.slow = true);
    nic.add_rx(10_000);
    nic.kick(RX);
    let _ = nic.peer.give();
    nic.peer.end_read(0, &frame(0, IP, 1415));
    assert!(nic.used(RX).is_empty());
    let _ = nic.peer.give();
    nic.peer.end_read(0, &frame(0, IP, 1414));
    assert_eq!(nic.used(RX).len(), 1);
    let mut nic = self::nic(NetF::all(), &|peer| peer.header = false);
    nic.add_rx(10_000);
    nic.kick(RX);
    // What is no header cannot say that it is to be segmented.
    let mut bytes = frame(0, IP, 1415).split_off(HEADER);
    bytes[1] = 1;
    let _ = nic.peer.give_frames([bytes]);
    assert!(nic.used(RX).is_empty());
    let _ = nic.peer.give_frames([frame(0, IP, 1414).split_off(HEADER)]);
    assert_eq!(nic.used(RX).len(), 1);
}

#[test]
fn a_driver_that_has_not_agreed_to_it_gets_what_there_is() {
    let mut nic = nic(NetF::all() - NetF::MTU, &|_| {});
    nic.add_rx(10_000);
    nic.kick(RX);
    let _ = nic.peer.give_frames([frame(0, IP, 8000)]);
    assert_eq!(nic.used(RX).len(), 1);
}
