//! How fast frames may pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iothread::AioContext;

use crate::shared::lock;

/// How fast frames of one direction may pass, over all queues; 0 is no limit. What is faster waits: nothing is dropped for
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes of frames, without headers, in a second.
    pub bytes: u64,
    /// Frames in a second.
    pub packets: u64,
    /// After a rest as many may pass at once as make up so long a time.
    pub burst: Duration,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            bytes: 0,
            packets: 0,
            burst: Duration::from_millis(100),
        }
    }
}

/// Frames that pass between two looks at a limit.
pub(crate) const GRAIN: u32 = 8;
/// The longest wait before the next look: a limit may have changed.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// A limit at work.
#[derive(Debug)]
pub(crate) struct Limiter {
    clock: Arc<dyn AioContext>,
    /// There is a limit; as `state` has it.
    is_on: AtomicBool,
    /// A leaf lock, but for the clock's.
    state: Mutex<State>,
}

/// A limit with the time at which each of its buckets will be full again.
#[derive(Debug, Default)]
struct State {
    limit: RateLimit,
    bytes: Duration,
    packets: Duration,
}

impl Limiter {
    pub(crate) fn new(clock: Arc<dyn AioContext>, limit: RateLimit) -> Self {
        let this = Self {
            clock,
            is_on: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        };
        this.set(limit);
        this
    }

    pub(crate) fn set(&self, limit: RateLimit) {
        let mut state = lock(&self.state);
        *state = State {
            limit,
            ..State::default()
        };
        let is_on = limit.bytes != 0 || limit.packets != 0;
        self.is_on.store(is_on, Ordering::Release);
    }

    pub(crate) fn limit(&self) -> RateLimit {
        lock(&self.state).limit
    }

    /// The times after which the buckets of bytes and of frames will be full again.
    pub(crate) fn owed(&self) -> [Duration; 2] {
        let now = self.clock.now();
        let state = lock(&self.state);
        [state.bytes, state.packets].map(|full| full.saturating_sub(now))
    }

    /// They will be after such times, from now on. Those of no limit stay full.
    pub(crate) fn owe(&self, [bytes, packets]: [Duration; 2]) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let full = |owed, rate| match rate {
            0 => Duration::ZERO,
            _ => now.saturating_add(owed),
        };
        state.bytes = full(bytes, state.limit.bytes);
        state.packets = full(packets, state.limit.packets);
    }

    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// How long the next frame has to wait; `None` if it may pass.
    #[inline]
    pub(crate) fn wait(&self) -> Option<Duration> {
        if self.is_on() { self.look() } else { None }
    }

    fn look(&self) -> Option<Duration> {
        let now = self.clock.now();
        let state = lock(&self.state);
        let full = state.bytes.max(state.packets);
        let wait = full.saturating_sub(now.saturating_add(state.limit.burst));
        (!wait.is_zero()).then(|| wait.min(LONGEST_WAIT))
    }

    /// So much has passed.
    pub(crate) fn spend(&self, frames: u64, bytes: u64) {
        let now = self.clock.now();
        let mut state = lock(&self.state);
        let State {
            limit,
            bytes: bytes_full,
            packets: packets_full,
        } = &mut *state;
        for (full, rate, spent) in [
            (bytes_full, limit.bytes, bytes),
            (packets_full, limit.packets, frames),
        ] {
            *full = (*full).max(now).saturating_add(cost(spent, rate));
        }
    }
}

/// The time that `spent` units make up at so many a second.
fn cost(spent: u64, rate: u64) -> Duration {
    if rate == 0 {
        return Duration::ZERO;
    }
    let nanos = u128::from(spent).saturating_mul(1_000_000_000) / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use iothread::{EventLoop, VirtualClock};

    use super::*;

    #[test]
    fn what_passes_in_a_long_time_is_the_rate_and_at_once_the_burst() {
        // (bytes and packets a second, bytes of a frame, frames at once, frames in ten seconds more)
        let table = [
            (1_000_000, 0, 1000, 101, 10_000),
            (0, 100, 60, 11, 1000),
            (1_000_000, 100, 1000, 11, 1000),
            (100_000, 1000, 1000, 11, 1000),
            // One that is more than the burst passes, and is paid for afterwards.
            (1000, 0, 5000, 1, 2),
        ];
        for (bytes, packets, len, at_once, later) in table {
            let clock = VirtualClock::new();
            let context = EventLoop::with_clock(clock.clone()).unwrap();
            let limit = RateLimit {
                bytes,
                packets,
                ..Default::default()
            };
            let limiter = Limiter::new(context, limit);
            let pass = || {
                let mut frames = 0;
                while limiter.wait().is_none() {
                    limiter.spend(1, len);
                    frames += 1;
                }
                frames
            };
            assert_eq!(pass(), at_once, "{limit:?}");
            let mut frames = 0;
            for _ in 0..10_000 {
                clock.advance(Duration::from_millis(1));
                frames += pass();
            }
            assert_eq!(frames, later, "{limit:?}");
        }
    }

    #[test]
    fn no_limit_is_no_wait_and_numbers_without_bound_do_no_harm() {
        let context = EventLoop::with_clock(VirtualClock::new()).unwrap();
        let limiter = Limiter::new(context, RateLimit::default());
        assert!(!limiter.is_on());
        limiter.spend(u64::MAX, u64::MAX);
        assert_eq!(limiter.wait(), None);
        limiter.set(RateLimit {
            bytes: 1,
            packets: u64::MAX,
            burst: Duration::MAX,
        });
        limiter.spend(u64::MAX, u64::MAX);
        limiter.spend(u64::MAX, u64::MAX);
        assert_eq!(limiter.wait(), None);
        limiter.set(RateLimit {
            bytes: 1,
            ..Default::default()
        });
        limiter.spend(u64::MAX, u64::MAX);
        assert_eq!(limiter.wait(), Some(LONGEST_WAIT));
    }
}
