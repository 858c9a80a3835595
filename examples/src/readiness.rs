//! Waiting for descriptors.
#![expect(unsafe_code, reason = "poll is a call into the C library")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

/// Waits until a descriptor can be read or is broken, and says which; all `false` after `timeout`.
///
/// # Errors
/// When the host refuses to wait.
pub fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(entry);
    poll(&mut polled, timeout)?;
    Ok(polled.map(|fd| fd.revents != 0))
}

/// Waits until any of the descriptors can be read, or until `timeout`.
///
/// # Errors
/// When the host refuses to wait.
pub fn wait_any(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
    let mut polled: Vec<_> = fds.iter().copied().map(entry).collect();
    poll(&mut polled, Some(timeout))
}

/// Waits until the descriptor can be written or is broken (true), or until `timeout` (false).
///
/// # Errors
/// When the host refuses to wait.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut polled = [libc::pollfd {
        events: libc::POLLOUT,
        ..entry(fd)
    }];
    poll(&mut polled, Some(timeout))?;
    Ok(polled.iter().any(|fd| fd.revents != 0))
}

/// An event descriptor as what it is.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor, and the borrow keeps it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn entry(fd: BorrowedFd<'_>) -> libc::pollfd {
    libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }
}

fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to spin in the last millisecond.
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        // SAFETY: `fds` is as many complete entries as is said, and lives across the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, left) };
        if ready >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_read_is_named() {
        let [quiet, loud] = [EventFd::new(0).unwrap(), EventFd::new(1).unwrap()];
        loud.write(1).unwrap();
        let fds = [&quiet, &loud].map(borrow);
        assert_eq!(wait_readable(fds, None).unwrap(), [false, true]);
        let none = wait_readable([borrow(&quiet)], Some(Duration::ZERO));
        assert_eq!(none.unwrap(), [false]);
    }
}
