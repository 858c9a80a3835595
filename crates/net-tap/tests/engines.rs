//! What is lent to a tap that moves frames in batches comes back, whatever becomes of the interface.
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "memory is lent; helpers of tests, outside their functions"
)]

mod common;

use std::fs;
use std::sync::{Arc, Mutex, Weak};

use common::{config, has_ip, in_namespace, ip, open, run_dry};
use iothread::{AioContext, EventLoop};
use net_client::{DropReason, Frame, IoVec, NetClient, Netdev, Port, Received, Token};
use net_tap::{EngineKind, TapConfig, TapError, TapNetdev};

/// Lends one frame under many tokens, and keeps those that came back.
#[derive(Debug)]
struct Lender {
    port: Arc<Port>,
    frame: Mutex<Vec<u8>>,
    back: Mutex<Vec<u32>>,
}

impl Lender {
    fn new() -> Arc<Self> {
        let mut frame = vec![0; 74];
        frame[10..16].copy_from_slice(&[0xff; 6]);
        frame[22..24].copy_from_slice(&[0x88, 0xb5]);
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new("nic", me.clone()),
            frame: Mutex::new(frame),
            back: Mutex::default(),
        })
    }

    /// How many of `count` frames the peer keeps.
    fn lend(&self, count: u32) -> usize {
        let mut frame = self.frame.lock().unwrap();
        // SAFETY: the frame lives as long as the lender, which the tests keep to their end.
        let iov = [unsafe { IoVec::new(frame.as_mut_ptr(), frame.len()) }];
        let sender = self.port.sender();
        let send = |token| {
            sender.send(&Frame {
                token: Some(Token(token)),
                iov: &iov,
                len: iov[0].len(),
            })
        };
        (0..count)
            .filter(|token| send(*token) == Received::Lent)
            .count()
    }

    fn flush(&self) -> Vec<u32> {
        let mut done = Vec::new();
        self.port.flush(&mut |Token(token)| done.push(token));
        done
    }
}

impl NetClient for Lender {
    fn receive(&self, _frame: &Frame<'_>) -> Received {
        Received::Taken
    }

    fn sent(&self, Token(token): Token) {
        self.back.lock().unwrap().push(token);
    }
}

/// `None` where there is no io_uring.
fn lender() -> Option<(Arc<EventLoop>, Arc<Lender>, Arc<TapNetdev>)> {
    let config = TapConfig {
        engine: EngineKind::IoUring,
        address: Some("10.0.2.2/24".parse().unwrap()),
        ..config("vm0")
    };
    if let Err(error @ TapError::IoUring { .. }) = TapNetdev::open("tap0", &config) {
        common::not_run(&error.to_string());
        return None;
    }
    let tap = open(&config);
    let lender = Lender::new();
    let context = EventLoop::new().unwrap();
    let shared: Arc<dyn AioContext> = context.clone();
    Port::connect(&lender.port, &tap.ports()[0], &shared).unwrap();
    Some((context, lender, tap))
}

/// Frames that the host has from the interface.
fn arrived() -> u64 {
    let text = fs::read_to_string("/proc/net/dev").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("vm0:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn a_batch_arrives_and_comes_back_in_order() {
    in_namespace("a_batch_arrives_and_comes_back_in_order", || {
        let Some((_context, lender, tap)) = lender() else {
            return;
        };
        let before = arrived();
        assert_eq!(lender.lend(40), 40);
        assert_eq!(lender.flush(), (0..40).collect::<Vec<_>>());
        assert_eq!(arrived() - before, 40);
        assert_eq!(tap.ports()[0].statistics().received.dropped_in_all(), 0);
    });
}

#[test]
fn what_was_lent_and_not_sent_comes_back_when_it_is_revoked() {
    in_namespace(
        "what_was_lent_and_not_sent_comes_back_when_it_is_revoked",
        || {
            let Some((_context, lender, tap)) = lender() else {
                return;
            };
            assert_eq!(lender.lend(5), 5);
            tap.ports()[0].client().unwrap().revoke();
            assert_eq!(*lender.back.lock().unwrap(), [0, 1, 2, 3, 4]);
            assert_eq!(lender.flush(), []);
            assert_eq!(lender.lend(3), 3);
            lender.port.disconnect();
            assert_eq!(lender.back.lock().unwrap()[5..], [0, 1, 2]);
        },
    );
}

#[test]
fn a_batch_comes_back_when_the_interface_is_deleted_under_it() {
    in_namespace(
        "a_batch_comes_back_when_the_interface_is_deleted_under_it",
        || {
            if !has_ip() {
                return;
            }
            let Some((context, lender, tap)) = lender() else {
                return;
            };
            assert_eq!(lender.lend(20), 20);
            assert!(ip("link del vm0"));
            assert_eq!(lender.flush(), (0..20).collect::<Vec<_>>());
            let received = || tap.ports()[0].statistics().received;
            assert_eq!(received().dropped(DropReason::Backend), 20);
            // From here on they are not even kept.
            assert_eq!(lender.lend(2), 0);
            assert_eq!(received().dropped(DropReason::Backend), 22);
            run_dry(&context);
        },
    );
}
