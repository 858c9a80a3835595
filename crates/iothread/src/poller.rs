//! The descriptors that a loop waits for, on `event_manager`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::context::{Interest, Readiness, WatchId, WatchedFd};
use crate::state::Change;

/// Waits for descriptors, for a timer, and for being woken.
///
/// The watched descriptors are one subscriber of the event manager. It only notes what is ready;
/// handlers are called after the event manager has returned, so that a handler may turn the loop.
pub(crate) struct Poller {
    manager: EventManager<Noted>,
    noted: SubscriberId,
    watched: HashMap<WatchId, Watched>,
    by_fd: HashMap<RawFd, WatchId>,
    wake: Arc<EventFd>,
    timer: TimerFd,
    /// The deadline that `timer` is set for.
    timer_set_for: Option<Duration>,
}

struct Watched {
    raw: RawFd,
    /// Kept open until it is out of the event manager: the number must not come to mean another
    /// file before.
    fd: Arc<dyn WatchedFd>,
    /// Whether the event manager has it. One that waits for nothing is taken out, since a hang-up
    /// would be reported even so, over and over.
    polled: bool,
}

#[derive(Default)]
struct Noted(Vec<(RawFd, EventSet)>);

impl MutEventSubscriber for Noted {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.0.push((events.fd(), events.event_set()));
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}

impl Poller {
    pub(crate) fn new(wake: Arc<EventFd>) -> io::Result<Self> {
        let mut manager = EventManager::new().map_err(into_io)?;
        let noted = manager.add_subscriber(Noted::default());
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let mut ops = manager.event_ops(noted).map_err(into_io)?;
        for fd in [wake.as_raw_fd(), timer.as_raw_fd()] {
            ops.add(Events::new_raw(fd, EventSet::IN))
                .map_err(into_io)?;
        }
        Ok(Self {
            manager,
            noted,
            watched: HashMap::new(),
            by_fd: HashMap::new(),
            wake,
            timer,
            timer_set_for: None,
        })
    }

    /// Does what was asked for since the last turn. Descriptors let go are left in `released`, to be
    /// dropped where no lock is held.
    pub(crate) fn apply(
        &mut self,
        changes: impl Iterator<Item = Change>,
        released: &mut Vec<Arc<dyn WatchedFd>>,
    ) {
        for change in changes {
            match change {
                Change::Add(id, raw, fd, interest) => {
                    let polled = false;
                    self.watched.insert(id, Watched { raw, fd, polled });
                    self.by_fd.insert(raw, id);
                    self.set_interest(id, interest);
                }
                Change::Interest(id, interest) => self.set_interest(id, interest),
                Change::Remove(id) => {
                    self.set_interest(id, Interest::NONE);
                    if let Some(watched) = self.watched.remove(&id) {
                        self.by_fd.remove(&watched.raw);
                        released.push(watched.fd);
                    }
                }
            }
        }
    }

    fn set_interest(&mut self, id: WatchId, interest: Interest) {
        let Some(watched) = self.watched.get_mut(&id) else {
            return;
        };
        let Ok(mut ops) = self.manager.event_ops(self.noted) else {
            return;
        };
        let events = Events::new_raw(watched.raw, event_set(interest));
        let wanted = interest != Interest::NONE;
        let result = match (watched.polled, wanted) {
            (false, true) => ops.add(events),
            (true, true) => ops.modify(events),
            (true, false) => ops.remove(events),
            (false, false) => Ok(()),
        };
        match result {
            Ok(()) => watched.polled = wanted,
            Err(error) => tracing::error!(
                fd = watched.raw,
                %error,
                "a descriptor's watch was not changed"
            ),
        }
    }

    /// Waits until a descriptor is ready, the loop is woken, or `timeout` or `deadline` (a time and
    /// how far it is away) has passed.
    pub(crate) fn poll(
        &mut self,
        timeout: Option<Duration>,
        deadline: Option<(Duration, Duration)>,
    ) -> io::Result<()> {
        if timeout != Some(Duration::ZERO) {
            self.set_timer(deadline)?;
        }
        let milliseconds = match timeout {
            None => -1,
            // Rounded up: waking too early would mean turning for nothing.
            Some(timeout) => {
                i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        };
        self.manager
            .run_with_timeout(milliseconds)
            .map_err(into_io)?;
        Ok(())
    }

    fn set_timer(&mut self, deadline: Option<(Duration, Duration)>) -> io::Result<()> {
        let wanted = deadline.map(|(at, _)| at);
        if wanted == self.timer_set_for {
            return Ok(());
        }
        match deadline {
            // A timer set for 0 would never expire.
            Some((_, away)) => self.timer.reset(away.max(Duration::from_nanos(1)), None),
            None => self.timer.clear(),
        }
        .map_err(io::Error::from)?;
        self.timer_set_for = wanted;
        Ok(())
    }

    /// Appends what [`poll`](Self::poll) found to `ready`.
    pub(crate) fn take_ready(&mut self, ready: &mut Vec<(WatchId, Readiness)>) {
        let Ok(noted) = self.manager.subscriber_mut(self.noted) else {
            return;
        };
        for (fd, events) in noted.0.drain(..) {
            if let Some(id) = self.by_fd.get(&fd) {
                ready.push((*id, readiness(events)));
            } else if fd == self.wake.as_raw_fd() {
                // It is readable: does not block.
                let _ = self.wake.read();
            } else if fd == self.timer.as_raw_fd() {
                let _ = self.timer.wait();
                self.timer_set_for = None;
            }
        }
    }
}

fn event_set(interest: Interest) -> EventSet {
    let mut events = EventSet::empty();
    events.set(EventSet::IN, interest.readable);
    events.set(EventSet::OUT, interest.writable);
    events
}

fn readiness(events: EventSet) -> Readiness {
    Readiness {
        readable: events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP),
        writable: events.contains(EventSet::OUT),
        error: events.intersects(EventSet::ERROR | EventSet::HANG_UP),
    }
}

fn into_io(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(other),
    }
}
