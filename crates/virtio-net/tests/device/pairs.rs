//! Several queue pairs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iothread::{AioContext, EventLoop, IoThread};
use net_client::{Drained, DropReason, Loopback, Received};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::QueueIndex;
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{Answer, ERR, HEADER, Memory, Nic, OK, PLAIN, Peer, frame};

const PAIRS: usize = 3;

fn config() -> VirtioNetConfig {
    VirtioNetConfig {
        mq: true,
        ..Default::default()
    }
}

/// A NIC of three pairs whose driver has negotiated MQ.
fn nic() -> Nic {
    let nic = Nic::idle_pairs(PAIRS, config(), &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    nic
}

fn set_pairs(count: u16) -> [u8; 4] {
    let [low, high] = count.to_le_bytes();
    [4, 0, low, high]
}

/// Which pairs send what is put on their queues.
fn sending(nic: &mut Nic) -> Vec<usize> {
    for pair in 0..PAIRS {
        nic.add_tx_to(2 * pair + 1, &frame(PLAIN, 60, 0), &[]);
        nic.kick(2 * pair + 1);
        assert_eq!(nic.used(2 * pair + 1).len(), 1, "pair {pair}");
    }
    (0..PAIRS)
        .filter(|pair| !nic.peers[*pair].take().is_empty())
        .collect()
}

/// Which pairs take what their peers give.
fn receiving(nic: &mut Nic) -> Vec<usize> {
    let mut taken = Vec::new();
    for pair in 0..PAIRS {
        nic.add_rx_to(2 * pair, 2000);
        nic.kick(2 * pair);
        let _ = nic.peers[pair].give_frames([frame(PLAIN, 60, 0)]);
        if !nic.used(2 * pair).is_empty() {
            taken.push(pair);
        }
        nic.peers[pair].state().to_give.clear();
    }
    taken
}

#[test]
fn the_number_of_pairs_is_in_configuration_space_and_each_has_two_queues() {
    for pairs in [1, 2, 7] {
        let nic = Nic::idle_pairs(pairs, config(), &|_| {}, NetF::all());
        let sizes = [[256, 256].repeat(pairs), vec![64]].concat();
        assert_eq!(nic.device.queue_max_sizes(), sizes);
        let mut bytes = [0; 2];
        nic.device.read_config(8, &mut bytes);
        assert_eq!(usize::from(u16::from_le_bytes(bytes)), pairs);
        assert_eq!(nic.device.default_vectors(), 2 * pairs + 2);
    }
    let off = Nic::idle_pairs(3, VirtioNetConfig::default(), &|_| {}, NetF::all());
    assert_eq!(off.device.queue_max_sizes(), [256, 256, 64]);
    // QEMU 7.2: `vectors` follows the backend all the same.
    assert_eq!(off.device.default_vectors(), 8);
    assert!(!NetF::from(off.device.offered_features()).contains(NetF::MQ));
    // Its other ports are its all the same: nobody else takes them.
    assert!(off.peers.iter().all(|peer| peer.port.peer().is_some()));
}

#[test]
fn as_many_pairs_can_be_as_a_tap_has_queues() {
    let context = EventLoop::new().unwrap();
    let backends: Vec<_> = (0..256).map(|i| Loopback::new(format!("net{i}"))).collect();
    let ports = backends.iter().map(|b| b.port().clone()).collect();
    let nic = VirtioNet::<Memory>::new(config(), ports, vec![context]).unwrap();
    assert_eq!(nic.queue_max_sizes().len(), 513);
    assert_eq!(nic.ports().len(), 256);
}

#[test]
fn only_the_first_pair_is_used_before_the_driver_asks_for_more() {
    let mut nic = nic();
    assert_eq!(sending(&mut nic), [0]);
    assert_eq!(receiving(&mut nic), [0]);
    assert!(nic.peers.iter().all(|p| p.state().enabled.is_empty()));
}

#[test]
fn the_pairs_that_the_driver_asks_for_work_and_the_others_rest() {
    let mut nic = nic();
    for count in [3, 3, 1, 2, 3, 2] {
        assert_eq!(nic.command(&set_pairs(count)), OK);
        let used: Vec<_> = (0..usize::from(count)).collect();
        assert_eq!(sending(&mut nic), used, "{count} pairs");
        assert_eq!(receiving(&mut nic), used, "{count} pairs");
        for (i, peer) in nic.peers.iter().enumerate().skip(1) {
            let enabled = peer.state().enabled.last().copied();
            assert_eq!(
                enabled.unwrap_or(false),
                i < usize::from(count),
                "{count}: {i}"
            );
        }
    }
    assert!(nic.peer.state().enabled.is_empty(), "it always is");
    let dropped = nic.device.tx_statistics(2).unwrap().dropped_disabled;
    assert_eq!(dropped, 3, "with 1, 2 and 2 pairs");
}

/// Pairs 0 or too many, and data short or long.
#[test]
fn numbers_of_pairs_that_cannot_be_are_refused_and_change_nothing() {
    let mut nic = nic();
    assert_eq!(nic.command(&set_pairs(2)), OK);
    for count in [0, 4, 0x7fff, 0x8000, 0x8001, u16::MAX] {
        assert_eq!(nic.command(&set_pairs(count)), ERR, "{count}");
        assert_eq!(sending(&mut nic), [0, 1], "{count}");
    }
    for bytes in [&[4, 0][..], &[4, 0, 1], &[4, 0, 1, 0, 0], &[4, 2, 1, 0]] {
        assert_eq!(nic.command(bytes), ERR, "{bytes:?}");
    }
    assert_eq!(sending(&mut nic), [0, 1]);
}

#[test]
fn a_backend_that_refuses_a_queue_leaves_the_pairs_as_they_were() {
    let mut nic = nic();
    nic.peers[2].state().refuses_enabling = true;
    assert_eq!(nic.command(&set_pairs(3)), ERR);
    assert_eq!(sending(&mut nic), [0]);
    assert_eq!(receiving(&mut nic), [0]);
    assert_eq!(nic.peers[1].state().enabled, [true, false]);
    nic.peers[2].state().refuses_enabling = false;
    assert_eq!(nic.command(&set_pairs(3)), OK);
    assert_eq!(sending(&mut nic), [0, 1, 2]);
}

/// The control queue's index with MQ and without.
#[test]
fn the_control_queue_is_the_last_with_mq_and_the_third_without() {
    let mut with = nic();
    assert_eq!(with.drivers.len(), 7);
    assert_eq!(with.command(&[0, 0, 1]), OK);

    let mut without = Nic::idle_pairs(PAIRS, config(), &|_| {}, NetF::all() - NetF::MQ);
    without.device.negotiate(without.features).unwrap();
    // What a driver sets up that knows no other pairs.
    without.drivers.truncate(3);
    without.kicks.truncate(3);
    without.activate();
    assert_eq!(without.command(&[0, 0, 1]), OK);
    assert_eq!(without.command(&set_pairs(1)), ERR, "not negotiated");
    assert!(without.device.stop_queue(QueueIndex(6)).is_none());
    assert_eq!(without.device.reset().len(), 3);
}

#[test]
fn a_reset_leaves_the_first_pair_and_gives_all_queues_back() {
    let mut nic = nic();
    assert_eq!(nic.command(&set_pairs(3)), OK);
    let queues = nic.device.reset();
    let indices: Vec<_> = queues.iter().map(|queue| queue.index.0).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6]);
    for (i, peer) in nic.peers.iter().enumerate().skip(1) {
        assert_eq!(peer.state().enabled, [true, false], "{i}");
    }
    nic.restart();
    assert_eq!(sending(&mut nic), [0]);
    assert_eq!(nic.command(&set_pairs(2)), OK);
    assert_eq!(sending(&mut nic), [0, 1]);
    let peers = nic.peers.clone();
    drop(nic);
    assert_eq!(peers[1].state().enabled.last(), Some(&false));
    assert!(peers.iter().all(|peer| peer.port.peer().is_none()));
}

#[test]
fn a_pair_whose_queues_were_reset_goes_on_as_it_was() {
    for count in [2, 1] {
        let mut nic = nic();
        assert_eq!(nic.command(&set_pairs(count)), OK);
        for queue in [2, 3] {
            let loan = nic.device.stop_queue(QueueIndex(queue)).unwrap();
            assert_eq!(loan.index, QueueIndex(queue));
            assert!(nic.device.stop_queue(QueueIndex(queue)).is_none());
            nic.device.start_queue(loan).unwrap();
            nic.kicks[usize::from(queue)].write(1).unwrap();
        }
        nic.turn();
        let used: Vec<_> = (0..usize::from(count)).collect();
        assert_eq!(sending(&mut nic), used);
        assert_eq!(receiving(&mut nic), used);
    }
}

#[test]
fn a_pair_can_be_taken_into_use_while_its_queues_are_reset() {
    let mut nic = nic();
    let loans: Vec<_> = [2, 3]
        .into_iter()
        .map(|queue| nic.device.stop_queue(QueueIndex(queue)).unwrap())
        .collect();
    assert_eq!(nic.command(&set_pairs(2)), OK);
    for loan in loans {
        let queue = usize::from(loan.index.0);
        nic.device.start_queue(loan).unwrap();
        nic.kicks[queue].write(1).unwrap();
    }
    nic.turn();
    assert_eq!(sending(&mut nic), [0, 1]);
    assert_eq!(receiving(&mut nic), [0, 1]);
}

/// 5.1.9.5.6.2: "If the destination receive queue is being reset [...] the device SHOULD re-select another random queue. If all
/// receive queues are being reset, the device MUST drop the packet." Here a frame is steered by the backend's queue that
/// it comes from: it is not taken from there while its queue is reset, and those of other queues pass.
#[test]
fn a_queue_that_is_being_reset_gets_no_frame_and_keeps_none_from_others() {
    let mut nic = nic();
    assert_eq!(nic.command(&set_pairs(3)), OK);
    let mut loans = Vec::new();
    for (stopped, queue) in [2, 0, 4].into_iter().enumerate() {
        nic.add_rx_to(queue.into(), 2000);
        nic.kick(queue.into());
        loans.push(nic.device.stop_queue(QueueIndex(queue)).unwrap());
        let given = nic.peers[usize::from(queue / 2)].give_frames([frame(PLAIN, 60, 0)]);
        assert_eq!(given, Drained::NoRoom, "{queue}");
        assert!(nic.used(queue.into()).is_empty());
        let others: Vec<_> = [0_u16, 2, 4]
            .into_iter()
            .filter(|other| loans.iter().all(|loan| loan.index.0 != *other))
            .collect();
        assert_eq!(others.len(), 2 - stopped);
        for other in others {
            nic.add_rx_to(other.into(), 2000);
            nic.kick(other.into());
            let _ = nic.peers[usize::from(other / 2)].give_frames([frame(PLAIN, 60, 0)]);
            assert_eq!(nic.used(other.into()).len(), 1, "{queue} {other}");
        }
    }
    // What is pushed is refused, and the pusher hears when it may come again.
    for peer in &nic.peers {
        let pushed = peer.port.send_bytes(&frame(PLAIN, 60, 1));
        assert_eq!(pushed, Received::Busy);
    }
    let rooms = nic.peers.iter().map(|peer| peer.state().rooms);
    let rooms: Vec<_> = rooms.collect();
    for loan in loans {
        let queue = usize::from(loan.index.0);
        nic.device.start_queue(loan).unwrap();
        nic.kicks[queue].write(1).unwrap();
        nic.turn();
        assert!(nic.peers[queue / 2].state().rooms > rooms[queue / 2]);
    }
    assert_eq!(receiving(&mut nic), [0, 1, 2]);
}

#[test]
fn a_peer_that_found_no_room_in_an_unused_pair_hears_of_it_when_the_pair_is_used() {
    let mut nic = nic();
    nic.add_rx_to(2, 2000);
    nic.kick(2);
    let bytes = frame(PLAIN, 60, 3);
    assert_eq!(nic.peers[1].give_frames([bytes.clone()]), Drained::NoRoom);
    assert_eq!(nic.peers[1].port.send_bytes(&bytes), Received::Busy);
    let rooms = nic.peers[1].state().rooms;
    assert_eq!(nic.command(&set_pairs(2)), OK);
    nic.turn();
    assert_eq!(nic.peers[1].state().rooms, rooms + 1);
    let _ = nic.peers[1].give();
    assert_eq!(nic.used(2).len(), 1);
}

#[test]
fn what_is_under_way_when_a_pair_is_left_comes_back_to_the_driver() {
    let mut nic = nic();
    assert_eq!(nic.command(&set_pairs(2)), OK);
    // A frame that the peer keeps, one that it had no room for, and a read that goes on.
    nic.peers[1].state().answer = Answer::Keep;
    nic.peers[1].state().room = 1;
    nic.add_tx_to(3, &frame(PLAIN, 60, 0), &[]);
    nic.add_tx_to(3, &frame(PLAIN, 60, 1), &[]);
    nic.kick(3);
    nic.add_rx_to(2, 2000);
    nic.kick(2);
    nic.peers[1].state().slow = true;
    let _ = nic.peers[1].give();
    assert_eq!(nic.peers[1].state().reads.len(), 1);
    assert!(nic.used(3).is_empty());

    assert_eq!(nic.command(&set_pairs(1)), OK);
    nic.turn();
    assert_eq!(nic.used(3).len(), 1, "the frame that waited is dropped");
    nic.peers[1].complete(0);
    assert_eq!(nic.used(3).len(), 1);
    nic.peers[1].end_read(0, &frame(PLAIN, 60, 2));
    assert!(
        nic.used(2).is_empty(),
        "no frame on a queue that is not used"
    );
    let statistics = nic.device.rx_statistics(1).unwrap();
    assert_eq!((statistics.frames, statistics.dropped_disabled), (0, 1));
    let port = nic.device.ports()[1].statistics();
    assert_eq!(port.sent.dropped(DropReason::NotRunning), 1);
    assert_eq!(port.received.dropped(DropReason::NotRunning), 1);
    // The buffer is still there for the next frame.
    nic.peers[1].state().slow = false;
    assert_eq!(nic.command(&set_pairs(2)), OK);
    nic.turn();
    let _ = nic.peers[1].give_frames([frame(PLAIN, 60, 4)]);
    assert_eq!(nic.used(2).len(), 1);
}

#[test]
fn a_frame_received_before_a_pair_is_left_is_told_before_the_answer() {
    let mut nic = nic();
    assert_eq!(nic.command(&set_pairs(2)), OK);
    nic.add_rx_to(2, 2000);
    nic.kick(2);
    let bytes = frame(PLAIN, 60, 0);
    assert_eq!(nic.peers[1].port.send_bytes(&bytes), Received::Taken);
    assert!(nic.used(2).is_empty(), "not before the flush");
    assert_eq!(nic.command(&set_pairs(1)), OK);
    assert_eq!(nic.used(2).len(), 1);
    assert_eq!(nic.calls[2].count(), 1);
    nic.peers[1].port.flush(&mut |_| {});
    assert_eq!(nic.calls[2].count(), 1);
}

#[test]
fn a_broken_queue_stops_alone() {
    let mut nic = nic();
    assert_eq!(nic.command(&set_pairs(3)), OK);
    nic.drivers[3].offer_nonsense();
    nic.kicks[3].write(1).unwrap();
    nic.turn();
    assert_eq!(nic.resets().len(), 1);
    assert!(
        nic.resets()[0].starts_with("virtio-net.1 tx: "),
        "{:?}",
        nic.resets()
    );
    nic.add_tx_to(5, &frame(PLAIN, 60, 0), &[]);
    nic.kick(5);
    assert_eq!(nic.peers[2].take().len(), 1);
    assert_eq!(nic.device.reset().len(), 7);
}

#[test]
fn the_backends_queues_are_all_set_up_at_negotiation() {
    let nic = Nic::idle_pairs(PAIRS, config(), &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    for peer in &nic.peers {
        assert_eq!(peer.state().header_len, Some(HEADER));
        assert_eq!(peer.state().offloads.len(), 1);
    }
}

#[test]
fn mq_without_a_control_queue_is_refused() {
    let nic = Nic::idle_pairs(PAIRS, config(), &|_| {}, NetF::all());
    let features = F::from(NetF::VERSION_1 | NetF::MQ);
    assert!(nic.device.negotiate(features).is_err());
}

#[test]
fn each_pair_works_on_its_own_context_or_all_on_the_only_one() {
    let peers: Vec<_> = (0..3).map(|_| Peer::new()).collect();
    let ports = || peers.iter().map(|peer| peer.port.clone()).collect();
    let loops: Vec<_> = (0..3).map(|_| EventLoop::new().unwrap()).collect();
    let contexts = loops
        .iter()
        .map(|context| context.clone() as Arc<dyn AioContext>)
        .collect();
    let at = |pair: usize| peers[pair].port.context().unwrap();
    let nic = VirtioNet::<Memory>::new(config(), ports(), contexts).unwrap();
    for (i, own) in loops.iter().enumerate() {
        for (j, context) in loops.iter().enumerate() {
            let same = std::ptr::addr_eq(Arc::as_ptr(&at(i)), Arc::as_ptr(context));
            assert_eq!(same, i == j, "{i}, {j}");
        }
        let _ = own.turn(Some(Duration::ZERO));
    }
    drop(nic);
    let _nic = VirtioNet::<Memory>::new(config(), ports(), vec![loops[1].clone() as _]).unwrap();
    for i in 0..3 {
        assert!(std::ptr::addr_eq(
            Arc::as_ptr(&at(i)),
            Arc::as_ptr(&loops[1])
        ));
    }
}

/// A driver that changes pairs and filters while frames go both ways, each pair on a thread of its own.
#[test]
fn commands_while_threads_of_their_own_work_the_pairs_lose_nothing() {
    const ROUNDS: u8 = 60;
    const BATCH: u8 = 8;
    let threads: Vec<_> = (0..2)
        .map(|i| IoThread::new(format!("pair{i}")).unwrap())
        .collect();
    let contexts = threads.iter().map(|thread| thread.context()).collect();
    let mut nic = Nic::idle_on(2, Some(contexts), config(), &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    let context = threads[1].context();
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = |what: &str| {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::yield_now();
    };
    let place = nic.place(64);
    let commands: [&[u8]; 6] = [
        &[4, 0, 2, 0],
        &[0, 0, 0],
        &[2, 0, 5, 0],
        &[0, 0, 1],
        &[4, 0, 1, 0],
        &[1, 1, 2, 0, 0, 0, 0, 1],
    ];
    let batch = usize::from(BATCH);
    let mut sent = 0;
    let mut quiet = 0;
    for _ in 0..100 {
        nic.add_rx_to(2, 200);
    }
    for round in 0..ROUNDS {
        for i in 0..BATCH {
            nic.add_tx_to(3, &frame(PLAIN, 60, i), &[]);
        }
        for _ in nic.used(2) {
            nic.add_rx_to(2, 200);
        }
        nic.kicks[2].write(1).unwrap();
        nic.kicks[3].write(1).unwrap();
        let peer = nic.peers[1].clone();
        context.schedule(Box::new(move || {
            let frames = (0..BATCH).map(|i| frame(PLAIN, 60, i));
            let _ = peer.give_frames(frames);
        }));
        let command = commands[usize::from(round) % commands.len()];
        nic.memory
            .write_slice(command, GuestAddress(place))
            .unwrap();
        let len = u32::try_from(command.len()).unwrap();
        nic.drivers[4].add(&[
            Buffer::readable(place, len),
            Buffer::writable(place + 32, 1),
        ]);
        nic.kicks[4].write(1).unwrap();
        while nic.used(4).is_empty() {
            wait("an answer");
        }
        assert_eq!(nic.bytes(place + 32, 1), [OK], "{command:?}");
        let frames = nic.device.rx_statistics(1).unwrap().frames;
        // Up to the next command but one the second pair is not used.
        match command {
            [4, 0, 1, 0] => quiet = frames,
            [1, ..] => assert_eq!(frames, quiet, "frames on a pair that is not used"),
            _ => {}
        }
        while sent < batch * (usize::from(round) + 1) {
            sent += nic.used(3).len();
            wait("a chain");
        }
    }
    let transmitted = nic.device.tx_statistics(1).unwrap();
    assert_eq!(
        transmitted.frames + transmitted.dropped_disabled,
        sent as u64
    );
    assert_eq!(nic.peers[1].take().len() as u64, transmitted.frames);
    assert!(transmitted.frames > 0 && transmitted.dropped_disabled > 0);
    nic.device.reset();
    let received = nic.device.rx_statistics(1).unwrap();
    let left = nic.peers[1].state().to_give.len() as u64;
    let given = u64::from(ROUNDS) * u64::from(BATCH);
    assert_eq!(received.frames + received.dropped_filtered + left, given);
    assert!(nic.resets().is_empty());
}
