//! What the driver sends, taken some time after its kick (`tx=timer`).

use std::sync::Arc;
use std::time::Duration;

use iothread::{AioContext, EventLoop};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{RateLimit, TxMitigation, VirtioNetConfig};
use virtqueue::QueueIndex;
use virtqueue::mock::Buffer;

use crate::harness::{Answer, DATA, HEADER, Nic, PLAIN, RX, TX, frame};

const DELAY: u64 = 150_000;

fn nic_of(change: impl FnOnce(&mut VirtioNetConfig), wanted: NetF) -> Nic {
    let mut config = VirtioNetConfig {
        tx: TxMitigation::Timer,
        ..Default::default()
    };
    change(&mut config);
    let nic = Nic::idle_of(config, &|_| {}, wanted);
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    // The kick that each queue begins with.
    wait(&nic, DELAY);
    nic
}

fn nic() -> Nic {
    nic_of(|_| {}, NetF::all())
}

fn wait(nic: &Nic, nanos: u64) {
    nic.clock.advance(Duration::from_nanos(nanos));
    nic.turn();
}

/// Makes so many frames available.
fn add(nic: &mut Nic, count: u8) {
    for i in 0..count {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
}

/// Kicks whether that was asked for or not.
fn kick(nic: &Nic) {
    nic.kicks[TX].write(1).unwrap();
    nic.turn();
}

#[test]
fn frames_go_when_the_time_after_the_kick_is_over_and_no_kick_is_asked_for_meanwhile() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX] {
        let mut nic = nic_of(|_| {}, features);
        for _ in 0..3 {
            add(&mut nic, 1);
            assert!(nic.kick(TX), "{features:?}");
            wait(&nic, DELAY - 2);
            add(&mut nic, 4);
            assert!(!nic.kick(TX), "{features:?}");
            wait(&nic, 1);
            assert!(nic.peer.take().is_empty());
            let batches = nic.device.tx_statistics(0).unwrap().batches;
            wait(&nic, 1);
            assert_eq!(nic.peer.take().len(), 5);
            assert_eq!(nic.used(TX).len(), 5);
            let counted = nic.device.tx_statistics(0).unwrap();
            assert_eq!(counted.batches - batches, 1);
        }
    }
}

#[test]
fn another_kick_ends_the_wait() {
    let mut nic = nic();
    add(&mut nic, 1);
    kick(&nic);
    wait(&nic, DELAY / 2);
    assert!(nic.peer.take().is_empty());
    add(&mut nic, 1);
    kick(&nic);
    assert_eq!(nic.peer.take().len(), 2);
    // It was the wait of those: the next have all of theirs.
    add(&mut nic, 1);
    assert!(nic.kick(TX));
    wait(&nic, DELAY - 1);
    assert!(nic.peer.take().is_empty());
    wait(&nic, 1);
    assert_eq!(nic.peer.take().len(), 1);
    assert_eq!(nic.used(TX).len(), 3);
}

#[test]
fn the_time_is_the_configured_one_and_without_a_timer_there_is_none() {
    // (mitigation, time, what goes at the kick, and after how long)
    let table = [
        (TxMitigation::Timer, 1_000_000_000, 0, 1_000_000_000),
        (TxMitigation::Timer, 1, 0, 1),
        (TxMitigation::Timer, 0, 1, 0),
        (TxMitigation::Bh, 150_000, 1, 0),
    ];
    for (tx, time, at_once, after) in table {
        let change = |config: &mut VirtioNetConfig| {
            config.tx = tx;
            config.x_txtimer = time;
        };
        let mut nic = nic_of(change, NetF::all());
        wait(&nic, time.into());
        add(&mut nic, 1);
        nic.kick(TX);
        assert_eq!(nic.peer.take().len(), at_once, "{tx:?}, {time}");
        wait(&nic, after);
        assert_eq!(nic.peer.take().len(), 1 - at_once, "{tx:?}, {time}");
    }
}

#[test]
fn more_than_a_burst_needs_no_other_wait() {
    let mut nic = nic_of(|config| config.x_txburst = 4, NetF::all());
    add(&mut nic, 10);
    nic.kick(TX);
    nic.clock.advance(Duration::from_nanos(DELAY));
    for expected in [4, 4, 2] {
        nic.context.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(nic.used(TX).len(), expected);
    }
    // What comes after them waits again.
    add(&mut nic, 1);
    nic.kick(TX);
    assert!(nic.used(TX).is_empty());
    wait(&nic, DELAY);
    assert_eq!(nic.used(TX).len(), 1);
}

/// A kick that is lost because the device looks away.
#[test]
fn a_frame_that_comes_just_before_the_device_sleeps_is_seen_by_the_second_look() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX] {
        let mut nic = nic_of(|_| {}, features);
        add(&mut nic, 1);
        let hook = nic.later(TX, &[Buffer::readable(DATA, 72)]);
        nic.peer.flush_hook.set(hook);
        kick(&nic);
        wait(&nic, DELAY);
        assert_eq!(nic.peer.take().len(), 2, "{features:?}");
    }
}

#[test]
fn a_frame_that_the_peer_has_no_room_for_goes_when_it_has() {
    let mut nic = nic();
    nic.peer.state().answer = Answer::Refuse;
    add(&mut nic, 3);
    nic.kick(TX);
    wait(&nic, DELAY);
    assert!(nic.peer.take().is_empty());
    // A kick does not help, nor does the time after it.
    kick(&nic);
    wait(&nic, DELAY);
    nic.peer.has_room(2);
    assert_eq!(nic.peer.take().len(), 2);
    nic.peer.has_room(usize::MAX);
    assert_eq!(nic.peer.take().len(), 1);
    assert_eq!(nic.used(TX).len(), 3);
    // Room within the wait ends it.
    add(&mut nic, 1);
    nic.kick(TX);
    nic.peer.has_room(usize::MAX);
    assert_eq!(nic.peer.take().len(), 1);
    add(&mut nic, 1);
    assert!(nic.kick(TX));
    assert!(nic.peer.take().is_empty());
    wait(&nic, DELAY);
    assert_eq!(nic.peer.take().len(), 1);
}

#[test]
fn a_pause_within_the_wait_loses_nothing() {
    let mut nic = nic();
    add(&mut nic, 2);
    nic.kick(TX);
    wait(&nic, DELAY / 2);
    nic.device.pause();
    wait(&nic, 10 * DELAY);
    assert!(nic.peer.take().is_empty());
    assert_eq!(nic.device.queue_state(QueueIndex(1)).unwrap(), nic.fresh());
    // A kick of one that is paused.
    kick(&nic);
    nic.device.resume();
    nic.turn();
    wait(&nic, DELAY - 1);
    assert!(nic.peer.take().is_empty());
    wait(&nic, 1);
    assert_eq!(nic.peer.take().len(), 2);
    add(&mut nic, 1);
    assert!(nic.kick(TX));
    wait(&nic, DELAY);
    assert_eq!(nic.peer.take().len(), 1);
}

#[test]
fn a_reset_within_the_wait_ends_it_and_what_comes_next_begins_anew() {
    let mut nic = nic();
    add(&mut nic, 2);
    nic.kick(TX);
    wait(&nic, DELAY / 2);
    nic.restart();
    wait(&nic, DELAY);
    assert!(nic.peer.take().is_empty());
    add(&mut nic, 1);
    assert!(nic.kick(TX));
    wait(&nic, DELAY - 1);
    assert!(nic.peer.take().is_empty());
    wait(&nic, 1);
    assert_eq!(nic.peer.take().len(), 1);
}

#[test]
fn a_ring_that_is_reset_within_the_wait_keeps_its_frames_for_the_next_start() {
    let mut nic = nic();
    add(&mut nic, 2);
    nic.kick(TX);
    let stopped = nic.device.stop_queue(QueueIndex(1)).unwrap();
    assert_eq!(stopped.state, nic.fresh());
    wait(&nic, 10 * DELAY);
    assert!(nic.peer.take().is_empty());
    // The other direction goes on meanwhile.
    let (_, at) = nic.add_rx(2000);
    nic.kick(RX);
    let _ = nic.peer.give_frames([frame(PLAIN, 60, 9)]);
    let got = nic.bytes(at + 12, 60);
    assert_eq!(got, frame(PLAIN, 60, 9)[HEADER..]);
    nic.device.start_queue(nic.loan(TX, stopped.state)).unwrap();
    // As the transport does.
    kick(&nic);
    assert!(nic.peer.take().is_empty());
    wait(&nic, DELAY);
    assert_eq!(nic.peer.take().len(), 2);
}

#[test]
fn a_card_that_goes_within_the_wait_takes_its_timer_along() {
    let mut nic = nic();
    add(&mut nic, 1);
    nic.kick(TX);
    let Nic {
        device,
        context,
        clock,
        peer,
        ..
    } = nic;
    let gone = Arc::downgrade(&device);
    drop(device);
    assert_eq!(gone.strong_count(), 0);
    clock.advance(Duration::from_nanos(DELAY));
    while context.turn(Some(Duration::ZERO)).unwrap() > 0 {}
    assert!(peer.take().is_empty());
}

#[test]
fn a_queue_that_moves_to_another_context_within_the_wait_sends_there() {
    let mut nic = nic();
    add(&mut nic, 1);
    nic.kick(TX);
    nic.device.pause();
    let other = EventLoop::with_clock(nic.clock.clone()).unwrap();
    let context: Arc<dyn AioContext> = other.clone();
    let client = nic.device.ports()[0].client().unwrap();
    client.attach(&context).unwrap();
    nic.device.resume();
    nic.turn();
    wait(&nic, DELAY);
    assert!(nic.peer.take().is_empty());
    nic.context = other;
    nic.turn();
    wait(&nic, DELAY);
    assert_eq!(nic.peer.take().len(), 1);
}

#[test]
fn a_limit_is_kept_and_none_of_what_waits_for_it_waits_for_the_timer() {
    let limit = RateLimit {
        packets: 1000,
        burst: Duration::from_millis(10),
        ..Default::default()
    };
    let mut nic = nic_of(|config| config.tx_limit = limit, NetF::all());
    add(&mut nic, 100);
    nic.kick(TX);
    assert!(nic.peer.take().is_empty());
    wait(&nic, DELAY);
    let at_once = nic.peer.take().len();
    assert!((10..=18).contains(&at_once), "{at_once}");
    for _ in 0..100 {
        wait(&nic, 1_000_000);
    }
    assert_eq!(at_once + nic.peer.take().len(), 100);
    add(&mut nic, 1);
    assert!(nic.kick(TX));
    wait(&nic, 20_000_000);
    assert_eq!(nic.peer.take().len(), 1);
}

/// A head that the ring does not have.
#[test]
fn a_ring_that_makes_no_sense_is_found_when_the_time_is_over() {
    let mut nic = nic();
    nic.drivers[TX].offer_nonsense();
    kick(&nic);
    assert!(nic.resets().is_empty());
    wait(&nic, DELAY);
    assert_eq!(nic.resets().len(), 1);
    kick(&nic);
    wait(&nic, DELAY);
    assert_eq!(nic.resets().len(), 1);
    nic.restart();
    add(&mut nic, 1);
    nic.kick(TX);
    wait(&nic, DELAY);
    assert_eq!(nic.peer.take().len(), 1);
}
