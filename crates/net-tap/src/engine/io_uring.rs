//! Frames in batches by io_uring.
#![expect(unsafe_code, reason = "what a system call costs is measured with one")]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use io_uring::opcode;
use net_client::{Frame, IoVec, Received, Token};

use super::batch::{BATCH, BATCH_U32, Batch, Way, build};
use super::{Engine, whole};
use crate::tap::Tap;

/// Writes from which on a batch pays off.
const LEAST_WRITES: usize = 2;
/// Reads from which on a batch pays off.
const LEAST_READS: usize = 4;
/// Reads of the first batch of a turn at most.
const FIRST_READS: usize = 8;

/// Frames in batches: all that a turn of the peer sends, up to 32 at once; and reads, as many at once as frames
/// have come lately. A lone frame is a plain system call.
///
/// The two directions share nothing. A ring is made by the thread that uses it, when there is a first batch.
#[derive(Debug)]
pub(crate) struct IoUringEngine {
    tap: Arc<Tap>,
    /// Taken on the peer's context, and by who revokes. A leaf lock.
    out: Mutex<Batch>,
    /// As above.
    reads: Mutex<Reads>,
    /// Writes may find no room, which is to be said of each before the next is taken.
    one_by_one: AtomicBool,
}

#[derive(Debug)]
struct Reads {
    batch: Batch,
    /// Frames since a read last found none.
    run: usize,
    /// As many as there were the time before.
    last_run: usize,
}

impl IoUringEngine {
    /// # Errors
    /// When the kernel has no io_uring, or too old a one (before 6.1), or the process may not use it.
    pub(crate) fn new(tap: &Arc<Tap>) -> io::Result<Self> {
        costs()?;
        Ok(Self {
            tap: tap.clone(),
            out: Mutex::new(Batch::new(tap, Way::Out, LEAST_WRITES)),
            reads: Mutex::new(Reads {
                batch: Batch::new(tap, Way::In, LEAST_READS),
                run: 0,
                last_run: 0,
            }),
            one_by_one: AtomicBool::new(false),
        })
    }

    /// System calls so far, out and in.
    #[cfg(test)]
    pub(crate) fn calls(&self) -> (u64, u64) {
        (lock(&self.out).calls(), lock(&self.reads).batch.calls())
    }

    fn is_one_by_one(&self) -> bool {
        self.one_by_one.load(Ordering::Relaxed) || self.tap.limits_sending()
    }
}

impl Engine for IoUringEngine {
    fn write(&self, frame: &Frame<'_>) -> io::Result<Received> {
        let mut out = lock(&self.out);
        match frame.token {
            Some(token) if !self.is_one_by_one() && !out.is_refused() => {
                out.push(token, frame.iov, frame.len);
                if out.is_full() {
                    out.run();
                }
                Ok(Received::Lent)
            }
            _ => {
                // Those before it go first.
                out.run();
                whole(out.one(frame.iov)?, frame.len)?;
                Ok(Received::Taken)
            }
        }
    }

    fn flush(&self, done: &mut dyn FnMut(Token, io::Result<()>)) {
        let results = {
            let mut out = lock(&self.out);
            out.run();
            out.take_results()
        };
        if results.is_empty() {
            return;
        }
        let mut results = results;
        for (token, len, result) in results.drain(..) {
            if let Err(error) = &result
                && error.kind() == io::ErrorKind::WouldBlock
            {
                // Somebody else has set a limit. From here on the peer hears of each.
                self.one_by_one.store(true, Ordering::Relaxed);
            }
            done(token, result.and_then(|written| whole(written, len)));
        }
        lock(&self.out).recycle(results);
    }

    fn read(&self, iov: &[IoVec]) -> io::Result<usize> {
        let mut reads = lock(&self.reads);
        let read = reads.batch.one(iov);
        reads.note(usize::from(read.is_ok()), read.is_err());
        read
    }

    fn batch(&self) -> usize {
        let reads = lock(&self.reads);
        let expected = if reads.run == 0 {
            reads.last_run.min(FIRST_READS)
        } else {
            reads.run.min(BATCH)
        };
        if expected < LEAST_READS || reads.batch.is_refused() {
            1
        } else {
            expected
        }
    }

    fn queue(&self, token: Token, iov: &[IoVec]) {
        lock(&self.reads).batch.push(token, iov, 0);
    }

    fn forget(&self) {
        lock(&self.reads).batch.forget();
    }

    fn submit(&self, done: &mut dyn FnMut(Token, io::Result<usize>)) {
        let mut results = {
            let mut reads = lock(&self.reads);
            reads.batch.run();
            let results = reads.batch.take_results();
            let frames = results
                .iter()
                .filter(|(_, _, result)| result.is_ok())
                .count();
            reads.note(frames, frames < results.len());
            results
        };
        for (token, _, result) in results.drain(..) {
            done(token, result);
        }
        lock(&self.reads).batch.recycle(results);
    }
}

impl Reads {
    /// Reads have found `frames`, and (`ended`) then none.
    fn note(&mut self, frames: usize, ended: bool) {
        self.run = self.run.saturating_add(frames);
        if ended {
            self.last_run = std::mem::take(&mut self.run);
        }
    }
}

/// What this host takes for a system call that does nothing, and for a request of a batch that does nothing.
#[derive(Clone, Copy, Debug)]
struct Costs {
    syscall: Duration,
    request: Duration,
}

/// Whether io_uring is there, and moves frames faster than system calls do. Said in the log.
///
/// A request of a batch spares the system call and costs some bookkeeping of its own. What either costs
/// differs by an order of magnitude between hosts (mitigations, virtualization), the frame's own way in the kernel
/// being the same: so both are measured, once a process.
pub(super) fn pays_off(interface: &str) -> bool {
    match costs() {
        Ok(Costs { syscall, request }) => {
            let pays_off = is_cheaper(syscall, request);
            let engine = if pays_off { "io_uring" } else { "sync" };
            tracing::info!(
                interface,
                engine,
                ?syscall,
                ?request,
                "engine chosen by what a system call and a batched request cost here"
            );
            pays_off
        }
        Err(error) => {
            tracing::info!(interface, engine = "sync", %error, "engine chosen: no io_uring here");
            false
        }
    }
}

/// A request that reads or writes takes about one and a half times as long again as one that does nothing.
fn is_cheaper(syscall: Duration, request: Duration) -> bool {
    syscall * 2 >= request * 5
}

fn costs() -> io::Result<Costs> {
    static COSTS: OnceLock<Result<Costs, Option<i32>>> = OnceLock::new();
    let costs = COSTS.get_or_init(|| measure().map_err(|error| error.raw_os_error()));
    match costs {
        Ok(costs) => Ok(*costs),
        Err(Some(code)) => Err(io::Error::from_raw_os_error(*code)),
        Err(None) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// The least of some rounds, which is what it takes undisturbed. Some 50 us in all.
fn measure() -> io::Result<Costs> {
    const ROUNDS: usize = 6;
    let mut uring = build()?;
    let mut costs = Costs {
        syscall: Duration::MAX,
        request: Duration::MAX,
    };
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..BATCH {
            // SAFETY: takes nothing and gives a number; not answered without the kernel.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        costs.syscall = costs.syscall.min(start.elapsed() / BATCH_U32);
        let start = Instant::now();
        for _ in 0..BATCH {
            // SAFETY: a request that names no memory.
            let pushed = unsafe { uring.submission().push(&opcode::Nop::new().build()) };
            pushed.map_err(io::Error::other)?;
        }
        uring.submit_and_wait(BATCH)?;
        let ended = uring.completion().count();
        if ended != BATCH {
            return Err(io::ErrorKind::Unsupported.into());
        }
        costs.request = costs.request.min(start.elapsed() / BATCH_U32);
    }
    Ok(costs)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// An engine on one end of a pair of sockets, in which a datagram is a frame, and the other end.
    /// `None`, and said so, where there is no io_uring.
    fn engine() -> Option<(IoUringEngine, UnixDatagram)> {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let tap = Arc::new(Tap::for_tests(ours.into()));
        match IoUringEngine::new(&tap) {
            Ok(engine) => Some((engine, theirs)),
            Err(error) => {
                assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{error}");
                println!("not run: {error}");
                None
            }
        }
    }

    /// Memory to lend.
    struct Memory(Vec<u8>);

    impl Memory {
        fn of(bytes: &[u8]) -> Self {
            Self(bytes.to_vec())
        }

        fn iov(&mut self) -> IoVec {
            // SAFETY: the tests keep the memory until what they lend it for has ended.
            unsafe { IoVec::new(self.0.as_mut_ptr(), self.0.len()) }
        }
    }

    fn send(engine: &IoUringEngine, token: u32, memory: &mut Memory) -> io::Result<Received> {
        let iov = [memory.iov()];
        engine.write(&Frame {
            token: Some(Token(token)),
            iov: &iov,
            len: iov[0].len(),
        })
    }

    fn flush(engine: &IoUringEngine) -> Vec<(u32, Result<(), Option<i32>>)> {
        let mut done = Vec::new();
        engine.flush(&mut |Token(token), result| {
            done.push((token, result.map_err(|error| error.raw_os_error())));
        });
        done
    }

    fn received(socket: &UnixDatagram) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(len) = socket.recv(&mut buffer) {
            frames.push(buffer[..len].to_vec());
        }
        frames
    }

    /// Reads what is there by batches, as a peer with much room does, and says how large they were.
    fn drain(engine: &IoUringEngine, frames: &mut Vec<Vec<u8>>) -> Vec<usize> {
        let mut batches = Vec::new();
        loop {
            let count = engine.batch();
            batches.push(count);
            let mut buffers: Vec<Memory> = (0..count).map(|_| Memory(vec![0; 2000])).collect();
            let mut empty = false;
            if count == 1 {
                match engine.read(&[buffers[0].iov()]) {
                    Ok(len) => frames.push(buffers[0].0[..len].to_vec()),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        empty = true;
                    }
                }
            } else {
                for (token, buffer) in (0..).zip(&mut buffers) {
                    engine.queue(Token(token), &[buffer.iov()]);
                }
                engine.submit(&mut |Token(token), result| match result {
                    Ok(len) => frames.push(buffers[token as usize].0[..len].to_vec()),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        empty = true;
                    }
                });
            }
            if empty {
                return batches;
            }
        }
    }

    #[test]
    fn frames_of_a_turn_go_out_in_order_by_one_system_call_for_each_thirty_two() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let mut memory: Vec<_> = (0..100_u8).map(|n| Memory(vec![n; 60])).collect();
        for (token, memory) in (0..).zip(&mut memory) {
            assert_eq!(send(&engine, token, memory).unwrap(), Received::Lent);
        }
        let done = flush(&engine);
        assert_eq!(
            done,
            (0..100).map(|token| (token, Ok(()))).collect::<Vec<_>>()
        );
        let frames: Vec<_> = memory.into_iter().map(|memory| memory.0).collect();
        assert_eq!(received(&theirs), frames);
        assert_eq!(engine.calls().0, 4);
        assert_eq!(flush(&engine), []);
        assert_eq!(engine.calls().0, 4);
    }

    #[test]
    fn a_lone_frame_is_a_plain_system_call_either_way() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        assert_eq!(
            send(&engine, 7, &mut Memory::of(b"one")).unwrap(),
            Received::Lent
        );
        assert_eq!(flush(&engine), [(7, Ok(()))]);
        assert_eq!(lock(&engine.out).requests_by_ring(), 0);
        theirs.send(b"other").unwrap();
        let mut frames = Vec::new();
        assert_eq!(drain(&engine, &mut frames), [1, 1]);
        assert_eq!(frames, [b"other"]);
        assert_eq!(lock(&engine.reads).batch.requests_by_ring(), 0);
    }

    #[test]
    fn batches_of_reads_grow_while_frames_keep_coming_and_end_when_they_do() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let send =
            |count: u8| (0..count).for_each(|n| assert_eq!(theirs.send(&[n; 100]).unwrap(), 100));
        // More at once than the socket holds are sent in two goes.
        let mut frames = Vec::new();
        send(8);
        assert_eq!(drain(&engine, &mut frames), [1, 1, 1, 1, 4, 8]);
        assert_eq!(frames.len(), 8);
        // As many as last time are expected, at first.
        send(9);
        assert_eq!(drain(&engine, &mut frames), [8, 8]);
        assert_eq!(frames.len(), 17);
        send(1);
        assert_eq!(drain(&engine, &mut frames), [8]);
        send(1);
        assert_eq!(drain(&engine, &mut frames), [1, 1]);
        assert_eq!(frames.len(), 19);
        let in_order = frames.iter().map(|frame| frame[0]).collect::<Vec<_>>();
        let expected: Vec<u8> = (0..8).chain(0..9).chain([0, 0]).collect();
        assert_eq!(in_order, expected);
    }

    #[test]
    fn a_batch_in_pieces_is_put_together_and_taken_apart() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let (mut a, mut b) = (Memory::of(b"head"), Memory::of(b"body"));
        for token in 0..3 {
            let iov = [a.iov(), b.iov()];
            let frame = Frame {
                token: Some(Token(token)),
                iov: &iov,
                len: 8,
            };
            assert_eq!(engine.write(&frame).unwrap(), Received::Lent);
        }
        assert_eq!(flush(&engine).len(), 3);
        assert_eq!(received(&theirs), [b"headbody"; 3]);

        for _ in 0..4 {
            theirs.send(b"headbody").unwrap();
        }
        let mut memory: Vec<_> = (0..4)
            .map(|_| (Memory(vec![0; 4]), Memory(vec![0; 9])))
            .collect();
        for (token, (a, b)) in (0..).zip(&mut memory) {
            engine.queue(Token(token), &[a.iov(), b.iov()]);
        }
        let mut ends = Vec::new();
        engine.submit(&mut |Token(token), result| ends.push((token, result.unwrap())));
        assert_eq!(ends, [(0, 8), (1, 8), (2, 8), (3, 8)]);
        for (a, b) in &memory {
            assert_eq!((&*a.0, &b.0[..4]), (&b"head"[..], &b"body"[..]));
        }
    }

    #[test]
    fn each_frame_of_a_batch_has_its_own_error() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let mut good = Memory::of(b"good");
        // More than a datagram holds.
        let mut long = Memory(vec![0; 8 << 20]);
        for (token, memory) in [(0, &mut good), (1, &mut long)] {
            assert_eq!(send(&engine, token, memory).unwrap(), Received::Lent);
        }
        assert_eq!(send(&engine, 2, &mut good).unwrap(), Received::Lent);
        let done = flush(&engine);
        assert_eq!(
            done,
            [(0, Ok(())), (1, Err(Some(libc::EMSGSIZE))), (2, Ok(()))]
        );
        assert_eq!(received(&theirs), [b"good"; 2]);
    }

    #[test]
    fn the_peer_hears_of_each_frame_once_one_has_found_no_room() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let mut memory = Memory(vec![1; 1000]);
        let mut refused = 0;
        for _ in 0..100 {
            for token in 0..8 {
                if let Ok(sent) = send(&engine, token, &mut memory) {
                    assert_eq!(sent, Received::Lent);
                }
            }
            refused = flush(&engine)
                .iter()
                .filter(|(_, end)| end.is_err())
                .count();
            if refused > 0 {
                break;
            }
        }
        assert_ne!(refused, 0, "the socket never fills");
        let error = send(&engine, 0, &mut memory).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        received(&theirs);
        assert_eq!(send(&engine, 0, &mut memory).unwrap(), Received::Taken);
        assert_eq!(received(&theirs), [memory.0]);
    }

    #[test]
    fn a_frame_that_is_not_lent_goes_behind_those_that_are() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let (mut first, mut second) = (Memory::of(b"1"), Memory::of(b"2"));
        assert_eq!(send(&engine, 0, &mut first).unwrap(), Received::Lent);
        let iov = [second.iov()];
        let copied = Frame {
            token: None,
            iov: &iov,
            len: 1,
        };
        assert_eq!(engine.write(&copied).unwrap(), Received::Taken);
        assert_eq!(received(&theirs), [b"1", b"2"]);
        assert_eq!(flush(&engine), [(0, Ok(()))]);
    }

    #[test]
    fn another_thread_goes_on_with_a_ring_of_its_own() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let mut memory = Memory::of(b"frame");
        let mut batch = |engine: &IoUringEngine| {
            for token in 0..2 {
                assert_eq!(send(engine, token, &mut memory).unwrap(), Received::Lent);
            }
            assert_eq!(flush(engine), [(0, Ok(())), (1, Ok(()))]);
        };
        batch(&engine);
        std::thread::scope(|scope| scope.spawn(|| batch(&engine)).join().unwrap());
        batch(&engine);
        assert_eq!(received(&theirs), [b"frame"; 6]);
        assert!(!lock(&engine.out).is_refused());
        assert_eq!(lock(&engine.out).requests_by_ring(), 6);
    }

    #[test]
    fn a_read_that_is_forgotten_is_not_made() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        theirs.send(b"frame").unwrap();
        let mut memory = Memory::of(&[0; 8]);
        engine.queue(Token(0), &[memory.iov()]);
        engine.forget();
        engine.submit(&mut |token, _| panic!("{token:?} was made"));
        assert_eq!(engine.read(&[memory.iov()]).unwrap(), 5);
    }

    #[test]
    fn a_ring_that_fails_is_done_without() {
        let Some((engine, theirs)) = engine() else {
            return;
        };
        let mut memory = Memory::of(b"frame");
        for token in 0..3 {
            assert_eq!(send(&engine, token, &mut memory).unwrap(), Received::Lent);
        }
        lock(&engine.out).refuse(&io::ErrorKind::Other.into());
        assert_eq!(flush(&engine), [(0, Ok(())), (1, Ok(())), (2, Ok(()))]);
        assert_eq!(send(&engine, 3, &mut memory).unwrap(), Received::Taken);
        assert_eq!(received(&theirs), [b"frame"; 4]);
    }

    #[test]
    fn io_uring_is_chosen_where_a_system_call_is_dear() {
        let table = [
            (130, 83, false),
            (480, 83, true),
            (100, 40, true),
            (99, 40, false),
        ];
        for (syscall, request, expected) in table {
            let [syscall, request] = [syscall, request].map(Duration::from_nanos);
            assert_eq!(
                is_cheaper(syscall, request),
                expected,
                "{syscall:?}, {request:?}"
            );
        }
    }
}
