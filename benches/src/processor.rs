//! Processors, the time of threads, and memory.
#![expect(
    unsafe_code,
    reason = "affinity, clocks and the heap are calls into the C library"
)]

use std::mem;
use std::time::Duration;

/// Keeps this thread on one processor. Where there is none of that number, it stays where it is.
pub fn pin(cpu: usize) {
    // SAFETY: a set of bits, of which zeros are one.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: sets a bit of `set`, if it has so many.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set and its length are those of one value; 0 is this thread.
    let _ = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

/// The time that one thread has had a processor for; read from any.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// That of the calling thread.
    pub fn of_this_thread() -> Self {
        let mut id = 0;
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::pthread_self() };
        // SAFETY: a thread that runs, and a place for a number.
        let result = unsafe { libc::pthread_getcpuclockid(thread, &mut id) };
        assert_eq!(result, 0);
        Self(id)
    }

    /// The time now.
    pub fn now(self) -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: a clock of this process, and a place for its time.
        let result = unsafe { libc::clock_gettime(self.0, &mut time) };
        assert_eq!(result, 0);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap(),
            u32::try_from(time.tv_nsec).unwrap(),
        )
    }
}

/// Bytes that the process has allocated and not given back: guest memory, which is mapped, is not among them.
pub fn allocated() -> usize {
    // SAFETY: takes nothing, and locks what it reads.
    let heap = unsafe { libc::mallinfo2() };
    heap.uordblks + heap.hblkhd
}
