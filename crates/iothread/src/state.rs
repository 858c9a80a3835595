//! What an event loop knows: watches, timers, work. Plain data, behind the loop's one state lock.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::context::{
    BottomHalf, FdHandler, Interest, Readiness, TimerHandler, TimerId, WatchId, WatchedFd,
};

/// Turns in which a watch may be ready for nothing but an error, before the log says so.
const ERRORS_BEFORE_WARNING: u32 = 1000;

#[derive(Default)]
pub(crate) struct State {
    last_id: u64,
    watches: HashMap<WatchId, Watch>,
    by_fd: HashMap<RawFd, WatchId>,
    /// What the poller does not know yet, in order.
    changes: Vec<Change>,
    timers: HashMap<TimerId, Timer>,
    /// The armed timers, soonest first.
    deadlines: BTreeSet<(Duration, TimerId)>,
    work: VecDeque<BottomHalf>,
    /// The loop waits, or is about to, and must be woken for anything new.
    pub(crate) sleeping: bool,
    /// What is to be called in this turn, in order.
    ready: VecDeque<Ready>,
}

struct Watch {
    fd: RawFd,
    interest: Interest,
    handler: Weak<dyn FdHandler>,
    /// Turns in a row in which only an error was reported.
    errors: u32,
}

struct Timer {
    handler: Weak<dyn TimerHandler>,
    deadline: Option<Duration>,
}

/// A step for the poller.
pub(crate) enum Change {
    Add(WatchId, RawFd, Arc<dyn WatchedFd>, Interest),
    Interest(WatchId, Interest),
    Remove(WatchId),
}

enum Ready {
    Work(BottomHalf),
    Fd(WatchId, Readiness),
    Timer(TimerId, Duration),
}

/// A handler to call, with the state lock released.
pub(crate) enum Call {
    Work(BottomHalf),
    Fd(Arc<dyn FdHandler>, Readiness),
    Timer(Arc<dyn TimerHandler>),
}

impl Call {
    pub(crate) fn run(self) {
        match self {
            Self::Work(work) => work(),
            Self::Fd(handler, readiness) => handler.ready(readiness),
            Self::Timer(handler) => handler.expired(),
        }
    }
}

impl State {
    pub(crate) fn add_fd(
        &mut self,
        raw: RawFd,
        fd: Arc<dyn WatchedFd>,
        interest: Interest,
        handler: Weak<dyn FdHandler>,
    ) -> io::Result<WatchId> {
        if self.by_fd.contains_key(&raw) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("file descriptor {raw} is watched already"),
            ));
        }
        let id = WatchId(self.next_id());
        self.by_fd.insert(raw, id);
        let watch = Watch {
            fd: raw,
            interest,
            handler,
            errors: 0,
        };
        self.watches.insert(id, watch);
        self.changes.push(Change::Add(id, raw, fd, interest));
        Ok(id)
    }

    /// Whether anything changed.
    pub(crate) fn set_interest(&mut self, id: WatchId, interest: Interest) -> bool {
        let Some(watch) = self.watches.get_mut(&id) else {
            return false;
        };
        if mem::replace(&mut watch.interest, interest) == interest {
            return false;
        }
        self.changes.push(Change::Interest(id, interest));
        true
    }

    /// Whether there was such a watch.
    pub(crate) fn remove_fd(&mut self, id: WatchId) -> bool {
        let Some(watch) = self.watches.remove(&id) else {
            return false;
        };
        self.by_fd.remove(&watch.fd);
        self.changes.push(Change::Remove(id));
        true
    }

    pub(crate) fn add_timer(&mut self, handler: Weak<dyn TimerHandler>) -> TimerId {
        let id = TimerId(self.next_id());
        let deadline = None;
        self.timers.insert(id, Timer { handler, deadline });
        id
    }

    /// Arms or (`None`) disarms a timer. Whether the soonest deadline is sooner now.
    pub(crate) fn set_deadline(&mut self, id: TimerId, deadline: Option<Duration>) -> bool {
        let Some(timer) = self.timers.get_mut(&id) else {
            return false;
        };
        let soonest = self.deadlines.first().copied();
        if let Some(old) = mem::replace(&mut timer.deadline, deadline) {
            self.deadlines.remove(&(old, id));
        }
        let Some(deadline) = deadline else {
            return false;
        };
        self.deadlines.insert((deadline, id));
        soonest.is_none_or(|(soonest, _)| deadline < soonest)
    }

    pub(crate) fn remove_timer(&mut self, id: TimerId) {
        self.set_deadline(id, None);
        self.timers.remove(&id);
    }

    pub(crate) fn schedule(&mut self, work: BottomHalf) {
        self.work.push_back(work);
    }

    pub(crate) fn soonest_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Whether a turn has something to do without waiting, timers apart.
    pub(crate) fn has_work(&self) -> bool {
        !(self.work.is_empty() && self.ready.is_empty() && self.changes.is_empty())
    }

    pub(crate) fn take_changes(&mut self, into: &mut Vec<Change>) {
        into.append(&mut self.changes);
    }

    /// Whether calls of a turn are left over, for a turn within it to make.
    pub(crate) fn has_calls(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Queues the calls of one turn: work, descriptors, timers that have expired by `now`.
    pub(crate) fn gather(&mut self, fds: &mut Vec<(WatchId, Readiness)>, now: Duration) {
        self.ready.extend(self.work.drain(..).map(Ready::Work));
        self.ready.extend(
            fds.drain(..)
                .map(|(id, readiness)| Ready::Fd(id, readiness)),
        );
        let expired = self.deadlines.range(..=(now, TimerId(u64::MAX)));
        self.ready
            .extend(expired.map(|(deadline, id)| Ready::Timer(*id, *deadline)));
    }

    /// The next call of the turn: what has been removed, disarmed or dropped since it was queued is
    /// passed over.
    pub(crate) fn next_call(&mut self) -> Option<Call> {
        loop {
            let call = match self.ready.pop_front()? {
                Ready::Work(work) => Some(Call::Work(work)),
                Ready::Fd(id, readiness) => self.fd_call(id, readiness),
                Ready::Timer(id, deadline) => self.timer_call(id, deadline),
            };
            if call.is_some() {
                return call;
            }
        }
    }

    fn fd_call(&mut self, id: WatchId, readiness: Readiness) -> Option<Call> {
        let watch = self.watches.get_mut(&id)?;
        let readiness = Readiness {
            readable: readiness.readable && watch.interest.readable,
            writable: readiness.writable && watch.interest.writable,
            error: readiness.error && watch.interest != Interest::NONE,
        };
        if readiness == Readiness::default() {
            return None;
        }
        if readiness.error {
            watch.errors = watch.errors.saturating_add(1);
            if watch.errors == ERRORS_BEFORE_WARNING {
                tracing::warn!(
                    fd = watch.fd,
                    "the handler of a descriptor leaves its error standing and is called over and over"
                );
            }
        } else {
            watch.errors = 0;
        }
        match watch.handler.upgrade() {
            Some(handler) => Some(Call::Fd(handler, readiness)),
            None => {
                self.remove_fd(id);
                None
            }
        }
    }

    fn timer_call(&mut self, id: TimerId, deadline: Duration) -> Option<Call> {
        let timer = self.timers.get_mut(&id)?;
        if timer.deadline != Some(deadline) {
            return None;
        }
        timer.deadline = None;
        self.deadlines.remove(&(deadline, id));
        let handler = timer.handler.upgrade();
        if handler.is_none() {
            self.timers.remove(&id);
        }
        handler.map(Call::Timer)
    }

    fn next_id(&mut self) -> u64 {
        // 2^64 are never used up.
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("watches", &self.watches.len())
            .field("timers", &self.timers.len())
            .field("armed", &self.deadlines.len())
            .field("work", &self.work.len())
            .finish_non_exhaustive()
    }
}
