//! Frames for a client that takes none shorter than Ethernet's least.
#![expect(clippy::unwrap_used, reason = "helpers outside test functions")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Lender;
use iothread::{AioContext, EventLoop};
use net_client::{
    Directions, Drained, Filter, Frame, FrameSource, IoVec, NetClient, Passing, Port, Position,
    Read, Received, Recorder, Token, Verdict, copy_to_iov,
};

const HEADER: usize = 12;
const LEAST: usize = 60;

/// A header and so many bytes behind it.
fn frame(len: usize) -> Vec<u8> {
    vec![0x77; HEADER + len]
}

fn padded(len: usize) -> Vec<u8> {
    let mut bytes = frame(len);
    bytes.resize(bytes.len().max(HEADER + LEAST), 0);
    bytes
}

/// Lengths, and whether a frame of each is padded.
const TABLE: [(usize, bool); 7] = [
    (1, true),
    (14, true),
    (42, true),
    (59, true),
    (60, false),
    (61, false),
    (1514, false),
];

fn connect(a: &Arc<Port>, b: &Arc<Port>) -> Arc<EventLoop> {
    let context = EventLoop::new().unwrap();
    let shared: Arc<dyn AioContext> = context.clone();
    Port::connect(a, b, &shared).unwrap();
    context
}

fn turn(context: &EventLoop) {
    while context.turn(Some(Duration::ZERO)).unwrap() > 0 {}
}

/// One frame, read at once or some time later.
struct One {
    frame: Option<Vec<u8>>,
    slow: bool,
    pending: Option<(Token, Vec<IoVec>)>,
    batch: usize,
}

impl One {
    fn of(frame: Vec<u8>, slow: bool) -> Self {
        Self {
            frame: Some(frame),
            slow,
            pending: None,
            batch: 8,
        }
    }

    /// The read that goes on ends.
    fn end(&mut self, port: &Port) {
        let (token, iov) = self.pending.take().unwrap();
        let frame = self.frame.take().unwrap_or_default();
        assert_eq!(copy_to_iov(&iov, 0, &frame), frame.len());
        port.read_done(token, frame.len());
    }
}

impl FrameSource for One {
    fn max_frame(&self) -> usize {
        2000
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        if self.slow && self.pending.is_none() {
            self.pending = Some((token, iov.to_vec()));
            return Read::Pending;
        }
        if self.slow {
            return Read::Empty;
        }
        match self.frame.take() {
            Some(frame) => Read::Frame(copy_to_iov(iov, 0, &frame)),
            None => Read::Empty,
        }
    }

    fn batch(&mut self) -> usize {
        self.batch
    }
}

#[test]
fn frames_that_are_handed_over_have_their_zeroes() {
    let [from, to] = ["from", "to"].map(Recorder::new);
    let _context = connect(from.port(), to.port());
    for (len, _) in TABLE {
        assert_eq!(from.port().send_bytes(&frame(len)), Received::Taken);
        // None is padded that nobody wants to be.
        assert_eq!(to.take_frames(), [frame(len)], "{len}");
    }
    to.port().pad_received(HEADER, LEAST);
    let before = to.port().statistics().received.bytes;
    let sent = from.port().statistics().sent.bytes;
    let mut more = 0;
    for (len, is_padded) in TABLE {
        assert_eq!(from.port().send_bytes(&frame(len)), Received::Taken);
        assert_eq!(to.take_frames(), [padded(len)], "{len}");
        assert_eq!(padded(len) != frame(len), is_padded, "{len}");
        more += padded(len).len() - frame(len).len();
    }
    // Each side counts what it has seen.
    let after = to.port().statistics().received.bytes - before;
    let sent = from.port().statistics().sent.bytes - sent;
    assert_eq!(after - sent, more as u64);
    // The other way nothing is asked for.
    assert_eq!(to.port().send_bytes(&frame(14)), Received::Taken);
    assert_eq!(from.take_frames(), [frame(14)]);
    // What has no frame gets none.
    for len in [0, 1, HEADER] {
        assert_eq!(from.port().send_bytes(&frame(0)[..len]), Received::Taken);
        assert_eq!(to.take_frames(), [&frame(0)[..len]], "{len}");
    }
    to.port().pad_received(HEADER, 0);
    assert_eq!(from.port().send_bytes(&frame(14)), Received::Taken);
    assert_eq!(to.take_frames(), [frame(14)]);
}

#[test]
fn frames_that_are_lent_come_back_at_once_where_they_are_padded() {
    let from = Lender::new("from");
    let to = Recorder::lending("to");
    let _context = connect(from.port(), to.port());
    to.port().pad_received(HEADER, LEAST);
    from.queue(frame(20));
    from.pump();
    assert_eq!((from.backlog(), from.lent()), (0, 0));
    assert_eq!(to.take_frames(), [padded(20)]);
}

#[test]
fn frames_that_are_read_in_place_have_their_zeroes_where_they_lie() {
    let backend = Recorder::new("backend");
    let nic = Lender::new("nic");
    let context = connect(backend.port(), nic.port());
    nic.port().pad_received(HEADER, LEAST);
    for slow in [false, true] {
        for (len, _) in TABLE {
            let before = nic.in_place();
            let mut source = One::of(frame(len), slow);
            assert_eq!(backend.port().offer(&mut source), Drained::Empty);
            if slow {
                assert!(nic.take_frames().is_empty());
                source.end(backend.port());
            }
            assert_eq!(nic.take_frames(), [padded(len)], "{len}, {slow}");
            assert_eq!(nic.in_place() - before, 1, "{len}, {slow}");
        }
    }
    // A read that ends without a frame has none.
    let mut source = One::of(Vec::new(), true);
    assert_eq!(backend.port().offer(&mut source), Drained::Empty);
    source.end(backend.port());
    assert!(nic.take_frames().is_empty());
    assert_eq!(nic.lent(), 0);
    turn(&context);
}

/// Passes all, and writes down how long they were.
#[derive(Debug, Default)]
struct Lengths(Mutex<Vec<usize>>);

impl Filter for Lengths {
    fn filter(&self, passing: &Passing<'_>) -> Verdict {
        self.0.lock().unwrap().push(passing.frame.len);
        Verdict::Pass
    }
}

#[test]
fn filters_see_frames_as_they_came_and_the_client_gets_them_padded() {
    for slow in [false, true] {
        let backend = Recorder::new("backend");
        let nic = Lender::new("nic");
        let context = connect(backend.port(), nic.port());
        nic.port().pad_received(HEADER, LEAST);
        let lengths = Arc::new(Lengths::default());
        let id = nic
            .port()
            .add_filter(lengths.clone(), Directions::All, Position::Tail);
        for (len, _) in TABLE {
            let mut source = One::of(frame(len), slow);
            assert_eq!(backend.port().offer(&mut source), Drained::Empty);
            if slow {
                source.end(backend.port());
            }
            assert_eq!(nic.take_frames(), [padded(len)], "{len}");
            let seen = std::mem::take(&mut *lengths.0.lock().unwrap());
            assert_eq!(seen, [HEADER + len]);
        }
        assert_eq!(nic.in_place(), 0);
        nic.port().remove_filter(id);
        turn(&context);
    }
}

#[test]
fn a_frame_that_waited_for_room_is_padded_when_it_goes() {
    let [from, to] = ["from", "to"].map(Recorder::new);
    let _context = connect(from.port(), to.port());
    to.port().pad_received(HEADER, LEAST);
    to.set_room(0);
    let mut source = One::of(frame(14), false);
    assert_eq!(from.port().offer(&mut source), Drained::NoRoom);
    to.set_room(5);
    to.port().room();
    assert_eq!(to.take_frames(), [padded(14)]);
}

/// Asks its source how many reads it does best at once, and does none.
#[derive(Debug)]
struct Asks(Arc<Port>, Mutex<usize>);

impl NetClient for Asks {
    fn receive(&self, _: &Frame<'_>) -> Received {
        Received::Taken
    }

    fn receive_from(&self, source: &mut dyn FrameSource) -> Drained {
        *self.1.lock().unwrap() = source.batch();
        Drained::Empty
    }
}

#[test]
fn reads_that_nobody_could_pad_are_not_done_many_at_once() {
    let backend = Recorder::new("backend");
    let nic = Arc::new_cyclic(|me: &std::sync::Weak<Asks>| {
        Asks(Port::new("nic", me.clone()), Mutex::default())
    });
    let _context = connect(backend.port(), &nic.0);
    for (least, expected) in [(0, 8), (LEAST, 1)] {
        nic.0.pad_received(HEADER, least);
        let mut source = One::of(frame(14), false);
        assert_eq!(backend.port().offer(&mut source), Drained::Empty);
        assert_eq!(*nic.1.lock().unwrap(), expected);
    }
}

#[test]
fn lengths_without_bound_do_no_harm() {
    let [from, to] = ["from", "to"].map(Recorder::new);
    let _context = connect(from.port(), to.port());
    for (header, least) in [(usize::MAX, 1), (0, usize::MAX), (usize::MAX, usize::MAX)] {
        to.port().pad_received(header, least);
        assert_eq!(from.port().send_bytes(&frame(14)), Received::Taken);
        let got = to.take_frames();
        assert!(got[0].starts_with(&frame(14)) && got[0].len() <= 128);
    }
}
