//! The clock that a context's timers run on.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Where a context reads the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Time since some fixed start; never runs backwards.
    fn now(&self) -> Duration;

    /// How long to sleep until `deadline`, were nothing else to happen. `None`: time does not pass
    /// by itself, and whoever steps the clock calls its [`ClockWatcher`]s.
    fn sleep_until(&self, deadline: Duration) -> Option<Duration>;

    /// Asks to be told when the clock is stepped.
    fn add_watcher(&self, watcher: Weak<dyn ClockWatcher>) {
        let _ = watcher;
    }
}

/// Told when a clock is stepped by hand. A context is one.
pub trait ClockWatcher: Send + Sync {
    /// The clock shows another time.
    fn stepped(&self);
}

/// The host's monotonic clock, counted from when this value was made. [QEMU: the realtime clock of
/// a running machine]
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start: Instant,
}

impl MonotonicClock {
    /// A clock that starts now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep_until(&self, deadline: Duration) -> Option<Duration> {
        Some(deadline.saturating_sub(self.now()))
    }
}

/// A clock that stands still until it is stepped by hand.
#[derive(Default)]
pub struct VirtualClock {
    nanoseconds: AtomicU64,
    /// A leaf lock: nobody is called while it is held.
    watchers: Mutex<Vec<Weak<dyn ClockWatcher>>>,
}

impl VirtualClock {
    /// A clock that shows 0.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Steps the clock forward and wakes the contexts whose timers run on it. It stops at what 64
    /// bits of nanoseconds hold, 584 years.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let add = |now: u64| Some(now.saturating_add(by));
        // Cannot fail: `add` always has an answer.
        let _ = self
            .nanoseconds
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        let watchers: Vec<_> = {
            let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            watchers.retain(|watcher| watcher.strong_count() > 0);
            watchers.iter().filter_map(Weak::upgrade).collect()
        };
        for watcher in watchers {
            watcher.stepped();
        }
    }
}

impl fmt::Debug for VirtualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VirtualClock({:?})", self.now())
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Acquire))
    }

    fn sleep_until(&self, deadline: Duration) -> Option<Duration> {
        (deadline <= self.now()).then_some(Duration::ZERO)
    }

    fn add_watcher(&self, watcher: Weak<dyn ClockWatcher>) {
        self.watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(watcher);
    }
}
