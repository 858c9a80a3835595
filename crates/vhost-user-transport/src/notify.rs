//! The descriptors that a front end passes: kick, call and error.
#![expect(unsafe_code, reason = "descriptors from a socket are taken over")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use virtio_bus::{GuestNotifier, Health, Transport, signal};
use vmm_sys_util::eventfd::EventFd;

/// Takes a descriptor over, if it is an eventfd. Whatever it was made as, it blocks nobody from here on: a front
/// end does not stop the data path by filling or emptying it. (That is a flag of the eventfd, which the front end has
/// too: one that sets it back on purpose still can, and Linux knows no write to an eventfd that does without it.)
pub(crate) fn eventfd(file: File) -> Option<EventFd> {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if link != Path::new("anon_inode:[eventfd]") {
        return None;
    }
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open, and the call takes no pointer.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return None;
    }
    // SAFETY: `into_raw_fd` gives up the only owner, and the new one is an eventfd by the check above.
    Some(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// A ring's way to the guest: the eventfd that the front end named last, which it may replace while the
/// ring runs.
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// A leaf lock.
    fd: Mutex<Option<EventFd>>,
}

impl Call {
    pub(crate) fn set(&self, fd: Option<EventFd>) {
        *self.fd.lock().unwrap_or_else(PoisonError::into_inner) = fd;
    }
}

impl GuestNotifier for Call {
    fn notify(&self) {
        if let Some(fd) = &*self.fd.lock().unwrap_or_else(PoisonError::into_inner) {
            signal(fd);
        }
    }

    fn event_fd(&self) -> Option<&EventFd> {
        // It can change at any time, without a word to whoever had it.
        None
    }
}

/// What the device reports, as far as a front end can be told.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) health: Health,
    /// By ring: SET_VRING_ERR's. Leaf locks.
    errors: Vec<Mutex<Option<EventFd>>>,
}

impl Reports {
    pub(crate) fn new(rings: usize) -> Self {
        Self {
            health: Health::default(),
            errors: (0..rings).map(|_| Mutex::default()).collect(),
        }
    }

    pub(crate) fn set_error_fd(&self, ring: usize, fd: Option<EventFd>) {
        if let Some(slot) = self.errors.get(ring) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = fd;
        }
    }
}

impl Transport for Reports {
    /// There is no channel to a front end: it reads configuration space when it likes.
    fn config_changed(&self) {
        tracing::debug!("configuration space changed; the front end sees it when it next asks");
    }

    fn needs_reset(&self, reason: &str) {
        self.health.log_broken("vhost-user", reason);
        for slot in &self.errors {
            if let Some(fd) = &*slot.lock().unwrap_or_else(PoisonError::into_inner) {
                signal(fd);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn file(fd: impl IntoRawFd) -> File {
        // SAFETY: the descriptor was just given up by its owner.
        unsafe { File::from_raw_fd(fd.into_raw_fd()) }
    }

    #[test]
    fn only_an_eventfd_is_taken_for_one() {
        let (socket, _other) = UnixStream::pair().unwrap();
        assert!(eventfd(file(socket)).is_none(), "a socket");
        assert!(
            eventfd(File::open("/dev/zero").unwrap()).is_none(),
            "a device"
        );
        let made = EventFd::new(EFD_NONBLOCK).unwrap();
        assert!(eventfd(file(made)).is_some(), "an eventfd");
    }

    #[test]
    fn a_blocking_eventfd_blocks_nobody_once_it_is_taken() {
        let taken = eventfd(file(EventFd::new(0).unwrap())).unwrap();
        assert!(taken.read().is_err(), "nothing was signalled");
        taken.write(u64::MAX - 1).unwrap();
        let call = Call::default();
        call.set(Some(taken));
        call.notify();
    }
}
