//! The bare loop on a tap that devices are compared with: nothing but the system calls.
#![expect(unsafe_code, reason = "system calls on memory of the bench's own")]

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use net_client::Offloads;
use net_tap::{Tap, TapConfig};

use crate::frame::HEADER_LEN;
use crate::layout::{Layout, PAGE, QUEUE};
use crate::ping::wait_for;
use crate::processor::{ThreadClock, pin};
use crate::rig::{DEVICE_CPU, Took};

/// Requests at once.
const BATCH: usize = 32;

/// How the bare loop moves frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawEngine {
    /// `writev` and `readv`, one a frame.
    Vectors,
    /// io_uring, 32 frames at once.
    IoUring,
}

/// A tap, and a bare loop on it.
#[derive(Debug)]
pub struct RawTap {
    tap: Tap,
    layout: Layout,
    engine: RawEngine,
    /// As much as a driver's frames have, used in turn.
    memory: Box<[u8]>,
    /// The pieces of each frame: into `memory`.
    vectors: Vec<Vec<libc::iovec>>,
}

// SAFETY: the vectors name memory of the same value, which is not accessed but by the kernel.
unsafe impl Send for RawTap {}

impl RawTap {
    /// A tap of its own called `name`, which is up.
    pub fn open(name: &str, address: &str, layout: Layout, engine: RawEngine) -> Self {
        Self::open_queues(name, address, layout, engine, 1).remove(0)
    }

    /// As [`open`](Self::open), with a loop on each of so many queues.
    pub fn open_queues(
        name: &str,
        address: &str,
        layout: Layout,
        engine: RawEngine,
        queues: u32,
    ) -> Vec<Self> {
        let config = TapConfig {
            ifname: Some(name.into()),
            address: Some(address.parse().unwrap()),
            queues: (queues > 1).then_some(queues),
            ..TapConfig::default()
        };
        let taps = Tap::open(&config).unwrap();
        let raw = taps.into_iter().map(|tap| {
            tap.set_header_len(HEADER_LEN).unwrap();
            tap.set_little_endian(true).unwrap();
            tap.set_offloads(Offloads {
                csum: true,
                tso4: true,
                tso6: true,
                ..Offloads::default()
            })
            .unwrap();
            Self {
                tap,
                layout,
                engine,
                memory: vec![0; layout.memory_len() + PAGE].into_boxed_slice(),
                vectors: Vec::new(),
            }
        });
        raw.collect()
    }

    /// What is `at` so far from where the first page begins.
    fn at(&mut self, at: usize, len: usize) -> *mut u8 {
        let skip = self.memory.as_ptr().align_offset(PAGE);
        self.memory[skip + at..][..len].as_mut_ptr()
    }

    /// Lays out frames, in the pieces that the driver of a device has them in.
    pub fn prepare_to_send(&mut self) {
        let bytes = self.layout.size.bytes([0x02, 0, 0, 0, 0, 2]);
        self.vectors.clear();
        for place in self.layout.places_to_send() {
            let mut rest = &*bytes;
            let mut vector = Vec::new();
            for (at, len) in self.layout.pieces_to_send() {
                let (piece, behind) = rest.split_at(len);
                let at = self.at(place + at, len);
                // SAFETY: `len` bytes of memory of its own.
                unsafe { at.copy_from_nonoverlapping(piece.as_ptr(), len) };
                vector.push(libc::iovec {
                    iov_base: at.cast(),
                    iov_len: len,
                });
                rest = behind;
            }
            self.vectors.push(vector);
        }
    }

    /// Lays out room for frames, in the pieces that the driver of a device has.
    pub fn prepare_to_receive(&mut self) {
        let count = usize::try_from(self.layout.buffers()).unwrap();
        let (len, offset) = self.layout.buffer();
        self.vectors.clear();
        for frame in 0..usize::from(QUEUE) / count {
            let vector = (0..count).map(|n| libc::iovec {
                iov_base: self.at((frame * count + n) * PAGE + offset, len).cast(),
                iov_len: len,
            });
            let vector = vector.collect();
            self.vectors.push(vector);
        }
    }

    /// Writes so many frames, on a thread of its own where devices run.
    pub fn send(&mut self, frames: u64) -> Took {
        self.run(frames, true)
    }

    /// Reads so many frames, which wait in the tap.
    pub fn receive(&mut self, frames: u64) -> Took {
        self.run(frames, false)
    }

    /// Writes so many frames on each of several, all at once, each on a thread and a processor of its own.
    pub fn send_together(taps: &mut [&mut Self], cpus: &[usize], frames: u64) -> Vec<Took> {
        let start = Barrier::new(taps.len());
        thread::scope(|scope| {
            let threads: Vec<_> = (taps.iter_mut().zip(cpus))
                .map(|(tap, cpu)| {
                    let shared = Shared(tap);
                    let start = &start;
                    scope.spawn(move || {
                        pin(*cpu);
                        shared.here(frames, true, Some(start))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        })
    }

    fn run(&mut self, frames: u64, out: bool) -> Took {
        let shared = Shared(self);
        let work = move || {
            pin(DEVICE_CPU);
            shared.here(frames, out, None)
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[inline(never)]
    fn by_vectors(&self, fd: RawFd, frames: u64, out: bool) {
        for (_, vector) in (0..frames).zip(self.vectors.iter().cycle()) {
            let count = vector.len().try_into().unwrap();
            let moved = if out {
                // SAFETY: pieces of memory of its own.
                unsafe { libc::writev(fd, vector.as_ptr(), count) }
            } else {
                // SAFETY: as above; nobody has a reference into it.
                unsafe { libc::readv(fd, vector.as_ptr(), count) }
            };
            assert!(moved > 0, "{}", std::io::Error::last_os_error());
        }
    }

    fn by_io_uring(&self, ring: &mut IoUring, frames: u64, out: bool) {
        let mut vectors = self.vectors.iter().cycle();
        let mut left = usize::try_from(frames).unwrap();
        while left > 0 {
            let batch = left.min(BATCH).min(self.vectors.len());
            {
                let mut queue = ring.submission();
                for vector in vectors.by_ref().take(batch) {
                    // SAFETY: pieces of memory of its own, which is there until the batch has ended.
                    unsafe { queue.push(&entry(vector, out)) }.unwrap();
                }
            }
            let mut ended = 0;
            ring.submit().unwrap();
            while ended < batch {
                for completion in ring.completion() {
                    assert!(completion.result() > 0, "{}", completion.result());
                    ended += 1;
                }
                if ended < batch {
                    ring.submit_and_wait(1).unwrap();
                }
            }
            left -= batch;
        }
    }
}

impl RawTap {
    /// Writes back so many frames as they come, on a thread where devices run, while `host` is at work here.
    pub(crate) fn echo<T>(&mut self, count: u64, host: impl FnOnce() -> T) -> T {
        let shared = Shared(self);
        thread::scope(|scope| {
            scope.spawn(move || {
                pin(DEVICE_CPU);
                shared.echo(count);
            });
            host()
        })
    }
}

/// A loop that another thread runs, and nobody else meanwhile.
struct Shared<'a>(&'a RawTap);

// SAFETY: as for `Send`; who lends it waits for the other thread.
unsafe impl Send for Shared<'_> {}

impl Shared<'_> {
    /// Moves so many frames on this thread, once all who `start` have come so far.
    fn here(self, frames: u64, out: bool, start: Option<&Barrier>) -> Took {
        let this = self.0;
        let fd = this.tap.as_fd().as_raw_fd();
        let mut ring = (this.engine == RawEngine::IoUring).then(|| ring(fd));
        if let Some(start) = start {
            start.wait();
        }
        let clock = ThreadClock::of_this_thread();
        let (before, start) = (clock.now(), Instant::now());
        match &mut ring {
            None => this.by_vectors(fd, frames, out),
            Some(ring) => this.by_io_uring(ring, frames, out),
        }
        Took {
            wall: start.elapsed(),
            cpu: clock.now() - before,
        }
    }
}

impl Shared<'_> {
    fn echo(self, count: u64) {
        let this = self.0;
        let fd = this.tap.as_fd().as_raw_fd();
        // A read that waits is the ring's way to wait.
        set_nonblocking(fd, this.engine == RawEngine::Vectors);
        let mut ring = (this.engine == RawEngine::IoUring).then(|| ring(fd));
        for vector in this.vectors.iter().cycle().take(count.try_into().unwrap()) {
            match &mut ring {
                None => {
                    wait_for(fd);
                    // SAFETY: a piece of memory of its own, of which nobody has a reference.
                    let read = unsafe { libc::readv(fd, vector.as_ptr(), 1) };
                    let frame = whole(vector, read);
                    // SAFETY: as above.
                    let written = unsafe { libc::writev(fd, &raw const frame, 1) };
                    assert_eq!(written, read);
                }
                Some(ring) => {
                    let read = one(ring, &entry(vector, false));
                    let frame = whole(vector, read.try_into().unwrap());
                    assert_eq!(one(ring, &entry(&[frame], true)), read);
                }
            }
        }
    }
}

/// What a read of so many bytes has left in a buffer.
fn whole(vector: &[libc::iovec], read: isize) -> libc::iovec {
    libc::iovec {
        iov_base: vector[0].iov_base,
        iov_len: read.try_into().expect("a frame"),
    }
}

/// Has the ring do one request, and waits for its end.
fn one(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
    // SAFETY: a piece of memory of the caller's, which waits.
    unsafe { ring.submission().push(entry) }.unwrap();
    let deadline = Timespec::new().sec(20);
    let arguments = SubmitArgs::new().timespec(&deadline);
    ring.submitter().submit_with_args(1, &arguments).unwrap();
    ring.completion().next().expect("an end").result()
}

fn set_nonblocking(fd: RawFd, nonblocking: bool) {
    // SAFETY: takes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    let flags = if nonblocking {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    // SAFETY: takes an integer.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
    assert_eq!(result, 0);
}

fn ring(fd: RawFd) -> IoUring {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(u32::try_from(BATCH).unwrap())
        .unwrap();
    ring.submitter().register_files(&[fd]).unwrap();
    ring
}

fn entry(vector: &[libc::iovec], out: bool) -> squeue::Entry {
    let fd = Fixed(0);
    let here = u64::MAX;
    match (vector, out) {
        ([one], true) => {
            let len = one.iov_len.try_into().unwrap();
            opcode::Write::new(fd, one.iov_base.cast(), len)
                .offset(here)
                .build()
        }
        ([one], false) => {
            let len = one.iov_len.try_into().unwrap();
            opcode::Read::new(fd, one.iov_base.cast(), len)
                .offset(here)
                .build()
        }
        (many, true) => {
            let count = many.len().try_into().unwrap();
            opcode::Writev::new(fd, many.as_ptr(), count)
                .offset(here)
                .build()
        }
        (many, false) => {
            let count = many.len().try_into().unwrap();
            opcode::Readv::new(fd, many.as_ptr(), count)
                .offset(here)
                .build()
        }
    }
}
