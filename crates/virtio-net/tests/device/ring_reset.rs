//! One ring reset and enabled anew while the others work (virtio 1.4, 2.6.1, VIRTIO_F_RING_RESET), in each direction,
//! with frames in the peer's hands.

use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;
use virtqueue::QueueIndex;
use virtqueue::mock::Driver;
use vm_memory::GuestAddress;

use crate::harness::{Answer, HEADER, Nic, OK, PLAIN, RX, Revoking, TX, frame};

/// Of the second pair, whose rings stay.
const OTHER_RX: usize = 2;
const OTHER_TX: usize = 3;
/// More than the rings have entries for, so that each goes round.
const ROUNDS: u8 = 100;

/// A NIC of two pairs that are both in use.
fn nic(revoking: Revoking) -> Nic {
    let config = VirtioNetConfig {
        mq: true,
        ..VirtioNetConfig::default()
    };
    let prepare = |peer: &mut crate::harness::PeerState| peer.revoking = revoking;
    let mut nic = Nic::idle_pairs(2, config, &prepare, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    assert_eq!(nic.command(&[4, 0, 2, 0]), OK);
    nic
}

fn send(nic: &mut Nic, queue: usize, seed: u8) {
    let sent = frame(PLAIN, 60, seed);
    let head = nic.add_tx_to(queue, &sent, &[]);
    nic.kick(queue);
    assert_eq!(nic.used(queue), [(u32::from(head), 0)]);
    assert_eq!(nic.peers[queue / 2].take(), [sent]);
}

fn receive(nic: &mut Nic, queue: usize, seed: u8) {
    let (head, at) = nic.add_rx_to(queue, 2000);
    nic.kick(queue);
    let given = frame(PLAIN, 60, seed);
    let _ = nic.peers[queue / 2].give_frames([given.clone()]);
    nic.turn();
    let len = u32::try_from(given.len()).unwrap();
    assert_eq!(nic.used(queue), [(u32::from(head), len)]);
    assert_eq!(nic.bytes(at, given.len())[HEADER..], given[HEADER..]);
}

/// The rings that are not reset carry frames, and commands.
fn others(nic: &mut Nic, seed: u8) {
    send(nic, OTHER_TX, seed);
    receive(nic, OTHER_RX, seed);
    // Promiscuous mode, on.
    assert_eq!(nic.command(&[0, 0, 1]), OK);
}

/// What a driver does after a ring reset: a fresh ring, in the same place.
fn enable_anew(nic: &mut Nic, queue: usize) {
    let base = GuestAddress(u64::try_from(queue).unwrap() * 0x1_0000);
    let size = nic.drivers[queue].config().size;
    nic.drivers[queue] = Driver::new(nic.memory.clone(), base, size, nic.features);
    let loan = nic.loan(queue, nic.fresh());
    nic.device.start_queue(loan).unwrap();
    nic.kicks[queue].write(1).unwrap();
    nic.turn();
}

fn stop(nic: &Nic, queue: usize) {
    let index = QueueIndex(u16::try_from(queue).unwrap());
    assert_eq!(nic.device.stop_queue(index).unwrap().index, index);
    assert!(nic.device.stop_queue(index).is_none());
}

/// GUEST-BUGS 1 and 2: what is in flight at a ring reset is completed once, before the reset is over.
#[test]
fn a_transmit_ring_is_reset_with_frames_lent_while_the_others_carry_traffic() {
    for revoking in [Revoking::Backwards, Revoking::Late] {
        let mut nic = nic(revoking);
        for round in 0..ROUNDS {
            nic.peers[0].state().answer = Answer::Keep;
            let mut lent: Vec<_> = (0..3)
                .map(|i| u32::from(nic.add_tx_to(TX, &frame(PLAIN, 60, i), &[])))
                .collect();
            nic.kick(TX);
            assert_eq!(nic.peers[0].state().kept.len(), 3);
            assert_eq!(nic.used(TX), []);
            others(&mut nic, round);
            // Made available, and never seen: the driver has it back with the ring.
            nic.add_tx_to(TX, &frame(PLAIN, 60, 9), &[]);

            stop(&nic, TX);
            assert!(nic.peers[0].state().kept.is_empty(), "{round}");
            let mut used: Vec<_> = nic.used(TX).into_iter().map(|(head, _)| head).collect();
            used.sort_unstable();
            lent.sort_unstable();
            assert_eq!(used, lent, "{round}: each frame once");
            assert_eq!(nic.peers[0].take().len(), 3);

            // While there is no ring: a kick is for nothing, and the pair's other direction works.
            nic.kicks[TX].write(1).unwrap();
            nic.turn();
            assert!(nic.peers[0].take().is_empty());
            receive(&mut nic, RX, round);
            others(&mut nic, round);

            nic.peers[0].state().answer = Answer::Take;
            enable_anew(&mut nic, TX);
            assert!(
                nic.peers[0].take().is_empty(),
                "{round}: nothing of the old ring"
            );
            send(&mut nic, TX, round);
            others(&mut nic, round);
        }
        assert!(nic.resets().is_empty());
    }
}

#[test]
fn a_receive_ring_is_reset_with_buffers_lent_while_the_others_carry_traffic() {
    for revoking in [Revoking::Backwards, Revoking::Late] {
        let mut nic = nic(revoking);
        for round in 0..ROUNDS {
            let buffers: Vec<_> = (0..3).map(|_| nic.add_rx(1600)).collect();
            nic.kick(RX);
            nic.peers[0].state().slow = true;
            let _ = nic.peers[0].give();
            assert_eq!(nic.peers[0].state().reads.len(), 3);
            others(&mut nic, round);
            // One of them has come, out of order.
            nic.peers[0].end_read(1, &frame(PLAIN, 60, round));
            nic.turn();

            stop(&nic, RX);
            assert!(nic.peers[0].state().reads.is_empty(), "{round}");
            let used = nic.used(RX);
            let (whole, empty): (Vec<_>, Vec<_>) = used.into_iter().partition(|(_, len)| *len > 0);
            let expected = frame(PLAIN, 60, round);
            let len = u32::try_from(expected.len()).unwrap();
            assert_eq!(whole, [(u32::from(buffers[1].0), len)], "{round}");
            assert!(empty.len() <= 2, "{round}: {empty:?}");

            // While there is no ring nothing is read, and the pair's other direction works.
            nic.peers[0].state().slow = false;
            let late = frame(PLAIN, 60, round ^ 0x55);
            let _ = nic.peers[0].give_frames([late.clone()]);
            nic.turn();
            for (n, (_, at)) in buffers.iter().enumerate() {
                let begin = if n == 1 { expected.len() } else { 0 };
                let rest = nic.bytes(*at, 1600).split_off(begin);
                assert!(rest.iter().all(|byte| *byte == 0xa5), "{round} {n}");
            }
            send(&mut nic, TX, round);
            others(&mut nic, round);

            // The frame that has waited is the first in the new ring.
            enable_anew(&mut nic, RX);
            let (head, at) = nic.add_rx(1600);
            nic.kick(RX);
            let _ = nic.peers[0].give();
            nic.turn();
            assert_eq!(nic.used(RX), [(u32::from(head), len)], "{round}");
            assert_eq!(nic.bytes(at, late.len())[HEADER..], late[HEADER..]);
            receive(&mut nic, RX, round);
            others(&mut nic, round);
        }
        assert!(nic.resets().is_empty());
    }
}
