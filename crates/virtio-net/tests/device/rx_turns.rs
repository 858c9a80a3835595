//! How long one turn of the receive direction may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use net_client::Drained;
use virtio::net::F as NetF;
use virtqueue::mock::Buffer;

use crate::harness::{Call, DATA, Nic, PLAIN, RX, frame};

/// From now on the driver has a useless chain available again within each notification, as long as `most` of them; returns
/// how many it has been told of.
fn refill_with_useless_chains(nic: &mut Nic, most: usize) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let mut driver = nic.drivers.remove(RX);
    driver.want_interrupt(0);
    on_each_notification(nic.calls[RX].clone(), move || {
        while driver.take_used().is_some() {}
        driver.add(&[Buffer::readable(DATA, 100)]);
        driver.want_interrupt(0);
        counted.fetch_add(1, Ordering::SeqCst) + 1 < most
    });
    count
}

fn on_each_notification(call: Arc<Call>, mut step: impl FnMut() -> bool + Send + 'static) {
    let again = call.clone();
    call.hook.set(move || {
        if step() {
            on_each_notification(again, step);
        }
    });
}

/// What it makes available is of no use, and comes as fast as it
/// is given back.
#[test]
fn class_9_a_driver_that_refills_with_useless_chains_does_not_keep_a_turn_going() {
    for features in [NetF::all(), NetF::all() - NetF::MRG_RXBUF] {
        let mut nic = Nic::with(&|_| {}, features);
        nic.drivers[RX].add(&[Buffer::readable(DATA, 100)]);
        let told = refill_with_useless_chains(&mut nic, 5000);
        nic.peer.state().to_give.push(frame(PLAIN, 60, 0));
        // The peer is not told that there is no room, for which it would wait: others have their turn, and then it comes again.
        assert_eq!(nic.peer.give(), Drained::Budget);
        let told = told.load(Ordering::SeqCst);
        assert!((1..=256).contains(&told), "{told}");
    }
}

/// As above, of the turn of a kick, while a frame waits for the rest of its buffers.
#[test]
fn class_9_useless_chains_do_not_keep_the_turn_of_a_kick_going_while_a_frame_waits() {
    let mut nic = Nic::new();
    nic.add_rx(100);
    nic.kick(RX);
    assert_eq!(
        nic.peer.give_frames([frame(PLAIN, 200, 0)]),
        Drained::NoRoom
    );
    nic.drivers[RX].add(&[Buffer::readable(DATA, 100)]);
    let told = refill_with_useless_chains(&mut nic, 5000);
    nic.kicks[RX].write(1).unwrap();
    let mut before = 0;
    for _ in 0..3 {
        nic.context.turn(Some(Duration::ZERO)).unwrap();
        // It comes again without a kick of the driver's, and each time no longer.
        let now = told.load(Ordering::SeqCst);
        assert!((1..=256).contains(&(now - before)), "{before} {now}");
        before = now;
    }
}
