//! Frames that the driver sends.

use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;
use std::{fmt, io, thread};

use iothread::AioContext;
use net_client::{Frame, IoVec, NetClient, Port, Received, Token, copy_from_iov};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{HeaderFault, VirtioNetConfig};
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{Answer, DATA, HEADER, Nic, PLAIN, TX, frame};

#[test]
fn a_frame_reaches_the_peer_header_and_all_and_its_chain_comes_back_with_nothing_written() {
    let mut nic = Nic::new();
    let bytes = frame(PLAIN, 60, 1);
    let head = nic.add_tx(&bytes, &[HEADER]);
    assert!(nic.kick(TX));
    assert_eq!(nic.peer.take(), [bytes]);
    assert_eq!(nic.used(TX), [(u32::from(head), 0)]);
    assert_eq!(nic.calls[TX].count(), 1);
}

/// A header in descriptors of one byte.
#[test]
fn the_header_may_lie_in_any_pieces() {
    let mut nic = Nic::new();
    let header = [1, 0, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let bytes = frame(header, 100, 2);
    for cuts in [vec![], vec![1; 12], vec![5, 20], vec![13], vec![12, 1, 1]] {
        nic.add_tx(&bytes, &cuts);
        nic.kick(TX);
        assert_eq!(nic.peer.take(), std::slice::from_ref(&bytes), "{cuts:?}");
    }
}

/// Pages of a large frame's payload, one behind the other in memory.
#[test]
fn buffers_that_lie_one_behind_the_other_are_one_piece_for_the_peer() {
    // Where each buffer begins, and the pieces that the peer gets, its header among them.
    let table: [(&[u64], usize); 4] = [
        (&[0, 0x1000, 0x2000], 2),
        (&[0, 0x2000, 0x3000], 3),
        (&[0x2000, 0x1000, 0], 4),
        (&[0, 0x1000, 0x1000], 3),
    ];
    for (places, expected) in table {
        let mut nic = Nic::new();
        let base = nic.place(0x5000).next_multiple_of(0x1000);
        let header = nic.place(PLAIN.len());
        let mut chain = vec![Buffer::readable(header, 12)];
        nic.memory
            .write_slice(&PLAIN, GuestAddress(header))
            .unwrap();
        let mut sent = PLAIN.to_vec();
        for (n, place) in (1..).zip(places) {
            let at = GuestAddress(base + place);
            nic.memory.write_slice(&[n; 0x1000], at).unwrap();
            chain.push(Buffer::readable(at.0, 0x1000));
        }
        let mut page = [0; 0x1000];
        for place in places {
            nic.memory
                .read_slice(&mut page, GuestAddress(base + place))
                .unwrap();
            sent.extend_from_slice(&page);
        }
        nic.drivers[TX].add(&chain);
        nic.kick(TX);
        assert_eq!(nic.peer.take(), [sent], "{places:?}");
        assert_eq!(nic.peer.state().pieces, expected, "{places:?}");
    }
}

#[test]
fn a_batch_is_flushed_published_and_told_once() {
    let mut nic = Nic::new();
    for i in 0..50 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    let flushes = nic.peer.state().flushes;
    assert!(nic.kick(TX));
    assert_eq!(nic.peer.take().len(), 50);
    let used = nic.used(TX);
    assert_eq!(used.len(), 50);
    let statistics = nic.device.tx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.bytes), (50, 3000));
    assert_eq!(statistics.batches, 1);
    assert_eq!(statistics.notifications, 1);
    assert_eq!(nic.calls[TX].count(), 1);
    assert_eq!(nic.peer.state().flushes - flushes, 1);
}

#[test]
fn in_a_long_turn_the_driver_sees_what_is_done_before_all_is() {
    let mut nic = Nic::new();
    for i in 0..150 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    assert_eq!(nic.used(TX).len(), 150);
    // After 64, after 128, at the end.
    let statistics = nic.device.tx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.batches), (150, 3));
}

#[test]
fn of_large_frames_the_driver_sees_sooner_what_is_done() {
    let mut nic = Nic::new();
    for i in 0..12 {
        nic.add_tx(&frame(PLAIN, 61440, i), &[]);
    }
    nic.kick(TX);
    assert_eq!(nic.used(TX).len(), 12);
    // After 5 of 15 pages, after 10, at the end.
    let statistics = nic.device.tx_statistics(0).unwrap();
    assert_eq!((statistics.frames, statistics.batches), (12, 3));
}

#[test]
fn a_driver_that_wants_no_notification_gets_none() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX] {
        let mut nic = Nic::with(&|_| {}, features);
        nic.add_tx(&frame(PLAIN, 60, 0), &[]);
        nic.kick(TX);
        let before = nic.calls[TX].count();
        nic.drivers[TX].set_no_interrupt(true);
        for _ in 0..10 {
            nic.add_tx(&frame(PLAIN, 60, 0), &[]);
            nic.kick(TX);
        }
        assert_eq!(nic.used(TX).len(), 11);
        assert_eq!(nic.calls[TX].count(), before, "{features:?}");
    }
}

#[test]
fn more_than_a_burst_takes_several_turns_and_loses_nothing() {
    let mut nic = Nic::new();
    for _ in 0..256 {
        nic.add_tx(&frame(PLAIN, 14, 0), &[]);
    }
    assert!(nic.kick(TX));
    // The queue was full with exactly a burst; what is added now needs another kick or the second look.
    assert_eq!(nic.used(TX).len(), 256);
    nic.add_tx(&frame(PLAIN, 14, 0), &[]);
    nic.kick(TX);
    assert_eq!(nic.used(TX).len(), 1);
    assert_eq!(nic.peer.take().len(), 257);
}

#[test]
fn a_burst_ends_the_turn_and_the_next_turn_comes_by_itself() {
    let config = VirtioNetConfig {
        x_txburst: 4,
        ..Default::default()
    };
    let mut nic = Nic::idle_of(config, &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    for _ in 0..10 {
        nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    }
    nic.kicks[TX].write(1).unwrap();
    for expected in [4, 4, 2] {
        nic.context.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(nic.used(TX).len(), expected);
    }
}

/// A kick that is lost because the device looks away: it looks again.
#[test]
fn a_frame_that_comes_just_before_the_device_sleeps_is_seen_by_the_second_look() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX] {
        let mut nic = Nic::with(&|_| {}, features);
        nic.add_tx(&frame(PLAIN, 60, 0), &[]);
        let late = frame(PLAIN, 60, 1);
        let at = nic.place(late.len());
        nic.memory.write_slice(&late, GuestAddress(at)).unwrap();
        // The driver makes it available when notifications are still off, so it does not kick.
        let hook = nic.later(TX, &[Buffer::readable(at, 72)]);
        nic.peer.flush_hook.set(hook);
        nic.kicks[TX].write(1).unwrap();
        nic.turn();
        assert_eq!(nic.peer.take().len(), 2, "{features:?}");
        assert_eq!(nic.used(TX).len(), 2);
    }
}

/// A driver that makes one frame available at each look.
#[test]
fn a_second_look_that_finds_more_is_one_of_the_burst() {
    let config = VirtioNetConfig {
        x_txburst: 2,
        ..Default::default()
    };
    let mut nic = Nic::idle_of(config, &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    let hook = nic.later(TX, &[Buffer::readable(DATA, 72)]);
    nic.peer.flush_hook.set(hook);
    nic.kicks[TX].write(1).unwrap();
    for _ in 0..2 {
        nic.context.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(nic.used(TX).len(), 1);
    }
}

/// Headers that are short or lie: of a frame with nothing in it, checksums past the end or whose place overflows,
/// segments of no size or of one larger than the frame, kinds that are unknown or not negotiated, ECN alone.
#[test]
fn each_bad_frame_is_dropped_counted_and_given_back_and_the_next_one_passes() {
    use HeaderFault::*;
    let header = |flags, gso, size: u16, start: u16, offset: u16| {
        let [s0, s1] = size.to_le_bytes();
        let [a0, a1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        [flags, gso, 0, 0, s0, s1, a0, a1, o0, o1, 0, 0]
    };
    let table = [
        (PLAIN[..1].to_vec(), Short),
        (PLAIN[..11].to_vec(), Short),
        (PLAIN.to_vec(), Runt),
        (frame(PLAIN, 13, 0), Runt),
        (frame(PLAIN, 65558, 0), Giant),
        (frame(header(1, 0, 0, 60, 0), 60, 0), ChecksumOffset),
        (
            frame(header(1, 0, 0, 0xffff, 0xffff), 60, 0),
            ChecksumOffset,
        ),
        (frame(header(1, 1, 0, 34, 16), 3000, 0), GsoSize),
        (frame(header(1, 1, 5000, 34, 16), 3000, 0), GsoSize),
        (
            frame(header(0, 1, 1000, 34, 16), 3000, 0),
            GsoWithoutChecksum,
        ),
        (frame(header(1, 7, 1000, 34, 16), 3000, 0), GsoType),
        (frame(header(1, 3, 1000, 34, 16), 3000, 0), GsoNotNegotiated),
        (frame(header(1, 0x80, 0, 34, 16), 3000, 0), EcnWithoutTso),
    ];
    let mut nic = Nic::new();
    let mut expected = std::collections::HashMap::new();
    for (bytes, fault) in &table {
        let bad = nic.add_tx(bytes, &[]);
        let good = nic.add_tx(&frame(PLAIN, 60, 0), &[]);
        nic.kick(TX);
        assert_eq!(
            nic.used(TX),
            [(u32::from(bad), 0), (u32::from(good), 0)],
            "{fault:?}"
        );
        assert_eq!(nic.peer.take().len(), 1, "{fault:?}");
        *expected.entry(*fault).or_insert(0) += 1;
        let statistics = nic.device.tx_statistics(0).unwrap();
        assert_eq!(statistics.dropped(*fault), expected[fault], "{fault:?}");
    }
    assert!(nic.resets().is_empty());
    let statistics = nic.device.tx_statistics(0).unwrap();
    assert_eq!(statistics.dropped_in_all(), table.len() as u64);
}

/// Buffers in the wrong direction.
#[test]
fn a_chain_that_the_device_may_write_is_no_frame() {
    let mut nic = Nic::new();
    nic.drivers[TX].add(&[Buffer::readable(DATA, 100), Buffer::writable(DATA, 100)]);
    nic.drivers[TX].add(&[Buffer::writable(DATA, 100)]);
    nic.kick(TX);
    assert_eq!(nic.used(TX).len(), 2);
    assert!(nic.peer.take().is_empty());
    let statistics = nic.device.tx_statistics(0).unwrap();
    assert_eq!(statistics.dropped(HeaderFault::Writable), 2);
}

#[test]
fn a_peer_that_carries_no_header_gets_the_frame_alone() {
    let mut nic = Nic::with(&|peer| peer.header = false, NetF::all());
    for len in [60, 3000] {
        let bytes = frame(PLAIN, len, 3);
        nic.add_tx(&bytes, &[5, 20]);
        nic.kick(TX);
        assert_eq!(nic.peer.take(), [bytes[HEADER..].to_vec()], "{len}");
    }
}

/// A header that changes between its check and its use.
#[test]
fn what_the_driver_changes_after_the_check_does_not_reach_the_peer() {
    // The peer sees the header only when the frame is completed; the driver changes it meanwhile.
    let mut nic = Nic::with(&|peer| peer.answer = Answer::Refuse, NetF::all());
    let bytes = frame(PLAIN, 60, 0);
    let at = DATA;
    nic.add_tx(&bytes, &[]);
    nic.kick(TX);
    let lie = [1, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    nic.memory.write_slice(&lie, GuestAddress(at)).unwrap();
    nic.peer.has_room(10);
    nic.turn();
    assert_eq!(nic.peer.take(), [bytes]);
}

#[test]
fn a_frame_without_room_waits_is_not_lost_and_goes_first() {
    let mut nic = Nic::with(&|peer| peer.room = 2, NetF::all());
    let frames: Vec<_> = (0..5).map(|i| frame(PLAIN, 60, i)).collect();
    for bytes in &frames {
        nic.add_tx(bytes, &[]);
    }
    assert!(nic.kick(TX));
    assert_eq!(nic.used(TX).len(), 2);
    // No kick helps, so none is asked for, and one that comes does no harm.
    nic.add_tx(&frame(PLAIN, 60, 5), &[]);
    assert!(!nic.kick(TX));
    let offers = nic.peer.state().offers;
    nic.kicks[TX].write(1).unwrap();
    nic.turn();
    assert_eq!(nic.peer.state().offers, offers, "not asked again");
    assert!(nic.used(TX).is_empty());
    nic.peer.has_room(1);
    nic.turn();
    assert_eq!(nic.used(TX).len(), 1);
    nic.peer.has_room(10);
    nic.turn();
    assert_eq!(nic.used(TX).len(), 3);
    let got = nic.peer.take();
    assert_eq!(got[..5], frames[..]);
    assert_eq!(got.len(), 6);
    // And it sleeps with notifications on.
    nic.add_tx(&frame(PLAIN, 60, 6), &[]);
    assert!(nic.kick(TX));
    assert_eq!(nic.used(TX).len(), 1);
}

/// The lock of the queue is held by one that only looks while the peer says that it has room.
#[test]
fn word_of_room_while_somebody_looks_at_the_queue_is_not_lost() {
    /// Has room as soon as the queue is shown.
    struct Screen<'a>(&'a Nic);
    impl fmt::Write for Screen<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            if text.contains("stray_completions") {
                self.0.peer.has_room(10);
            }
            Ok(())
        }
    }
    let mut nic = Nic::with(&|peer| peer.answer = Answer::Refuse, NetF::all());
    nic.add_tx(&frame(PLAIN, 60, 0), &[]);
    nic.kick(TX);
    assert!(nic.peer.take().is_empty());
    fmt::Write::write_fmt(&mut Screen(&nic), format_args!("{:?}", nic.device)).unwrap();
    assert_eq!(nic.peer.state().room, 10, "the lock was held");
    nic.turn();
    assert_eq!(nic.peer.take().len(), 1);
    assert_eq!(nic.used(TX).len(), 1);
}

/// A frame that is completed twice, or was never there.
#[test]
fn frames_that_the_peer_keeps_come_back_when_it_says_so_in_any_order() {
    let mut nic = Nic::with(&|peer| peer.answer = Answer::Keep, NetF::all());
    let heads: Vec<u32> = (0..3)
        .map(|i| u32::from(nic.add_tx(&frame(PLAIN, 60, i), &[])))
        .collect();
    nic.kick(TX);
    assert!(nic.used(TX).is_empty());
    for (i, head) in [(2, 2), (0, 0), (0, 1)] {
        nic.peer.complete(i);
        assert_eq!(nic.used(TX), [(heads[head], 0)]);
    }
    // A completion of what it has not got changes nothing.
    nic.peer.port.sent(Token(1));
    nic.peer.port.sent(Token(u32::MAX));
    assert!(nic.used(TX).is_empty());
    assert_eq!(nic.device.tx_statistics(0).unwrap().stray_completions, 2);
}

/// Has the peer keep a hundred frames of all lengths up to an MTU, three times; `check` is given where they lie for it,
/// and what they were.
fn keep_a_hundred(check: impl Fn(&[Vec<IoVec>], &[Vec<u8>])) {
    let mut nic = Nic::with(&|peer| peer.answer = Answer::Keep, NetF::all());
    for round in 0..3 {
        let frames: Vec<_> = (0..100)
            .map(|i| frame(PLAIN, 60 + 14 * usize::from(i), round * 50 + i))
            .collect();
        for bytes in &frames {
            nic.add_tx(bytes, &[]);
        }
        nic.kick(TX);
        let lent = std::mem::take(&mut nic.peer.state().lent);
        check(&lent, &frames);
        for left in (0..frames.len()).rev() {
            nic.peer.complete(left / 2);
        }
        assert_eq!(nic.used(TX).len(), frames.len());
    }
}

#[test]
fn a_frame_that_the_peer_keeps_is_not_overwritten_by_those_behind_it() {
    keep_a_hundred(|lent, frames| {
        for (iov, sent) in lent.iter().zip(frames) {
            let mut there = vec![0; sent.len()];
            copy_from_iov(iov, 0, &mut there);
            assert!(there == *sent, "of {} bytes", sent.len());
        }
    });
}

/// Of which it has 64.
#[test]
fn frames_beyond_the_devices_copies_are_lent_where_they_lie() {
    keep_a_hundred(|lent, frames| {
        let whole = lent.iter().filter(|iov| iov.len() == 1).count();
        assert_eq!((whole, lent.len()), (64, frames.len()));
    });
}

/// 1600 bytes, header and frame.
#[test]
fn a_frame_is_copied_up_to_what_a_copy_takes() {
    for (header, most) in [(true, 1600 - HEADER), (false, 1600)] {
        let mut nic = Nic::with(&|peer| peer.header = header, NetF::all());
        for len in [most, most + 1] {
            for cuts in [&[][..], &[HEADER], &[HEADER, 100, 1], &[5, 200, 1]] {
                let bytes = frame(PLAIN, len, 1);
                nic.add_tx(&bytes, cuts);
                nic.kick(TX);
                let skip = if header { 0 } else { HEADER };
                let case = format!("{len} bytes in {cuts:?}");
                assert_eq!(nic.peer.take(), [&bytes[skip..]], "{case}");
                // Each frame lies in one piece of guest memory.
                let pieces = if len == most || !header { 1 } else { 2 };
                assert_eq!(nic.peer.state().pieces, pieces, "{case}");
            }
        }
    }
}

/// The header that was checked is what the peer gets when it has room, whatever is written over it meanwhile.
#[test]
fn a_frame_that_waits_for_room_has_the_header_that_was_checked() {
    let asking = [1, 0, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    // Both the first frame of a turn and one behind others.
    let table = [(PLAIN, 0), (PLAIN, 3), (asking, 0), (asking, 3)];
    for ((header, before), len) in table
        .into_iter()
        .flat_map(|case| [(case, 1000), (case, 3000)])
    {
        let mut nic = Nic::with(&|peer| peer.room = before, NetF::all());
        for i in 0..before {
            nic.add_tx(&frame(PLAIN, 60, u8::try_from(i).unwrap()), &[]);
        }
        let bytes = frame(header, len, 9);
        let at = nic.place(0);
        nic.add_tx(&bytes, &[]);
        nic.kick(TX);
        assert_eq!(nic.peer.take().len(), before);
        nic.memory
            .write_slice(&[0xff; HEADER], GuestAddress(at))
            .unwrap();
        nic.peer.state().room = usize::MAX;
        nic.peer.port.room();
        nic.turn();
        assert_eq!(
            nic.peer.take(),
            [bytes],
            "{len}, {header:?} behind {before}"
        );
        let statistics = nic.device.tx_statistics(0).unwrap();
        let (needed, none) = (statistics.csum_needed, statistics.csum_none);
        // Each once, where they are counted at all.
        let counted = NetF::from(nic.features).contains(NetF::DEVICE_STATS);
        let expected = if counted { before + 1 } else { 0 };
        assert_eq!(needed + none, u64::try_from(expected).unwrap());
    }
}

#[test]
fn frames_that_the_peer_finishes_at_the_batchs_end_are_published_with_it() {
    let mut nic = Nic::with(&|peer| peer.answer = Answer::KeepToFlush, NetF::all());
    for i in 0..10 {
        nic.add_tx(&frame(PLAIN, 60, i), &[]);
    }
    nic.kick(TX);
    assert_eq!(nic.used(TX).len(), 10);
    assert_eq!(nic.device.tx_statistics(0).unwrap().batches, 1);
}

/// A head that the ring does not have.
#[test]
fn a_ring_that_makes_no_sense_stops_its_queue_once_and_the_others_go_on() {
    let mut nic = Nic::new();
    nic.drivers[TX].offer_nonsense();
    nic.kick(TX);
    assert_eq!(nic.resets().len(), 1);
    assert!(
        nic.resets()[0].contains("virtio-net.0 tx"),
        "{:?}",
        nic.resets()
    );
    // The kick is not even read any more.
    for _ in 0..3 {
        nic.kicks[TX].write(1).unwrap();
        nic.turn();
    }
    assert_eq!(nic.resets().len(), 1);
    let (_, at) = nic.add_rx(2000);
    nic.kick(crate::harness::RX);
    let _ = nic.peer.give_frames([frame(PLAIN, 60, 9)]);
    assert_eq!(nic.bytes(at + 12, 60), frame(PLAIN, 60, 9)[HEADER..]);
    assert_eq!(nic.device.reset().len(), 3);
}

/// A peer that keeps all that it gets, and lets go of itself at the end of a batch.
#[derive(Debug)]
struct Leaver {
    port: Arc<Port>,
    kept: Mutex<Vec<Token>>,
    /// The only owner, but for who is at work.
    owner: Arc<Mutex<Option<Arc<Leaver>>>>,
}

impl NetClient for Leaver {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        self.kept.lock().unwrap().extend(frame.token);
        Received::Lent
    }

    fn flush(&self, _done: &mut dyn FnMut(Token)) {
        let me = self.owner.lock().unwrap().take();
        drop(me);
    }

    fn attach(&self, _context: &Arc<dyn AioContext>) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        for token in self.kept.get_mut().unwrap().drain(..) {
            self.port.sent(token);
        }
    }
}

#[test]
fn a_peer_that_goes_within_a_turn_gives_back_what_it_has() {
    let mut nic = Nic::new();
    let port = nic.device.ports()[0].clone();
    port.disconnect();
    let owner = Arc::new(Mutex::new(None));
    let peer = Arc::new_cyclic(|me: &Weak<Leaver>| Leaver {
        port: Port::new("leaver", me.clone() as Weak<dyn NetClient>),
        kept: Mutex::default(),
        owner: owner.clone(),
    });
    let context: Arc<dyn AioContext> = nic.context.clone();
    Port::connect(&port, &peer.port, &context).unwrap();
    nic.turn();
    *owner.lock().unwrap() = Some(peer);
    nic.add_tx(&frame(PLAIN, 60, 1), &[]);
    let (done, ended) = mpsc::channel();
    let turn = thread::spawn(move || {
        nic.kick(TX);
        let used = nic.used(TX).len();
        done.send(used).unwrap();
    });
    // The time only ends a test that hangs.
    assert_eq!(ended.recv_timeout(Duration::from_secs(20)), Ok(1));
    turn.join().unwrap();
}
