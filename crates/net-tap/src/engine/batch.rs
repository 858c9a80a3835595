//! Reads or writes that are done at once, by io_uring where it pays off.
#![expect(
    unsafe_code,
    reason = "requests to the kernel name memory by its address"
)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, ThreadId};

use io_uring::types::{CancelBuilder, Fixed};
use io_uring::{IoUring, opcode, squeue};
use net_client::{IoVec, Token};

use crate::tap::Tap;

/// Requests in a batch at most. More at once bring nothing.
pub(super) const BATCH: usize = BATCH_U32 as usize;
pub(super) const BATCH_U32: u32 = 32;

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Read from the interface.
    In,
    /// Written to it.
    Out,
}

/// The requests of one direction, from when they are kept until what came of them is told.
///
/// A request that would have to wait says so (`RWF_NOWAIT`) instead of going on, so all of them have ended when
/// [`run`](Self::run) returns: nothing is left to be cancelled when the peer takes its memory back.
pub(super) struct Batch {
    tap: Arc<Tap>,
    way: Way,
    /// Fewer requests than this are plain system calls.
    least: usize,
    requests: Vec<Request>,
    /// The pieces of all requests, one after another.
    pieces: Vec<IoVec>,
    results: Vec<(Token, usize, io::Result<usize>)>,
    ring: Option<Ring>,
    /// The kernel has refused it: plain system calls from then on.
    refused: bool,
    /// System calls so far.
    calls: u64,
    /// Requests that the ring has done.
    by_ring: u64,
}

#[derive(Clone, Copy)]
struct Request {
    token: Token,
    /// Of `pieces`.
    first: usize,
    count: usize,
    /// Bytes in them.
    len: usize,
}

/// A ring, which belongs to the thread that made it.
struct Ring {
    uring: IoUring,
    thread: ThreadId,
}

impl Batch {
    pub(super) fn new(tap: &Arc<Tap>, way: Way, least: usize) -> Self {
        Self {
            tap: tap.clone(),
            way,
            least,
            requests: Vec::with_capacity(BATCH),
            pieces: Vec::with_capacity(2 * BATCH),
            results: Vec::with_capacity(BATCH),
            ring: None,
            refused: false,
            calls: 0,
            by_ring: 0,
        }
    }

    /// Whether batches are plain system calls: the kernel has refused more.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests.len() >= BATCH
    }

    /// System calls so far.
    #[cfg(test)]
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    /// Requests that the ring has done.
    #[cfg(test)]
    pub(super) fn requests_by_ring(&self) -> u64 {
        self.by_ring
    }

    /// Keeps a request of `len` bytes in `iov`, whose memory stays valid until [`run`](Self::run) or
    /// [`forget`](Self::forget) has returned.
    pub(super) fn push(&mut self, token: Token, iov: &[IoVec], len: usize) {
        self.requests.push(Request {
            token,
            first: self.pieces.len(),
            count: iov.len(),
            len,
        });
        self.pieces.extend_from_slice(iov);
    }

    /// One request by a plain system call, past those that are kept.
    pub(super) fn one(&mut self, iov: &[IoVec]) -> io::Result<usize> {
        self.calls += 1;
        match self.way {
            Way::In => self.tap.read(iov),
            Way::Out => self.tap.write(iov),
        }
    }

    /// Does what was kept, in order; [`take_results`](Self::take_results) has what came of it.
    pub(super) fn run(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let before = self.results.len();
        if self.requests.len() >= self.least && !self.refused {
            self.run_on_ring();
        }
        // What the ring has not done, for whatever reason.
        let done = self.results.len() - before;
        let mut empty = false;
        for at in done..self.requests.len() {
            let Some(request) = self.requests.get(at).copied() else {
                break;
            };
            let result = if empty {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                self.plain(request)
            };
            // One read that finds nothing is enough.
            empty |= self.way == Way::In && is_would_block(&result);
            self.results.push((request.token, request.len, result));
        }
        self.forget();
    }

    /// Forgets what was kept: its memory is not valid any more.
    pub(super) fn forget(&mut self) {
        self.requests.clear();
        self.pieces.clear();
    }

    /// What came of requests, with the bytes that each had.
    pub(super) fn take_results(&mut self) -> Vec<(Token, usize, io::Result<usize>)> {
        std::mem::take(&mut self.results)
    }

    /// Takes back the list, to be used again.
    pub(super) fn recycle(&mut self, mut results: Vec<(Token, usize, io::Result<usize>)>) {
        if self.results.is_empty() {
            results.clear();
            self.results = results;
        }
    }

    fn plain(&mut self, request: Request) -> io::Result<usize> {
        let end = request.first + request.count;
        let iov = self.pieces.get(request.first..end).unwrap_or_default();
        self.calls += 1;
        match self.way {
            Way::In => self.tap.read(iov),
            Way::Out => self.tap.write(iov),
        }
    }

    /// Has the ring do as many requests as it takes, from the first on, and puts down what came of them.
    fn run_on_ring(&mut self) {
        let thread = thread::current().id();
        // One that another thread made, before the context moved, takes nothing from this one.
        if self.ring.as_ref().is_none_or(|ring| ring.thread != thread) {
            match Ring::new(&self.tap) {
                Ok(ring) => self.ring = Some(ring),
                Err(error) => return self.refuse(&error),
            }
        }
        let Some(ring) = &mut self.ring else { return };
        let mut pushed = 0;
        {
            let mut queue = ring.uring.submission();
            for request in &self.requests {
                let end = request.first + request.count;
                let iov = self.pieces.get(request.first..end).unwrap_or_default();
                let entry = entry(self.way, iov).user_data(pushed as u64);
                // SAFETY: `pieces` is not touched, and the memory that it names is valid, until `run` returns;
                // by then the request has ended.
                if unsafe { queue.push(&entry) }.is_err() {
                    break;
                }
                pushed += 1;
            }
        }
        let before = self.results.len();
        let mut submitted = 0;
        let error = loop {
            self.calls += 1;
            match ring.uring.submit() {
                Ok(more) => {
                    submitted += more;
                    if submitted >= pushed {
                        break None;
                    }
                    if more == 0 {
                        break Some(io::ErrorKind::WriteZero.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        for request in self.requests.iter().take(submitted) {
            let unknown = Err(io::ErrorKind::WouldBlock.into());
            self.results.push((request.token, request.len, unknown));
        }
        let mut ended = 0;
        loop {
            let completions = ring.uring.completion();
            let results = self.results.get_mut(before..).unwrap_or_default();
            ended += put_down(
                results,
                completions.map(|entry| (entry.user_data(), entry.result())),
            );
            if ended >= submitted {
                break;
            }
            self.calls += 2;
            ring.end_all();
        }
        self.by_ring += submitted as u64;
        if let Some(error) = error {
            self.refuse(&error);
        }
        self.redo_unsupported(before);
    }

    /// A kernel that cannot say at once whether a request would wait refuses it: then it is done plainly.
    fn redo_unsupported(&mut self, before: usize) {
        for at in before..self.results.len() {
            let Some((_, _, Err(error))) = self.results.get(at) else {
                continue;
            };
            if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
                continue;
            }
            let error = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            self.refuse(&error);
            if let Some(request) = self.requests.get(at - before).copied() {
                let result = self.plain(request);
                if let Some((_, _, slot)) = self.results.get_mut(at) {
                    *slot = result;
                }
            }
        }
    }

    /// Plain system calls from now on.
    pub(super) fn refuse(&mut self, error: &io::Error) {
        // What it was given and has not begun goes with it.
        self.ring = None;
        if !std::mem::replace(&mut self.refused, true) {
            let interface = self.tap.name();
            tracing::warn!(interface, %error, "io_uring fails; frames are moved one system call each");
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("way", &self.way)
            .field("kept", &self.requests.len())
            .field("ring", &self.ring.is_some())
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl Ring {
    fn new(tap: &Tap) -> io::Result<Self> {
        let uring = build()?;
        uring
            .submitter()
            .register_files(&[tap.as_fd().as_raw_fd()])?;
        Ok(Self {
            uring,
            thread: thread::current().id(),
        })
    }

    /// Cancels what goes on, which nothing should, and waits for an end.
    fn end_all(&self) {
        let submitter = self.uring.submitter();
        // What has ended by itself is not found.
        let _ = submitter.register_sync_cancel(None, CancelBuilder::any());
        // SAFETY: no argument is passed. An error shows as nothing having ended.
        let _ = unsafe { submitter.enter::<()>(0, 1, GETEVENTS, None) };
    }
}

/// A ring for one thread that does its work when that thread asks for it.
pub(super) fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .build(BATCH_U32)
}

fn entry(way: Way, iov: &[IoVec]) -> squeue::Entry {
    let fd = Fixed(0);
    // The kernel takes up to 1024 pieces, and refuses a request of more.
    let count = u32::try_from(iov.len()).unwrap_or(u32::MAX);
    match (way, iov) {
        (Way::In, [one]) if let Ok(len) = u32::try_from(one.len()) => {
            let read = opcode::Read::new(fd, one.base(), len);
            read.offset(HERE).rw_flags(libc::RWF_NOWAIT).build()
        }
        (Way::Out, [one]) if let Ok(len) = u32::try_from(one.len()) => {
            let write = opcode::Write::new(fd, one.base(), len);
            write.offset(HERE).rw_flags(libc::RWF_NOWAIT).build()
        }
        (Way::In, many) => {
            let read = opcode::Readv::new(fd, many.as_ptr().cast(), count);
            read.offset(HERE).rw_flags(libc::RWF_NOWAIT).build()
        }
        (Way::Out, many) => {
            let write = opcode::Writev::new(fd, many.as_ptr().cast(), count);
            write.offset(HERE).rw_flags(libc::RWF_NOWAIT).build()
        }
    }
}

/// Puts down what came of requests that have ended, in whatever order: each by its place in the batch. How many they were.
fn put_down(
    results: &mut [(Token, usize, io::Result<usize>)],
    ended: impl Iterator<Item = (u64, i32)>,
) -> usize {
    ended
        .map(|(at, result)| {
            let slot = usize::try_from(at).ok().and_then(|at| results.get_mut(at));
            if let Some((_, _, slot)) = slot {
                *slot = outcome(result);
            }
        })
        .count()
}

fn outcome(result: i32) -> io::Result<usize> {
    match usize::try_from(result) {
        Ok(len) => Ok(len),
        // What was cancelled found nothing to do.
        Err(_) if result == -libc::ECANCELED => Err(io::ErrorKind::WouldBlock.into()),
        Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
    }
}

fn is_would_block<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The file's own position, of which a tap has none.
const HERE: u64 = u64::MAX;
/// `IORING_ENTER_GETEVENTS`
const GETEVENTS: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_in_another_order_is_put_down_where_it_belongs() {
        let mut results: Vec<_> = (10..14)
            .map(|token| (Token(token), 100, Err(io::ErrorKind::WouldBlock.into())))
            .collect();
        // The second has not ended; one that nobody asked for changes nothing.
        let ended = [
            (3, 60),
            (0, -libc::EIO),
            (9, 1),
            (u64::MAX, 1),
            (2, -libc::ECANCELED),
        ];
        assert_eq!(put_down(&mut results, ended.into_iter()), 5);
        assert_eq!(put_down(&mut results, [(1, 70)].into_iter()), 1);
        let results: Vec<_> = results
            .into_iter()
            .map(|(token, len, result)| {
                let result = result.map_err(|error| (error.kind(), error.raw_os_error()));
                (token.0, len, result)
            })
            .collect();
        let io_error = io::Error::from_raw_os_error(libc::EIO);
        let expected = [
            (10, 100, Err((io_error.kind(), Some(libc::EIO)))),
            (11, 100, Ok(70)),
            (12, 100, Err((io::ErrorKind::WouldBlock, None))),
            (13, 100, Ok(60)),
        ];
        assert_eq!(results, expected);
    }
}
