//! An event loop on `event_manager`, run by hand or by an [`IoThread`](crate::IoThread).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock::{Clock, ClockWatcher, MonotonicClock};
use crate::context::{
    AioContext, BottomHalf, FdHandler, Interest, Readiness, TimerHandler, TimerId, WatchId,
    WatchedFd,
};
use crate::poller::Poller;
use crate::state::{Call, Change, State};

/// An [`AioContext`] that whoever owns it turns by hand.
///
/// One thread turns it at a time; a second one that tries waits for the first. A handler may turn
/// the loop that called it: the inner turn first makes the calls that the outer one still owes.
/// A handler may so find its descriptor no longer ready, which non-blocking descriptors tell.
///
/// Locks, in order: `turning` and `waiting` alone; `state` is a leaf. Handlers are called with none
/// of them held.
pub struct EventLoop {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    wake: Arc<EventFd>,
    /// Tells whether a descriptor can be polled at all.
    probe: Epoll,
    /// Used by the thread that turns the loop alone, not across calls to handlers.
    waiting: Mutex<Waiting>,
    turning: Mutex<Turning>,
    turned: Condvar,
    /// The thread inside a turn, or 0.
    current: AtomicU64,
}

struct Waiting {
    poller: Poller,
    changes: Vec<Change>,
    ready: Vec<(WatchId, Readiness)>,
}

/// Who turns the loop, and how often it has turned.
#[derive(Debug, Default)]
struct Turning {
    busy: bool,
    turns: u64,
    /// Threads that wait for `turned`.
    waiters: usize,
    /// A thread of its own turns the loop.
    has_thread: bool,
}

impl EventLoop {
    /// Makes a loop whose timers run on the host's monotonic clock.
    ///
    /// # Errors
    /// When the process has no more file descriptors.
    #[doc(alias = "aio_context_new")]
    pub fn new() -> io::Result<Arc<Self>> {
        Self::with_clock(Arc::new(MonotonicClock::new()))
    }

    /// Makes a loop whose timers run on `clock`.
    ///
    /// # Errors
    /// When the process has no more file descriptors.
    pub fn with_clock(clock: Arc<dyn Clock>) -> io::Result<Arc<Self>> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let this = Arc::new(Self {
            clock: clock.clone(),
            state: Mutex::default(),
            probe: Epoll::new()?,
            waiting: Mutex::new(Waiting {
                poller: Poller::new(wake.clone())?,
                changes: Vec::new(),
                ready: Vec::new(),
            }),
            wake,
            turning: Mutex::default(),
            turned: Condvar::new(),
            current: AtomicU64::new(0),
        });
        let watcher: Weak<dyn ClockWatcher> = Arc::<Self>::downgrade(&this);
        clock.add_watcher(watcher);
        Ok(this)
    }

    /// Turns once: waits up to `timeout` (`None`: for ever) for something to do, then does what
    /// there is, and returns how many handlers and pieces of work it called. It can return early
    /// with 0.
    ///
    /// # Errors
    /// When the host refuses to wait. Not to be expected, and no reason to try again at once.
    #[doc(alias = "aio_poll")]
    pub fn turn(&self, timeout: Option<Duration>) -> io::Result<usize> {
        let _turn = self.enter();
        if !self.state().has_calls() {
            self.wait(timeout)?;
        }
        let mut calls = 0;
        while let Some(call) = self.next_call() {
            call.run();
            calls += 1;
        }
        Ok(calls)
    }

    /// Ends the wait of a turn, now or of the next one.
    #[doc(alias = "aio_notify")]
    pub fn wake(&self) {
        self.schedule(Box::new(|| {}));
    }

    /// Says whether a thread of its own turns the loop, so that others wait for that thread instead
    /// of turning it themselves.
    pub(crate) fn set_has_thread(&self, has_thread: bool) {
        let mut turning = lock(&self.turning);
        turning.has_thread = has_thread;
        self.turned.notify_all();
    }

    /// Waits, and queues the turn's calls.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut released = Vec::new();
        let (timeout, deadline) = {
            let mut waiting = lock(&self.waiting);
            let Waiting {
                poller, changes, ..
            } = &mut *waiting;
            let mut state = self.state();
            state.take_changes(changes);
            let soonest = state
                .soonest_deadline()
                .map(|deadline| (deadline, self.clock.sleep_until(deadline)));
            let expired = matches!(soonest, Some((_, Some(Duration::ZERO))));
            let timeout = if expired || state.has_work() {
                Some(Duration::ZERO)
            } else {
                timeout
            };
            // From here on whoever has something new writes to `wake`.
            state.sleeping = timeout != Some(Duration::ZERO);
            drop(state);
            poller.apply(changes.drain(..), &mut released);
            let deadline = soonest.and_then(|(deadline, away)| Some((deadline, away?)));
            (timeout, deadline)
        };
        // Closing a descriptor may run its owner's code, so no lock is held.
        drop(released);

        let mut waiting = lock(&self.waiting);
        let Waiting {
            poller,
            changes,
            ready,
        } = &mut *waiting;
        let polled = poller.poll(timeout, deadline);
        let mut state = self.state();
        state.sleeping = false;
        polled?;
        poller.take_ready(ready);
        state.gather(ready, self.clock.now());
        // Work that was scheduled after a watch was removed finds it gone, its descriptor let go.
        state.take_changes(changes);
        drop(state);
        let mut released = Vec::new();
        poller.apply(changes.drain(..), &mut released);
        drop(waiting);
        drop(released);
        Ok(())
    }

    fn next_call(&self) -> Option<Call> {
        self.state().next_call()
    }

    fn enter(&self) -> Turn<'_> {
        if self.is_current() {
            return Turn {
                context: self,
                outermost: false,
            };
        }
        let mut turning = lock(&self.turning);
        while turning.busy {
            turning = self.await_turn(turning);
        }
        self.begin(turning)
    }

    fn begin(&self, mut turning: MutexGuard<'_, Turning>) -> Turn<'_> {
        turning.busy = true;
        self.current.store(this_thread(), Ordering::Relaxed);
        Turn {
            context: self,
            outermost: true,
        }
    }

    fn await_turn<'a>(&self, mut turning: MutexGuard<'a, Turning>) -> MutexGuard<'a, Turning> {
        turning.waiters += 1;
        let mut turning = self
            .turned
            .wait(turning)
            .unwrap_or_else(PoisonError::into_inner);
        turning.waiters -= 1;
        turning
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Has the loop see what was changed in `state`.
    fn notify(&self, mut state: MutexGuard<'_, State>) {
        if !state.sleeping {
            return;
        }
        state.sleeping = false;
        drop(state);
        // Fails only when it is written already.
        let _ = self.wake.write(1);
    }

    fn can_be_polled(&self, fd: RawFd) -> io::Result<()> {
        let none = EpollEvent::new(EventSet::empty(), 0);
        self.probe.ctl(ControlOperation::Add, fd, none)?;
        self.probe.ctl(ControlOperation::Delete, fd, none)
    }
}

impl AioContext for EventLoop {
    fn add_fd(
        &self,
        fd: Arc<dyn WatchedFd>,
        interest: Interest,
        handler: Weak<dyn FdHandler>,
    ) -> io::Result<WatchId> {
        let raw = fd.watched_fd().as_raw_fd();
        let mut state = self.state();
        self.can_be_polled(raw)?;
        let id = state.add_fd(raw, fd, interest, handler)?;
        self.notify(state);
        Ok(id)
    }

    fn set_interest(&self, id: WatchId, interest: Interest) {
        let mut state = self.state();
        if state.set_interest(id, interest) {
            self.notify(state);
        }
    }

    fn remove_fd(&self, id: WatchId) {
        let mut state = self.state();
        if state.remove_fd(id) {
            self.notify(state);
        }
    }

    fn add_timer(&self, handler: Weak<dyn TimerHandler>) -> TimerId {
        self.state().add_timer(handler)
    }

    fn arm_timer(&self, id: TimerId, deadline: Duration) {
        let mut state = self.state();
        if state.set_deadline(id, Some(deadline)) {
            self.notify(state);
        }
    }

    fn disarm_timer(&self, id: TimerId) {
        self.state().set_deadline(id, None);
    }

    fn remove_timer(&self, id: TimerId) {
        self.state().remove_timer(id);
    }

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn schedule(&self, work: BottomHalf) {
        let mut state = self.state();
        state.schedule(work);
        self.notify(state);
    }

    fn is_current(&self) -> bool {
        // Only this thread itself writes its number there.
        self.current.load(Ordering::Relaxed) == this_thread()
    }

    fn wait_while(&self, condition: &mut dyn FnMut() -> bool) {
        let turn = || {
            if let Err(error) = self.turn(None) {
                tracing::error!(%error, "an event loop cannot wait");
            }
        };
        if self.is_current() {
            while condition() {
                turn();
            }
            return;
        }
        loop {
            // Read before the condition, so that a turn that ends it in between is not missed.
            let seen = lock(&self.turning).turns;
            if !condition() {
                return;
            }
            let mut turning = lock(&self.turning);
            while turning.turns == seen && (turning.busy || turning.has_thread) {
                turning = self.await_turn(turning);
            }
            if turning.turns == seen {
                // Nobody turns the loop, and nobody has since the condition held.
                let _turn = self.begin(turning);
                turn();
            }
        }
    }
}

impl ClockWatcher for EventLoop {
    fn stepped(&self) {
        let state = self.state();
        self.notify(state);
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("clock", &self.clock)
            .field("state", &*self.state())
            .finish_non_exhaustive()
    }
}

/// A turn under way.
struct Turn<'a> {
    context: &'a EventLoop,
    outermost: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.outermost {
            return;
        }
        let mut turning = lock(&self.context.turning);
        self.context.current.store(0, Ordering::Relaxed);
        turning.busy = false;
        turning.turns = turning.turns.wrapping_add(1);
        if turning.waiters > 0 {
            self.context.turned.notify_all();
        }
    }
}

/// A number for the calling thread that no other has, never 0.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
