//! Filters as the driver sets them, met by frames through both doors.

use net_client::{Drained, DropReason, Received};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtqueue::mock::Buffer;

use crate::harness::{HEADER, Nic, OK, PLAIN, RX, frame};

const OWN: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x57];

/// A NIC with buffers, that is given one frame at a time.
pub(crate) struct Fed(Nic);

/// A NIC with buffers for frames.
pub(crate) fn with_frames(mut nic: Nic) -> Fed {
    for _ in 0..4 {
        nic.add_rx(2000);
    }
    nic.kick(RX);
    Fed(nic)
}

/// A frame for `destination`, plain or with a VLAN tag.
pub(crate) fn frame_for(destination: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
    let mut bytes = frame(PLAIN, 60, 7);
    bytes[HEADER..HEADER + 6].copy_from_slice(&destination);
    let kind = match vlan {
        Some(id) => [0x81, 0, id.to_be_bytes()[0], id.to_be_bytes()[1]],
        None => [8, 0, 0x45, 0],
    };
    bytes[HEADER + 12..HEADER + 16].copy_from_slice(&kind);
    bytes
}

impl Fed {
    /// Whether the driver gets a frame for this address.
    pub(crate) fn gets(&mut self, destination: [u8; 6]) -> bool {
        self.gets_frame(&frame_for(destination, None))
    }

    /// Whether the driver gets a frame, which is the same through either door.
    pub(crate) fn gets_frame(&mut self, bytes: &[u8]) -> bool {
        let read = self.gets_by(bytes, |nic, bytes| {
            assert_eq!(nic.peer.give_frames([bytes]), Drained::Empty);
        });
        let copied = self.gets_by(bytes, |nic, bytes| {
            assert_eq!(nic.peer.port.send_bytes(&bytes), Received::Taken);
            nic.peer.port.flush(&mut |_| {});
        });
        let pending = self.gets_by(bytes, |nic, bytes| {
            nic.peer.state().slow = true;
            let _ = nic.peer.give();
            nic.peer.state().slow = false;
            while !nic.peer.state().reads.is_empty() {
                let ends_with = if nic.peer.state().reads.len() == 1 {
                    &bytes[..]
                } else {
                    &[]
                };
                nic.peer.end_read(0, ends_with);
            }
        });
        assert_eq!((read, read), (copied, pending), "{bytes:x?}");
        read
    }

    fn gets_by(&mut self, bytes: &[u8], give: impl FnOnce(&Nic, Vec<u8>)) -> bool {
        let nic = &mut self.0;
        let before = nic.device.rx_statistics(0).unwrap();
        give(nic, bytes.to_vec());
        let used = nic.used(RX);
        let after = nic.device.rx_statistics(0).unwrap();
        let got = after.frames - before.frames;
        let filtered = after.dropped_filtered - before.dropped_filtered;
        assert_eq!(got + filtered, 1, "{bytes:x?}");
        assert_eq!(used.len() as u64, got, "{bytes:x?}");
        for _ in used {
            nic.add_rx(2000);
        }
        got == 1
    }
}

#[test]
fn every_frame_passes_before_the_driver_says_otherwise_and_after_a_reset() {
    let mut fed = with_frames(Nic::new());
    let all = [
        frame_for(OWN, None),
        frame_for(OTHER, None),
        frame_for([0xff; 6], None),
        frame_for([1, 0, 0, 0, 0, 1], None),
        frame_for(OWN, Some(7)),
    ];
    for bytes in &all {
        assert!(fed.gets_frame(bytes), "{bytes:x?}");
    }
    for command in [
        &[0, 0, 0][..],
        &[0, 4, 1],
        &[0, 5, 1],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[2, 0, 9, 0],
    ] {
        assert_eq!(fed.0.command(command), OK);
    }
    for bytes in &all {
        assert!(!fed.gets_frame(bytes), "{bytes:x?}");
    }
    let Fed(mut nic) = fed;
    nic.restart();
    let mut fed = with_frames(nic);
    for bytes in &all {
        assert!(fed.gets_frame(bytes), "{bytes:x?}");
    }
    // Of the old filters nothing is left behind promiscuous mode either.
    assert_eq!(fed.0.command(&[0, 0, 0]), OK);
    assert!(fed.gets(OWN));
    assert!(fed.gets([0xff; 6]));
    assert!(!fed.gets([2, 0, 0, 0, 0, 9]));
    assert!(!fed.gets_frame(&frame_for(OWN, Some(9))));
}

#[test]
fn the_address_that_the_driver_sets_is_the_one_that_passes() {
    let mut fed = with_frames(Nic::new());
    assert_eq!(fed.0.command(&[0, 0, 0]), OK);
    assert!(fed.gets(OWN));
    assert!(!fed.gets(OTHER));
    let bytes = [&[1, 1][..], &OTHER].concat();
    assert_eq!(fed.0.command(&bytes), OK);
    assert!(!fed.gets(OWN));
    assert!(fed.gets(OTHER));
}

#[test]
fn each_mode_is_switched_on_and_off() {
    let multicast = [1, 0, 0x5e, 0, 0, 1];
    // The command, a destination, and whether its frame passes with the mode off and on.
    let table = [
        (0, OTHER, false, true),
        (1, multicast, false, true),
        (2, OTHER, false, true),
        (4, OWN, true, false),
        (5, [0xff; 6], true, false),
    ];
    for (mode, destination, off, on) in table {
        let mut fed = with_frames(Nic::new());
        assert_eq!(fed.0.command(&[0, 0, 0]), OK);
        assert_eq!(fed.gets(destination), off, "mode {mode}");
        assert_eq!(fed.0.command(&[0, mode, 1]), OK);
        assert_eq!(fed.gets(destination), on, "mode {mode} on");
        assert_eq!(fed.0.command(&[0, mode, 0]), OK);
        assert_eq!(fed.gets(destination), off, "mode {mode} off again");
    }
    let mut fed = with_frames(Nic::new());
    for (command, expected) in [([0, 0, 0], false), ([0, 1, 1], true), ([0, 3, 1], false)] {
        assert_eq!(fed.0.command(&command), OK);
        assert_eq!(fed.gets(multicast), expected, "{command:?}");
    }
}

#[test]
fn tagged_frames_pass_whose_vlan_was_added_and_all_where_vlans_are_not_filtered() {
    let mut fed = with_frames(Nic::new());
    assert_eq!(fed.0.command(&[0, 0, 0]), OK);
    let tagged = |id| frame_for(OWN, Some(id));
    assert!(!fed.gets_frame(&tagged(100)));
    assert_eq!(fed.0.command(&[2, 0, 100, 0]), OK);
    assert!(fed.gets_frame(&tagged(100)));
    assert!(fed.gets_frame(&tagged(0xe000 | 100)));
    assert!(!fed.gets_frame(&tagged(101)));
    assert!(!fed.gets_frame(&frame_for(OTHER, Some(100))));
    assert_eq!(fed.0.command(&[2, 1, 100, 0]), OK);
    assert!(!fed.gets_frame(&tagged(100)));

    let mut fed = with_frames(Nic::with(&|_| {}, NetF::all() - NetF::CTRL_VLAN));
    assert_eq!(fed.0.command(&[0, 0, 0]), OK);
    assert!(fed.gets_frame(&tagged(100)));
    assert!(!fed.gets_frame(&frame_for(OTHER, Some(100))));
}

/// Frames of under 14, 16 and 18 bytes: filters look at nothing that is not there.
#[test]
fn frames_of_every_length_up_to_20_meet_the_filters_through_both_doors() {
    for vlan in [None, Some(5)] {
        let whole = frame_for(OWN, vlan);
        let mut fed = with_frames(Nic::new());
        for len in 0..=20 {
            assert!(fed.gets_frame(&whole[..HEADER + len]), "{len}");
        }
        assert_eq!(fed.0.command(&[0, 0, 0]), OK);
        assert_eq!(fed.0.command(&[2, 0, 5, 0]), OK);
        let needed = if vlan.is_some() { 16 } else { 14 };
        for len in 0..=20 {
            assert_eq!(
                fed.gets_frame(&whole[..HEADER + len]),
                len >= needed,
                "{vlan:?}: {len} bytes"
            );
        }
    }
}

/// What was read in place is in guest memory, wanted or not.
#[test]
fn the_pages_of_a_frame_kept_out_or_dropped_count_as_written() {
    /// Ends the frame that it is given in a drop.
    type Way = fn(&mut Nic, Vec<u8>);
    let at_once: Way = |nic, bytes| {
        let _ = nic.peer.give_frames([bytes]);
    };
    let pending: Way = |nic, bytes| {
        nic.peer.state().slow = true;
        let _ = nic.peer.give();
        nic.peer.end_read(0, &bytes);
    };
    let held: Way = |nic, bytes| {
        let _ = nic.peer.give_frames([bytes]);
        nic.device.pause();
    };
    let unused: Way = |nic, bytes| {
        nic.peer.state().slow = true;
        let _ = nic.peer.give();
        nic.device.pause();
        nic.device.resume();
        let _ = bytes;
    };
    let long = frame(PLAIN, 8000, 1);
    let other = frame_for(OTHER, None);
    // (way, frame, which of three pages are written)
    let table = [
        (at_once, &other, [true, false, false]),
        (pending, &other, [true, false, false]),
        (held, &long, [true, true, false]),
        (pending, &long, [true, true, false]),
        (at_once, &PLAIN[..5].to_vec(), [true, true, false]),
        (pending, &PLAIN[..5].to_vec(), [true, true, false]),
        (unused, &other, [false, false, false]),
    ];
    for (i, (way, bytes, expected)) in table.into_iter().enumerate() {
        let mut nic = Nic::with(&|peer| peer.max_frame = 9000, NetF::all());
        assert_eq!(nic.command(&[0, 0, 0]), OK);
        let at = nic.place(0x4000).next_multiple_of(0x1000);
        nic.drivers[RX].add(&[Buffer::writable(at, 0x2000 - 0x800)]);
        nic.kick(RX);
        way(&mut nic, bytes.clone());
        let pages = [0, 0x1000, 0x2000].map(|page| nic.is_dirty(at + page));
        assert_eq!(pages, expected, "{i}");
        assert_eq!(nic.device.rx_statistics(0).unwrap().frames, 0, "{i}");
    }
}

#[test]
fn a_frame_kept_out_leaves_its_buffers_to_the_next_and_publishes_nothing() {
    let mut nic = Nic::new();
    assert_eq!(nic.command(&[0, 0, 0]), OK);
    let (head, at) = nic.add_rx(2000);
    nic.kick(RX);
    let calls = nic.calls[RX].count();
    let unwanted = (0..10).map(|_| frame_for(OTHER, None));
    assert_eq!(nic.peer.give_frames(unwanted), Drained::Empty);
    assert!(nic.used(RX).is_empty());
    assert_eq!(nic.calls[RX].count(), calls);
    let wanted = frame_for(OWN, None);
    let frames = [frame_for(OTHER, None), wanted.clone()];
    assert_eq!(nic.peer.give_frames(frames), Drained::NoRoom);
    assert_eq!(nic.used(RX), [(u32::from(head), 72)]);
    assert_eq!(nic.bytes(at + 12, 60), wanted[HEADER..]);
    let statistics = nic.device.rx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.dropped_filtered), (1, 11));
    let port = nic.device.ports()[0].statistics();
    assert_eq!(port.received.dropped(DropReason::Filtered), 11);
}

#[test]
fn a_frame_kept_out_needs_no_buffers() {
    let mut nic = Nic::new();
    assert_eq!(nic.command(&[0, 0, 0]), OK);
    let unwanted = frame_for(OTHER, None);
    assert_eq!(nic.peer.port.send_bytes(&unwanted), Received::Taken);
    let wanted = frame_for(OWN, None);
    assert_eq!(nic.peer.port.send_bytes(&wanted), Received::Busy);
}

/// A header and addresses in pieces: buffers of which the first ends within the frame's addresses, so that
/// the rest of them is in the next, or in none.
#[test]
fn what_decides_is_found_in_whatever_buffers_it_lies() {
    for first in HEADER..HEADER + 18 {
        for others in [0, 1, 20] {
            let mut nic = Nic::new();
            assert_eq!(nic.command(&[0, 0, 0]), OK);
            assert_eq!(nic.command(&[2, 0, 5, 0]), OK);
            let mut buffers = vec![first];
            buffers.resize(1 + others, HEADER);
            for len in &buffers {
                nic.add_rx(*len);
            }
            nic.kick(RX);
            let unwanted = [
                frame_for(OTHER, Some(5)),
                frame_for(OWN, Some(4)),
                frame_for([0x52, 0x54, 0, 0x12, 0x34, 0x55], None),
            ];
            let count = unwanted.len() as u64;
            let _ = nic.peer.give_frames(unwanted);
            assert!(nic.used(RX).is_empty(), "{first}, {others}");
            let _ = nic.peer.give_frames([frame_for(OWN, Some(5))]);
            // As many buffers as are missing; with them it is there.
            let missing = 10_usize.saturating_sub(others);
            for _ in 0..missing {
                nic.add_rx(HEADER);
            }
            nic.kick(RX);
            nic.turn();
            let statistics = nic.device.rx_statistics(0).unwrap();
            assert_eq!(
                (statistics.frames, statistics.dropped_filtered),
                (1, count),
                "{first}, {others}"
            );
        }
    }
}

#[test]
fn a_peer_without_a_header_is_filtered_alike() {
    let mut nic = Nic::with(&|peer| peer.header = false, NetF::all());
    assert_eq!(nic.command(&[0, 0, 0]), OK);
    nic.add_rx(2000);
    nic.kick(RX);
    let bare = |destination| frame_for(destination, None)[HEADER..].to_vec();
    let _ = nic.peer.give_frames([bare(OTHER)]);
    assert_eq!(nic.peer.port.send_bytes(&bare(OTHER)), Received::Taken);
    assert!(nic.used(RX).is_empty());
    let _ = nic.peer.give_frames([bare(OWN)]);
    assert_eq!(nic.used(RX).len(), 1);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_filtered, 2);
}
