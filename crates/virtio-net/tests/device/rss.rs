//! Hashes of received frames, and queues by hash (virtio 1.4, 5.1.9.4.3 and 5.1.9.5.7).

use std::net::Ipv4Addr;

use iothread::AioContext;
use net_client::{Drained, DropReason, Received};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;
use virtqueue::QueueIndex;

use crate::harness::{ERR, Nic, OK, PeerState, Revoking};

const PAIRS: usize = 3;
/// `struct virtio_net_hdr_v1_hash`
pub(crate) const HASH_HEADER: usize = 20;
/// The key of Microsoft's "Verifying the RSS Hash Calculation".
pub(crate) const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];
pub(crate) const ALL_TYPES: u32 = 0x1ff;
const TCPV4: u16 = 2;

pub(crate) fn config() -> VirtioNetConfig {
    VirtioNetConfig {
        mq: true,
        rss: true,
        hash: true,
        ..Default::default()
    }
}

pub(crate) fn nic_of(
    config: VirtioNetConfig,
    prepare: &dyn Fn(&mut PeerState),
    wanted: NetF,
) -> Nic {
    let nic = Nic::idle_pairs(PAIRS, config, prepare, wanted);
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    nic
}

fn nic() -> Nic {
    nic_of(config(), &|_| {}, NetF::all())
}

/// What `VIRTIO_NET_CTRL_MQ_RSS_CONFIG` says.
pub(crate) struct Rss {
    types: u32,
    mask: u16,
    unclassified: u16,
    table: Vec<u16>,
    max_tx: u16,
    key: Vec<u8>,
}

impl Default for Rss {
    /// Four entries, picked by a hash's last two bits.
    fn default() -> Self {
        Self {
            types: ALL_TYPES,
            mask: 3,
            unclassified: 0,
            table: vec![1, 0, 2, 0],
            max_tx: 3,
            key: KEY.to_vec(),
        }
    }
}

impl Rss {
    pub(crate) fn command(&self) -> Vec<u8> {
        let mut bytes = vec![4, 1];
        bytes.extend(self.types.to_le_bytes());
        bytes.extend(self.mask.to_le_bytes());
        bytes.extend(self.unclassified.to_le_bytes());
        for entry in &self.table {
            bytes.extend(entry.to_le_bytes());
        }
        bytes.extend(self.max_tx.to_le_bytes());
        bytes.push(u8::try_from(self.key.len()).unwrap());
        bytes.extend(&self.key);
        bytes
    }
}

pub(crate) fn hash_config(types: u32, key: &[u8]) -> Vec<u8> {
    let mut bytes = vec![4, 2];
    bytes.extend(types.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.push(u8::try_from(key.len()).unwrap());
    bytes.extend(key);
    bytes
}

/// A TCP frame of the published vectors: destination, source, and its hash.
pub(crate) type Vector = ((&'static str, u16), (&'static str, u16), u32);
pub(crate) const VECTORS: [Vector; 5] = [
    (
        ("161.142.100.80", 1766),
        ("66.9.149.187", 2794),
        0x51cc_c178,
    ),
    (("65.69.140.83", 4739), ("199.92.111.2", 14230), 0xc626_b0ea),
    (
        ("12.22.207.184", 38024),
        ("24.19.198.95", 12898),
        0x5c2b_394a,
    ),
    (
        ("209.142.163.6", 2217),
        ("38.27.205.30", 48228),
        0xafc7_327f,
    ),
    (
        ("202.188.127.2", 1303),
        ("153.39.163.191", 44251),
        0x10e8_28a2,
    ),
];

/// A frame of 60 bytes behind a header of `header` bytes that nobody has zeroed.
pub(crate) fn tcp((to, from, _): Vector, header: usize) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.resize(header, 0xee);
    frame.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend([0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    for address in [from.0, to.0] {
        frame.extend(address.parse::<Ipv4Addr>().unwrap().octets());
    }
    for port in [from.1, to.1] {
        frame.extend(port.to_be_bytes());
    }
    frame.resize(header + 60, 0);
    frame
}

/// ARP: nothing to make a hash of.
fn unclassified(header: usize) -> Vec<u8> {
    let mut frame = vec![0; header];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6]);
    frame.resize(header + 60, 0);
    frame
}

/// The fields behind `num_buffers`: value, report, padding.
pub(crate) fn hash_fields(nic: &Nic, at: u64) -> (u32, u16, u16) {
    let bytes = nic.bytes(at + 12, 8);
    let u16_at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
    let value = u32::from(u16_at(0)) | u32::from(u16_at(2)) << 16;
    (value, u16_at(4), u16_at(6))
}

#[test]
fn frames_that_are_read_in_place_come_with_their_hash() {
    for has_header in [true, false] {
        let mut nic = nic_of(config(), &|peer| peer.header = has_header, NetF::all());
        let host = if has_header { HASH_HEADER } else { 0 };
        if has_header {
            assert_eq!(nic.peer.state().header_len, Some(HASH_HEADER));
        }
        let deliver = |nic: &mut Nic, frame: Vec<u8>| {
            let (head, at) = nic.add_rx(2000);
            nic.kick(0);
            let _ = nic.peer.give_frames([frame.clone()]);
            assert_eq!(nic.used(0), [(u32::from(head), 80)]);
            assert_eq!(nic.bytes(at + 20, 60), frame[host..]);
            assert_eq!(nic.bytes(at + 10, 2), [1, 0]);
            hash_fields(nic, at)
        };
        // Before the driver asks for any.
        assert_eq!(deliver(&mut nic, tcp(VECTORS[0], host)), (0, 0, 0));
        assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
        for vector in VECTORS {
            let fields = deliver(&mut nic, tcp(vector, host));
            assert_eq!(fields, (vector.2, TCPV4, 0), "{vector:?}");
        }
        assert_eq!(deliver(&mut nic, unclassified(host)), (0, 0, 0));
        // IPv4 alone.
        assert_eq!(nic.command(&hash_config(1, &KEY)), OK);
        assert_eq!(
            deliver(&mut nic, tcp(VECTORS[0], host)),
            (0x323e_8fc2, 1, 0)
        );
        assert_eq!(nic.command(&hash_config(0, &[])), OK);
        assert_eq!(deliver(&mut nic, tcp(VECTORS[0], host)), (0, 0, 0));
    }
}

#[test]
fn the_hash_of_a_frame_in_pieces_is_that_of_the_whole() {
    let mut nic = nic();
    assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
    for len in [20, 21, 34, 48, 55, 57, 80] {
        let buffers: Vec<_> = (0..80_usize.div_ceil(len))
            .map(|_| nic.add_rx(len))
            .collect();
        nic.kick(0);
        let _ = nic.peer.give_frames([tcp(VECTORS[3], HASH_HEADER)]);
        assert_eq!(nic.used(0).len(), buffers.len(), "{len}");
        let fields = hash_fields(&nic, buffers[0].1);
        assert_eq!(fields, (VECTORS[3].2, TCPV4, 0), "{len}");
    }
}

#[test]
fn without_the_feature_the_header_has_no_hash_and_the_commands_are_refused() {
    let mut nic = nic_of(
        config(),
        &|_| {},
        NetF::all() - NetF::HASH_REPORT - NetF::RSS,
    );
    assert_eq!(nic.peer.state().header_len, Some(12));
    assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), ERR);
    assert_eq!(nic.command(&Rss::default().command()), ERR);
    let off = nic_of(VirtioNetConfig::default(), &|_| {}, NetF::all());
    assert!(!NetF::from(off.features).intersects(NetF::HASH_REPORT | NetF::RSS));
    assert_eq!(off.device.config_len(), 8);
    let on = nic_of(config(), &|_| {}, NetF::all());
    assert_eq!(on.device.config_len(), 24);
}

/// Guest bug class 22: table lengths that are no power of two or too long, queues that there are not, keys too
/// long, unknown types; and what is short or long.
#[test]
fn each_mistake_in_what_is_said_of_rss_is_refused_and_changes_nothing() {
    let mut nic = nic();
    let table = |len: usize| vec![1; len];
    let with = |change: &dyn Fn(&mut Rss)| {
        let mut rss = Rss::default();
        change(&mut rss);
        rss.command()
    };
    let sized = |mask: u16, len: usize| {
        with(&|rss| {
            rss.mask = mask;
            rss.table = table(len);
        })
    };
    let good = Rss::default().command();
    let cases: Vec<(&str, Vec<u8>, u8)> = vec![
        ("three entries", sized(2, 3), ERR),
        ("256 entries", sized(255, 256), ERR),
        ("65536 entries", sized(u16::MAX, 128), ERR),
        ("128 entries", sized(127, 128), OK),
        ("one entry", sized(0, 1), OK),
        ("fewer than said", sized(7, 4), ERR),
        ("more than said", sized(1, 4), ERR),
        ("no such queue", with(&|rss| rss.table[2] = 3), ERR),
        ("the reserved bit", with(&|rss| rss.table[2] |= 0x8000), ERR),
        (
            "no such unclassified queue",
            with(&|rss| rss.unclassified = 3),
            ERR,
        ),
        ("no transmit queue", with(&|rss| rss.max_tx = 0), ERR),
        ("too many transmit queues", with(&|rss| rss.max_tx = 4), ERR),
        ("one transmit queue", with(&|rss| rss.max_tx = 1), OK),
        ("unknown type", with(&|rss| rss.types = 0x200), ERR),
        ("unknown types", with(&|rss| rss.types = u32::MAX), ERR),
        ("no key", with(&|rss| rss.key.clear()), ERR),
        (
            "no key, no types",
            with(&|rss| {
                rss.key.clear();
                rss.types = 0;
            }),
            OK,
        ),
        ("a short key", with(&|rss| rss.key.truncate(16)), OK),
        ("a long key", with(&|rss| rss.key.push(0)), ERR),
        ("a key of 255", with(&|rss| rss.key = vec![1; 255]), ERR),
        ("good", good.clone(), OK),
        ("one more byte", [&good[..], &[0]].concat(), ERR),
        (
            "a hash with its reserved fields",
            {
                let mut bytes = hash_config(ALL_TYPES, &KEY);
                bytes[8] = 1;
                bytes
            },
            ERR,
        ),
        ("a hash of unknown type", hash_config(0x200, &KEY), ERR),
        ("a hash with a long key", hash_config(1, &[0; 41]), ERR),
        ("a hash with no key", hash_config(1, &[]), ERR),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(nic.command(&bytes), expected, "{name}");
    }
    for len in 0..good.len() {
        assert_eq!(nic.command(&good[..len]), ERR, "cut to {len}");
    }
    // What was said last and was right is what holds.
    let (_, at) = nic.add_rx_to(4, 2000);
    let _ = nic.peer.give_frames([tcp(VECTORS[1], HASH_HEADER)]);
    assert_eq!(nic.used(4).len(), 1);
    assert_eq!(hash_fields(&nic, at), (VECTORS[1].2, TCPV4, 0));
    assert!(nic.resets().is_empty());
}

/// Gives frames to a port, and says how many went to each receive queue.
pub(crate) fn give(nic: &mut Nic, port: usize, frames: &[Vec<u8>]) -> [usize; PAIRS] {
    let _ = nic.peers[port].give_frames(frames.iter().cloned());
    assert!(nic.peers[port].state().to_give.is_empty());
    [0, 2, 4].map(|queue| nic.used(queue).len())
}

fn fill(nic: &mut Nic) {
    for queue in [0, 2, 4] {
        for _ in 0..8 {
            nic.add_rx_to(queue, 2000);
        }
        nic.kick(queue);
    }
}

/// virtio 1.4, 5.1.9.5.7.3
#[test]
fn a_frame_goes_to_the_queue_that_its_hash_leads_to_whichever_port_it_comes_from() {
    for port in 0..PAIRS {
        let mut nic = nic();
        assert_eq!(nic.command(&Rss::default().command()), OK);
        fill(&mut nic);
        let calls = [0, 2, 4].map(|queue: usize| nic.calls[queue].count());
        // The hashes' last two bits: 0, 2, 2, 3, 2; the table there: 1, 2, 2, 0, 2.
        let frames = VECTORS.map(|vector| tcp(vector, HASH_HEADER));
        assert_eq!(give(&mut nic, port, &frames), [1, 1, 3], "port {port}");
        // One notification for each queue that got any, at the end.
        for (i, queue) in [0, 2, 4].into_iter().enumerate() {
            assert!(
                nic.calls[queue].count() > calls[i],
                "port {port}, queue {queue}"
            );
        }
        assert_eq!(
            give(&mut nic, port, &[unclassified(HASH_HEADER)]),
            [1, 0, 0]
        );
        let changed = Rss {
            unclassified: 2,
            types: 0,
            ..Default::default()
        };
        assert_eq!(nic.command(&changed.command()), OK);
        assert_eq!(give(&mut nic, port, &frames), [0, 0, 5]);
    }
}

#[test]
fn a_queue_without_room_holds_up_no_frame_for_another() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    for _ in 0..4 {
        nic.add_rx_to(2, 2000);
    }
    nic.kick(2);
    // To queue 4, which has no buffer, and to 2.
    let frames = [1, 0, 2, 0, 4, 0].map(|i: usize| tcp(VECTORS[i], HASH_HEADER));
    assert_eq!(give(&mut nic, 0, &frames), [0, 3, 0]);
    assert_eq!(nic.device.rx_statistics(2).unwrap().dropped_no_buffers, 3);
    let dropped = nic.device.ports()[2].statistics().received;
    assert_eq!(dropped.dropped(DropReason::NoRoom), 3);
    // The kick that then comes is one for the queue's own port.
    nic.add_rx_to(4, 2000);
    nic.kick(4);
    assert_eq!(give(&mut nic, 0, &frames[..1]), [0, 0, 1]);
}

/// Guest bug class 22: after the pairs were reduced.
#[test]
fn pairs_that_are_reduced_end_the_steering() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    fill(&mut nic);
    assert_eq!(nic.command(&[4, 0, 1, 0]), OK);
    let frames = VECTORS.map(|vector| tcp(vector, HASH_HEADER));
    assert_eq!(give(&mut nic, 0, &frames), [5, 0, 0]);
    // The hash is still told.
    let (_, at) = nic.add_rx(2000);
    for _ in 0..4 {
        let _ = nic.peer.give_frames([tcp(VECTORS[0], HASH_HEADER)]);
    }
    assert_eq!(hash_fields(&nic, at), (VECTORS[0].2, TCPV4, 0));
    assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
    nic.used(0);
    fill(&mut nic);
    assert_eq!(give(&mut nic, 0, &frames), [5, 0, 0]);
}

#[test]
fn the_pairs_in_use_are_those_that_transmit_and_those_that_frames_go_to() {
    let table = [
        (1, 0, vec![0, 0], [true, false, false]),
        (2, 0, vec![0, 0], [true, true, false]),
        (1, 1, vec![0, 0], [true, true, false]),
        (1, 0, vec![0, 2], [true, true, true]),
    ];
    for (max_tx, unclassified, entries, expected) in table {
        let mut nic = nic();
        let rss = Rss {
            max_tx,
            unclassified,
            mask: 1,
            table: entries,
            ..Default::default()
        };
        assert_eq!(nic.command(&rss.command()), OK);
        for (pair, expected) in expected.into_iter().enumerate().skip(1) {
            let told = nic.peers[pair].state().enabled.last().copied();
            assert_eq!(told.unwrap_or(false), expected, "{max_tx}: pair {pair}");
        }
    }
    // A backend that refuses leaves all as it was.
    let mut nic = nic();
    nic.peers[2].state().refuses_enabling = true;
    assert_eq!(nic.command(&Rss::default().command()), ERR);
    nic.add_rx(2000);
    nic.kick(0);
    assert_eq!(
        give(&mut nic, 0, &[tcp(VECTORS[0], HASH_HEADER)]),
        [1, 0, 0]
    );
}

/// virtio 1.4, 5.1.9.5.7.3
#[test]
fn a_frame_for_a_queue_that_is_being_reset_is_dropped() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    fill(&mut nic);
    for (queue, vector, port) in [(2_u16, 0, 0), (2, 0, 1), (0, 3, 0)] {
        let stopped = nic.device.stop_queue(QueueIndex(queue)).unwrap();
        let pair = usize::from(queue / 2);
        let before = nic.device.rx_statistics(pair).unwrap().dropped_disabled;
        assert_eq!(
            give(&mut nic, port, &[tcp(VECTORS[vector], HASH_HEADER)]),
            [0, 0, 0]
        );
        let after = nic.device.rx_statistics(pair).unwrap().dropped_disabled;
        assert_eq!(after - before, 1, "queue {queue}");
        let loan = nic.loan(usize::from(queue), stopped.state);
        nic.device.start_queue(loan).unwrap();
        let mut got = [0; PAIRS];
        got[pair] = 1;
        assert_eq!(
            give(&mut nic, port, &[tcp(VECTORS[vector], HASH_HEADER)]),
            got
        );
    }
}

#[test]
fn a_frame_that_finds_its_queue_being_reset_holds_up_no_frame_for_another() {
    let mut nic = nic();
    assert_eq!(nic.command(&[4, 0, 3, 0]), OK);
    fill(&mut nic);
    // A read that goes on keeps the reset waiting.
    nic.peers[1].state().slow = true;
    let _ = nic.peers[1].give();
    assert!(!nic.peers[1].state().reads.is_empty());
    nic.peers[1].state().revoking = Revoking::Late;
    assert_eq!(nic.command(&Rss::default().command()), OK);
    let peer = nic.peers[0].clone();
    let rooms = peer.state().rooms;
    nic.context.schedule(Box::new(move || {
        let given = peer.give_frames([tcp(VECTORS[0], HASH_HEADER)]);
        assert_eq!(given, Drained::NoRoom);
    }));
    assert!(nic.device.stop_queue(QueueIndex(2)).is_some());
    nic.turn();
    assert!(nic.peers[0].state().rooms > rooms, "told that it can go on");
    let statistics = nic.device.rx_statistics(1).unwrap();
    assert_eq!(statistics.dropped_disabled, 1);
}

#[test]
fn frames_are_told_of_at_their_batch_s_end_even_if_steering_ends_before() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    fill(&mut nic);
    let port = nic.peers[0].port.clone();
    let frame = tcp(VECTORS[0], HASH_HEADER);
    assert_eq!(port.send_bytes(&frame), Received::Taken);
    assert_eq!(nic.command(&[4, 0, 3, 0]), OK);
    port.flush(&mut |_| {});
    assert_eq!([0, 2, 4].map(|queue| nic.used(queue).len()), [0, 1, 0]);
}

#[test]
fn frames_that_come_while_the_device_is_paused_arrive_when_it_goes_on() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    fill(&mut nic);
    nic.device.pause();
    let given = nic.peers[0].give_frames(VECTORS.map(|vector| tcp(vector, HASH_HEADER)));
    assert_eq!(given, Drained::NoRoom);
    nic.device.resume();
    nic.turn();
    assert_eq!(nic.peers[0].give(), Drained::Empty);
    assert_eq!([0, 2, 4].map(|queue| nic.used(queue).len()), [1, 1, 3]);
}

#[test]
fn a_reset_forgets_what_was_said_of_hashes() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    nic.restart();
    let (_, at) = nic.add_rx(2000);
    nic.kick(0);
    assert_eq!(
        give(&mut nic, 0, &[tcp(VECTORS[0], HASH_HEADER)]),
        [1, 0, 0]
    );
    assert_eq!(hash_fields(&nic, at), (0, 0, 0));
}

/// virtio 1.4, 5.1.2: the control queue comes after all pairs with either feature.
#[test]
fn rss_is_enough_to_have_several_pairs() {
    let config = VirtioNetConfig {
        rss: true,
        ..Default::default()
    };
    let mut nic = nic_of(config, &|_| {}, NetF::all());
    assert_eq!(nic.drivers.len(), 7);
    assert_eq!(nic.command(&Rss::default().command()), OK);
    fill(&mut nic);
    // No hash is reported: a header of 12 bytes.
    assert_eq!(
        give(&mut nic, 1, &VECTORS.map(|vector| tcp(vector, 12))),
        [1, 1, 3]
    );
    assert_eq!(nic.command(&[4, 0, 1, 0]), ERR);
}

#[test]
fn one_pair_alone_has_its_frames_read_in_place() {
    let nic = Nic::idle_pairs(1, config(), &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate_from(&[nic.fresh(); 3]);
    let mut nic = nic;
    let rss = Rss {
        mask: 0,
        table: vec![0],
        max_tx: 1,
        ..Default::default()
    };
    assert_eq!(nic.command(&rss.command()), OK);
    nic.peer.state().slow = true;
    nic.add_rx(2000);
    nic.kick(0);
    let _ = nic.peer.give();
    assert!(!nic.peer.state().reads.is_empty());
    nic.peer.end_read(0, &tcp(VECTORS[0], HASH_HEADER));
    assert_eq!(nic.used(0).len(), 1);
}
