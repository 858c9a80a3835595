//! The event loop that a device's data path runs on, seen by the device.
#![expect(
    unsafe_code,
    reason = "an eventfd's descriptor is borrowed for as long as the eventfd"
)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// A file descriptor that a context may keep open for as long as it watches it.
pub trait WatchedFd: Send + Sync {
    /// The descriptor.
    fn watched_fd(&self) -> BorrowedFd<'_>;
}

impl<T: AsFd + Send + Sync> WatchedFd for T {
    fn watched_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// An eventfd of `vmm-sys-util`, which has no `AsFd`, as a descriptor to watch.
#[derive(Clone, Debug)]
pub struct WatchedEventFd(pub Arc<EventFd>);

impl WatchedFd for WatchedEventFd {
    fn watched_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is open for as long as `self.0` lives, which the borrow cannot outlive.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// Which readiness of a descriptor calls its handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Call when the descriptor can be read.
    pub readable: bool,
    /// Call when the descriptor can be written.
    pub writable: bool,
}

impl Interest {
    /// Neither: the descriptor stays known to the context, its handler rests.
    pub const NONE: Self = Self {
        readable: false,
        writable: false,
    };
    /// Readable only.
    pub const READ: Self = Self {
        readable: true,
        writable: false,
    };
    /// Writable only.
    pub const WRITE: Self = Self {
        readable: false,
        writable: true,
    };
}

/// What a descriptor was found to be ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// It can be read, or its other end has hung up.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
    /// The descriptor reports an error (EPOLLERR or EPOLLHUP); a handler that cannot cure it
    /// removes its watch, or it is called again at once.
    pub error: bool,
}

/// Called on the context's thread when a watched descriptor is ready.
pub trait FdHandler: Send + Sync {
    /// The descriptor is ready. Level-triggered: called again for as long as it stays so.
    ///
    /// A call that had begun when another thread removed the watch still runs to its end.
    fn ready(&self, readiness: Readiness);
}

/// Called on the context's thread when a timer's deadline has passed.
pub trait TimerHandler: Send + Sync {
    /// The deadline has passed; the timer is disarmed before the call and may be armed again.
    fn expired(&self);
}

/// Names one watch of one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchId(pub u64);

/// Names one timer of one context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TimerId(pub u64);

/// A piece of work to run once on the context's thread. [QEMU: a bottom half]
pub type BottomHalf = Box<dyn FnOnce() + Send>;

/// An event loop: watch a descriptor, arm a timer on the context's clock, run work on its thread.
///
/// A device holds its context by `Arc`; the context holds handlers by `Weak`, so dropping a device
/// ends its callbacks whatever it forgot to remove. All methods may be called from any thread,
/// from inside a handler too, and take effect at the latest when the context next turns.
#[doc(alias = "aio_context_new")]
pub trait AioContext: Send + Sync + fmt::Debug {
    /// Watches `fd`, which the context keeps open until [`remove_fd`](Self::remove_fd).
    /// A descriptor can be watched once per context.
    ///
    /// # Errors
    /// When the descriptor cannot be polled or is watched already (as far as known at once).
    #[doc(alias = "aio_set_fd_handler")]
    fn add_fd(
        &self,
        fd: Arc<dyn WatchedFd>,
        interest: Interest,
        handler: Weak<dyn FdHandler>,
    ) -> io::Result<WatchId>;

    /// Changes what a watch waits for. Does nothing for a watch that is gone.
    fn set_interest(&self, id: WatchId, interest: Interest);

    /// Ends a watch. No call of its handler begins afterwards; one that runs is not waited for. The
    /// descriptor is let go before work runs that is scheduled afterwards.
    fn remove_fd(&self, id: WatchId);

    /// Makes a timer, disarmed.
    #[doc(alias = "aio_timer_new")]
    fn add_timer(&self, handler: Weak<dyn TimerHandler>) -> TimerId;

    /// Arms (or re-arms) a timer for `deadline`, a reading of [`now`](Self::now).
    #[doc(alias = "timer_mod")]
    fn arm_timer(&self, id: TimerId, deadline: Duration);

    /// Disarms a timer. Does nothing for one that is not armed or gone.
    fn disarm_timer(&self, id: TimerId);

    /// Removes a timer.
    fn remove_timer(&self, id: TimerId);

    /// The context's clock: time since some fixed start, stepped by hand where it is virtual.
    #[doc(alias = "qemu_clock_get_ns")]
    fn now(&self) -> Duration;

    /// Runs `work` once on the context's thread, at its next turn.
    #[doc(alias = "aio_bh_schedule_oneshot")]
    fn schedule(&self, work: BottomHalf);

    /// Whether the caller is inside a turn of this context.
    fn is_current(&self) -> bool;

    /// Waits while `condition` says true, checking it after each turn: on a context with a thread
    /// of its own by sleeping, on one run by hand (or when called from inside a turn) by turning it.
    ///
    /// What ends the condition happens in a turn, or is followed by one: who ends it elsewhere
    /// schedules a piece of work, if an empty one. The caller holds no lock that a handler takes.
    #[doc(alias = "AIO_WAIT_WHILE")]
    fn wait_while(&self, condition: &mut dyn FnMut() -> bool);
}
