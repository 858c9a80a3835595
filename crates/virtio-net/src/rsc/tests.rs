#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths and numbers of a few"
)]

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

#[path = "../../tests/device/segments.rs"]
mod segments;
use segments::{ACK, DATA_VALID, FIN, Got, HEADER, NEEDS_CSUM, PSH, RSC_INFO, Tcp, sum};

const ALL: NetF = NetF::RSC_EXT
    .union(NetF::GUEST_CSUM)
    .union(NetF::GUEST_TSO4)
    .union(NetF::GUEST_TSO6);
const INTERVAL: Duration = Duration::from_micros(300);

fn coalescer() -> Coalescer {
    Coalescer::new(Families::of(ALL), Allowed::new(ALL), HEADER, INTERVAL)
}

/// A coalescer, a clock, and a driver that has room or not.
struct Bench {
    coalescer: Coalescer,
    now: Cell<Duration>,
    room: bool,
    /// What the driver has got, and why if it was kept.
    got: Vec<(Option<FlushReason>, Vec<u8>)>,
}

impl Bench {
    fn new() -> Self {
        Self {
            coalescer: coalescer(),
            now: Cell::new(Duration::ZERO),
            room: true,
            got: Vec::new(),
        }
    }

    /// `false`: there is no room.
    fn flush(&mut self, at: usize, reason: FlushReason) -> bool {
        let mut unit = self.coalescer.take(at).unwrap();
        unit.finish();
        if !self.room {
            self.coalescer.put_back(at, unit, reason);
            return false;
        }
        self.got.push((Some(reason), unit.bytes().to_vec()));
        self.coalescer.recycle(unit);
        true
    }

    /// `false`: there is no room, and nothing has become of it.
    fn offer(&mut self, frame: &[u8]) -> bool {
        let copy = |at: usize, to: &mut [u8]| {
            let from = frame.get(at..).unwrap_or_default();
            let len = from.len().min(to.len());
            to[..len].copy_from_slice(&from[..len]);
            len
        };
        loop {
            match self.coalescer.offer(frame.len(), &copy, || self.now.get()) {
                Step::Kept => return true,
                Step::Complete(at, reason) => {
                    self.flush(at, reason);
                    return true;
                }
                Step::First(at, reason) => {
                    if !self.flush(at, reason) {
                        return false;
                    }
                }
                Step::Pass(said) => {
                    if !self.room {
                        return false;
                    }
                    let mut frame = frame.to_vec();
                    if let Some(said) = said {
                        frame[..SAID].copy_from_slice(&said);
                    }
                    self.got.push((None, frame));
                    return true;
                }
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now.set(self.now.get() + time);
        while let Some((at, reason)) = self.coalescer.due(self.now.get()) {
            if !self.flush(at, reason) {
                self.coalescer.refuse_due(self.now.get());
                return;
            }
        }
    }

    fn end(mut self) -> Vec<(Option<FlushReason>, Vec<u8>)> {
        self.room = true;
        while !self.coalescer.is_empty() {
            self.flush(0, FlushReason::Stopped);
        }
        self.got
    }
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

/// A segment of 100 bytes, the `n`th of its flow.
fn nth(n: u32) -> Tcp {
    Tcp::new(n * 100, &bytes(100, n as u8))
}

fn with(mut tcp: Tcp, change: impl FnOnce(&mut Tcp)) -> Tcp {
    change(&mut tcp);
    tcp
}

fn ack(seq: u32) -> Tcp {
    Tcp::new(seq, &[])
}

/// For each frame that the driver gets: why, bytes of its payload, and what its header counts.
type Gets = Vec<(Option<FlushReason>, usize, Option<(u16, u16)>)>;

fn gets(frames: &[Vec<u8>]) -> Gets {
    let mut bench = Bench::new();
    for frame in frames {
        assert!(bench.offer(frame));
    }
    let got = bench.end();
    got.into_iter()
        .map(|(reason, frame)| match Got::of(&frame) {
            Some(got) => (reason, got.payload.len(), got.rsc),
            None => (reason, frame.len() - HEADER, None),
        })
        .collect()
}

#[test]
fn segments_are_put_together_while_nothing_speaks_against_it() {
    use FlushReason::*;
    let late = |n| with(nth(n), |tcp| tcp.ack = 1001);
    let push = |n| with(nth(n), |tcp| tcp.flags |= PSH);
    let one = |reason| (Some(reason), 100, None);
    let two = |reason| (Some(reason), 200, Some((2, 0)));
    let past = (None, 100, None);
    let pure = (None, 0, None);
    let table: Vec<(&str, Vec<Tcp>, Gets)> = vec![
        ("one", vec![nth(0)], vec![one(Stopped)]),
        ("two", vec![nth(0), nth(1)], vec![two(Stopped)]),
        (
            "many",
            (0..655).map(nth).collect(),
            vec![(Some(Full), 65400, Some((654, 0))), one(Stopped)],
        ),
        (
            "pushed",
            vec![nth(0), push(1), nth(2)],
            vec![two(Push), one(Stopped)],
        ),
        ("pushed first", vec![push(0), push(1)], vec![past, past]),
        (
            "a short one is the last",
            vec![nth(0), Tcp::new(100, &[7; 30]), Tcp::new(130, &[7; 100])],
            vec![(Some(Full), 130, Some((2, 0))), one(Stopped)],
        ),
        (
            "a longer one",
            vec![nth(0), Tcp::new(100, &[7; 101])],
            vec![one(Full), (Some(Stopped), 101, None)],
        ),
        (
            "a gap",
            vec![nth(0), nth(2)],
            vec![one(Sequence), one(Stopped)],
        ),
        (
            "again",
            vec![nth(0), nth(0)],
            vec![one(Sequence), one(Stopped)],
        ),
        (
            "before",
            vec![nth(1), nth(0)],
            vec![one(Sequence), one(Stopped)],
        ),
        (
            "acknowledges more",
            vec![nth(0), late(1)],
            vec![two(Stopped)],
        ),
        (
            "acknowledges less",
            vec![late(0), nth(1)],
            vec![one(Headers), one(Stopped)],
        ),
        (
            "other options",
            vec![nth(0), with(nth(1), |tcp| tcp.options = vec![1; 4])],
            vec![one(Headers), one(Stopped)],
        ),
        (
            "another time to live",
            vec![nth(0), with(nth(1), |tcp| tcp.ttl = 63)],
            vec![one(Headers), one(Stopped)],
        ),
        (
            "another type of service",
            vec![nth(0), with(nth(1), |tcp| tcp.tos = 3)],
            vec![one(Headers), one(Stopped)],
        ),
        (
            "another window",
            vec![nth(0), with(nth(1), |tcp| tcp.window = 400)],
            vec![two(Stopped)],
        ),
        (
            "an acknowledgement again",
            vec![nth(0), nth(1), ack(200), ack(200)],
            vec![(Some(Stopped), 200, Some((2, 2)))],
        ),
        (
            "an acknowledgement again, and data",
            vec![nth(0), ack(100), nth(1)],
            vec![(Some(Control), 100, Some((1, 1))), one(Stopped)],
        ),
        (
            "a new acknowledgement",
            vec![nth(0), with(ack(100), |tcp| tcp.ack = 1001)],
            vec![one(Control), pure],
        ),
        (
            "another window alone",
            vec![nth(0), with(ack(100), |tcp| tcp.window = 0)],
            vec![one(Control), pure],
        ),
        (
            "acknowledgements alone",
            vec![ack(0), ack(0)],
            vec![pure, pure],
        ),
        (
            "bad checksum",
            vec![nth(0), with(nth(1), |tcp| tcp.corrupt = true), nth(2)],
            vec![one(Control), (None, 154, None), one(Stopped)],
        ),
        (
            "bad checksum first",
            vec![with(nth(0), |tcp| tcp.corrupt = true), nth(1)],
            vec![(None, 154, None), one(Stopped)],
        ),
        (
            "bad checksum that the host says is right",
            vec![
                with(nth(0), |tcp| tcp.said.0 = DATA_VALID),
                with(nth(1), |tcp| (tcp.said.0, tcp.corrupt) = (DATA_VALID, true)),
            ],
            vec![two(Stopped)],
        ),
        (
            "not made yet",
            vec![
                with(nth(0), |tcp| tcp.said.0 = NEEDS_CSUM),
                nth(1),
                with(nth(2), |tcp| tcp.said.0 = NEEDS_CSUM),
            ],
            vec![(Some(Stopped), 300, Some((3, 0)))],
        ),
        (
            "padded",
            vec![
                with(nth(0), |tcp| tcp.padding = 6),
                with(nth(1), |tcp| tcp.padding = 9),
            ],
            vec![two(Stopped)],
        ),
        (
            "around the end of numbers",
            vec![
                Tcp::new(u32::MAX - 99, &[1; 100]),
                Tcp::new(0, &[2; 100]),
                Tcp::new(100, &[3; 100]),
            ],
            vec![(Some(Stopped), 300, Some((3, 0)))],
        ),
        (
            "two flows",
            vec![
                nth(0),
                with(nth(7), |tcp| tcp.sender = 2),
                nth(1),
                with(nth(8), |tcp| tcp.sender = 2),
            ],
            vec![two(Stopped), two(Stopped)],
        ),
    ];
    for (name, frames, expected) in table {
        for v6 in [false, true] {
            let frames: Vec<_> = (frames.iter())
                .map(|tcp| with(tcp.clone(), |tcp| tcp.v6 = v6).frame())
                .collect();
            // Frames that are not right have the length of their headers too.
            let longer = if v6 { 20 } else { 0 };
            let expected: Gets = (expected.iter())
                .map(|(reason, len, rsc)| {
                    (*reason, if *len == 154 { len + longer } else { *len }, *rsc)
                })
                .collect();
            let got = gets(&frames);
            assert_eq!(got, expected, "{name}, IPv6: {v6}");
        }
    }
}

#[test]
fn flags_but_ack_and_psh_go_past_behind_what_is_kept() {
    for flags in 0..=u8::MAX {
        let last = with(nth(1), |tcp| tcp.flags = flags);
        let expected = if flags == ACK {
            vec![(Some(FlushReason::Stopped), 200, Some((2, 0)))]
        } else if flags == ACK | PSH {
            vec![(Some(FlushReason::Push), 200, Some((2, 0)))]
        } else {
            vec![(Some(FlushReason::Control), 100, None), (None, 100, None)]
        };
        assert_eq!(
            gets(&[nth(0).frame(), last.frame()]),
            expected,
            "{flags:#x}"
        );
    }
}

#[test]
fn what_is_put_together_has_the_headers_of_one_large_frame() {
    for v6 in [false, true] {
        let options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let segment = |n: u32| {
            with(nth(n), |tcp| {
                tcp.v6 = v6;
                tcp.options = options.clone();
                tcp.id = n as u16;
                tcp.ack = 2000 + n;
                tcp.window = 600 - n as u16;
            })
        };
        let mut bench = Bench::new();
        for frame in [
            segment(3),
            segment(4),
            with(segment(5), |tcp| tcp.flags |= PSH),
        ] {
            assert!(bench.offer(&frame.frame()));
        }
        let (_, frame) = bench.got.pop().unwrap();
        let expected = Got {
            v6,
            sender: 1,
            seq: 300,
            ack: 2005,
            flags: ACK | PSH,
            window: 595,
            payload: [bytes(100, 3), bytes(100, 4), bytes(100, 5)].concat(),
            said: (
                NEEDS_CSUM | DATA_VALID | RSC_INFO,
                if v6 { 4 } else { 1 },
                100,
            ),
            rsc: Some((3, 0)),
        };
        assert_eq!(Got::of(&frame), Some(expected));
        let headers = segment(3).tcp_at() + 32;
        assert_eq!(
            usize::from(u16::from_le_bytes([frame[2], frame[3]])),
            headers
        );
        // The first one's identification, and all that does not change.
        let first = segment(3).frame();
        assert_eq!(frame[HEADER..HEADER + 14], first[HEADER..HEADER + 14]);
        if !v6 {
            assert_eq!(frame[HEADER + 18..HEADER + 20], [0, 3]);
        }
        assert_eq!(
            frame[HEADER + headers - 12..HEADER + headers],
            options,
            "IPv6: {v6}"
        );
    }
}

/// Makes the checksum of an IPv4 header right.
fn fix_ip_sum(mut frame: Vec<u8>) -> Vec<u8> {
    let end = HEADER + 14 + usize::from(frame[HEADER + 14] & 0xf) * 4;
    frame[HEADER + 24..HEADER + 26].fill(0);
    let right = !sum(&frame[HEADER + 14..end]);
    frame[HEADER + 24..HEADER + 26].copy_from_slice(&right.to_be_bytes());
    frame
}

#[test]
fn what_only_shares_the_addresses_comes_behind_what_is_kept() {
    // A fragment, IP options, a tag, extension headers, a large frame of the host's.
    let fragment = |offset: u16| {
        let mut frame = nth(1).frame();
        frame[HEADER + 20..HEADER + 22].copy_from_slice(&offset.to_be_bytes());
        fix_ip_sum(frame)
    };
    let tagged = |tag: &[u8]| {
        let mut frame = nth(1).frame();
        frame.splice(HEADER + 12..HEADER + 12, tag.iter().copied());
        frame
    };
    let mut with_options = nth(1).frame();
    with_options[HEADER + 14] = 0x46;
    with_options.splice(HEADER + 34..HEADER + 34, [1; 4]);
    let with_options = fix_ip_sum(with_options);
    let v6 = |n| with(nth(n), |tcp| tcp.v6 = true);
    let mut extended = v6(1).frame();
    extended[HEADER + 20] = 0;
    let large = with(nth(1), |tcp| tcp.said = (NEEDS_CSUM, 1, 50));
    let mut wrong_ip_sum = nth(1).frame();
    wrong_ip_sum[HEADER + 24] ^= 1;
    let mut elsewhere = with(nth(1), |tcp| tcp.said.0 = NEEDS_CSUM).frame();
    elsewhere[6] ^= 2;
    let table = [
        ("first fragment", nth(0), fragment(0x2000)),
        ("later fragment", nth(0), fragment(0x20)),
        ("IP options", nth(0), with_options),
        ("a tag", nth(0), tagged(&[0x81, 0, 0, 5])),
        (
            "two tags",
            nth(0),
            tagged(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 5]),
        ),
        ("extension headers", v6(0), extended),
        ("a large frame", nth(0), large.frame()),
        ("IP checksum", nth(0), wrong_ip_sum),
        ("another checksum to be made", nth(0), elsewhere),
    ];
    for (name, first, frame) in table {
        let mut bench = Bench::new();
        assert!(bench.offer(&first.frame()));
        assert!(bench.got.is_empty(), "{name}");
        assert!(bench.offer(&frame));
        let reasons: Vec<_> = bench.got.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, [Some(FlushReason::Control), None], "{name}");
        assert_eq!(bench.got[0].1, first.frame(), "{name}");
        assert_eq!(bench.got[1].1[HEADER..], frame[HEADER..], "{name}");
    }
    // What is of another protocol does not.
    let mut udp = nth(1).frame();
    udp[HEADER + 23] = 17;
    let mut arp = nth(1).frame();
    arp[HEADER + 13] = 6;
    for frame in [udp, arp] {
        let mut bench = Bench::new();
        assert!(bench.offer(&nth(0).frame()));
        assert!(bench.offer(&frame));
        assert_eq!(bench.got, [(None, frame)]);
    }
}

/// Line 21 of GUEST-BUGS.md: wherever a frame ends, it goes past as it is.
#[test]
fn frames_of_any_length_go_past_or_are_kept_whole() {
    let tagged = |frame: Vec<u8>| {
        let mut frame = frame;
        frame.splice(HEADER + 12..HEADER + 12, [0x81, 0, 0, 5, 0x81, 0, 0, 5]);
        frame
    };
    let v4 = with(nth(0), |tcp| tcp.options = vec![1; 40]);
    let v6 = with(v4.clone(), |tcp| tcp.v6 = true);
    for whole in [
        v4.frame(),
        v6.frame(),
        tagged(v4.frame()),
        tagged(v6.frame()),
    ] {
        for len in 0..whole.len() {
            let cut = &whole[..len];
            let mut bench = Bench::new();
            assert!(bench.offer(cut));
            assert_eq!(bench.got, [(None, cut.to_vec())], "{len} bytes");
        }
    }
    // And each byte of headers may be anything.
    for whole in [v4.frame(), v6.frame()] {
        for at in 0..HEADER + 94 {
            for change in [0xff, 0x80, 0x40, 0x0f, 1] {
                let mut frame = whole.clone();
                frame[at] ^= change;
                let mut bench = Bench::new();
                assert!(bench.offer(&whole));
                assert!(bench.offer(&frame));
                let got = bench.end();
                assert_eq!(got.len(), 2, "byte {at}");
                assert!(got.iter().any(|(_, frame)| *frame == whole), "byte {at}");
            }
        }
    }
}

#[test]
fn a_large_frame_of_the_hosts_goes_past_with_the_number_of_its_segments() {
    // (flags, gso_type, gso_size, payload, told flags, counted)
    let table = [
        (
            NEEDS_CSUM,
            1,
            1000,
            2500,
            NEEDS_CSUM | RSC_INFO,
            Some((3, 0)),
        ),
        (
            NEEDS_CSUM,
            1,
            1000,
            2000,
            NEEDS_CSUM | RSC_INFO,
            Some((2, 0)),
        ),
        (NEEDS_CSUM, 1, 1000, 0, NEEDS_CSUM | RSC_INFO, Some((1, 0))),
        (NEEDS_CSUM, 0, 0, 900, NEEDS_CSUM, None),
        // Of UDP: there is nothing to count, and the checksum is where it was.
        (NEEDS_CSUM, 5, 1000, 900, NEEDS_CSUM, None),
        // What no peer may say.
        (NEEDS_CSUM | RSC_INFO, 0, 0, 900, NEEDS_CSUM, None),
        (RSC_INFO, 0, 0, 900, 0, None),
        (RSC_INFO | DATA_VALID, 5, 9, 900, DATA_VALID, None),
    ];
    for (flags, gso_type, gso_size, payload, told, counted) in table {
        let frame = with(nth(0), |tcp| {
            tcp.payload = bytes(payload, 1);
            tcp.said = (flags, gso_type, gso_size);
            // Not kept.
            tcp.flags |= PSH;
        })
        .frame();
        let mut bench = Bench::new();
        assert!(bench.offer(&frame));
        let (reason, got) = bench.got.pop().unwrap();
        assert_eq!((reason, got[0]), (None, told), "{flags:#x} {gso_type}");
        let fields = [6, 8].map(|at| u16::from_le_bytes([got[at], got[at + 1]]));
        match counted {
            Some(counted) => assert_eq!((fields[0], fields[1]), counted, "{payload}"),
            None => assert_eq!(got[6..], frame[6..], "{flags:#x} {gso_type}"),
        }
        assert_eq!(got[HEADER..], frame[HEADER..]);
    }
}

#[test]
fn a_peer_cannot_say_of_a_segment_that_it_stands_for_some() {
    for stray in [RSC_INFO, RSC_INFO | DATA_VALID, RSC_INFO | NEEDS_CSUM] {
        let frame = with(nth(0), |tcp| tcp.said.0 = stray).frame();
        let mut bench = Bench::new();
        assert!(bench.offer(&frame));
        let got = bench.end();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].1[0], stray & !RSC_INFO, "{stray:#x}");
        assert_eq!(got[0].1[1..], frame[1..]);
    }
}

#[test]
fn segments_of_packets_that_the_driver_does_not_take_large_go_past() {
    for (features, kept) in [
        (ALL, [true, true]),
        (ALL - NetF::GUEST_TSO4, [false, true]),
        (ALL - NetF::GUEST_TSO6, [true, false]),
        (ALL - NetF::RSC_EXT, [false, false]),
    ] {
        for (v6, kept) in [false, true].into_iter().zip(kept) {
            let mut bench = Bench::new();
            bench.coalescer.set_families(Families::of(features));
            bench.offer(&with(nth(0), |tcp| tcp.v6 = v6).frame());
            assert_eq!(bench.got.is_empty(), kept, "{features:?}, IPv6: {v6}");
        }
    }
}

#[test]
fn only_so_many_flows_are_kept_and_their_memory_is_used_again() {
    let mut bench = Bench::new();
    let of = |sender, n| with(nth(n), |tcp| tcp.sender = sender).frame();
    let flows = MAX_FLOWS as u8;
    for sender in 0..flows {
        assert!(bench.offer(&of(sender, 0)));
    }
    assert!(bench.got.is_empty());
    assert!(bench.offer(&of(flows, 0)));
    assert_eq!(bench.got, [(Some(FlushReason::Evicted), of(0, 0))]);
    // The next oldest goes next, though it has grown meanwhile.
    assert!(bench.offer(&of(1, 1)));
    assert!(bench.offer(&of(0, 1)));
    assert_eq!(bench.got.len(), 2);
    assert_eq!(Got::of(&bench.got[1].1).unwrap().rsc, Some((2, 0)));
    for n in 0..1000 {
        assert!(bench.offer(&of((n % 100) as u8, n)));
    }
    assert!(bench.coalescer.units.len() + bench.coalescer.spare.len() <= MAX_FLOWS);
}

#[test]
fn what_has_been_kept_for_the_interval_goes_and_what_has_no_room_waits() {
    let mut bench = Bench::new();
    let of = |sender, n| with(nth(n), |tcp| tcp.sender = sender).frame();
    assert!(bench.offer(&of(1, 0)));
    bench.wait(Duration::from_micros(200));
    assert!(bench.offer(&of(1, 1)));
    assert!(bench.offer(&of(2, 0)));
    bench.wait(Duration::from_micros(99));
    assert!(bench.got.is_empty());
    assert_eq!(bench.coalescer.next_deadline(), Some(INTERVAL));
    bench.wait(Duration::from_micros(1));
    assert_eq!(bench.got.len(), 1);
    assert_eq!(bench.got[0].0, Some(FlushReason::Interval));
    assert_eq!(Got::of(&bench.got[0].1).unwrap().rsc, Some((2, 0)));
    bench.room = false;
    bench.wait(Duration::from_micros(200));
    assert_eq!(bench.got.len(), 1);
    assert_eq!(bench.coalescer.refused(), Some((0, FlushReason::Interval)));
    // Nothing to wait for but room; meanwhile it may grow, and its flow does not get past it.
    assert_eq!(bench.coalescer.next_deadline(), None);
    assert!(bench.offer(&of(2, 1)));
    assert!(!bench.offer(&of(2, 3)));
    bench.room = true;
    assert!(bench.offer(&of(2, 3)));
    assert_eq!(bench.got[1].0, Some(FlushReason::Sequence));
    assert_eq!(Got::of(&bench.got[1].1).unwrap().rsc, Some((2, 0)));
    assert_eq!(bench.end().len(), 3);
}

/// What comes to a flow.
#[derive(Clone, Debug)]
enum Event {
    /// So many bytes more, PSH or not, and what the header says of their checksum.
    Data(usize, bool, u8),
    Again(usize),
    Gap(usize),
    Ack {
        more: bool,
    },
    Fin,
    Corrupt(usize),
    Tagged(usize),
    Fragment(usize),
    /// The host's own large frame.
    Large(usize),
    /// Bytes of the frame before.
    Cut(usize),
    Options,
}

#[derive(Clone, Debug)]
enum Move {
    Frame(u8, Event),
    Junk(Vec<u8>),
    Wait(u64),
    Room(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let len = prop_oneof![
        6 => Just(1448_usize),
        2 => 1..1448_usize,
        1 => 1..9000_usize,
    ];
    let said = prop_oneof![Just(0), Just(NEEDS_CSUM), Just(DATA_VALID)];
    prop_oneof![
        20 => (len.clone(), proptest::bool::weighted(0.1), said)
            .prop_map(|(len, push, said)| Event::Data(len, push, said)),
        1 => len.clone().prop_map(Event::Again),
        1 => len.clone().prop_map(Event::Gap),
        3 => any::<bool>().prop_map(|more| Event::Ack { more }),
        1 => Just(Event::Fin),
        1 => len.clone().prop_map(Event::Corrupt),
        1 => len.clone().prop_map(Event::Tagged),
        1 => len.clone().prop_map(Event::Fragment),
        1 => len.clone().prop_map(Event::Large),
        1 => (0..200_usize).prop_map(Event::Cut),
        1 => Just(Event::Options),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        30 => (0..4_u8, event()).prop_map(|(flow, event)| Move::Frame(flow, event)),
        2 => (0..40_u8, event()).prop_map(|(flow, event)| Move::Frame(flow, event)),
        2 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Move::Junk),
        3 => (0..400_u64).prop_map(Move::Wait),
        2 => any::<bool>().prop_map(Move::Room),
    ];
    proptest::collection::vec(one, 0..200)
}

/// A sender's next frames.
#[derive(Clone, Debug)]
struct Sender {
    next: Tcp,
    last: Vec<u8>,
}

impl Sender {
    fn new(flow: u8) -> Self {
        let next = with(Tcp::new(u32::MAX - 5000, &[]), |tcp| {
            tcp.v6 = flow % 2 == 1;
            tcp.sender = flow;
        });
        let last = next.frame();
        Self { next, last }
    }

    fn frame(&mut self, event: &Event) -> Vec<u8> {
        let mut tcp = self.next.clone();
        tcp.id = tcp.seq as u16;
        let mut data = |len: usize| tcp.payload = bytes(len, tcp.seq as u8);
        let mut insert = None;
        match *event {
            Event::Data(len, _, _)
            | Event::Again(len)
            | Event::Gap(len)
            | Event::Corrupt(len)
            | Event::Tagged(len)
            | Event::Fragment(len)
            | Event::Large(len) => data(len),
            _ => {}
        }
        match *event {
            Event::Data(_, push, said) => {
                tcp.flags |= if push { PSH } else { 0 };
                tcp.said.0 = said;
            }
            Event::Again(len) => tcp.seq = tcp.seq.wrapping_sub(len as u32),
            Event::Gap(len) => tcp.seq = tcp.seq.wrapping_add(len as u32),
            Event::Ack { more } => tcp.ack += u32::from(more),
            Event::Fin => tcp.flags |= FIN,
            Event::Corrupt(_) => tcp.corrupt = true,
            Event::Tagged(_) => insert = Some([0x81, 0, 0, 5]),
            Event::Large(_) => tcp.said = (NEEDS_CSUM, if tcp.v6 { 4 } else { 1 }, 1448),
            Event::Options => tcp.options = [tcp.options.clone(), vec![1; 4]].concat(),
            Event::Fragment(_) | Event::Cut(_) => {}
        }
        tcp.options.truncate(40);
        let mut frame = tcp.frame();
        if let Event::Fragment(_) = event {
            // Of IPv6 it gets a hop-by-hop header, whatever is in that.
            frame[HEADER + 20] = if tcp.v6 { 0 } else { 0x20 };
        }
        if let Some(tag) = insert {
            frame.splice(HEADER + 12..HEADER + 12, tag);
        }
        if let Event::Cut(len) = event {
            frame = self.last.clone();
            frame.truncate(HEADER + len);
        } else {
            let len = if let Event::Corrupt(_) = event {
                0
            } else {
                tcp.payload.len()
            };
            self.next.seq = tcp.seq.wrapping_add(len as u32);
            self.next.ack = tcp.ack;
            self.next.options = tcp.options.clone();
            self.last = frame.clone();
        }
        frame
    }
}

/// What a flow has seen: data that continues is one entry, however it was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Data {
        seq: u32,
        bytes: Vec<u8>,
        ack: u32,
        window: u16,
    },
    Ack {
        seq: u32,
        ack: u32,
        window: u16,
    },
    /// Anything else, as it is.
    Raw(Vec<u8>),
}

/// By sender, with those between whose frames no order is promised on their own.
type Log = std::collections::BTreeMap<Vec<u8>, Vec<Entry>>;

fn note(log: &mut Log, frame: &[u8]) {
    // By the addresses, behind tags; where there are none, by the frame itself: nothing is promised of its place.
    let rest = frame.get(HEADER..).unwrap_or_default();
    let at = if rest.get(12..14) == Some(&[0x81, 0]) {
        4
    } else {
        0
    };
    let key = match rest.get(12 + at..14 + at) {
        Some([8, 0]) if rest.get(23 + at) == Some(&6) => rest.get(26 + at..34 + at),
        Some([0x86, 0xdd]) => rest.get(22 + at..54 + at),
        _ => None,
    };
    let entries = log.entry(key.unwrap_or(rest).to_vec()).or_default();
    let Some(got) = Got::of(frame) else {
        return entries.push(Entry::Raw(rest.to_vec()));
    };
    let Got {
        seq, ack, window, ..
    } = got;
    if got.flags & !PSH != ACK {
        return entries.push(Entry::Raw(rest.to_vec()));
    }
    let end = seq.wrapping_add(got.payload.len() as u32);
    if got.payload.is_empty() {
        return entries.push(Entry::Ack { seq, ack, window });
    }
    if let Some(Entry::Data {
        seq: first,
        bytes,
        ack: last_ack,
        window: last_window,
    }) = entries.last_mut()
        && first.wrapping_add(bytes.len() as u32) == seq
    {
        bytes.extend(&got.payload);
        (*last_ack, *last_window) = (ack, window);
    } else {
        entries.push(Entry::Data {
            seq,
            bytes: got.payload.clone(),
            ack,
            window,
        });
    }
    if let Some((segments, dup_acks)) = got.rsc {
        let size = usize::from(got.said.2);
        assert!(segments > 0 && size > 0);
        assert_eq!(usize::from(segments), got.payload.len().div_ceil(size));
        for _ in 0..dup_acks {
            entries.push(Entry::Ack {
                seq: end,
                ack,
                window,
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn each_flow_gets_its_bytes_in_order_and_whole_whatever_comes_between(moves in moves()) {
        let mut bench = Bench::new();
        let mut senders: Vec<_> = (0..40).map(Sender::new).collect();
        let mut sent = Log::new();
        let mut passed = 0;
        for step in &moves {
            let frame = match step {
                Move::Frame(flow, event) => senders[usize::from(*flow)].frame(event),
                Move::Junk(bytes) => [&[0; HEADER], &bytes[..]].concat(),
                Move::Wait(micros) => {
                    bench.wait(Duration::from_micros(*micros));
                    continue;
                }
                Move::Room(room) => {
                    bench.room = *room;
                    continue;
                }
            };
            if !bench.offer(&frame) {
                // As a peer does that is told of room.
                bench.room = true;
                prop_assert!(bench.offer(&frame));
            }
            note(&mut sent, &frame);
            passed += 1;
        }
        let got = bench.end();
        prop_assert!(got.len() <= passed);
        let mut seen = Log::new();
        for (reason, frame) in &got {
            prop_assert!(frame.len() <= HEADER + 14 + 65535);
            if reason.is_some() {
                // Of a unit lengths and checksums are right, and no segment is longer than the frame says.
                let unit = Got::of(frame);
                prop_assert!(unit.is_some());
            }
            note(&mut seen, frame);
        }
        prop_assert_eq!(seen, sent);
    }
}

#[test]
fn the_reference_sums_as_the_coalescer_does() {
    for len in 0..300 {
        let bytes = bytes(len, 5);
        assert_eq!(
            checksum::Sum::of(&bytes).folded(),
            sum(&bytes),
            "{len} bytes"
        );
    }
}
