//! The bare loop on a tap that devices are compared with: nothing but the system calls.
#![expect(unsafe_code, reason = "system calls on memory of the bench's own")]

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;
use std::time::Instant;

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode, squeue};
use net_client::Offloads;
use net_tap::{Tap, TapConfig};

use crate::frame::{FrameSize, HEADER_LEN, PROTOCOL_LEN};
use crate::processor::{ThreadClock, pin};
use crate::rig::{BUFFER, DEVICE_CPU, OFFSET, QUEUE, Took};

/// Requests at once.
const BATCH: usize = 32;
const PAGE: usize = 4096;

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
    size: FrameSize,
    engine: RawEngine,
    /// As many pages as a driver has buffers, each used in turn.
    memory: Box<[u8]>,
    /// The pieces of each frame: into `memory`.
    vectors: Vec<Vec<libc::iovec>>,
}

// SAFETY: the vectors name memory of the same value, which is not accessed but by the kernel.
unsafe impl Send for RawTap {}

impl RawTap {
    /// A tap of its own called `name`, which is up.
    pub fn open(name: &str, address: &str, size: FrameSize, engine: RawEngine) -> Self {
        let config = TapConfig {
            ifname: Some(name.into()),
            address: Some(address.parse().unwrap()),
            ..TapConfig::default()
        };
        let tap = Tap::open(&config).unwrap().remove(0);
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
            size,
            engine,
            memory: vec![0; (usize::from(QUEUE) + 2) * PAGE].into_boxed_slice(),
            vectors: Vec::new(),
        }
    }

    /// The page `index`, which begins where pages do.
    fn page(&mut self, index: usize) -> *mut u8 {
        let skip = self.memory.as_ptr().align_offset(PAGE);
        self.memory[skip + index * PAGE..][..PAGE].as_mut_ptr()
    }

    /// Lays out frames, in the pieces that the driver of a device has them in.
    pub fn prepare_to_send(&mut self) {
        let bytes = self.size.bytes([0x02, 0, 0, 0, 0, 2]);
        let first = match self.size {
            FrameSize::Smallest | FrameSize::Full => bytes.len(),
            FrameSize::Segmented => HEADER_LEN + PROTOCOL_LEN,
        };
        let (start, rest) = bytes.split_at(first);
        let chain = 1 + rest.len().div_ceil(PAGE);
        self.vectors.clear();
        for frame in 0..usize::from(QUEUE) / chain {
            let offset = usize::try_from(OFFSET).unwrap();
            let pieces = std::iter::once((offset, start)).chain(rest.chunks(PAGE).map(|p| (0, p)));
            let mut vector = Vec::new();
            for (n, (offset, piece)) in pieces.enumerate() {
                let at = self.page(frame * chain + n).wrapping_add(offset);
                // SAFETY: less than a page from `offset` on, of memory of its own.
                unsafe { at.copy_from_nonoverlapping(piece.as_ptr(), piece.len()) };
                vector.push(libc::iovec {
                    iov_base: at.cast(),
                    iov_len: piece.len(),
                });
            }
            self.vectors.push(vector);
        }
    }

    /// Lays out room for frames, in the pieces that the driver of a device has.
    pub fn prepare_to_receive(&mut self) {
        let count = (HEADER_LEN + self.size.frame_len()).div_ceil(BUFFER);
        self.vectors.clear();
        for frame in 0..usize::from(QUEUE) / count {
            let vector = (0..count).map(|n| {
                let at = self.page(frame * count + n);
                libc::iovec {
                    iov_base: at.wrapping_add(usize::try_from(OFFSET).unwrap()).cast(),
                    iov_len: BUFFER,
                }
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

    fn run(&mut self, frames: u64, out: bool) -> Took {
        let this = &*self;
        struct Shared<'a>(&'a RawTap);
        // SAFETY: as for `Send`; the other thread waits.
        unsafe impl Send for Shared<'_> {}
        let shared = Shared(this);
        let work = move || {
            let shared = shared;
            let this = shared.0;
            pin(DEVICE_CPU);
            let fd = this.tap.as_fd().as_raw_fd();
            let clock = ThreadClock::of_this_thread();
            match this.engine {
                RawEngine::Vectors => {
                    let (before, start) = (clock.now(), Instant::now());
                    this.by_vectors(fd, frames, out);
                    Took {
                        wall: start.elapsed(),
                        cpu: clock.now() - before,
                    }
                }
                RawEngine::IoUring => {
                    let mut ring = IoUring::builder()
                        .setup_single_issuer()
                        .setup_defer_taskrun()
                        .build(u32::try_from(BATCH).unwrap())
                        .unwrap();
                    ring.submitter().register_files(&[fd]).unwrap();
                    let (before, start) = (clock.now(), Instant::now());
                    this.by_io_uring(&mut ring, frames, out);
                    Took {
                        wall: start.elapsed(),
                        cpu: clock.now() - before,
                    }
                }
            }
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

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
