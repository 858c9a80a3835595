//! Filters between two clients.
#![expect(clippy::unwrap_used, reason = "helpers outside test functions")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Lender;
use iothread::{AioContext, EventLoop, IoThread};
use net_client::{
    Capture, Direction, Directions, DropReason, Faults, Faulty, Filter, Loopback, Passing, Port,
    Position, Received, Recorder, Verdict, VnetHeader,
};

const NOW: Option<Duration> = Some(Duration::ZERO);
const ALL: Directions = Directions::All;
const TAIL: Position = Position::Tail;

/// Writes down what it sees, under its name, and decides by a frame's first byte.
#[derive(Debug)]
struct Eye {
    name: char,
    log: Arc<Mutex<String>>,
    verdict: fn(u8) -> Verdict,
}

fn eye(name: char, log: &Arc<Mutex<String>>, verdict: fn(u8) -> Verdict) -> Arc<Eye> {
    Arc::new(Eye {
        name,
        log: log.clone(),
        verdict,
    })
}

impl Filter for Eye {
    fn filter(&self, passing: &Passing<'_>) -> Verdict {
        let mut first = [0];
        passing.copy_ethernet(&mut first);
        let way = match passing.direction {
            Direction::Tx => '>',
            Direction::Rx => '<',
        };
        let seen = [self.name, way, char::from(first[0])];
        self.log.lock().unwrap().extend(seen);
        (self.verdict)(first[0])
    }
}

fn pass(_: u8) -> Verdict {
    Verdict::Pass
}

/// Holds `h`, drops `d`.
fn by_letter(letter: u8) -> Verdict {
    match letter {
        b'h' => Verdict::Hold,
        b'd' => Verdict::Drop,
        _ => Verdict::Pass,
    }
}

fn pair() -> (Arc<EventLoop>, Arc<Recorder>, Arc<Recorder>) {
    let context = EventLoop::new().unwrap();
    let shared: Arc<dyn AioContext> = context.clone();
    let [a, b] = ["a", "b"].map(Recorder::new);
    Port::connect(a.port(), b.port(), &shared).unwrap();
    (context, a, b)
}

fn send(from: &Recorder, letters: &[u8]) {
    for letter in letters {
        assert_eq!(from.port().send_bytes(&[*letter]), Received::Taken);
    }
}

fn letters(at: &Recorder) -> String {
    let frames = at.take_frames();
    frames.iter().map(|frame| char::from(frame[0])).collect()
}

#[test]
fn a_frame_passes_its_senders_filters_from_the_head_then_its_receivers_from_the_tail() {
    let (_context, a, b) = pair();
    let log = Arc::default();
    a.port().add_filter(eye('2', &log, pass), ALL, TAIL);
    a.port()
        .add_filter(eye('1', &log, pass), ALL, Position::Head);
    let third = b
        .port()
        .add_filter(eye('3', &log, pass), Directions::Rx, TAIL);
    b.port()
        .add_filter(eye('4', &log, pass), Directions::Tx, Position::Head);
    send(&a, b"x");
    send(&b, b"y");
    b.port().remove_filter(third);
    b.port().remove_filter(third);
    send(&a, b"z");
    assert_eq!(*log.lock().unwrap(), "1>x2>x3<x4>y2<y1<y1>z2>z");
    assert_eq!((&*letters(&b), &*letters(&a)), ("xz", "y"));
}

#[test]
fn what_a_filter_drops_is_counted_where_it_stands() {
    let (_context, a, b) = pair();
    let log = Arc::default();
    for end in [&a, &b] {
        end.port()
            .add_filter(eye('f', &log, by_letter), Directions::Rx, TAIL);
    }
    send(&a, b"xdy");
    assert_eq!(letters(&b), "xy");
    let count = |end: &Recorder| {
        let statistics = end.port().statistics();
        let count = |direction: net_client::DirectionStatistics| {
            (direction.frames, direction.dropped(DropReason::Filtered))
        };
        (count(statistics.sent), count(statistics.received))
    };
    assert_eq!(count(&a), ((2, 0), (0, 0)));
    assert_eq!(count(&b), ((0, 0), (2, 1)));
}

#[test]
fn held_frames_keep_their_place_until_they_are_released_or_their_filter_goes() {
    let (context, a, b) = pair();
    let log = Arc::default();
    let id = a.port().add_filter(eye('f', &log, by_letter), ALL, TAIL);
    a.port().add_filter(eye('g', &log, pass), ALL, TAIL);
    send(&a, b"1h2d3h4");
    assert_eq!(letters(&b), "1");
    a.port().release(id, Direction::Tx, 2);
    // The other way nothing is held.
    a.port().release(id, Direction::Rx, 2);
    context.turn(NOW).unwrap();
    assert_eq!(letters(&b), "h2");
    send(&a, b"5");
    assert_eq!(letters(&b), "");
    a.port().remove_filter(id);
    send(&a, b"6");
    assert_eq!(letters(&b), "3h456");
    assert_eq!(
        *log.lock().unwrap(),
        "f>1g>1f>hf>2f>df>3f>hf>4g>hg>2f>5g>3g>hg>4g>5g>6"
    );
}

#[test]
fn each_filter_sees_each_frame_once_however_often_there_is_no_room() {
    let (_context, a, b) = pair();
    let log = Arc::default();
    let id = a.port().add_filter(eye('f', &log, by_letter), ALL, TAIL);
    b.set_room(1);
    send(&a, b"12");
    // One is kept behind the filter; the next is refused in front of it.
    assert_eq!(a.port().waiting(), 1);
    assert_eq!(a.port().send_bytes(b"3"), Received::Busy);
    assert_eq!(a.rooms_heard(), 1);
    b.set_room(1);
    assert_eq!(a.rooms_heard(), 2);
    send(&a, b"3");
    b.set_room(0);
    // What a filter lets go waits too, behind that.
    a.port().add_filter(eye('g', &log, pass), ALL, TAIL);
    a.port().remove_filter(id);
    b.set_room(9);
    assert_eq!(letters(&b), "123");
    assert_eq!(*log.lock().unwrap(), "f>1f>2f>3");
}

#[test]
fn a_client_that_keeps_nothing_has_ten_thousand_frames_queued() {
    for filtered in [false, true] {
        let (_context, a, b) = pair();
        if filtered {
            let log = Arc::default();
            b.port().add_filter(eye('f', &log, pass), ALL, TAIL);
        }
        a.port().post(b"-");
        b.set_room(0);
        for i in 0..10_050_u32 {
            a.port().post(&i.to_le_bytes());
        }
        assert_eq!(a.port().waiting(), 10_000);
        assert_eq!(a.port().send_bytes(b"x"), Received::Busy);
        b.set_room(5000);
        // Not yet: those that wait go first.
        assert_eq!((a.rooms_heard(), a.port().waiting()), (0, 5000));
        b.set_room(usize::MAX);
        assert_eq!(a.rooms_heard(), 1);
        let frames = b.take_frames();
        let expected = (0..10_000_u32).map(u32::to_le_bytes);
        assert!(
            frames[1..]
                .iter()
                .zip(expected)
                .all(|(got, sent)| *got == sent)
        );
        assert_eq!(frames.len(), 10_001);
        let sent = a.port().statistics().sent;
        assert_eq!(
            (sent.frames, sent.dropped(DropReason::NoRoom)),
            (10_001, 50)
        );
        // Of a frame that no buffer holds nothing is kept.
        b.set_room(0);
        a.port().post(&vec![0; 100_000]);
        assert_eq!(a.port().statistics().sent.dropped(DropReason::TooLong), 1);
    }
}

#[test]
fn frames_that_wait_are_counted_as_dropped_when_their_receiver_goes_or_begins_anew() {
    let (_context, a, b) = pair();
    let log = Arc::default();
    let id = b.port().add_filter(eye('f', &log, by_letter), ALL, TAIL);
    for (reason, end) in [
        (
            DropReason::NotRunning,
            (|b: &Recorder| b.port().purge()) as fn(&Recorder),
        ),
        (DropReason::NoPeer, |b| b.port().disconnect()),
    ] {
        b.set_room(0);
        a.port().post(b"1");
        a.port().post(b"2");
        a.port().post(b"h");
        end(&b);
        let statistics = (a.port().statistics().sent, b.port().statistics().received);
        assert_eq!(statistics.0.dropped(reason), 2, "{reason:?}");
        assert_eq!(statistics.1.dropped(reason), 1, "{reason:?}");
        assert_eq!(a.port().waiting(), 0);
    }
    b.set_room(9);
    assert!(b.is_empty());
    b.port().remove_filter(id);
}

#[test]
fn whoever_was_refused_hears_of_the_end_of_the_link() {
    let (context, a, b) = pair();
    b.set_room(0);
    assert_eq!(a.port().send_bytes(b"x"), Received::Busy);
    b.port().disconnect();
    context.turn(NOW).unwrap();
    assert_eq!(a.rooms_heard(), 1);
    assert_eq!(a.port().send_bytes(b"x"), Received::Taken);
}

#[test]
fn a_link_that_goes_down_drops_what_waits() {
    let (context, a, b) = pair();
    b.set_room(0);
    a.port().post(b"x");
    b.port().set_link(false);
    context.turn(NOW).unwrap();
    assert_eq!(a.port().waiting(), 0);
    assert_eq!(a.port().statistics().sent.dropped(DropReason::LinkDown), 1);
}

#[test]
fn no_frame_is_read_in_place_while_a_filter_stands_at_either_end() {
    for at_the_tap in [true, false] {
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        let nic = Lender::new("nic");
        let tap = Faulty::new("tap", Faults::default(), 1);
        Port::connect(nic.port(), tap.port(), &shared).unwrap();
        let log = Arc::default();
        let port = if at_the_tap { tap.port() } else { nic.port() };
        let give = |letter: u8| {
            tap.give([letter]);
            tap.step();
            (nic.take_frames().len(), nic.in_place())
        };
        assert_eq!(give(b'1'), (1, 1));
        let id = port.add_filter(eye('f', &log, pass), ALL, TAIL);
        assert_eq!(give(b'2'), (1, 1));
        port.remove_filter(id);
        assert_eq!(give(b'3'), (1, 2));
        assert_eq!(log.lock().unwrap().len(), 3);
    }
}

#[test]
fn filters_come_and_go_under_traffic_and_no_frame_is_lost_or_overtaken() {
    for seed in 0..50 {
        // Without drops; all else goes wrong, both ways.
        let faults = Faults {
            drop: 0,
            late: 0,
            ..Faults::MANY
        };
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        let nic = Lender::new("nic");
        let tap = Faulty::new("tap", faults, seed);
        Port::connect(nic.port(), tap.port(), &shared).unwrap();
        let frames: Vec<Vec<u8>> = (0..250u8).map(|i| vec![i; 20]).collect();
        for frame in &frames {
            nic.queue(frame.clone());
            tap.give(frame.clone());
        }
        let log: Arc<Mutex<String>> = Arc::default();
        let mut standing = Vec::new();
        let mut steps = 0_u64;
        while nic.backlog() > 0 || tap.to_give() > 0 || tap.port().waiting() > 0 {
            nic.pump();
            tap.step();
            context.turn(NOW).unwrap();
            steps += 1;
            assert!(steps < 10_000, "seed {seed}");
            let port = if steps.is_multiple_of(3) {
                nic.port()
            } else {
                tap.port()
            };
            match (steps + seed) % 7 {
                0 => {
                    // Every third frame is held.
                    let filter = eye('f', &log, |first| match first % 3 {
                        0 => Verdict::Hold,
                        _ => Verdict::Pass,
                    });
                    standing.push((port.clone(), port.add_filter(filter, ALL, TAIL)));
                }
                1 | 2 => {
                    for (port, id) in &standing {
                        port.release(*id, Direction::Tx, 3);
                        port.release(*id, Direction::Rx, 3);
                    }
                }
                3 | 4 if !standing.is_empty() => {
                    let (port, id) = standing.swap_remove(0);
                    port.remove_filter(id);
                }
                _ => {}
            }
        }
        for (port, id) in standing {
            port.remove_filter(id);
        }
        while nic.port().waiting() > 0 || tap.step() {
            context.turn(NOW).unwrap();
        }
        assert_eq!(nic.take_frames(), frames, "seed {seed}");
        assert_eq!(tap.take_frames(), frames, "seed {seed}");
        assert!(log.lock().unwrap().len() > 100, "seed {seed}");
        assert_eq!(nic.lent(), 0);
    }
}

#[test]
fn filters_come_and_go_from_another_thread() {
    let thread = IoThread::new("io").unwrap();
    let [a, b] = ["a", "b"].map(Recorder::new);
    let context = thread.context();
    Port::connect(a.port(), b.port(), &context).unwrap();
    let port = a.port().clone();
    let sender = a.port().clone();
    let (sent, all_sent) = std::sync::mpsc::channel();
    // 1000 frames, one a turn.
    fn next(
        context: Arc<dyn AioContext>,
        port: Arc<Port>,
        i: u32,
        sent: std::sync::mpsc::Sender<()>,
    ) {
        assert_eq!(port.send_bytes(&i.to_le_bytes()), Received::Taken);
        if i == 999 {
            sent.send(()).unwrap();
            return;
        }
        let again = context.clone();
        context.schedule(Box::new(move || next(again, port, i + 1, sent)));
    }
    let again = context.clone();
    context.schedule(Box::new(move || next(again, sender, 0, sent)));
    let log = Arc::default();
    for _ in 0..20 {
        let id = port.add_filter(eye('f', &log, |_| Verdict::Hold), ALL, TAIL);
        port.release(id, Direction::Tx, 1);
        port.remove_filter(id);
    }
    all_sent.recv().unwrap();
    let expected: Vec<_> = (0..1000_u32).map(|i| i.to_le_bytes().to_vec()).collect();
    assert_eq!(b.take_frames(), expected);
}

#[test]
fn a_capture_at_either_end_has_the_ethernet_frames_of_both_ways() {
    let path = std::env::temp_dir().join(format!("capture-{}.pcap", std::process::id()));
    let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
    for at_the_nic in [true, false] {
        let nic = Recorder::new("nic");
        let loopback = Loopback::new("lo");
        loopback.set_header_len(12).unwrap();
        Port::connect(nic.port(), loopback.port(), &context).unwrap();
        let capture = Capture::create(&path, 65536).unwrap();
        let port = if at_the_nic {
            nic.port()
        } else {
            loopback.port()
        };
        port.add_filter(capture.clone(), ALL, TAIL);
        assert_eq!(
            nic.port().send_bytes(b"a header's..ETHERNET"),
            Received::Taken
        );
        assert_eq!(capture.frames(), 2);
        let file = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.len(), 24 + 2 * (16 + 8));
        assert_eq!(
            (&file[40..48], &file[64..72]),
            (&b"ETHERNET"[..], &b"ETHERNET"[..])
        );
    }
}
