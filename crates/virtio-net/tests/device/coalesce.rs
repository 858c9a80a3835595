//! Notifications that are held back (virtio 1.4, 5.1.9.5.10).

use std::time::Duration;

use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;
use virtqueue::QueueIndex;

use crate::harness::{Answer, ERR, Nic, OK, PLAIN, RX, TX, frame};

const TX_SET: u8 = 0;
const RX_SET: u8 = 1;
const VQ_SET: u8 = 2;
const VQ_GET: u8 = 3;

fn set(command: u8, packets: u32, usecs: u32) -> Vec<u8> {
    [
        &[6, command][..],
        &packets.to_le_bytes(),
        &usecs.to_le_bytes(),
    ]
    .concat()
}

fn set_vq(queue: u16, packets: u32, usecs: u32) -> Vec<u8> {
    let [low, high] = queue.to_le_bytes();
    // The reserved field is ignored, whatever is in it.
    let queue = [6, VQ_SET, low, high, 0xff, 0xff];
    [&queue[..], &packets.to_le_bytes(), &usecs.to_le_bytes()].concat()
}

/// The parameters of a queue, or an error.
fn get_vq(nic: &mut Nic, queue: u16) -> Option<(u32, u32)> {
    let [low, high] = queue.to_le_bytes();
    let bytes = nic.command_for(&[6, VQ_GET, low, high, 0xff, 0xff], 9);
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(bytes.len(), 9);
    (bytes[8] == OK).then(|| (number(0), number(4)))
}

fn receive(nic: &mut Nic, count: usize) {
    for _ in 0..count {
        nic.add_rx(2000);
    }
    nic.kick(RX);
    let _ = nic.peer.give_frames(vec![frame(PLAIN, 60, 0); count]);
}

fn send(nic: &mut Nic, count: usize) {
    for _ in 0..count {
        nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    }
    nic.kick(TX);
}

fn wait(nic: &Nic, micros: u64) {
    nic.clock.advance(Duration::from_micros(micros));
    nic.turn();
}

/// A NIC whose driver wants each notification that there is.
fn nic() -> Nic {
    Nic::with(&|_| {}, NetF::all() - NetF::EVENT_IDX)
}

/// The two directions: the queue, the command that sets it, and what makes so many frames pass.
type Direction = (usize, u8, fn(&mut Nic, usize));
const DIRECTIONS: [Direction; 2] = [(RX, RX_SET, receive), (TX, TX_SET, send)];

#[test]
fn a_lone_frame_is_told_of_when_the_time_is_over_and_not_before() {
    for (queue, command, pass) in DIRECTIONS {
        let mut nic = nic();
        assert_eq!(nic.command(&set(command, 100, 50)), OK);
        pass(&mut nic, 1);
        // The driver can see it all the same.
        assert_eq!(nic.used(queue).len(), 1);
        assert_eq!(nic.calls[queue].count(), 0, "queue {queue}");
        wait(&nic, 49);
        assert_eq!(nic.calls[queue].count(), 0, "queue {queue}");
        wait(&nic, 1);
        assert_eq!(nic.calls[queue].count(), 1, "queue {queue}");
        wait(&nic, 1000);
        assert_eq!(nic.calls[queue].count(), 1, "queue {queue}");
        // And the next begins anew.
        pass(&mut nic, 1);
        wait(&nic, 49);
        assert_eq!(nic.calls[queue].count(), 1, "queue {queue}");
        wait(&nic, 1);
        assert_eq!(nic.calls[queue].count(), 2, "queue {queue}");
    }
}

#[test]
fn the_time_counts_from_the_first_frame_and_is_not_prolonged_by_later_ones() {
    for (queue, command, pass) in DIRECTIONS {
        let mut nic = nic();
        assert_eq!(nic.command(&set(command, 100, 50)), OK);
        for _ in 0..4 {
            pass(&mut nic, 1);
            wait(&nic, 12);
        }
        assert_eq!(nic.calls[queue].count(), 0, "queue {queue}");
        wait(&nic, 2);
        assert_eq!(nic.calls[queue].count(), 1, "queue {queue}");
    }
}

#[test]
fn as_many_frames_as_said_are_told_of_at_once() {
    for (queue, command, pass) in DIRECTIONS {
        let mut nic = nic();
        assert_eq!(nic.command(&set(command, 3, 1_000_000)), OK);
        for (frames, expected) in [(1, 0), (1, 0), (1, 1), (2, 1), (1, 2), (7, 3)] {
            pass(&mut nic, frames);
            assert_eq!(nic.calls[queue].count(), expected, "queue {queue}");
        }
        // None of those before is told of again.
        wait(&nic, 2_000_000);
        assert_eq!(nic.calls[queue].count(), 3, "queue {queue}");
    }
}

/// virtio 1.4, 5.1.9.5.10.1: with either number 0 each is told of.
#[test]
fn nothing_is_held_back_with_either_number_0() {
    for (queue, command, pass) in DIRECTIONS {
        for (packets, usecs) in [(0, 50), (50, 0), (0, 0)] {
            let mut nic = nic();
            assert_eq!(nic.command(&set(command, packets, usecs)), OK);
            for expected in 1..4 {
                pass(&mut nic, 1);
                assert_eq!(nic.calls[queue].count(), expected, "{packets}, {usecs}");
            }
        }
    }
}

/// virtio 1.4, 5.1.9.5.10.4
#[test]
fn what_the_new_parameters_do_not_hold_back_is_told_of_when_they_are_set() {
    for (queue, command, pass) in DIRECTIONS {
        for (packets, usecs, told) in [(8, 1000, 1), (0, 0, 1), (11, 1000, 0), (10, 1000, 1)] {
            let mut nic = nic();
            assert_eq!(nic.command(&set(command, 15, 1000)), OK);
            pass(&mut nic, 10);
            assert_eq!(nic.calls[queue].count(), 0);
            assert_eq!(nic.command(&set(command, packets, usecs)), OK);
            assert_eq!(nic.calls[queue].count(), told, "{packets}, {usecs}");
            wait(&nic, 1000);
            assert_eq!(nic.calls[queue].count(), 1, "{packets}, {usecs}");
        }
    }
}

/// virtio 1.4, 5.1.9.5.10.6: suppression by the driver holds all the same.
#[test]
fn a_driver_that_wants_no_notification_gets_none_when_the_time_is_over() {
    for (queue, command, pass) in DIRECTIONS {
        let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::EVENT_IDX);
        assert_eq!(nic.command(&set(command, 100, 50)), OK);
        nic.drivers[queue].set_no_interrupt(true);
        pass(&mut nic, 1);
        wait(&nic, 50);
        assert_eq!(nic.calls[queue].count(), 0);
        nic.drivers[queue].set_no_interrupt(false);
        pass(&mut nic, 1);
        wait(&nic, 50);
        assert_eq!(nic.calls[queue].count(), 1);
    }
}

#[test]
fn frames_that_the_peer_completes_late_are_held_back_too() {
    let mut nic = nic();
    assert_eq!(nic.command(&set(TX_SET, 2, 50)), OK);
    nic.peer.state().answer = Answer::Keep;
    send(&mut nic, 2);
    nic.peer.complete(0);
    assert_eq!(nic.calls[TX].count(), 0);
    nic.peer.complete(0);
    assert_eq!(nic.calls[TX].count(), 1);
}

/// The example of virtio 1.4, 5.1.9.5.10: what was set last holds, by whichever command.
#[test]
fn each_queue_has_what_was_set_last_for_it() {
    let config = VirtioNetConfig {
        mq: true,
        ..Default::default()
    };
    let mut nic = Nic::idle_pairs(2, config, &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    let all = |nic: &mut Nic| [0, 1, 2, 3].map(|queue| get_vq(nic, queue).unwrap());
    assert_eq!(all(&mut nic), [(0, 0); 4]);
    assert_eq!(nic.command(&set(RX_SET, 1, 10)), OK);
    assert_eq!(all(&mut nic), [(1, 10), (0, 0), (1, 10), (0, 0)]);
    assert_eq!(nic.command(&set_vq(0, 2, 20)), OK);
    assert_eq!(all(&mut nic), [(2, 20), (0, 0), (1, 10), (0, 0)]);
    assert_eq!(nic.command(&set_vq(1, 4, 40)), OK);
    assert_eq!(all(&mut nic), [(2, 20), (4, 40), (1, 10), (0, 0)]);
    assert_eq!(nic.command(&set(TX_SET, 5, 50)), OK);
    assert_eq!(all(&mut nic), [(2, 20), (5, 50), (1, 10), (5, 50)]);
    // The control queue, one that there is not, one that is being reset.
    for queue in [4, 5, u16::MAX] {
        assert_eq!(get_vq(&mut nic, queue), None, "queue {queue}");
        assert_eq!(nic.command(&set_vq(queue, 1, 1)), ERR, "queue {queue}");
    }
    for queue in [0, 1] {
        let stopped = nic.device.stop_queue(QueueIndex(queue)).unwrap();
        assert_eq!(get_vq(&mut nic, queue), None, "queue {queue}");
        assert_eq!(nic.command(&set_vq(queue, 1, 1)), ERR, "queue {queue}");
        let loan = nic.loan(usize::from(queue), stopped.state);
        nic.device.start_queue(loan).unwrap();
    }
    // Back with what was set for all queues of their kind.
    assert_eq!(all(&mut nic), [(1, 10), (5, 50), (1, 10), (5, 50)]);
    nic.restart();
    assert_eq!(all(&mut nic), [(0, 0); 4]);
}

#[test]
fn each_command_needs_its_feature_and_all_of_its_data() {
    let wanted = NetF::all() - NetF::NOTF_COAL;
    let mut nic = Nic::with(&|_| {}, wanted);
    assert_eq!(nic.command(&set(RX_SET, 1, 1)), ERR);
    assert_eq!(nic.command(&set(TX_SET, 1, 1)), ERR);
    assert_eq!(nic.command(&set_vq(0, 1, 1)), OK);
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::VQ_NOTF_COAL);
    assert_eq!(nic.command(&set(RX_SET, 1, 1)), OK);
    assert_eq!(nic.command(&set_vq(0, 1, 1)), ERR);
    assert_eq!(get_vq(&mut nic, 0), None);
    let mut nic = self::nic();
    for command in [set(RX_SET, 1, 1), set(TX_SET, 1, 1), set_vq(0, 1, 1)] {
        for len in 2..command.len() {
            assert_eq!(
                nic.command(&command[..len]),
                ERR,
                "{command:x?} cut to {len}"
            );
        }
        assert_eq!(
            nic.command(&[&command[..], &[0]].concat()),
            ERR,
            "{command:x?}"
        );
    }
    assert_eq!(nic.command(&set(4, 1, 1)), ERR);
    // A result that there is no room for, and a question that is too short or too long.
    let question = [6, VQ_GET, 0, 0, 0, 0];
    for room in 1..9 {
        assert_eq!(nic.command_for(&question, room), [ERR], "room for {room}");
    }
    assert_eq!(
        nic.command_for(&question, 9),
        [[0; 8].as_slice(), &[OK]].concat()
    );
    assert_eq!(
        nic.command_for(&question, 20),
        [[0; 8].as_slice(), &[OK]].concat()
    );
    assert_eq!(nic.command_for(&question[..5], 9)[8], ERR);
    assert_eq!(nic.command_for(&[&question[..], &[0]].concat(), 9)[8], ERR);
    assert!(nic.resets().is_empty());
}

#[test]
fn what_is_held_back_is_told_of_when_the_queue_stops_or_the_device_pauses() {
    for (queue, command, pass) in DIRECTIONS {
        let mut nic = nic();
        assert_eq!(nic.command(&set(command, 100, 50)), OK);
        pass(&mut nic, 1);
        nic.device.pause();
        assert_eq!(nic.calls[queue].count(), 1);
        nic.device.resume();
        nic.turn();
        pass(&mut nic, 1);
        assert_eq!(nic.calls[queue].count(), 1);
        nic.device
            .stop_queue(QueueIndex(u16::try_from(queue).unwrap()));
        assert_eq!(nic.calls[queue].count(), 2);
        wait(&nic, 1000);
        assert_eq!(nic.calls[queue].count(), 2);
    }
}

#[test]
fn a_queue_that_moves_to_another_context_goes_on_holding_back_there() {
    use iothread::{AioContext, EventLoop};
    use std::sync::Arc;
    for (queue, command, pass) in DIRECTIONS {
        let mut nic = nic();
        assert_eq!(nic.command(&set(command, 100, 50)), OK);
        pass(&mut nic, 1);
        nic.device.pause();
        let other = EventLoop::with_clock(nic.clock.clone()).unwrap();
        let context: Arc<dyn AioContext> = other.clone();
        nic.device.ports()[0]
            .client()
            .unwrap()
            .attach(&context)
            .unwrap();
        nic.device.resume();
        nic.context = other;
        nic.turn();
        pass(&mut nic, 1);
        assert_eq!(nic.calls[queue].count(), 1);
        wait(&nic, 50);
        assert_eq!(nic.calls[queue].count(), 2);
    }
}
