//! Segments that are put together before the driver gets them (virtio 1.4, 5.1.9.4 and 5.1.9.4.1).

use std::sync::Arc;
use std::time::Duration;

use iothread::{AioContext, EventLoop};
use net_client::{Directions, Filter, Passing, Position, Verdict};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{FlushReason, RateLimit, VirtioNetConfig, Withheld};
use virtqueue::QueueIndex;

use crate::harness::{ERR, HEADER, Nic, OK, PeerState, RX};
use crate::segments::{ACK, DATA_VALID, FIN, Got, NEEDS_CSUM, PSH, RSC_INFO, Tcp};

const BUFFER: usize = 2000;

fn config() -> VirtioNetConfig {
    VirtioNetConfig {
        guest_rsc_ext: true,
        ..Default::default()
    }
}

fn idle(pairs: usize, config: VirtioNetConfig, wanted: NetF) -> Nic {
    let prepare = |peer: &mut PeerState| peer.max_frame = HEADER + 65_535 + 14;
    Nic::idle_pairs(pairs, config, &prepare, wanted)
}

fn nic_of(config: VirtioNetConfig, wanted: NetF) -> Nic {
    let nic = idle(1, config, wanted);
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    nic
}

fn nic() -> Nic {
    nic_of(config(), NetF::all())
}

/// Makes so many buffers available; where they are, by head.
fn fill(nic: &mut Nic, count: usize) -> Buffers {
    let buffers = (0..count).map(|_| nic.add_rx(BUFFER)).collect();
    nic.kick(RX);
    Buffers(buffers)
}

struct Buffers(Vec<(u16, u64)>);

impl Buffers {
    /// The frames that the driver has got since last asked.
    fn frames(&mut self, nic: &mut Nic) -> Vec<Vec<u8>> {
        let used = nic.used(RX);
        let mut used = used.into_iter();
        let mut frames = Vec::new();
        while let Some(first) = used.next() {
            let mut take = |(head, len): (u32, u32)| {
                let at = self.0.iter().position(|(it, _)| u32::from(*it) == head);
                let (_, at) = self.0.remove(at.unwrap());
                nic.bytes(at, usize::try_from(len).unwrap())
            };
            let mut frame = take(first);
            let num_buffers = u16::from_le_bytes([frame[10], frame[11]]);
            for _ in 1..num_buffers {
                assert_eq!(frame.len() % BUFFER, 0, "all but the last are full");
                frame.extend(take(used.next().unwrap()));
            }
            frames.push(frame);
        }
        frames
    }

    /// Bytes of the payload of each, and what its header counts.
    fn got(&mut self, nic: &mut Nic) -> Vec<(usize, Option<(u16, u16)>)> {
        let frames = self.frames(nic);
        let frames = frames.iter().map(|frame| Got::of(frame).unwrap());
        frames.map(|got| (got.payload.len(), got.rsc)).collect()
    }
}

/// The `n`th segment of 1000 bytes.
fn nth(n: u32) -> Tcp {
    Tcp::new(n * 1000, &[u8::try_from(n).unwrap(); 1000])
}

fn give(nic: &Nic, segments: &[Tcp]) {
    let _ = nic.peer.give_frames(segments.iter().map(Tcp::frame));
}

fn wait(nic: &Nic, micros: u64) {
    nic.clock.advance(Duration::from_micros(micros));
    nic.turn();
}

fn flushed(nic: &Nic, reason: FlushReason) -> u64 {
    nic.device.rx_statistics(0).unwrap().flushed(reason)
}

const ONE: (usize, Option<(u16, u16)>) = (1000, None);

#[test]
fn it_is_offered_where_it_is_switched_on_and_large_frames_are() {
    let offered = |config, prepare: &dyn Fn(&mut PeerState)| {
        let nic = Nic::idle_of(config, prepare, NetF::all());
        let report = nic.device.feature_report();
        let why = report.withheld.into_iter();
        let why = why.filter(|(feature, _)| NetF::from(*feature) == NetF::RSC_EXT);
        let why: Vec<_> = why.map(|(_, why)| why).collect();
        let is_offered = NetF::from(report.offered).contains(NetF::RSC_EXT);
        assert_eq!(is_offered, why.is_empty());
        why
    };
    assert_eq!(offered(config(), &|_| {}), []);
    assert_eq!(
        offered(VirtioNetConfig::default(), &|_| {}),
        [Withheld::SwitchedOff]
    );
    let needs = |why: &[Withheld]| matches!(why, [Withheld::Needs(_)]);
    assert!(needs(&offered(config(), &|peer| peer.header = false)));
    let without = |host, guest, v6| VirtioNetConfig {
        host_tso4: host,
        host_tso6: host && v6,
        guest_tso4: guest,
        guest_tso6: guest && v6,
        ..config()
    };
    assert!(needs(&offered(without(true, false, true), &|_| {})));
    assert!(needs(&offered(without(false, true, true), &|_| {})));
    assert_eq!(offered(without(true, true, false), &|_| {}), []);
}

/// virtio 1.4, 5.1.9.4.1
#[test]
fn segments_come_as_one_large_frame_that_says_how_many_they_were() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 20);
    let mut segments: Vec<_> = (0..5).map(nth).collect();
    segments[4].flags |= PSH;
    segments[4].ack += 7;
    give(&nic, &segments);
    let frames = buffers.frames(&mut nic);
    assert_eq!(frames.len(), 1);
    let got = Got::of(&frames[0]).unwrap();
    assert_eq!(got.said, (NEEDS_CSUM | DATA_VALID | RSC_INFO, 1, 1000));
    assert_eq!(got.rsc, Some((5, 0)));
    assert_eq!((got.flags, got.ack), (ACK | PSH, 1007));
    let whole: Vec<_> = segments
        .iter()
        .flat_map(|tcp| tcp.payload.clone())
        .collect();
    assert_eq!(got.payload, whole);
    assert!(nic.is_dirty(buffers.0[0].1 - 16));
    let counted = nic.device.rx_statistics(0).unwrap();
    assert_eq!((counted.frames, counted.buffers), (1, 3));
    assert_eq!((counted.rsc_frames, counted.rsc_segments), (1, 5));
    assert_eq!(counted.rsc_bytes, 5054);
    assert_eq!((counted.gso_frames, counted.csum_needed), (1, 1));
    assert_eq!(flushed(&nic, FlushReason::Push), 1);
    let text = nic.device.statistics_text();
    assert!(text.contains(" rsc_segments=5 "), "{text}");
    assert!(text.contains(" flushed_Push=1 flushed_Full=0 "), "{text}");
}

/// "The device processes also duplicated ACK segments, reports [...] number of duplicated ACK segments" (virtio 1.4,
/// 5.1.9.4).
#[test]
fn acknowledgements_that_say_the_same_again_are_counted() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 20);
    let again = Tcp::new(1000, &[]);
    give(&nic, &[nth(0), again.clone(), again.clone()]);
    assert_eq!(buffers.got(&mut nic), []);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), [(1000, Some((1, 2)))]);
    assert_eq!(nic.device.rx_statistics(0).unwrap().rsc_dup_acks, 2);
    // Alone they wait for nothing.
    give(&nic, &[again.clone(), again]);
    assert_eq!(buffers.got(&mut nic), [(0, None), (0, None)]);
}

#[test]
fn what_is_kept_comes_when_the_interval_is_over_and_not_before() {
    let config = VirtioNetConfig {
        rsc_interval: 50_000,
        ..config()
    };
    let mut nic = nic_of(config, NetF::all());
    let mut buffers = fill(&mut nic, 20);
    give(&nic, &[nth(0)]);
    wait(&nic, 30);
    // Later ones of the flow do not prolong it, and those of another have their own.
    let other = Tcp {
        sender: 2,
        ..nth(0)
    };
    give(&nic, &[nth(1), other.clone()]);
    wait(&nic, 19);
    assert_eq!(buffers.got(&mut nic), []);
    let calls = nic.calls[RX].count();
    wait(&nic, 1);
    assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))]);
    assert_eq!(nic.calls[RX].count(), calls + 1);
    wait(&nic, 29);
    assert_eq!(buffers.got(&mut nic), []);
    wait(&nic, 1);
    // Alone it comes as it was.
    let frames = buffers.frames(&mut nic);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][HEADER..], other.frame()[HEADER..]);
    assert_eq!(frames[0][..10], [0; 10]);
    assert_eq!(flushed(&nic, FlushReason::Interval), 2);
    wait(&nic, 1000);
    assert_eq!(buffers.got(&mut nic), []);
    // And the next begin anew.
    give(&nic, &[nth(2)]);
    wait(&nic, 49);
    assert_eq!(buffers.got(&mut nic), []);
    wait(&nic, 1);
    assert_eq!(buffers.got(&mut nic), [ONE]);
}

#[test]
fn without_the_feature_each_segment_comes_as_it_is() {
    for wanted in [
        NetF::all() - NetF::RSC_EXT,
        NetF::all() - NetF::GUEST_TSO4 - NetF::GUEST_TSO6 - NetF::GUEST_ECN,
    ] {
        let mut nic = nic_of(config(), wanted);
        let mut buffers = fill(&mut nic, 20);
        let mut stray = nth(2);
        stray.said.0 = DATA_VALID | RSC_INFO;
        give(&nic, &[nth(0), nth(1), stray]);
        let frames = buffers.frames(&mut nic);
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0][HEADER..], nth(0).frame()[HEADER..]);
        assert_eq!(frames[2][0], DATA_VALID);
    }
}

#[test]
fn large_frames_of_the_backends_say_how_many_segments_they_are() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 20);
    let mut large = Tcp::new(1000, &[1; 4500]);
    large.said = (NEEDS_CSUM, 1, 1000);
    give(&nic, &[nth(0), large.clone()]);
    let frames = buffers.frames(&mut nic);
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0][HEADER..], nth(0).frame()[HEADER..]);
    let got = Got::of(&frames[1]).unwrap();
    assert_eq!(got.said, (NEEDS_CSUM | RSC_INFO, 1, 1000));
    assert_eq!((got.rsc, got.payload.len()), (Some((5, 0)), 4500));
    assert_eq!(nic.device.rx_statistics(0).unwrap().rsc_frames, 0);
    // Without the feature it is as it always was.
    let mut nic = nic_of(config(), NetF::all() - NetF::RSC_EXT);
    let mut buffers = fill(&mut nic, 20);
    give(&nic, &[large.clone()]);
    let frames = buffers.frames(&mut nic);
    assert_eq!(frames[0][..10], large.frame()[..10]);
}

#[test]
fn nothing_that_is_kept_is_lost_when_there_are_no_buffers() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 1);
    // The first is too large for the one buffer, and its flow waits behind it.
    give(&nic, &[nth(0), nth(1), nth(2), nth(5)]);
    assert_eq!(buffers.got(&mut nic), []);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), []);
    buffers.0.extend(fill(&mut nic, 1).0);
    let mut got = buffers.got(&mut nic);
    assert_eq!(got, [(3000, Some((3, 0)))]);
    // The peer is told of room, and gives what waited there.
    buffers.0.extend(fill(&mut nic, 1).0);
    wait(&nic, 300);
    got.extend(buffers.got(&mut nic));
    assert_eq!(got, [(3000, Some((3, 0))), ONE]);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_in_all(), 0);
}

#[test]
fn what_was_complete_waits_for_buffers_beyond_the_interval() {
    let mut nic = nic();
    let mut last = nth(1);
    last.flags |= PSH;
    give(&nic, &[nth(0), last]);
    wait(&nic, 10_000);
    let mut buffers = fill(&mut nic, 3);
    assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))]);
    assert_eq!(flushed(&nic, FlushReason::Push), 1);
    // Others go on meanwhile and after.
    give(&nic, &[nth(2), nth(3)]);
    wait(&nic, 300);
    buffers.0.extend(fill(&mut nic, 3).0);
    assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))]);
}

#[test]
fn what_never_finds_buffers_enough_is_dropped_and_counted() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 1);
    give(&nic, &[nth(0), nth(1)]);
    wait(&nic, 300);
    // The patience of a frame that waits for the rest of its buffers.
    wait(&nic, 100_000);
    let counted = nic.device.rx_statistics(0).unwrap();
    assert_eq!(counted.dropped_no_buffers, 1);
    give(&nic, &[nth(2)]);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), [ONE]);
    assert!(nic.resets().is_empty());
}

/// Whatever ends the queue, or holds it, has what is kept go to the driver before.
#[test]
fn a_queue_that_stops_keeps_nothing() {
    type End = (&'static str, fn(&mut Nic));
    let ends: [End; 5] = [
        ("pause", |nic| nic.device.pause()),
        ("stop", |nic| {
            nic.device.stop_queue(QueueIndex(0)).unwrap();
        }),
        ("reset", |nic| {
            nic.device.reset();
        }),
        ("stop while paused", |nic| {
            nic.device.pause();
            nic.device.stop_queue(QueueIndex(0)).unwrap();
        }),
        ("other offloads", |nic| {
            assert_eq!(nic.command(&offloads(0)), OK);
        }),
    ];
    for (name, end) in ends {
        let mut nic = nic();
        let mut buffers = fill(&mut nic, 5);
        give(&nic, &[nth(0), nth(1)]);
        assert_eq!(buffers.got(&mut nic), []);
        end(&mut nic);
        assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))], "{name}");
        assert_eq!(flushed(&nic, FlushReason::Stopped), 1, "{name}");
        wait(&nic, 1000);
        assert_eq!(buffers.got(&mut nic), [], "{name}");
        // What has no room is dropped, and not kept for the next driver.
        let mut nic = self::nic();
        give(&nic, &[nth(0), nth(1)]);
        end(&mut nic);
        let counted = nic.device.rx_statistics(0).unwrap();
        assert_eq!(counted.dropped_no_buffers, 1, "{name}");
        wait(&nic, 1000);
    }
}

/// The ring may be looked at for the first time for what was kept.
#[test]
fn a_queue_that_is_found_broken_for_what_was_kept_is_reported() {
    type Look = (&'static str, fn(&mut Nic));
    let looks: [Look; 3] = [
        ("pause", |nic| nic.device.pause()),
        ("interval", |nic| wait(nic, 300)),
        ("other offloads", |nic| {
            assert_eq!(nic.command(&offloads(0)), OK);
        }),
    ];
    for (name, look) in looks {
        let mut nic = nic();
        give(&nic, &[nth(0), nth(1)]);
        nic.drivers[RX].offer_nonsense();
        look(&mut nic);
        let resets = nic.resets();
        assert_eq!(resets.len(), 1, "{name}: {resets:?}");
        assert!(resets[0].starts_with("virtio-net.0 rx: "), "{resets:?}");
        // Once, and what was kept is counted as lost when the queue stops.
        nic.device.pause();
        assert_eq!(nic.resets(), resets, "{name}");
        let counted = nic.device.rx_statistics(0).unwrap();
        assert_eq!(counted.dropped_no_buffers, 1, "{name}");
    }
}

#[test]
fn a_driver_that_comes_next_begins_with_nothing_kept() {
    let mut nic = nic();
    give(&nic, &[nth(0), nth(1)]);
    nic.restart();
    let mut buffers = fill(&mut nic, 5);
    wait(&nic, 1000);
    assert_eq!(buffers.got(&mut nic), []);
    give(&nic, &[nth(2), nth(3)]);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))]);
    // And the one after it, without the feature.
    nic.features -= virtio::F::from(NetF::RSC_EXT);
    give(&nic, &[nth(4)]);
    nic.restart();
    let mut buffers = fill(&mut nic, 5);
    give(&nic, &[nth(2), nth(3)]);
    assert_eq!(buffers.got(&mut nic), [ONE, ONE]);
}

#[test]
fn a_card_that_goes_has_given_what_it_kept() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 5);
    give(&nic, &[nth(0), nth(1)]);
    nic.device.unplugged();
    // All that keeps it.
    let config = VirtioNetConfig::default();
    let other = Nic::idle_of(config, &|_| {}, NetF::all());
    nic.device = other.device.clone();
    assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))]);
    wait(&nic, 1000);
    assert_eq!(buffers.got(&mut nic), []);
}

#[test]
fn a_queue_goes_on_after_a_pause_and_on_another_context() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 10);
    give(&nic, &[nth(0)]);
    nic.device.pause();
    assert_eq!(buffers.got(&mut nic), [ONE]);
    let other = EventLoop::with_clock(nic.clock.clone()).unwrap();
    let context: Arc<dyn AioContext> = other.clone();
    let port = nic.device.ports()[0].clone();
    port.client().unwrap().attach(&context).unwrap();
    nic.device.resume();
    nic.context = other;
    nic.turn();
    give(&nic, &[nth(1), nth(2)]);
    wait(&nic, 299);
    assert_eq!(buffers.got(&mut nic), []);
    wait(&nic, 1);
    assert_eq!(buffers.got(&mut nic), [(2000, Some((2, 0)))]);
}

fn offloads(bits: u64) -> Vec<u8> {
    [&[5, 0][..], &bits.to_le_bytes()].concat()
}

/// QEMU 7.2: the driver says with its offloads whether segments are put together, by the bit of the feature.
#[test]
fn the_driver_switches_it_off_and_on_with_its_offloads() {
    const CSUM: u64 = 1 << 1;
    const TSO4: u64 = 1 << 7;
    const TSO6: u64 = 1 << 8;
    const RSC: u64 = 1 << 61;
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 100);
    let mut both = |nic: &mut Nic| {
        [false, true].map(|v6| {
            let of = |n| Tcp { v6, ..nth(n) };
            give(nic, &[of(0), of(1)]);
            wait(nic, 300);
            buffers.got(nic).len() == 1
        })
    };
    assert_eq!(both(&mut nic), [true, true]);
    for (bits, expected) in [
        (CSUM | TSO4 | TSO6, [false, false]),
        (CSUM | TSO4 | TSO6 | RSC, [true, true]),
        (CSUM | TSO4 | RSC, [true, false]),
        (CSUM | TSO6 | RSC, [false, true]),
        (CSUM | RSC, [false, false]),
        (0, [false, false]),
    ] {
        assert_eq!(nic.command(&offloads(bits)), OK, "{bits:#x}");
        assert_eq!(both(&mut nic), expected, "{bits:#x}");
        // A queue that begins has it so too.
        nic.device.pause();
        nic.device.resume();
        nic.turn();
        assert_eq!(both(&mut nic), expected, "{bits:#x}");
    }
    nic.restart();
    let mut without = nic_of(config(), NetF::all() - NetF::RSC_EXT);
    assert_eq!(without.command(&offloads(CSUM | TSO4 | RSC)), ERR);
}

#[test]
fn a_restored_card_puts_together_what_the_saved_one_did() {
    for bits in [1 << 1 | 1 << 7, 1 << 1 | 1 << 7 | 1 << 61] {
        let mut nic = nic();
        let mut buffers = fill(&mut nic, 5);
        assert_eq!(nic.command(&offloads(bits)), OK);
        give(&nic, &[nth(0)]);
        nic.device.pause();
        assert_eq!(buffers.got(&mut nic), [ONE]);
        let state = nic.device.save().unwrap();
        let mut restored = self::nic();
        restored.device.pause();
        restored.device.restore(&state).unwrap();
        assert_eq!(restored.device.save().unwrap(), state);
        restored.device.resume();
        restored.turn();
        let mut buffers = fill(&mut restored, 5);
        give(&restored, &[nth(1), nth(2)]);
        wait(&restored, 300);
        let count = if bits >> 61 == 1 { 1 } else { 2 };
        assert_eq!(buffers.got(&mut restored).len(), count, "{bits:#x}");
        // One whose driver has not negotiated it does not take the bit.
        let without = nic_of(config(), NetF::all() - NetF::RSC_EXT);
        without.device.pause();
        assert_eq!(without.device.restore(&state).is_ok(), bits >> 61 == 0);
    }
}

/// Frames of a flow do not get past what is kept of it, whichever door they come through and whatever they are.
#[test]
fn frames_of_a_flow_come_in_order_with_a_filter_between_too() {
    #[derive(Debug)]
    struct All;
    impl Filter for All {
        fn filter(&self, _: &Passing<'_>) -> Verdict {
            Verdict::Pass
        }
    }
    for filtered in [false, true] {
        let mut nic = nic();
        let mut buffers = fill(&mut nic, 100);
        if filtered {
            let directions = Directions::All;
            let port = nic.device.ports()[0].clone();
            port.add_filter(Arc::new(All), directions, Position::Head);
        }
        let fin = |n| Tcp {
            flags: ACK | FIN,
            ..nth(n)
        };
        let other = Tcp {
            sender: 3,
            ..nth(0)
        };
        give(&nic, &[nth(0), nth(1), other, fin(2), nth(3), fin(9)]);
        let got = buffers.got(&mut nic);
        let large = (2000, Some((2, 0)));
        assert_eq!(got, [large, ONE, ONE, ONE], "filtered: {filtered}");
        wait(&nic, 300);
        assert_eq!(buffers.got(&mut nic), [ONE]);
    }
}

#[test]
fn frames_that_the_driver_does_not_want_are_not_kept() {
    let mut nic = nic();
    let mut buffers = fill(&mut nic, 20);
    let frame = |tcp: Tcp, mac: u8| {
        let mut frame = tcp.frame();
        frame[HEADER + 5] = mac;
        frame
    };
    // Not promiscuous any more.
    assert_eq!(nic.command(&[0, 0, 0]), OK);
    let _ = nic.peer.give_frames([frame(nth(0), 0x57), nth(0).frame()]);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), [ONE]);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_filtered, 1);
    // Nor what it does not want any more.
    give(&nic, &[nth(1)]);
    assert_eq!(nic.command(&[1, 1, 2, 0, 0, 0, 0, 9]), OK);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), []);
    assert_eq!(nic.device.rx_statistics(0).unwrap().dropped_filtered, 2);
}

#[test]
fn segments_for_one_queue_are_put_together_whichever_port_they_come_from() {
    let config = VirtioNetConfig {
        mq: true,
        rss: true,
        hash: true,
        ..config()
    };
    let nic = idle(2, config, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    let mut nic = nic;
    // All to pair 1, with hashes of TCP.
    let mut command = vec![4, 1];
    command.extend(2_u32.to_le_bytes());
    for number in [0_u16, 1, 1, 2] {
        command.extend(number.to_le_bytes());
    }
    command.push(40);
    command.extend([0x6d; 40]);
    assert_eq!(nic.command(&command), OK);
    let queue = 2;
    let (_, at) = nic.add_rx_to(queue, 10_000);
    nic.kick(queue);
    // The header is longer here.
    let long = |tcp: Tcp| {
        let mut frame = tcp.frame();
        frame.splice(HEADER..HEADER, [0; 8]);
        frame
    };
    let _ = nic.peers[0].give_frames([long(nth(0))]);
    let _ = nic.peers[1].give_frames([long(nth(1))]);
    assert_eq!(nic.used(queue), []);
    wait(&nic, 300);
    let used = nic.used(queue);
    assert_eq!(used.len(), 1);
    let mut frame = nic.bytes(at, usize::try_from(used[0].1).unwrap());
    assert_ne!(frame[12..16], [0; 4], "a hash");
    assert_eq!(frame[16..20], [2, 0, 0, 0], "of TCP over IPv4");
    frame.drain(12..20);
    let got = Got::of(&frame).unwrap();
    assert_eq!((got.payload.len(), got.rsc), (2000, Some((2, 0))));
}

#[test]
fn a_pair_that_the_driver_uses_no_more_keeps_nothing() {
    let config = VirtioNetConfig {
        mq: true,
        ..config()
    };
    let mut nic = idle(2, config, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    assert_eq!(nic.command(&[4, 0, 2, 0]), OK);
    nic.add_rx_to(2, BUFFER);
    nic.kick(2);
    let _ = nic.peers[1].give_frames([nth(0).frame()]);
    assert_eq!(nic.used(2), []);
    assert_eq!(nic.command(&[4, 0, 1, 0]), OK);
    assert_eq!(nic.used(2).len(), 1);
    wait(&nic, 1000);
    assert_eq!(nic.used(2), []);
}

#[test]
fn a_rate_limit_counts_what_is_kept_when_the_driver_gets_it() {
    let config = VirtioNetConfig {
        rx_limit: RateLimit {
            bytes: 10_000,
            packets: 0,
            burst: Duration::from_millis(100),
        },
        ..config()
    };
    let mut nic = nic_of(config, NetF::all());
    let mut buffers = fill(&mut nic, 50);
    give(&nic, &[nth(0), nth(1), nth(2)]);
    wait(&nic, 300);
    assert_eq!(buffers.got(&mut nic), [(3000, Some((3, 0)))]);
    // That was more than the burst: others wait in the peer.
    give(&nic, &[nth(3)]);
    assert_eq!(nic.peer.state().to_give.len(), 1);
}

#[test]
fn without_merging_a_large_frame_has_one_buffer() {
    let mut nic = nic_of(config(), NetF::all() - NetF::MRG_RXBUF);
    let (_, at) = nic.add_rx(65_562);
    nic.kick(RX);
    give(&nic, &(0..60).map(nth).collect::<Vec<_>>());
    wait(&nic, 300);
    let used = nic.used(RX);
    assert_eq!(used.len(), 1);
    let frame = nic.bytes(at, usize::try_from(used[0].1).unwrap());
    assert_eq!(frame[10..12], [1, 0]);
    assert_eq!(Got::of(&frame).unwrap().rsc, Some((60, 0)));
}
