//! What the host allows beyond what the driver asks for: rates, addresses; and what it can read of a NIC.

use std::sync::Arc;
use std::time::Duration;

use iothread::AioContext;
use net_client::{Drained, Offloads, Port};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{HeaderFault, RateLimit, VirtioNetConfig, Withheld};
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{ERR, HEADER, Nic, OK, PLAIN, Peer, RX, TX, frame};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

fn nic(change: impl FnOnce(&mut VirtioNetConfig)) -> Nic {
    let mut config = VirtioNetConfig::default();
    change(&mut config);
    let nic = Nic::idle_of(config, &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    nic
}

fn packets(packets: u64) -> RateLimit {
    RateLimit {
        packets,
        burst: Duration::from_millis(10),
        ..Default::default()
    }
}

fn wait(nic: &Nic, ms: u64) {
    for _ in 0..ms {
        nic.clock.advance(Duration::from_millis(1));
        nic.turn();
    }
}

#[test]
fn frames_that_the_driver_sends_faster_than_it_may_wait_and_none_is_lost() {
    // 1000 a second: 10 at once, and up to 7 more of the last look.
    let mut nic = nic(|config| config.tx_limit = packets(1000));
    for i in 0..100 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    let at_once = nic.peer.take().len();
    assert!((10..=18).contains(&at_once), "{at_once}");
    wait(&nic, 40);
    let later = nic.peer.take().len();
    assert!((30..=48).contains(&later), "{later}");
    // No kick is needed for the rest, nor does one help.
    nic.kick(TX);
    wait(&nic, 100);
    assert_eq!(at_once + later + nic.peer.take().len(), 100);
    assert_eq!(nic.used(TX).len(), 100);
    assert!(nic.device.tx_statistics(0).unwrap().throttled > 0);
    // A limit that is taken away lets all that waits go.
    for i in 0..100 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    nic.device.set_tx_limit(RateLimit::default());
    wait(&nic, 100);
    assert_eq!(nic.peer.take().len(), 100);
}

#[test]
fn frames_that_wait_for_a_limit_go_to_the_peer_that_comes_next() {
    let mut nic = nic(|config| config.tx_limit = packets(1000));
    for i in 0..100 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    let at_once = nic.peer.take().len();
    let port = nic.device.ports()[0].clone();
    port.disconnect();
    nic.turn();
    let next = Peer::new();
    let context: Arc<dyn AioContext> = nic.context.clone();
    Port::connect(&port, &next.port, &context).unwrap();
    wait(&nic, 100);
    assert_eq!(next.take().len(), 100 - at_once);
}

#[test]
fn frames_for_the_driver_that_come_faster_than_they_may_stay_with_the_peer() {
    for copied in [false, true] {
        let mut nic = nic(|config| config.rx_limit = packets(1000));
        for _ in 0..100 {
            nic.add_rx(200);
        }
        nic.kick(RX);
        if copied {
            nic.peer.state().max_frame = 100;
        }
        let mut given = 0;
        let mut give = |nic: &mut Nic, count: usize| {
            if copied {
                for i in 0..count {
                    let frame = frame(PLAIN, 60, u8::try_from(i).unwrap());
                    if nic.peer.port.send_bytes(&frame) == net_client::Received::Taken {
                        given += 1;
                    }
                }
                nic.peer.port.flush(&mut |_| {});
            } else {
                nic.peer.state().to_give = vec![frame(PLAIN, 60, 0); count];
                while nic.peer.give() == Drained::Budget {}
                given += count - nic.peer.state().to_give.len();
            }
            given
        };
        let at_once = give(&mut nic, 50);
        assert!((10..=18).contains(&at_once), "{copied}: {at_once}");
        assert_eq!(nic.used(RX).len(), at_once);
        let rooms = nic.peer.state().rooms;
        wait(&nic, 20);
        // The peer is told when it may go on.
        assert!(nic.peer.state().rooms > rooms, "{copied}");
        let later = give(&mut nic, 50) - at_once;
        assert!((8..=28).contains(&later), "{copied}: {later}");
        nic.device.set_rx_limit(RateLimit::default());
        let before = at_once + later;
        assert_eq!(give(&mut nic, 50) - before, 50, "{copied}");
        let counted = nic.device.rx_statistics(0).unwrap();
        assert_eq!(counted.dropped_in_all(), 0, "{copied}");
    }
}

#[test]
fn bytes_are_limited_as_frames_are() {
    let limit = RateLimit {
        bytes: 1_000_000,
        burst: Duration::from_millis(10),
        ..Default::default()
    };
    let mut nic = nic(|config| config.tx_limit = limit);
    assert_eq!(nic.device.limits(), (RateLimit::default(), limit));
    for _ in 0..100 {
        nic.add_tx(&frame(PLAIN, 1000, 0), &[]);
    }
    nic.kick(TX);
    let at_once = nic.peer.take().len();
    assert!((10..=18).contains(&at_once), "{at_once}");
    wait(&nic, 200);
    assert_eq!(nic.peer.take().len(), 100 - at_once);
}

fn from(source: [u8; 6], len: usize) -> Vec<u8> {
    let mut bytes = frame(PLAIN, len, 0);
    bytes[HEADER + 6..HEADER + 12].copy_from_slice(&source);
    bytes
}

#[test]
fn frames_from_another_address_than_the_nics_are_dropped_where_that_is_asked_for() {
    for (on, header) in [(true, true), (true, false), (false, true)] {
        let config = VirtioNetConfig {
            anti_spoof: on,
            ..Default::default()
        };
        let mut nic = Nic::idle_of(config, &|peer| peer.header = header, NetF::all());
        nic.device.negotiate(nic.features).unwrap();
        nic.activate();
        // Those of up to an MTU are copied whole, but for their addresses large ones are sent where they lie.
        for len in [14, 60, 1514, 1588, 1589, 9000] {
            for cuts in [
                &[][..],
                &[HEADER],
                &[HEADER + 12],
                &[HEADER + 3, 5, 2],
                &[5, 9, 4, 1],
            ] {
                let good = from(MAC, len);
                nic.add_tx(&good, cuts);
                nic.add_tx(&from([0x52, 0x54, 0, 0x12, 0x34, 0x57], len), cuts);
                nic.kick(TX);
                let got = nic.peer.take();
                let case = format!("{on}, {header}: {len} bytes in {cuts:?}");
                assert_eq!(got.len(), if on { 1 } else { 2 }, "{case}");
                let skip = if header { 0 } else { HEADER };
                assert_eq!(got[0], good[skip..], "{case}");
                assert_eq!(nic.used(TX).len(), 2, "{case}");
            }
        }
        let dropped = nic
            .device
            .tx_statistics(0)
            .unwrap()
            .dropped(HeaderFault::Source);
        assert_eq!(dropped, if on { 30 } else { 0 });
        // And the address stays.
        let answer = nic.command(&[1, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(answer, if on { ERR } else { OK });
        assert_eq!(nic.command(&[&[1, 1][..], &MAC].concat()), OK);
    }
}

#[test]
fn which_source_frames_must_have_changes_while_the_queue_runs() {
    let mut nic = nic(|_| {});
    let other = [0x52, 0x54, 0, 0x12, 0x34, 0x57];
    assert_eq!(nic.command(&[&[1, 1][..], &other].concat()), OK);
    let passes = |nic: &mut Nic, source| {
        nic.add_tx(&from(source, 60), &[]);
        nic.kick(TX);
        assert_eq!(nic.used(TX).len(), 1);
        nic.peer.take().len() == 1
    };
    for (on, own, others) in [
        (false, true, true),
        (true, true, false),
        (false, true, true),
    ] {
        nic.device.set_anti_spoof(on);
        assert_eq!(passes(&mut nic, MAC), own, "{on}");
        // That the driver set it before does not make it the NIC's.
        assert_eq!(passes(&mut nic, other), others, "{on}");
        let answer = nic.command(&[&[1, 1][..], &other].concat());
        assert_eq!(answer, if on { ERR } else { OK }, "{on}");
    }
    // A queue that starts afterwards does as is said now.
    nic.device.set_anti_spoof(true);
    nic.restart();
    assert!(!passes(&mut nic, other));
}

/// Guest bug class 8: what changes between the check and the use. The peer gets the bytes that were checked, though
/// the frame's own change while it has it.
#[test]
fn the_address_that_was_checked_is_the_one_that_is_sent() {
    for len in [1514, 3000] {
        let mut nic = nic(|config| config.anti_spoof = true);
        let at = nic.place(4000);
        let bytes = from(MAC, len);
        nic.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        nic.peer.state().answer = crate::harness::Answer::Refuse;
        let len = u32::try_from(bytes.len()).unwrap();
        nic.drivers[TX].add(&[Buffer::readable(at, len)]);
        nic.kick(TX);
        // It waits for room, and is looked at anew when there is some.
        let source = GuestAddress(at + u64::try_from(HEADER).unwrap() + 6);
        nic.memory.write_slice(&[2; 6], source).unwrap();
        nic.peer.has_room(10);
        nic.turn();
        assert!(nic.peer.take().is_empty(), "{len}");
        assert_eq!(nic.used(TX).len(), 1, "{len}");
    }
}

#[test]
fn the_report_tells_what_is_offered_accepted_and_withheld_with_the_reason() {
    let config = VirtioNetConfig {
        csum: false,
        ..Default::default()
    };
    let nic = Nic::idle_of(config, &|_| {}, NetF::all() - NetF::MRG_RXBUF);
    let report = nic.device.feature_report();
    assert_eq!(report.offered, nic.device.offered_features());
    assert_eq!(report.accepted, F::empty());
    let reason = |feature: NetF| {
        let mut found = report
            .withheld
            .iter()
            .filter(|(f, _)| *f == F::from(feature));
        let reason = found.next().map(|(_, reason)| *reason);
        assert!(found.next().is_none(), "{feature:?}");
        reason
    };
    let table = [
        (NetF::CSUM, Some(Withheld::SwitchedOff)),
        (NetF::MQ, Some(Withheld::SwitchedOff)),
        (NetF::HOST_UFO, Some(Withheld::Backend)),
        (NetF::GUEST_USO4, Some(Withheld::Backend)),
        (NetF::HOST_TSO4, Some(Withheld::Needs(NetF::CSUM.into()))),
        (NetF::GUEST_TSO4, None),
        (NetF::STATUS, None),
    ];
    for (feature, expected) in table {
        assert_eq!(reason(feature), expected, "{feature:?}");
    }
    for (feature, _) in &report.withheld {
        assert!(!report.offered.intersects(*feature), "{feature:?}");
    }
    nic.device.negotiate(nic.features).unwrap();
    let text = nic.device.feature_report().to_string();
    for part in [
        "offered: GUEST_CSUM ",
        "; accepted: GUEST_CSUM ",
        "HOST_UFO (the backend lacks it)",
        "HOST_TSO4 (needs CSUM)",
        "CSUM (switched off)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let accepted = text.split("; ").nth(1).unwrap();
    assert!(!accepted.contains("MRG_RXBUF"), "{text}");
    assert!(text.contains(" MRG_RXBUF "), "{text}");
    nic.device.reset();
    assert_eq!(nic.device.feature_report().accepted, F::empty());
    let none = Nic::idle_of(
        VirtioNetConfig::default(),
        &|peer| peer.header = false,
        NetF::all(),
    );
    let said = none.device.feature_report().to_string();
    assert!(
        said.contains("CSUM (the backend carries no header)"),
        "{said}"
    );
}

#[test]
fn the_standby_bit_is_offered_with_failover_and_its_acceptance_can_be_seen() {
    let off = nic(|_| {});
    assert!(!NetF::from(off.features).contains(NetF::STANDBY));
    let on = nic(|config| config.failover = true);
    if crate::harness::legacy() {
        // It has no bit for it.
        assert!(!on.device.is_standby());
        return;
    }
    assert!(on.device.is_standby());
    on.device.reset();
    assert!(!on.device.is_standby());
    let mut without = Nic::idle_of(
        VirtioNetConfig {
            failover: true,
            ..Default::default()
        },
        &|peer| peer.can = Offloads::default(),
        NetF::all() - NetF::STANDBY,
    );
    without.restart();
    assert!(!without.device.is_standby());
}

#[test]
fn each_counter_has_its_place_in_the_text() {
    let mut nic = nic(|_| {});
    nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    nic.add_tx(&frame(PLAIN, 3, 0), &[]);
    nic.kick(TX);
    assert_eq!(nic.command(&[0, 0, 0]), OK);
    let text = nic.device.statistics_text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    for (line, parts) in lines.iter().zip([
        &["rx0: kicks=", " frames=0 ", " dropped_filtered=0 "][..],
        &[
            "tx0: kicks=",
            " frames=1 bytes=60 ",
            " dropped_runt=1 ",
            " dropped_checksum_offset=0 ",
        ],
        &["ctrl: acknowledged=1 refused=0 unanswered=0"],
    ]) {
        for part in parts {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

/// A NIC made as `nic` makes them, paused, that has taken over what the other was saved with.
pub(crate) fn restored(from: &Nic, change: impl FnOnce(&mut VirtioNetConfig)) -> Nic {
    from.device.pause();
    let saved = from.device.save().unwrap();
    let to = nic(change);
    to.device.pause();
    to.device.restore(&saved).unwrap();
    to.device.resume();
    to.turn();
    to
}

#[test]
fn a_limit_that_is_used_up_is_so_in_the_card_that_goes_on() {
    let change = |config: &mut VirtioNetConfig| config.tx_limit = packets(1000);
    let mut nic = nic(change);
    let send = |nic: &mut Nic| {
        for i in 0..30 {
            nic.add_tx(&frame(PLAIN, 60, i), &[]);
        }
        nic.kick(TX);
        nic.peer.take().len()
    };
    assert!(send(&mut nic) >= 10);
    wait(&nic, 4);
    let mut next = restored(&nic, change);
    // As much time as the first had to wait yet.
    assert_eq!(send(&mut next), 0);
    wait(&next, 40);
    let later = next.peer.take().len();
    assert!((20..=30).contains(&later), "{later}");
    // At rest for long enough, it is as one that never sent.
    let mut rested = self::nic(change);
    send(&mut rested);
    wait(&rested, 1000);
    let mut next = restored(&rested, change);
    assert!(send(&mut next) >= 10);
    // One without a limit has nothing to wait for.
    let mut next = restored(&nic, |_| {});
    assert_eq!(send(&mut next), 30);
    let before = restored(&next, |_| {});
    assert_eq!(before.device.limits().1, RateLimit::default());
}
