//! In-flight tracking: a back end that is killed, and what the next one is told.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use net_client::{Frame, NetClient, Port, Received, Token, copy_from_iov};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost_user_transport::{Refusal, ServeError};
use vmm_sys_util::tempdir::TempDir;

use super::harness::{Format, Guest, Nic, SIZE, arrived};

/// Says to a process of this test that it is a back end: its socket, its log, and whether it keeps frames.
const BACK_END: &str = "VHOST_USER_TEST_BACK_END";
const DEADLINE: Duration = Duration::from_secs(20);
/// One frame of so many is kept.
const KEPT: u8 = 3;
/// `SIZE`, as the low byte of a number in memory.
const ENTRIES: u8 = SIZE.to_le_bytes()[0];
/// Frames that are sent before the back end dies; fewer than the ring is long.
const FRAMES: u8 = 40;

fn asked() -> VhostUserInflight {
    VhostUserInflight::new(0, 0, 2, SIZE)
}

/// A wire that writes the last byte of each frame into a log, and does not let go of some frames.
#[derive(Debug)]
struct Keeper {
    port: Arc<Port>,
    log: Mutex<File>,
    keeps: bool,
    kept: Mutex<Vec<Token>>,
}

impl NetClient for Keeper {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut bytes = vec![0; frame.len];
        copy_from_iov(frame.iov, 0, &mut bytes);
        let number = *bytes.last().unwrap();
        self.log.lock().unwrap().write_all(&[number]).unwrap();
        match frame.token {
            Some(token) if self.keeps && number.is_multiple_of(KEPT) => {
                self.kept.lock().unwrap().push(token);
                Received::Lent
            }
            _ => Received::Taken,
        }
    }

    fn revoke(&self) {
        for token in std::mem::take(&mut *self.kept.lock().unwrap()) {
            self.port.sent(token);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.revoke();
    }
}

/// Not a test by itself: what [`Killable`] starts.
#[test]
fn back_end_of_another_process() {
    let Ok(text) = std::env::var(BACK_END) else {
        return;
    };
    let [socket, log, keeps] = text.split('|').collect::<Vec<_>>().try_into().unwrap();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .unwrap();
    let keeper = Arc::new_cyclic(|me: &Weak<Keeper>| Keeper {
        port: Port::new("wire", me.clone()),
        log: Mutex::new(log),
        keeps: keeps == "keeps",
        kept: Mutex::default(),
    });
    let nic = Nic::with_ports(vec![keeper.port.clone()]);
    // It is there under its name once somebody listens.
    let early = format!("{socket}.early");
    let listener = UnixListener::bind(&early).unwrap();
    fs::rename(&early, socket).unwrap();
    let (stream, _) = listener.accept().unwrap();
    nic.transport.serve(stream).unwrap();
}

/// A back end in a process of its own.
struct Killable {
    child: Child,
    log: PathBuf,
}

impl Killable {
    fn start(directory: &Path, name: &str, keeps: &str) -> (Self, UnixStream) {
        let (socket, log) = (directory.join(name), directory.join(format!("{name}.log")));
        let text = format!("{}|{}|{keeps}", socket.display(), log.display());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "inflight::back_end_of_another_process"])
            .env(BACK_END, text)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + DEADLINE;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            thread::yield_now();
        };
        (Self { child, log }, stream)
    }

    /// The frames that it got so far.
    fn frames(&self) -> Vec<u8> {
        fs::read(&self.log).unwrap_or_default()
    }

    fn wait_for_frames(&self, count: usize) {
        let end = Instant::now() + DEADLINE;
        while self.frames().len() < count {
            assert!(Instant::now() < end, "only {:?}", self.frames());
            thread::yield_now();
        }
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn frame(number: u8) -> [u8; 60] {
    let mut frame = [0x5a; 60];
    frame[59] = number;
    frame
}

#[test]
fn what_a_killed_back_end_had_not_used_the_next_one_sends_once_and_in_order() {
    for format in Format::ALL {
        let directory = TempDir::new().unwrap();
        let served = || thread::spawn(|| Ok(()));
        let (first, socket) = Killable::start(directory.as_path(), "first", "keeps");
        let mut guest = Guest::over(socket, served(), 2, format);
        let (inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        guest.run();
        let mut heads = Vec::new();
        for number in 0..FRAMES {
            heads.push(guest.send(1, &frame(number)));
        }
        first.wait_for_frames(FRAMES.into());
        // In order nothing passes the first that is kept, which is the very first frame.
        let is_used = |number: &u8| !format.is_in_order() && !number.is_multiple_of(KEPT);
        let (used, left): (Vec<u8>, Vec<u8>) = (0..FRAMES).partition(is_used);
        for number in used {
            let (id, _) = guest.used(1);
            assert_eq!(id, heads[usize::from(number)], "{format:?}: {number}");
        }
        first.kill();

        // It says what the ring's base was when it began, as a front end does that was never told another.
        let (second, socket) = Killable::start(directory.as_path(), "second", "");
        guest.reconnect(socket, served());
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        assert!(guest.set_base(1, format.base(0)));
        guest.run();
        for number in &left {
            let (id, _) = guest.used(1);
            assert_eq!(id, heads[usize::from(*number)], "{format:?}: {number}");
        }
        guest.send(1, &frame(FRAMES));
        guest.used(1);
        let expected: Vec<u8> = left.into_iter().chain([FRAMES]).collect();
        second.wait_for_frames(expected.len());
        assert_eq!(second.frames(), expected, "{format:?}");
        assert!(!guest.rings[1].driver.has_used(), "{format:?}");
    }
}

#[test]
fn a_back_end_that_is_killed_under_load_neither_loses_nor_repeats_a_chain() {
    const ROUNDS: usize = 5;
    for format in [Format::Split, Format::Packed] {
        let directory = TempDir::new().unwrap();
        let served = || thread::spawn(|| Ok(()));
        let (mut back_end, socket) = Killable::start(directory.as_path(), "0", "");
        let mut guest = Guest::over(socket, served(), 2, format);
        let (inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        guest.run();
        for round in 1..=ROUNDS {
            let mut heads = Vec::new();
            for number in 0..FRAMES {
                heads.push(guest.send(1, &frame(number)));
            }
            // At some moment of its work: another one in each round.
            back_end.wait_for_frames(round * 5);
            back_end.kill();
            let (next, socket) = Killable::start(directory.as_path(), &round.to_string(), "");
            back_end = next;
            guest.reconnect(socket, served());
            guest
                .frontend
                .set_inflight_fd(&inflight, file.as_raw_fd())
                .unwrap();
            guest.run();
            let used: Vec<u32> = heads.iter().map(|_| guest.used(1).0).collect();
            assert_eq!(used, heads, "{format:?}, round {round}");
            assert!(
                !guest.rings[1].driver.has_used(),
                "{format:?}, round {round}"
            );
        }
    }
}

#[test]
fn a_ring_that_was_stopped_in_order_goes_on_from_its_base_whatever_the_record_was() {
    let nic = Nic::new(1);
    for format in Format::ALL {
        let mut guest = Guest::new(&nic, 2, format);
        let (inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        guest.run();
        for number in 0..3 {
            guest.send(1, &frame(number));
            guest.used(1);
        }
        let base = guest.frontend.get_vring_base(1).unwrap();
        assert_eq!(base, format.base(3));
        // As it was, and then as a driver begins that has just set its ring up.
        assert!(guest.set_base(1, base));
        guest.start(1);
        guest.send(1, &frame(3));
        guest.used(1);
        guest.frontend.get_vring_base(1).unwrap();
        guest.begin_anew(1);
        assert!(guest.set_base(1, format.base(0)));
        guest.start(1);
        guest.send(1, &frame(0x77));
        arrived(&nic.wires[0], &frame(0x77));
        guest.used(1);
        guest.leave().unwrap();
    }
}

/// Where a record says what, by format: the version, the number of entries, the first entry's in-flight flag, its
/// counter.
struct Layout {
    region: u64,
    head: u64,
    entry: u64,
    counter: u64,
}

const SPLIT: Layout = Layout {
    region: 16 + 16 * SIZE as u64,
    head: 16,
    entry: 16,
    counter: 8,
};
const PACKED: Layout = Layout {
    region: 32 + 32 * SIZE as u64,
    head: 32,
    entry: 32,
    counter: 8,
};

/// What a front end may have made of the record's memory, and what is to be said of it.
type Spoilt = (&'static str, fn(&mut dyn FnMut(u64, &[u8])), &'static str);

/// Ring 1 is not started with such a record, and the next front end is served.
fn each_is_refused(nic: &Nic, format: Format, layout: &Layout, table: &[Spoilt]) {
    for (what, spoil, says) in table {
        let mut guest = Guest::new(nic, 2, format);
        let (inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        let region = layout.region.next_multiple_of(64);
        spoil(&mut |at, bytes| file.write_all_at(bytes, region + at).unwrap());
        let _ = guest.frontend.set_vring_kick(1, &guest.rings[1].kick);
        match guest.leave() {
            Err(ServeError::Refused(Refusal::Inflight(reason))) => {
                assert!(reason.contains(says), "{format:?}: {what}: {reason}");
            }
            other => panic!("{format:?}: {what}: {other:?}"),
        }
    }
    let mut guest = Guest::new(nic, 2, format);
    guest.run();
    guest.send(1, &frame(1));
    arrived(&nic.wires[0], &frame(1));
    guest.leave().unwrap();
}

#[test]
fn a_split_record_that_cannot_be_is_refused() {
    const VERSION: &[u8] = &[1, 0];

    let table: &[Spoilt] = &[
        ("a version", |write| write(8, &[2, 0]), "version 2"),
        ("entries", |write| write(8, &[1, 0, 65, 0]), "65 entries"),
        (
            "a batch longer than the ring",
            |write| {
                write(8, VERSION);
                write(10, &[ENTRIES, 0]);
                // The used index of the ring is 0.
                write(14, &[0xff, 0x7f]);
                write(SPLIT.head, &[1]);
            },
            "ahead of it",
        ),
        (
            "a batch of what is no entry",
            |write| {
                write(8, VERSION);
                write(10, &[ENTRIES, 0]);
                write(12, &[0xff, 0xff, 0xfe, 0xff]);
                write(SPLIT.head, &[1]);
            },
            "entry 65535",
        ),
        (
            "a counter at its end",
            |write| {
                write(8, VERSION);
                write(10, &[ENTRIES, 0]);
                write(SPLIT.head, &[1]);
                write(SPLIT.head + SPLIT.counter, &[0xff; 8]);
            },
            "counter",
        ),
    ];
    each_is_refused(&Nic::new(1), Format::Split, &SPLIT, table);
}

#[test]
fn a_packed_record_that_cannot_be_is_refused() {
    /// A record of nothing, as it is when it was begun.
    fn begin(write: &mut dyn FnMut(u64, &[u8])) {
        write(8, &[1, 0, ENTRIES, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        for entry in 0..SIZE {
            let next = (entry + 1).to_ne_bytes();
            write(PACKED.head + PACKED.entry * u64::from(entry) + 2, &next);
        }
    }
    /// An entry's field.
    fn at(entry: u64, field: u64) -> u64 {
        PACKED.head + PACKED.entry * entry + field
    }
    /// Entries 0 to 2 are a chain.
    fn chain(write: &mut dyn FnMut(u64, &[u8])) {
        begin(write);
        write(12, &[3, 0, 3, 0]);
        write(at(0, 0), &[1]);
        write(at(0, 4), &[2, 0, 3, 0]);
    }
    let table: &[Spoilt] = &[
        ("a version", |write| write(8, &[3, 0]), "version 3"),
        ("entries", |write| write(8, &[1, 0, 0, 0]), "0 entries"),
        (
            "a place outside of the ring",
            |write| {
                begin(write);
                write(16, &[0xff, 0x7f, 0xff, 0x7f]);
            },
            "used index 32767",
        ),
        (
            "a wrap counter that is none",
            |write| {
                begin(write);
                write(21, &[2]);
            },
            "wrap counter is 2",
        ),
        (
            "free entries in a circle",
            |write| {
                begin(write);
                write(at(5, 2), &[2, 0]);
            },
            "entry 2 is in two lists",
        ),
        (
            "a free entry that is none",
            |write| {
                begin(write);
                write(at(5, 2), &[0xff, 0xff]);
            },
            "entry 65535",
        ),
        (
            "a chain of free entries",
            |write| {
                chain(write);
                write(at(0, 6), &[4, 0]);
            },
            "entry 3 is in two lists",
        ),
        (
            "a chain that ends elsewhere",
            |write| {
                chain(write);
                write(at(0, 4), &[1, 0]);
            },
            "does not end at 1",
        ),
        (
            "a chain longer than all entries",
            |write| {
                chain(write);
                write(at(0, 6), &[0xff, 0xff]);
            },
            "two lists",
        ),
        (
            "a chain of nothing",
            |write| {
                chain(write);
                write(at(0, 6), &[0, 0]);
            },
            "does not end",
        ),
        (
            "a buffer id that the ring has not",
            |write| {
                chain(write);
                write(at(2, 16), &[ENTRIES, 0]);
            },
            "id 64",
        ),
        (
            "a counter at its end",
            |write| {
                chain(write);
                write(at(0, PACKED.counter), &[0xff; 8]);
            },
            "counter",
        ),
        (
            "an entry that is lost",
            |write| {
                begin(write);
                write(12, &[1, 0, 1, 0]);
            },
            "entry 0 is in no list",
        ),
    ];
    each_is_refused(&Nic::new(1), Format::Packed, &PACKED, table);
}

#[test]
fn a_record_whose_chains_the_ring_has_not_breaks_the_ring_and_no_more() {
    let nic = Nic::new(1);
    for format in [Format::Split, Format::Packed] {
        let mut guest = Guest::new(&nic, 2, format);
        let (inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        // One chain in flight, of descriptors that are all zeros.
        if format.is_packed() {
            let at = PACKED.region.next_multiple_of(64);
            file.write_all_at(&[1, 0, ENTRIES, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1], at + 8)
                .unwrap();
            for entry in 0..SIZE {
                let next = (entry + 1).to_ne_bytes();
                let field = at + PACKED.head + PACKED.entry * u64::from(entry) + 2;
                file.write_all_at(&next, field).unwrap();
            }
            file.write_all_at(&[1], at + PACKED.head).unwrap();
            file.write_all_at(&[0, 0, 1, 0], at + PACKED.head + 4)
                .unwrap();
        } else {
            let at = SPLIT.region.next_multiple_of(64);
            file.write_all_at(&[1, 0, ENTRIES, 0], at + 8).unwrap();
            file.write_all_at(&[1], at + SPLIT.head).unwrap();
        }
        guest.run();
        guest.expect_error(1);
        guest.leave().unwrap();
        let mut guest = Guest::new(&nic, 2, format);
        guest.run();
        guest.send(1, &frame(2));
        arrived(&nic.wires[0], &frame(2));
        guest.leave().unwrap();
    }
}

/// What a front end may say of the memory that it passes.
type Passed = (&'static str, fn(&mut VhostUserInflight));

#[test]
fn memory_for_a_record_must_be_there_and_large_enough() {
    let nic = Nic::new(1);
    let table: &[Passed] = &[
        ("past the file's end", |inflight| {
            inflight.mmap_offset = 0x10_0000;
        }),
        ("no page's beginning", |inflight| {
            inflight.mmap_offset = 8;
            inflight.mmap_size -= 64;
        }),
        ("an end past all numbers", |inflight| {
            inflight.mmap_offset = !0xfff;
        }),
        ("too small", |inflight| inflight.mmap_size = 64),
        ("more queues than it holds", |inflight| {
            inflight.num_queues = 0xffff;
        }),
        ("larger queues than it holds", |inflight| {
            inflight.queue_size = 0x7fff;
        }),
    ];
    for (what, spoil) in table {
        let mut guest = Guest::new(&nic, 2, Format::Split);
        let (mut inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
        spoil(&mut inflight);
        let _ = guest.frontend.set_inflight_fd(&inflight, file.as_raw_fd());
        let left = guest.leave();
        assert!(
            matches!(left, Err(ServeError::Refused(Refusal::Inflight(_)))),
            "{what}: {left:?}"
        );
    }
    for (queues, size) in [(3, SIZE), (1, 0xffff)] {
        let mut guest = Guest::new(&nic, 2, Format::Split);
        let asked = VhostUserInflight::new(0, 0, queues, size);
        assert!(guest.frontend.get_inflight_fd(&asked).is_err());
        let left = guest.leave();
        assert!(
            matches!(left, Err(ServeError::Refused(Refusal::Inflight(_)))),
            "{queues} queues of {size}: {left:?}"
        );
    }
    // Rings that it has no place for: too many, too long.
    for (queues, size) in [(1, SIZE), (2, SIZE / 2)] {
        let mut guest = Guest::new(&nic, 2, Format::Split);
        let asked = VhostUserInflight::new(0, 0, queues, size);
        let (inflight, file) = guest.frontend.get_inflight_fd(&asked).unwrap();
        guest
            .frontend
            .set_inflight_fd(&inflight, file.as_raw_fd())
            .unwrap();
        let _ = guest.frontend.set_vring_kick(1, &guest.rings[1].kick);
        let left = guest.leave();
        assert!(
            matches!(left, Err(ServeError::Refused(Refusal::Inflight(_)))),
            "{queues} queues of {size}: {left:?}"
        );
    }
    // Under rings that run it does not change.
    let mut guest = Guest::new(&nic, 2, Format::Split);
    let (inflight, file) = guest.frontend.get_inflight_fd(&asked()).unwrap();
    guest.run();
    let _ = guest.frontend.set_inflight_fd(&inflight, file.as_raw_fd());
    let left = guest.leave();
    assert!(
        matches!(left, Err(ServeError::Refused(Refusal::Running { .. }))),
        "{left:?}"
    );
}
