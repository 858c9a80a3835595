//! Frames for the driver.

use std::time::Duration;

use net_client::{Drained, Received};
use virtio::net::F as NetF;
use virtqueue::mock::Buffer;

use crate::harness::{DATA, HEADER, Nic, PLAIN, RX, frame};

const PLAIN_FEATURES: fn() -> NetF = || NetF::all() - NetF::MRG_RXBUF;

/// The header as the driver gets it: `num_buffers` filled in.
fn told(buffers: u16) -> Vec<u8> {
    let mut header = PLAIN.to_vec();
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

#[test]
fn a_frame_lands_in_the_drivers_buffer_behind_its_header() {
    for (features, peer_header) in [
        (NetF::all(), true),
        (NetF::all(), false),
        (PLAIN_FEATURES(), true),
        (PLAIN_FEATURES(), false),
    ] {
        if crate::harness::legacy() && !features.contains(NetF::MRG_RXBUF) {
            // The header has 10 bytes: `legacy.rs`.
            continue;
        }
        let mut nic = Nic::with(&|peer| peer.header = peer_header, features);
        let (head, at) = nic.add_rx(2000);
        nic.kick(RX);
        let bytes = frame(PLAIN, 60, 7);
        let given = if peer_header {
            &bytes[..]
        } else {
            &bytes[HEADER..]
        };
        assert_eq!(nic.peer.give_frames([given.to_vec()]), Drained::NoRoom);
        assert_eq!(nic.used(RX), [(u32::from(head), 72)]);
        assert_eq!(nic.bytes(at, HEADER), told(1));
        assert_eq!(nic.bytes(at + 12, 61)[..60], bytes[HEADER..]);
        assert_eq!(nic.bytes(at + 72, 1), [0xa5], "nothing behind it");
        assert_eq!(nic.calls[RX].count(), 1);
    }
}

/// What a header says of checksums and segments (virtio 1.4, 5.1.9.4.1).
#[test]
fn a_driver_that_copes_with_no_checksum_is_told_of_none_and_of_segments_neither() {
    let gso = NetF::GUEST_TSO4 | NetF::GUEST_TSO6 | NetF::GUEST_ECN;
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    for (features, flags_and_type) in [
        (NetF::all(), [1, 1]),
        (NetF::all() - gso, [1, 0]),
        (NetF::all() - gso - NetF::GUEST_CSUM, [0, 0]),
    ] {
        for in_place in [true, false] {
            let mut nic = Nic::with(&|_| {}, features);
            let (_, at) = nic.add_rx(2000);
            nic.kick(RX);
            let bytes = frame(header, 60, 7);
            if in_place {
                let _ = nic.peer.give_frames([bytes]);
            } else {
                assert_eq!(nic.peer.port.send_bytes(&bytes), Received::Taken);
                nic.peer.port.flush(&mut |_| {});
            }
            assert_eq!(nic.used(RX).len(), 1);
            assert_eq!(nic.bytes(at, 2), flags_and_type, "{in_place}");
            assert_eq!(nic.bytes(at + 2, 8), header[2..10]);
        }
    }
}

#[test]
fn a_batch_is_published_and_told_once() {
    let mut nic = Nic::new();
    for _ in 0..200 {
        nic.add_rx(2000);
    }
    nic.kick(RX);
    let frames = (0..50).map(|i| frame(PLAIN, 60, i));
    assert_eq!(nic.peer.give_frames(frames), Drained::Empty);
    assert_eq!(nic.used(RX).len(), 50);
    let statistics = nic.device.rx_statistics(0).unwrap();
    assert_eq!(
        (statistics.frames, statistics.bytes, statistics.buffers),
        (50, 3000, 50)
    );
    assert_eq!((statistics.batches, statistics.notifications), (1, 1));
    assert_eq!(nic.calls[RX].count(), 1);
    // Refilling is no business of a device that has buffers: no kick is asked for.
    nic.add_rx(2000);
    assert!(!nic.kick(RX));
}

#[test]
fn in_a_long_turn_the_driver_gets_frames_before_all_are_there() {
    let mut nic = Nic::new();
    for _ in 0..200 {
        nic.add_rx(2000);
    }
    nic.kick(RX);
    let frames = (0..150).map(|i| frame(PLAIN, 60, i));
    assert_eq!(nic.peer.give_frames(frames), Drained::Empty);
    assert_eq!(nic.used(RX).len(), 150);
    // After 64, after 128, at the end.
    let statistics = nic.device.rx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.batches), (150, 3));
}

#[test]
fn one_turn_takes_so_many_frames_and_no_more() {
    let mut nic = Nic::new();
    for _ in 0..256 {
        nic.add_rx(100);
    }
    nic.kick(RX);
    nic.peer.state().max_frame = 72;
    nic.peer
        .state()
        .to_give
        .extend((0..300).map(|_| frame(PLAIN, 60, 0)));
    assert_eq!(nic.peer.give(), Drained::Budget);
    assert_eq!(nic.used(RX).len(), 256);
    assert_eq!(nic.peer.give(), Drained::NoRoom);
}

#[test]
fn a_large_frame_is_spread_over_buffers_whose_number_is_told() {
    // (buffer lengths, frame length, used lengths)
    let table: [(&[usize], usize, &[u32]); 6] = [
        (&[100, 100, 100], 88, &[100]),
        (&[100, 100, 100], 89, &[100, 1]),
        (&[100, 100, 100], 188, &[100, 100]),
        (&[12, 100, 100], 100, &[12, 100]),
        (&[100, 12, 300], 200, &[100, 12, 100]),
        (&[1000], 60, &[72]),
    ];
    for (buffers, len, expected) in table {
        let mut nic = Nic::new();
        let placed: Vec<_> = buffers.iter().map(|len| nic.add_rx(*len)).collect();
        nic.kick(RX);
        let bytes = frame(PLAIN, len, 3);
        let _ = nic.peer.give_frames([bytes.clone()]);
        let used = nic.used(RX);
        let lens: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
        assert_eq!(lens, expected, "{buffers:?} {len}");
        let mut got = Vec::new();
        for ((head, len), (expected, at)) in used.iter().zip(&placed) {
            assert_eq!(*head, u32::from(*expected), "in order");
            got.extend(nic.bytes(*at, usize::try_from(*len).unwrap()));
        }
        let buffers = u16::try_from(expected.len()).unwrap();
        assert_eq!(got[..HEADER], told(buffers));
        assert_eq!(got[HEADER..], bytes[HEADER..]);
    }
}

/// A header in descriptors of one byte.
#[test]
fn a_header_spread_over_descriptors_of_a_byte_is_filled_in() {
    let mut nic = Nic::new();
    let at = nic.place(100);
    let mut buffers: Vec<Buffer> = (0..12).map(|i| Buffer::writable(at + i, 1)).collect();
    buffers.push(Buffer::writable(at + 12, 80));
    nic.drivers[RX].add(&buffers);
    nic.kick(RX);
    let bytes = frame(PLAIN, 60, 4);
    let _ = nic.peer.give_frames([bytes.clone()]);
    assert_eq!(nic.used(RX)[0].1, 72);
    assert_eq!(nic.bytes(at, HEADER), told(1));
    assert_eq!(nic.bytes(at + 12, 60), bytes[HEADER..]);
}

/// A frame larger than the buffers there are; `num_buffers` is 1 though frames are not merged.
#[test]
fn without_merging_a_frame_larger_than_its_buffer_is_dropped_and_the_buffer_used_next() {
    let mut nic = Nic::with(&|_| {}, PLAIN_FEATURES());
    let (head, at) = nic.add_rx(100);
    nic.add_rx(2000);
    nic.kick(RX);
    let small = frame(PLAIN, 60, 5);
    let drained = nic
        .peer
        .give_frames([frame(PLAIN, 89, 1), frame(PLAIN, 1514, 1), small.clone()]);
    assert_eq!(drained, Drained::Empty);
    assert_eq!(nic.used(RX), [(u32::from(head), 72)]);
    assert_eq!(nic.bytes(at + 12, 60), small[HEADER..]);
    let statistics = nic.device.rx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.dropped_too_long), (1, 2));
}

#[test]
fn with_no_buffers_the_peer_stops_and_the_refill_kick_starts_it_again() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX, PLAIN_FEATURES()] {
        let mut nic = Nic::with(&|_| {}, features);
        assert_eq!(nic.peer.give_frames([frame(PLAIN, 60, 0)]), Drained::NoRoom);
        let rooms = nic.peer.state().rooms;
        nic.add_rx(2000);
        assert!(nic.kick(RX), "{features:?}: a kick is asked for");
        assert_eq!(nic.peer.state().rooms, rooms + 1);
        assert_eq!(nic.peer.give(), Drained::NoRoom);
        assert_eq!(nic.used(RX).len(), 1);
        // Once more, from having had some.
        nic.add_rx(2000);
        assert!(nic.kick(RX));
        assert_eq!(nic.peer.state().rooms, rooms + 2);
    }
}

/// A kick that is lost because the device looks away: it looks again.
#[test]
fn buffers_that_come_just_before_the_device_sleeps_are_seen_by_the_second_look() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX, PLAIN_FEATURES()] {
        let mut nic = Nic::with(&|_| {}, features);
        nic.add_rx(100);
        nic.kick(RX);
        let at = nic.place(100);
        // The driver refills when it hears of the first frame: notifications are off, it does not kick.
        let hook = nic.later(RX, &[Buffer::writable(at, 100)]);
        nic.calls[RX].hook.set(hook);
        let frames = [frame(PLAIN, 60, 1), frame(PLAIN, 60, 2)];
        assert_eq!(nic.peer.give_frames(frames), Drained::NoRoom);
        assert_eq!(nic.used(RX).len(), 2, "{features:?}");
        assert_eq!(nic.bytes(at + 12, 60), frame(PLAIN, 60, 2)[HEADER..]);
    }
}

#[test]
fn a_frame_that_the_driver_refills_for_in_time_is_not_lost() {
    let mut nic = Nic::new();
    nic.peer.state().max_frame = 65562;
    let (_, first) = nic.add_rx(1500);
    nic.kick(RX);
    let bytes = frame(PLAIN, 3000, 6);
    let next = frame(PLAIN, 60, 7);
    assert_eq!(
        nic.peer.give_frames([bytes.clone(), next.clone()]),
        Drained::NoRoom
    );
    assert!(nic.used(RX).is_empty());
    // One more is not enough, the peer need not know of it.
    let rooms = nic.peer.state().rooms;
    let (_, second) = nic.add_rx(1500);
    assert!(nic.kick(RX));
    assert_eq!(nic.peer.state().rooms, rooms);
    let (_, third) = nic.add_rx(1500);
    let (_, fourth) = nic.add_rx(1500);
    assert!(nic.kick(RX));
    assert_eq!(nic.peer.state().rooms, rooms + 1);
    let lens: Vec<_> = nic.used(RX).iter().map(|(_, len)| *len).collect();
    assert_eq!(lens, [1500, 1500, 12]);
    let mut got = nic.bytes(first, 1500);
    got.extend(nic.bytes(second, 1500));
    got.extend(nic.bytes(third, 12));
    assert_eq!(got[..HEADER], told(3));
    assert_eq!(got[HEADER..], bytes[HEADER..]);
    let _ = nic.peer.give();
    assert_eq!(nic.bytes(fourth + 12, 60), next[HEADER..]);
}

/// A merged frame that runs out of buffers: dropped in the end, and every head comes back.
#[test]
fn a_frame_that_the_driver_never_refills_for_is_dropped_after_a_while() {
    let mut nic = Nic::new();
    let (_, at) = nic.add_rx(100);
    nic.kick(RX);
    let small = frame(PLAIN, 60, 8);
    assert_eq!(
        nic.peer.give_frames([frame(PLAIN, 1000, 6), small.clone()]),
        Drained::NoRoom
    );
    let rooms = nic.peer.state().rooms;
    nic.clock.advance(Duration::from_millis(99));
    nic.turn();
    assert_eq!(nic.peer.state().rooms, rooms);
    nic.clock.advance(Duration::from_millis(1));
    nic.turn();
    assert_eq!(nic.peer.state().rooms, rooms + 1);
    let _ = nic.peer.give();
    assert_eq!(nic.used(RX).len(), 1);
    assert_eq!(nic.bytes(at + 12, 60), small[HEADER..]);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_no_buffers, 1);
}

/// A frame larger than all buffers there can be: dropped, never a stall.
#[test]
fn a_frame_larger_than_all_buffers_there_can_be_is_dropped_at_once() {
    let mut nic = Nic::new();
    nic.peer.state().max_frame = 65562;
    for _ in 0..256 {
        nic.add_rx(100);
    }
    nic.kick(RX);
    let small = frame(PLAIN, 60, 8);
    let drained = nic
        .peer
        .give_frames([frame(PLAIN, 30_000, 6), small.clone()]);
    assert_eq!(drained, Drained::Empty);
    assert_eq!(nic.used(RX).len(), 1);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_too_long, 1);
}

#[test]
fn frames_that_are_handed_over_are_copied_and_published_at_the_flush() {
    for peer_header in [true, false] {
        let mut nic = Nic::with(&|peer| peer.header = peer_header, NetF::all());
        let placed: Vec<_> = (0..4).map(|_| nic.add_rx(100)).collect();
        nic.kick(RX);
        let bytes = frame(PLAIN, 150, 9);
        let given = if peer_header {
            &bytes[..]
        } else {
            &bytes[HEADER..]
        };
        for _ in 0..2 {
            assert_eq!(nic.peer.port.send_bytes(given), Received::Taken);
        }
        assert!(nic.used(RX).is_empty());
        nic.peer.port.flush(&mut |_| {});
        let lens: Vec<_> = nic.used(RX).iter().map(|(_, len)| *len).collect();
        assert_eq!(lens, [100, 62, 100, 62]);
        assert_eq!(nic.calls[RX].count(), 1);
        for pair in placed.chunks(2) {
            let mut got = nic.bytes(pair[0].1, 100);
            got.extend(nic.bytes(pair[1].1, 62));
            assert_eq!(got[..HEADER], told(2));
            assert_eq!(got[HEADER..], bytes[HEADER..], "{peer_header}");
        }
    }
}

#[test]
fn a_frame_that_is_handed_over_without_room_is_refused_until_there_is() {
    let mut nic = Nic::new();
    let bytes = frame(PLAIN, 60, 1);
    assert_eq!(nic.peer.port.send_bytes(&bytes), Received::Busy);
    let rooms = nic.peer.state().rooms;
    nic.add_rx(100);
    assert!(nic.kick(RX));
    assert_eq!(nic.peer.state().rooms, rooms + 1);
    assert_eq!(nic.peer.port.send_bytes(&bytes), Received::Taken);
    nic.peer.port.flush(&mut |_| {});
    assert_eq!(nic.used(RX).len(), 1);
    // Shorter than its header.
    assert_eq!(nic.peer.port.send_bytes(&bytes[..11]), Received::Taken);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_malformed, 1);
}

#[test]
fn one_that_never_fits_is_refused_once_and_dropped_in_the_end() {
    let mut nic = Nic::new();
    nic.add_rx(100);
    nic.kick(RX);
    let large = frame(PLAIN, 1000, 1);
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Busy);
    nic.clock.advance(Duration::from_millis(100));
    nic.turn();
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Taken);
    let small = frame(PLAIN, 60, 1);
    assert_eq!(nic.peer.port.send_bytes(&small), Received::Taken);
    nic.peer.port.flush(&mut |_| {});
    assert_eq!(nic.used(RX).len(), 1);
}

#[test]
fn word_of_room_that_does_not_help_gives_a_frame_no_more_time() {
    let mut nic = Nic::new();
    nic.add_rx(100);
    nic.kick(RX);
    let large = frame(PLAIN, 1000, 1);
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Busy);
    nic.clock.advance(Duration::from_millis(60));
    nic.add_rx(100);
    assert!(nic.kick(RX));
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Busy);
    nic.clock.advance(Duration::from_millis(40));
    nic.turn();
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Taken);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_no_buffers, 1);
}

#[test]
fn each_frame_that_has_to_wait_has_all_its_time() {
    let mut nic = Nic::new();
    nic.add_rx(100);
    nic.kick(RX);
    let large = frame(PLAIN, 200, 1);
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Busy);
    for _ in 0..3 {
        nic.add_rx(100);
    }
    nic.kick(RX);
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Taken);
    nic.peer.port.flush(&mut |_| {});
    assert_eq!(nic.used(RX).len(), 3);
    nic.clock.advance(Duration::from_millis(100));
    nic.turn();
    for wait in [50, 49] {
        assert_eq!(nic.peer.port.send_bytes(&large), Received::Busy);
        nic.clock.advance(Duration::from_millis(wait));
        nic.turn();
    }
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Busy);
    nic.clock.advance(Duration::from_millis(1));
    nic.turn();
    assert_eq!(nic.peer.port.send_bytes(&large), Received::Taken);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_no_buffers, 1);
}

/// Buffers to be read, or shorter than the header.
#[test]
fn chains_that_no_frame_can_go_into_are_given_back_and_do_not_keep_the_thread() {
    let mut nic = Nic::new();
    let bad: Vec<u32> = [
        vec![Buffer::readable(DATA, 100)],
        vec![Buffer::writable(DATA, 11)],
        vec![Buffer::readable(DATA, 1), Buffer::writable(DATA, 100)],
    ]
    .iter()
    .map(|buffers| u32::from(nic.drivers[RX].add(buffers)))
    .collect();
    let (good, _) = nic.add_rx(100);
    nic.kick(RX);
    let _ = nic.peer.give_frames([frame(PLAIN, 60, 0)]);
    let expected = [(bad[0], 0), (bad[1], 0), (bad[2], 0), (u32::from(good), 72)];
    assert_eq!(nic.used(RX), expected);
    assert_eq!(nic.device.rx_statistics(0).unwrap().bad_chains, 3);
    assert!(nic.resets().is_empty());
}

#[test]
fn reads_that_go_on_end_in_any_order_with_a_frame_or_without() {
    let mut nic = Nic::new();
    let placed: Vec<_> = (0..4).map(|_| nic.add_rx(1600)).collect();
    nic.kick(RX);
    nic.peer.state().slow = true;
    assert_eq!(nic.peer.give(), Drained::NoRoom);
    assert_eq!(nic.peer.state().reads.len(), 4);
    let bytes = |seed| frame(PLAIN, 60, seed);
    nic.peer.end_read(2, &bytes(2));
    assert_eq!(nic.used(RX), [(u32::from(placed[2].0), 72)]);
    nic.peer.end_read(0, &[]);
    assert!(nic.used(RX).is_empty());
    nic.peer.end_read(1, &bytes(3));
    assert_eq!(nic.used(RX), [(u32::from(placed[3].0), 72)]);
    assert_eq!(nic.bytes(placed[3].1 + 12, 60), bytes(3)[HEADER..]);
    // The buffer of the one without a frame is lent again.
    assert_eq!(nic.peer.give(), Drained::NoRoom);
    nic.peer.end_read(1, &bytes(0));
    assert_eq!(nic.used(RX), [(u32::from(placed[0].0), 72)]);
    // A completion that nobody waits for changes nothing.
    nic.peer.port.read_done(net_client::Token(3), 72);
    nic.peer.port.read_done(net_client::Token(77), 72);
    assert!(nic.used(RX).is_empty());
}

#[test]
fn a_read_that_goes_on_and_turns_out_larger_takes_what_is_ready() {
    let mut nic = Nic::new();
    let (_, first) = nic.add_rx(100);
    nic.kick(RX);
    nic.peer.state().slow = true;
    assert_eq!(nic.peer.give(), Drained::NoRoom);
    let (_, second) = nic.add_rx(100);
    nic.kick(RX);
    let bytes = frame(PLAIN, 150, 1);
    let rooms = nic.peer.state().rooms;
    nic.peer.end_read(0, &bytes);
    assert_eq!(nic.used(RX).len(), 2);
    let mut got = nic.bytes(first, 100);
    got.extend(nic.bytes(second, 62));
    assert_eq!(got[HEADER..], bytes[HEADER..]);
    let _ = rooms;
}

/// An available index that is ahead by more than the ring.
#[test]
fn a_ring_that_makes_no_sense_stops_the_queue_and_the_peer() {
    let mut nic = Nic::new();
    nic.drivers[RX].offer_nonsense();
    nic.kick(RX);
    assert_eq!(nic.peer.give_frames([frame(PLAIN, 60, 0)]), Drained::NoRoom);
    assert_eq!(nic.resets().len(), 1);
    assert_eq!(nic.peer.give(), Drained::NoRoom);
    assert_eq!(
        nic.peer.port.send_bytes(&frame(PLAIN, 60, 0)),
        Received::Busy
    );
    assert_eq!(nic.resets().len(), 1);
}

/// QEMU does not pad what it gives to a virtio card either.
#[test]
fn frames_shorter_than_a_wire_would_have_them_come_as_they_are_by_both_doors() {
    for features in [NetF::all(), PLAIN_FEATURES()] {
        if crate::harness::legacy() && !features.contains(NetF::MRG_RXBUF) {
            // The header has 10 bytes.
            continue;
        }
        for copied in [false, true] {
            let mut nic = Nic::with(&|_| {}, features);
            for len in [1, 14, 42, 59, 60] {
                let (head, at) = nic.add_rx(200);
                nic.kick(RX);
                let bytes = frame(PLAIN, len, 3);
                if copied {
                    assert_eq!(nic.peer.port.send_bytes(&bytes), Received::Taken);
                    nic.peer.port.flush(&mut |_| {});
                } else {
                    let _ = nic.peer.give_frames([bytes.clone()]);
                }
                let whole = HEADER + len;
                let used = (u32::from(head), u32::try_from(whole).unwrap());
                assert_eq!(nic.used(RX), [used], "{features:?}, {copied}, {len}");
                // And nothing behind them.
                let untouched = nic.bytes(at + u64::try_from(whole).unwrap(), 200 - whole);
                assert!(untouched.iter().all(|byte| *byte == 0xa5));
            }
        }
    }
}
