//! Two clients on a link of which one has bad luck: nothing is lost but what it drops, and all that is
//! lent comes back.
#![expect(clippy::unwrap_used, reason = "helpers outside test functions")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::Lender;
use iothread::{AioContext, EventLoop, IoThread};
use net_client::{Faults, Faulty, Port};

const NOW: Option<Duration> = Some(Duration::ZERO);
const SEEDS: u64 = 100;

fn frames(n: u8) -> impl Iterator<Item = Vec<u8>> {
    (0..n).map(|i| vec![i; 60 + usize::from(i)])
}

#[test]
fn frames_that_complete_late_and_out_of_order_arrive_whole_and_once() {
    for seed in 0..SEEDS {
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        let nic = Lender::new("nic");
        let tap = Faulty::new("tap", Faults::MANY, seed);
        Port::connect(nic.port(), tap.port(), &shared).unwrap();
        frames(200).for_each(|frame| nic.queue(frame));
        let mut steps = 0;
        while nic.backlog() > 0 || nic.lent() > 0 {
            nic.pump();
            tap.step();
            context.turn(NOW).unwrap();
            steps += 1;
            assert!(steps < 10_000, "seed {seed}: {} lent", nic.lent());
        }
        let mut got = tap.take_frames();
        assert_eq!(got.len() + tap.dropped(), 200, "seed {seed}");
        assert!(tap.dropped() < 50);
        // Each is one of those that were sent, unharmed, and none came twice.
        got.sort();
        assert!(
            got.iter()
                .all(|frame| frames(200).any(|sent| sent == *frame))
        );
        got.dedup();
        assert_eq!(got.len() + tap.dropped(), 200, "seed {seed}");
        let sent = nic.port().statistics().sent;
        assert_eq!(sent.frames, 200);
    }
}

#[test]
fn reads_that_end_late_and_out_of_order_give_each_frame_once() {
    for seed in 0..SEEDS {
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        let nic = Lender::new("nic");
        let tap = Faulty::new("tap", Faults::MANY, seed);
        Port::connect(nic.port(), tap.port(), &shared).unwrap();
        frames(200).for_each(|frame| tap.give(frame));
        let mut steps = 0;
        while tap.step() {
            context.turn(NOW).unwrap();
            steps += 1;
            assert!(steps < 10_000, "seed {seed}");
        }
        assert_eq!(
            nic.take_frames(),
            frames(200).collect::<Vec<_>>(),
            "seed {seed}"
        );
        assert_eq!(nic.in_place(), 200, "seed {seed}");
        assert_eq!(nic.lent(), 0, "seed {seed}");
        assert_eq!(tap.port().statistics().sent.frames, 200);
    }
}

#[test]
fn whenever_the_link_is_cut_all_lends_are_back_when_it_is() {
    let mut lent_at_the_cut = 0;
    for seed in 0..SEEDS {
        // By hand, and on a thread of its own.
        let thread = IoThread::new("io").unwrap();
        let by_hand: Arc<dyn AioContext> = EventLoop::new().unwrap();
        for (shared, nic_cuts) in [(by_hand, true), (thread.context(), false)] {
            let nic = Lender::new("nic");
            let tap = Faulty::new("tap", Faults::MANY, seed);
            Port::connect(nic.port(), tap.port(), &shared).unwrap();
            frames(100).for_each(|frame| nic.queue(frame));
            frames(100).for_each(|frame| tap.give(frame));
            for _ in 0..seed % 10 {
                nic.pump();
                tap.step();
            }
            lent_at_the_cut += nic.lent();
            if nic_cuts {
                nic.port().disconnect();
            } else {
                tap.port().disconnect();
            }
            assert_eq!((nic.lent(), tap.held()), (0, 0), "seed {seed}");
            // What had arrived is a beginning of what was given.
            let got = nic.take_frames();
            assert!(
                got.iter().zip(frames(100)).all(|(got, sent)| *got == sent),
                "seed {seed}"
            );
            // And once more, with the same clients.
            Port::connect(nic.port(), tap.port(), &shared).unwrap();
            nic.port().disconnect();
        }
    }
    assert!(lent_at_the_cut > 100, "{lent_at_the_cut}");
}

#[test]
fn a_client_that_is_dropped_with_lends_completes_them_first() {
    let mut held = 0;
    for seed in 0..SEEDS {
        let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
        let nic = Lender::new("nic");
        let tap = Faulty::new("tap", Faults::MANY, seed);
        Port::connect(nic.port(), tap.port(), &context).unwrap();
        frames(100).for_each(|frame| nic.queue(frame));
        frames(100).for_each(|frame| tap.give(frame));
        for _ in 0..1 + seed % 10 {
            nic.pump();
            tap.step();
        }
        held += tap.held();
        drop(tap);
        assert_eq!(nic.lent(), 0, "seed {seed}");
        assert!(nic.port().context().is_none(), "seed {seed}");
    }
    assert!(held > 100, "{held}");
}

#[test]
fn a_seed_says_all_that_happens() {
    let run = |seed| {
        let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
        let nic = Lender::new("nic");
        let tap = Faulty::new("tap", Faults::MANY, seed);
        Port::connect(nic.port(), tap.port(), &context).unwrap();
        frames(100).for_each(|frame| nic.queue(frame));
        for _ in 0..50 {
            nic.pump();
            tap.step();
        }
        tap.port().disconnect();
        tap.take_frames()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
