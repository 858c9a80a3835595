//! What the driver may ask of the device's counters (virtio 1.4, 5.1.9.5.11).

use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{SavedNet, VirtioNetConfig};

use crate::harness::{ERR, Nic, OK, PLAIN, RX, TX, frame};
use crate::segments::Tcp;

const QUERY: [u8; 2] = [8, 0];
const RX_TYPES: u64 = 0b111;
const TX_TYPES: u64 = 0b111 << 16;
const CVQ: u64 = 1 << 32;

fn get(asked: &[(u16, u64)]) -> Vec<u8> {
    let mut bytes = vec![8, 1];
    for (queue, types) in asked {
        bytes.extend(queue.to_le_bytes());
        // Reserved.
        bytes.extend([0; 6]);
        bytes.extend(types.to_le_bytes());
    }
    bytes
}

/// (type, queue, counters)
type Reply = (u8, u16, Vec<u64>);

/// The replies in what a command results in.
fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let size = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        assert_eq!((bytes[1], bytes[4], bytes[5]), (0, 0, 0));
        let (this, rest) = bytes.split_at(size);
        let counters = (this[8..].chunks(8))
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        replies.push((this[0], u16::from_le_bytes([this[2], this[3]]), counters));
        bytes = rest;
    }
    replies
}

fn ask(nic: &mut Nic, asked: &[(u16, u64)]) -> Vec<Reply> {
    let bytes = nic.command_for(&get(asked), 4000);
    assert_eq!(bytes[0], OK);
    replies(&bytes[1..])
}

#[test]
fn the_types_that_the_device_counts_are_told() {
    let mut nic = Nic::new();
    let expected = [&[OK][..], &(RX_TYPES | TX_TYPES | CVQ).to_le_bytes()].concat();
    assert_eq!(nic.command_for(&QUERY, 9), expected);
    assert_eq!(nic.command_for(&QUERY, 100), expected);
    // As much as there is room for.
    assert_eq!(nic.command_for(&QUERY, 5), expected[..5]);
    assert_eq!(nic.command_for(&QUERY, 1), [OK]);
    assert_eq!(nic.command_for(&[8, 0, 0], 9), [ERR]);
    assert_eq!(nic.command_for(&[8, 2], 9), [ERR]);
}

/// Frames of all ways through the card: in chains of one buffer or two, in others, and put together.
#[test]
fn counters_of_bytes_wrap_around_whichever_way_frames_take() {
    let config = VirtioNetConfig {
        guest_rsc_ext: true,
        ..Default::default()
    };
    for wanted in [NetF::all() - NetF::RSC_EXT, NetF::all()] {
        let nic = Nic::idle_of(config.clone(), &|_| {}, wanted);
        nic.device.negotiate(nic.features).unwrap();
        let mut saved = SavedNet::from_bytes(&nic.device.save().unwrap()).unwrap();
        let (rx, tx) = &mut saved.counters.pairs[0];
        for counter in [&mut rx.bytes, &mut rx.rsc_bytes, &mut tx.bytes] {
            *counter = u64::MAX - 99;
        }
        nic.device.restore(&saved.to_bytes()).unwrap();
        nic.activate();
        let mut nic = nic;
        for _ in 0..4 {
            nic.add_rx(2000);
            nic.add_tx(&frame(PLAIN, 60, 0), &[]);
        }
        nic.kick(RX);
        nic.kick(TX);
        let segments = [Tcp::new(0, &[1; 60]), Tcp::new(60, &[1; 60])];
        let _ = nic
            .peer
            .give_frames(segments.map(|segment| segment.frame()));
        nic.clock.advance(std::time::Duration::from_millis(1));
        nic.turn();
        let rx = nic.device.rx_statistics(0).unwrap();
        let tx = nic.device.tx_statistics(0).unwrap();
        assert_eq!(tx.bytes, 140);
        // Headers of 54 bytes in front of 60, or of 120.
        let (bytes, rsc_bytes) = match wanted.contains(NetF::RSC_EXT) {
            true => (74, 74),
            false => (128, u64::MAX - 99),
        };
        assert_eq!((rx.bytes, rx.rsc_bytes), (bytes, rsc_bytes));
    }
}

#[test]
fn each_type_has_the_numbers_of_what_has_passed() {
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::EVENT_IDX);
    let valid = [&[2, 0][..], &PLAIN[2..]].concat();
    let partial = [&[1, 0][..], &PLAIN[2..]].concat();
    let large = [&[1, 1, 0, 0, 0xa8, 5][..], &PLAIN[6..]].concat();
    for (header, len) in [
        (PLAIN.to_vec(), 60),
        (valid, 70),
        (partial, 80),
        (large, 1500),
    ] {
        nic.add_rx(2000);
        nic.kick(RX);
        let mut bytes = header;
        bytes.resize(bytes.len() + len, 0);
        let _ = nic.peer.give_frames([bytes]);
    }
    let mut tso = frame(PLAIN, 3000, 0);
    tso[..10].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0]);
    let mut partial = frame(PLAIN, 100, 0);
    partial[..10].copy_from_slice(&[1, 0, 54, 0, 0, 0, 34, 0, 16, 0]);
    for bytes in [frame(PLAIN, 60, 0), partial, tso, frame(PLAIN, 3, 0)] {
        nic.add_tx(&bytes, &[]);
        nic.kick(TX);
    }
    let rx = nic.device.rx_statistics(0).unwrap();
    let tx = nic.device.tx_statistics(0).unwrap();
    let asked = [(1, TX_TYPES), (0, RX_TYPES), (2, CVQ)];
    let expected = vec![
        (16, 1, vec![tx.kicks, 3, 3160, tx.notifications, 1, 1]),
        (17, 1, vec![1, 2]),
        (18, 1, vec![1, 3000, 0, 0, 1, 3000]),
        (0, 0, vec![rx.kicks, 4, 1710, rx.notifications, 0, 0]),
        (1, 0, vec![1, 2, 1, 0]),
        (2, 0, vec![1, 1500, 0, 0]),
        (32, 2, vec![1, 1]),
    ];
    assert_eq!(ask(&mut nic, &asked), expected);
    assert!(tx.kicks >= 4 && tx.notifications == 4 && rx.notifications == 4);
    // A command that fails is one of those received.
    assert_eq!(nic.command(&[255, 255]), ERR);
    assert_eq!(ask(&mut nic, &[(2, CVQ)]), [(32, 2, vec![3, 2])]);
    // One type alone, none, the same twice.
    assert_eq!(ask(&mut nic, &[(0, 1)]).len(), 1);
    assert_eq!(ask(&mut nic, &[(0, 0)]), []);
    assert_eq!(ask(&mut nic, &[]), []);
    assert_eq!(ask(&mut nic, &[(0, 1), (0, 1)]).len(), 2);
}

#[test]
fn what_does_not_fit_into_the_drivers_buffer_is_left_out_to_the_byte() {
    let mut nic = Nic::new();
    let question = get(&[(0, 1), (1, 1 << 16)]);
    let whole = nic.command_for(&question, 4000);
    assert_eq!(whole.len(), 1 + 2 * 56);
    for room in [1, 2, 8, 9, 56, 57, 58, 112, 113] {
        let part = nic.command_for(&question, room);
        assert_eq!(part.len(), usize::try_from(room).unwrap());
        assert_eq!(part[0], OK);
    }
}

/// Guest bug class 28: queues that there are not, types that are unknown or not for the queue, types of features
/// that were not negotiated, and reserved bits of a bitmap.
#[test]
fn one_mistake_in_a_question_fails_all_of_it() {
    let mut nic = Nic::new();
    let good = (0, RX_TYPES);
    let table = [
        (3, 1),
        (u16::MAX, 1),
        (0, 1 << 3),
        (1, 1 << 19),
        (0, 1 << 4),
        (0, 1 << 63),
        (0, 1 << 16),
        (1, 1),
        (2, 1),
        (0, CVQ),
        (1, CVQ),
    ];
    for bad in table {
        for asked in [vec![bad], vec![good, bad], vec![bad, good]] {
            assert_eq!(nic.command_for(&get(&asked), 4000), [ERR], "{asked:x?}");
        }
    }
    let whole = get(&[good]);
    for len in 3..whole.len() {
        assert_eq!(nic.command_for(&whole[..len], 4000), [ERR], "cut to {len}");
    }
    let endless = get(&vec![(0, 0); 1100]);
    assert_eq!(nic.command_for(&endless, 4000), [ERR]);
    assert!(nic.resets().is_empty());
}

#[test]
fn types_of_features_that_were_not_negotiated_are_refused() {
    let segments = NetF::GUEST_TSO4 | NetF::GUEST_TSO6 | NetF::GUEST_ECN;
    let host_segments = NetF::HOST_TSO4 | NetF::HOST_TSO6 | NetF::HOST_ECN;
    let table = [
        (NetF::GUEST_CSUM | segments, (0, 0b10)),
        (segments, (0, 0b100)),
        (NetF::CSUM | host_segments, (1, 0b10 << 16)),
        (host_segments, (1, 0b100 << 16)),
    ];
    for (without, asked) in table {
        let mut nic = Nic::with(&|_| {}, NetF::all() - without);
        assert_eq!(nic.command_for(&get(&[asked]), 4000), [ERR], "{asked:x?}");
        let mut nic = Nic::new();
        assert_eq!(nic.command_for(&get(&[asked]), 4000)[0], OK, "{asked:x?}");
    }
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::DEVICE_STATS);
    assert_eq!(nic.command_for(&QUERY, 9), [ERR]);
    assert_eq!(nic.command_for(&get(&[(0, 1)]), 4000), [ERR]);
    let off = VirtioNetConfig {
        device_stats: false,
        ..Default::default()
    };
    let nic = Nic::idle_of(off, &|_| {}, NetF::all());
    assert!(!NetF::from(nic.device.offered_features()).contains(NetF::DEVICE_STATS));
}

#[test]
fn what_a_driver_may_ask_for_is_counted_on_in_the_card_that_goes_on() {
    let mut nic = Nic::new();
    for i in 0..5 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    for _ in 0..3 {
        nic.add_rx(2000);
    }
    nic.kick(RX);
    let _ = nic.peer.give_frames(vec![frame(PLAIN, 60, 0); 3]);
    let mut next = crate::policy::restored(&nic, |_| {});
    next.add_tx(&frame(PLAIN, 60, 0), &[]);
    next.kick(TX);
    next.add_rx(2000);
    next.kick(RX);
    let _ = next.peer.give_frames([frame(PLAIN, 60, 0)]);
    // Queue, then the types: behind the answer and a header of 8 bytes frames are the second counter.
    for (queue, types, expected) in [(0_u16, 1_u64, 4_u64), (1, 1 << 16, 6)] {
        let command = [
            &[8, 1][..],
            &queue.to_le_bytes(),
            &[0; 6],
            &types.to_le_bytes(),
        ]
        .concat();
        let reply = next.command_for(&command, 64);
        let frames = u64::from_le_bytes(reply[17..25].try_into().unwrap());
        assert_eq!(frames, expected, "{queue}");
    }
    assert_eq!(next.used(TX).len(), 1);
    assert_eq!(next.used(RX).len(), 1);
}
