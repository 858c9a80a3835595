//! The contract of two clients on a link.
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "test clients read and write lent memory; helpers outside test functions"
)]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak};
use std::thread;
use std::time::Duration;

use iothread::{AioContext, EventLoop, IoThread};
use net_client::{
    ConnectError, Drained, DropReason, Faults, Faulty, Frame, FrameSource, IoVec, Loopback,
    NetClient, Port, Read, Received, Recorder, Token, copy_to_iov,
};

const NOW: Option<Duration> = Some(Duration::ZERO);

fn context() -> (Arc<EventLoop>, Arc<dyn AioContext>) {
    let context = EventLoop::new().unwrap();
    (context.clone(), context)
}

/// Frames in a queue, some of whose reads go on for a while.
#[derive(Default)]
struct Frames {
    frames: VecDeque<Vec<u8>>,
    /// Reads are pending until `complete`.
    slow: bool,
    pending: Vec<(Token, IoVec)>,
}

impl Frames {
    fn of(frames: &[&[u8]]) -> Self {
        Self {
            frames: frames.iter().map(|frame| frame.to_vec()).collect(),
            ..Self::default()
        }
    }

    /// Ends the pending read with the next frame.
    fn complete(&mut self, port: &Port) {
        let (token, iov) = self.pending.remove(0);
        let frame = self.frames.pop_front().unwrap_or_default();
        copy_to_iov(&[iov], 0, &frame);
        port.read_done(token, frame.len());
    }
}

impl FrameSource for Frames {
    fn max_frame(&self) -> usize {
        2000
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        if self.slow {
            self.pending.push((token, iov[0]));
            return Read::Pending;
        }
        match self.frames.pop_front() {
            Some(frame) => Read::Frame(copy_to_iov(iov, 0, &frame)),
            None => Read::Empty,
        }
    }
}

/// Keeps what is lent to it, and what it is told.
#[derive(Debug)]
struct Keeper {
    port: Arc<Port>,
    kept: Mutex<Vec<Token>>,
    sent: Mutex<Vec<Token>>,
    attached: Mutex<Vec<&'static str>>,
    refuse: bool,
}

impl Keeper {
    fn new(name: &str, refuse: bool) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new(name, me.clone()),
            kept: Mutex::default(),
            sent: Mutex::default(),
            attached: Mutex::default(),
            refuse,
        })
    }

    fn calls(&self) -> Vec<&'static str> {
        self.attached.lock().unwrap().clone()
    }
}

impl NetClient for Keeper {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        match frame.token {
            Some(token) => {
                self.kept.lock().unwrap().push(token);
                Received::Lent
            }
            None => Received::Taken,
        }
    }

    fn sent(&self, token: Token) {
        self.sent.lock().unwrap().push(token);
    }

    fn revoke(&self) {
        self.attached.lock().unwrap().push("revoke");
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        for token in kept.into_iter().rev() {
            self.port.sent(token);
        }
    }

    fn attach(&self, _context: &Arc<dyn AioContext>) -> io::Result<()> {
        if self.refuse {
            return Err(io::Error::other("refused"));
        }
        self.attached.lock().unwrap().push("attach");
        Ok(())
    }

    fn detach(&self) {
        self.attached.lock().unwrap().push("detach");
    }
}

#[test]
fn a_port_has_one_peer_at_a_time() {
    let (_, context) = context();
    let [a, b, c] = ["a", "b", "c"].map(Recorder::new);
    Port::connect(a.port(), b.port(), &context).unwrap();
    assert_eq!(a.port().peer().unwrap().name(), "b");
    assert_eq!(b.port().peer().unwrap().name(), "a");
    for (x, y, words) in [
        (&a, &c, "'a' is in use: its peer is 'b'"),
        (&c, &b, "'b' is in use: its peer is 'a'"),
        (&c, &c, "'c' cannot be its own peer"),
    ] {
        let error = Port::connect(x.port(), y.port(), &context).unwrap_err();
        assert_eq!(error.to_string(), words);
        assert!(c.port().peer().is_none(), "{words}");
    }
    a.port().disconnect();
    b.port().disconnect();
    Port::connect(c.port(), b.port(), &context).unwrap();
    assert!(a.port().peer().is_none());
}

#[test]
fn a_client_that_cannot_be_attached_leaves_both_ports_free() {
    let (_, context) = context();
    for refuse_first in [true, false] {
        let a = Keeper::new("a", refuse_first);
        let b = Keeper::new("b", !refuse_first);
        let error = Port::connect(&a.port, &b.port, &context).unwrap_err();
        assert!(matches!(error, ConnectError::Attach { .. }), "{error}");
        assert!(a.port.peer().is_none() && b.port.peer().is_none());
        for end in [a, b] {
            assert_eq!(end.calls().last(), Some(&"detach"));
        }
    }
}

#[test]
fn disconnecting_brings_back_what_was_lent_in_any_order() {
    let thread = IoThread::new("io").unwrap();
    let nic = Keeper::new("nic", false);
    let tap = Keeper::new("tap", false);
    Port::connect(&nic.port, &tap.port, &thread.context()).unwrap();
    for token in 0..3 {
        let frame = Frame {
            token: Some(Token(token)),
            iov: &[],
            len: 0,
        };
        assert_eq!(nic.port.send(&frame), Received::Lent);
    }
    assert!(nic.sent.lock().unwrap().is_empty());
    tap.port.disconnect();
    assert_eq!(*nic.sent.lock().unwrap(), [Token(2), Token(1), Token(0)]);
    assert_eq!(tap.calls(), ["attach", "detach", "revoke"]);
    // Again, at either end: nothing happens.
    nic.port.disconnect();
    tap.port.disconnect();
    assert_eq!(tap.calls().len(), 3);
}

#[test]
fn disconnecting_at_both_ends_at_once_disconnects_and_both_calls_return_after_it() {
    let thread = IoThread::new("io").unwrap();
    let by_hand = context().1;
    let nic = Keeper::new("nic", false);
    let tap = Keeper::new("tap", false);
    for round in 0..500_u32 {
        let context = if round % 2 == 0 {
            &thread.context()
        } else {
            &by_hand
        };
        Port::connect(&nic.port, &tap.port, context).unwrap();
        for (from, to) in [(&nic, &tap), (&tap, &nic)] {
            let frame = Frame {
                token: Some(Token(round)),
                iov: &[],
                len: 0,
            };
            assert_eq!(from.port.send(&frame), Received::Lent);
            assert_eq!(*to.kept.lock().unwrap(), [Token(round)]);
        }
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            for end in [&nic, &tap] {
                scope.spawn(|| {
                    barrier.wait();
                    end.port.disconnect();
                    for end in [&nic, &tap] {
                        let sent = end.sent.lock().unwrap();
                        assert_eq!(sent.last(), Some(&Token(round)), "round {round}");
                    }
                    assert!(end.port.peer().is_none(), "round {round}");
                });
            }
        });
    }
    let once = ["attach", "detach", "revoke"];
    assert_eq!(nic.calls(), once.repeat(500));
}

#[test]
fn disconnecting_at_one_end_while_the_other_is_dropped_frees_the_one_that_stays() {
    let thread = IoThread::new("io").unwrap();
    let tap = Keeper::new("tap", false);
    for round in 0..500 {
        let nic = Keeper::new("nic", false);
        Port::connect(&nic.port, &tap.port, &thread.context()).unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                drop(nic);
            });
            barrier.wait();
            tap.port.disconnect();
            assert!(tap.port.context().is_none(), "round {round}");
            assert_eq!(tap.calls().len(), 3 * (round + 1), "round {round}");
        });
    }
}

#[test]
fn disconnecting_while_the_link_moves_leaves_no_client_attached() {
    let threads = ["io0", "io1"].map(|name| IoThread::new(name).unwrap());
    let [from, to] = [&threads[0], &threads[1]].map(IoThread::context);
    let nic = Keeper::new("nic", false);
    let tap = Keeper::new("tap", false);
    for round in 0..500 {
        Port::connect(&nic.port, &tap.port, &from).unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                nic.port.move_to(&to).unwrap();
            });
            barrier.wait();
            tap.port.disconnect();
        });
        for end in [&nic, &tap] {
            let calls = end.calls();
            assert_eq!(
                calls.last_chunk(),
                Some(&["detach", "revoke"]),
                "round {round}"
            );
            assert!(end.port.context().is_none(), "round {round}");
        }
    }
}

#[test]
fn dropping_a_client_frees_its_peer() {
    let (_, context) = context();
    let tap = Keeper::new("tap", false);
    let nic = Recorder::new("nic");
    Port::connect(nic.port(), &tap.port, &context).unwrap();
    let gone = Arc::downgrade(nic.port());
    drop(nic);
    assert!(gone.upgrade().is_none());
    assert!(tap.port.peer().is_none());
    assert_eq!(tap.calls(), ["attach", "detach", "revoke"]);
    let other = Recorder::new("other");
    Port::connect(other.port(), &tap.port, &context).unwrap();
}

#[test]
fn a_client_that_waits_for_room_hears_of_it_when_its_peer_is_dropped() {
    let (turner, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    nic.set_room(0);
    let mut source = Frames::of(&[b"1", b"2"]);
    assert_eq!(tap.port().offer(&mut source), Drained::NoRoom);
    drop(nic);
    turner.turn(NOW).unwrap();
    assert_eq!(tap.rooms_heard(), 1);
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    let sent = tap.port().statistics().sent;
    assert_eq!(sent.dropped(DropReason::NoPeer), 2);
}

#[test]
fn frames_and_bytes_are_counted_at_both_ends() {
    let (_, context) = context();
    let [a, b] = ["a", "b"].map(Recorder::lending);
    Port::connect(a.port(), b.port(), &context).unwrap();
    for frame in [&b"one"[..], b"three"] {
        assert_eq!(a.port().send_bytes(frame), Received::Taken);
    }
    let drained = a.port().offer(&mut Frames::of(&[b"eleven!"]));
    assert_eq!(drained, Drained::Empty);
    let (sent, received) = (a.port().statistics().sent, b.port().statistics().received);
    assert_eq!((sent.frames, sent.bytes), (3, 15));
    assert_eq!((received.frames, received.bytes), (3, 15));
    assert_eq!(a.port().statistics().received.frames, 0);
    assert_eq!(b.take_frames(), [&b"one"[..], b"three", b"eleven!"]);
}

#[test]
fn a_link_is_up_when_both_ends_are_and_both_are_told() {
    let (turner, context) = context();
    let [a, b] = ["a", "b"].map(Recorder::new);
    assert_eq!(a.port().send_bytes(b"x"), Received::Taken);
    assert_eq!(a.port().statistics().sent.dropped(DropReason::NoPeer), 1);
    Port::connect(a.port(), b.port(), &context).unwrap();
    let steps = [
        (&a, false, Some(false)),
        (&a, false, None),
        (&b, false, Some(false)),
        (&a, true, Some(false)),
        (&b, true, Some(true)),
    ];
    let mut told = Vec::new();
    for (end, up, news) in steps {
        end.port().set_link(up);
        told.extend(news);
        assert_eq!(a.links(), told);
        assert_eq!(b.links(), told);
        let whole = *told.last().unwrap();
        assert_eq!(a.port().send_bytes(b"x"), Received::Taken);
        assert_eq!(b.take_frames().len(), usize::from(whole));
        let source = &mut Frames::of(&[b"1", b"2"]);
        assert_eq!(a.port().offer(source), Drained::Empty);
        assert_eq!(b.take_frames().len(), if whole { 2 } else { 0 });
    }
    assert_eq!(
        a.port().statistics().sent.dropped(DropReason::LinkDown),
        4 * 3
    );
    // A source that had stopped asks again after each change.
    turner.turn(NOW).unwrap();
    assert_eq!((a.rooms_heard(), b.rooms_heard()), (4, 4));
}

#[test]
fn a_copied_frame_waits_for_room_and_keeps_its_place() {
    let (_, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    let mut source = Frames::of(&[b"1", b"2", b"3", b"4"]);
    nic.set_room(1);
    assert_eq!(tap.port().offer(&mut source), Drained::NoRoom);
    // The second is kept by the port, the others by the source.
    assert_eq!(source.frames.len(), 2);
    assert_eq!(tap.port().offer(&mut source), Drained::NoRoom);
    assert_eq!(source.frames.len(), 2);
    let heard = tap.rooms_heard();
    nic.set_room(2);
    assert_eq!(tap.rooms_heard(), heard + 1);
    assert_eq!(nic.len(), 2);
    assert_eq!(tap.port().offer(&mut source), Drained::NoRoom);
    nic.set_room(usize::MAX);
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    assert_eq!(nic.take_frames(), [b"1", b"2", b"3", b"4"]);
    assert_eq!(tap.port().statistics().sent.frames, 4);
}

#[test]
fn room_is_not_announced_before_the_kept_frame_found_it() {
    let (_, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    nic.set_room(0);
    assert_eq!(tap.port().offer(&mut Frames::of(&[b"1"])), Drained::NoRoom);
    // The peer may say so without a cause.
    nic.port().room();
    assert_eq!(tap.rooms_heard(), 0);
    nic.set_room(1);
    assert_eq!((tap.rooms_heard(), nic.len()), (1, 1));
}

#[test]
fn a_turn_copies_no_more_than_its_budget() {
    let (_, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    let mut source = Frames::of(&[&b"frame"[..]; 1000]);
    let mut turns = 0;
    while tap.port().offer(&mut source) == Drained::Budget {
        turns += 1;
    }
    assert!(turns > 5, "{turns}");
    assert_eq!(nic.len(), 1000);
}

#[test]
fn a_copied_read_may_end_later() {
    let (_, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    let mut source = Frames::of(&[b"1", b"2", b"3"]);
    source.slow = true;
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    assert_eq!(source.pending[0].0, Token::PORT);
    // One read at a time.
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    assert_eq!(source.pending.len(), 1);
    source.complete(tap.port());
    assert_eq!(nic.take_frames(), [b"1"]);

    // The peer has no room when it ends: kept, and first in line.
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    nic.set_room(0);
    source.complete(tap.port());
    assert_eq!(tap.port().offer(&mut source), Drained::NoRoom);
    nic.set_room(usize::MAX);
    assert_eq!(nic.take_frames(), [b"2"]);

    // It ends without a frame, or after the link went down.
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    let (token, _) = source.pending.remove(0);
    tap.port().read_done(token, 0);
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    tap.port().set_link(false);
    source.complete(tap.port());
    assert!(nic.is_empty());
    assert_eq!(
        tap.port().statistics().sent.dropped(DropReason::LinkDown),
        1
    );
}

#[test]
fn what_a_copied_read_brings_after_a_purge_is_dropped_and_the_next_read_is_not() {
    let (_, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    let mut source = Frames::of(&[b"1", b"2"]);
    source.slow = true;
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    nic.port().purge();
    source.complete(tap.port());
    assert!(nic.is_empty());
    let dropped = |reason| tap.port().statistics().sent.dropped(reason);
    assert_eq!(dropped(DropReason::NotRunning), 1);
    assert_eq!(tap.port().offer(&mut source), Drained::Empty);
    source.complete(tap.port());
    assert_eq!(nic.take_frames(), [b"2"]);
}

#[test]
fn a_purge_cancels_a_copied_read_that_goes_on() {
    let (_, context) = context();
    let slow = Faults {
        slow: 1000,
        ..Faults::default()
    };
    let tap = Faulty::new("tap", slow, 1);
    let nic = Recorder::new("nic");
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    tap.give(*b"1");
    tap.step();
    assert!(nic.port().awaits_frames(), "nothing is being read");
    nic.port().purge();
    assert!(!nic.port().awaits_frames());
    // The frame was not read yet, and is next.
    while tap.step() {}
    assert_eq!(nic.take_frames(), [b"1"]);
}

#[test]
fn a_batch_of_frames_stops_at_the_end_of_the_link_and_at_no_room() {
    let (_, context) = context();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &context).unwrap();
    let mut bytes = *b"1";
    // SAFETY: the byte outlives the frames, which nobody keeps.
    let bytes = unsafe { IoVec::new(bytes.as_mut_ptr(), bytes.len()) };
    let frame = Frame {
        token: None,
        iov: &[bytes],
        len: 1,
    };
    let sender = tap.port().sender();
    nic.set_room(1);
    assert_eq!(sender.send(&frame), Received::Taken);
    assert_eq!(sender.send(&frame), Received::Busy);
    nic.port().set_link(false);
    assert_eq!(sender.send(&frame), Received::Taken);
    nic.port().set_link(true);
    nic.port().disconnect();
    assert_eq!(sender.send(&frame), Received::Taken);
    let sent = tap.port().statistics().sent;
    assert_eq!(sent.frames, 1);
    assert_eq!(sent.dropped(DropReason::LinkDown), 1);
    assert_eq!(sent.dropped(DropReason::NoPeer), 1);
}

#[test]
fn a_loopback_gives_back_every_frame_and_its_peers_lack_of_room() {
    let (_, context) = context();
    let nic = Recorder::new("nic");
    let loopback = Loopback::new("lo");
    Port::connect(nic.port(), loopback.port(), &context).unwrap();
    nic.set_room(1);
    assert_eq!(nic.port().send_bytes(b"1"), Received::Taken);
    assert_eq!(nic.port().send_bytes(b"2"), Received::Busy);
    nic.set_room(1);
    assert_eq!(nic.rooms_heard(), 2);
    // Lent memory is not lent on.
    let bytes = *b"lent";
    // SAFETY: `bytes` outlives the call, in which it is only read.
    let iov = unsafe { IoVec::new(bytes.as_ptr().cast_mut(), bytes.len()) };
    let frame = Frame {
        token: Some(Token(7)),
        iov: &[iov],
        len: 4,
    };
    assert_eq!(nic.port().send(&frame), Received::Taken);
    assert_eq!(nic.take_frames(), [&b"1"[..], b"lent"]);
}

#[test]
fn both_ends_move_to_another_context() {
    let (_, context) = context();
    let nic = Keeper::new("nic", false);
    let tap = Keeper::new("tap", false);
    Port::connect(&nic.port, &tap.port, &context).unwrap();
    let thread = IoThread::new("io").unwrap();
    nic.port.move_to(&thread.context()).unwrap();
    for end in [&nic, &tap] {
        assert_eq!(end.calls(), ["attach", "detach", "attach"]);
        let now = end.port.context().unwrap();
        assert!(!Arc::ptr_eq(&now, &context));
    }
}

#[test]
fn word_of_room_is_not_lost_on_the_way_to_another_context() {
    let (_, first) = context();
    let (turner, second) = context();
    let [a, b] = ["a", "b"].map(Recorder::new);
    Port::connect(a.port(), b.port(), &first).unwrap();
    // A frame that the port keeps is offered again, before its client hears of room.
    b.set_room(0);
    a.port().post(b"x");
    let refused = b.refused();
    a.port().move_to(&second).unwrap();
    assert_eq!((a.rooms_heard(), b.rooms_heard()), (0, 0));
    turner.turn(NOW).unwrap();
    assert_eq!((a.rooms_heard(), b.rooms_heard()), (0, 1));
    assert_eq!(b.refused(), refused + 1);
    b.set_room(2);
    assert_eq!((b.len(), a.rooms_heard()), (1, 1));
    a.port().move_to(&second).unwrap();
    turner.turn(NOW).unwrap();
    assert_eq!((a.rooms_heard(), b.rooms_heard()), (2, 2));
}

/// Begins anew at each frame, and has no room for it.
#[derive(Debug)]
struct Restarting {
    port: Arc<Port>,
}

impl NetClient for Restarting {
    fn receive(&self, _frame: &Frame<'_>) -> Received {
        self.port.purge();
        Received::Busy
    }
}

#[test]
fn a_frame_that_is_refused_by_a_client_that_begins_anew_meanwhile_is_not_kept() {
    let (_, context) = context();
    let tap = Recorder::new("tap");
    let nic = Arc::new_cyclic(|me: &Weak<Restarting>| Restarting {
        port: Port::new("nic", me.clone()),
    });
    Port::connect(tap.port(), &nic.port, &context).unwrap();
    context.schedule(Box::new({
        let port = tap.port().clone();
        move || {
            let drained = port.offer(&mut Frames::of(&[b"1", b"2", b"3"]));
            assert_eq!(drained, Drained::Empty);
        }
    }));
    let sent = || tap.port().statistics().sent;
    context.wait_while(&mut || sent().dropped(DropReason::NotRunning) < 3);
    assert_eq!(sent().frames, 0);
}

/// Sends its number, over and over, until it is told to stop.
fn send_numbers(port: Arc<Port>, context: Arc<dyn AioContext>, number: Arc<AtomicU32>) {
    let now = number.load(Ordering::Relaxed);
    if now == u32::MAX {
        return;
    }
    thread::yield_now();
    assert_eq!(port.send_bytes(&now.to_le_bytes()), Received::Taken);
    let next = context.clone();
    context.schedule(Box::new(move || send_numbers(port, next, number)));
}

#[test]
fn what_was_sent_before_a_purge_on_another_thread_does_not_arrive_after_it() {
    let thread = IoThread::new("io").unwrap();
    let [tap, nic] = ["tap", "nic"].map(Recorder::new);
    Port::connect(tap.port(), nic.port(), &thread.context()).unwrap();
    let number = Arc::new(AtomicU32::new(0));
    let (port, context, numbers) = (tap.port().clone(), thread.context(), number.clone());
    thread
        .context()
        .schedule(Box::new(move || send_numbers(port, context, numbers)));
    for round in 1..=500_u32 {
        number.store(round, Ordering::Relaxed);
        nic.port().purge();
        nic.take_frames();
        let next = nic.wait_for(Duration::from_secs(20), |_| true).unwrap();
        assert_eq!(next, round.to_le_bytes());
    }
    number.store(u32::MAX, Ordering::Relaxed);
}
