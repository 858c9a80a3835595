//! The signals that ask the process to end, as a descriptor.
#![expect(
    unsafe_code,
    reason = "signal masks and signalfd are calls into the C library"
)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT, taken from the process's default way with them so that
/// its main loop can clean up first.
#[derive(Debug)]
pub struct EndSignals(File);

impl EndSignals {
    /// Blocks the signals in this thread and those it makes from now on, so it is called before any
    /// other thread is made.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn take() -> io::Result<Self> {
        // SAFETY: an all-zero set is one, to be overwritten.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` lives across the call.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: `set` is initialized and lives across the call.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is initialized and lives across the call.
        let errno =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: `set` is initialized and lives across the call.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made the descriptor, which is nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// A signal that has come, if one has.
    pub fn next(&self) -> Option<i32> {
        // The signal's number is the first member of `signalfd_siginfo`.
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut info).ok()?;
        let (number, _) = info.split_first_chunk()?;
        Some(i32::from_ne_bytes(*number))
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
