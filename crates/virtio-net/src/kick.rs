//! Watching a queue's kick.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use iothread::{
    AioContext, FdHandler, Interest, Readiness, TimerHandler, TimerId, WatchId, WatchedEventFd,
};
use vmm_sys_util::eventfd::EventFd;

/// A kick under watch, perhaps with a timer; both end with its drop.
pub(crate) struct Watch {
    context: Arc<dyn AioContext>,
    id: WatchId,
    timer: Option<TimerId>,
    armed: bool,
    /// The context has a `Weak` of it.
    _handler: Arc<dyn FdHandler>,
}

impl Watch {
    /// Watches `kick`. Each time, it is read empty, then `kicked` is called with `owner`, while that lives.
    pub(crate) fn new<T: Send + Sync + 'static>(
        context: &Arc<dyn AioContext>,
        kick: &Arc<EventFd>,
        owner: Weak<T>,
        kicked: fn(&T),
    ) -> io::Result<Self> {
        Self::with_timer(context, kick, owner, kicked, None)
    }

    /// As [`new`](Self::new), with a timer too if there is something to call when it `expired`.
    pub(crate) fn with_timer<T: Send + Sync + 'static>(
        context: &Arc<dyn AioContext>,
        kick: &Arc<EventFd>,
        owner: Weak<T>,
        kicked: fn(&T),
        expired: Option<fn(&T)>,
    ) -> io::Result<Self> {
        let handler = Arc::new(OnKick {
            owner,
            kick: kick.clone(),
            kicked,
            expired,
        });
        let on_kick = Arc::downgrade(&handler) as Weak<dyn FdHandler>;
        let on_timer = Arc::downgrade(&handler) as Weak<dyn TimerHandler>;
        let fd = Arc::new(WatchedEventFd(kick.clone()));
        let id = context.add_fd(fd, Interest::READ, on_kick)?;
        Ok(Self {
            context: context.clone(),
            id,
            timer: expired.map(|_| context.add_timer(on_timer)),
            armed: false,
            _handler: handler,
        })
    }

    /// The kick is not looked at any more: its queue is broken.
    pub(crate) fn rest(&self) {
        self.context.set_interest(self.id, Interest::NONE);
    }

    /// Arms the timer, unless it is armed: then it goes off when it was to.
    pub(crate) fn arm_timer(&mut self, after: Duration) {
        if let Some(timer) = self.timer
            && !std::mem::replace(&mut self.armed, true)
        {
            let deadline = self.context.now().saturating_add(after);
            self.context.arm_timer(timer, deadline);
        }
    }

    #[inline]
    pub(crate) fn disarm_timer(&mut self) {
        if let Some(timer) = self.timer
            && std::mem::take(&mut self.armed)
        {
            self.context.disarm_timer(timer);
        }
    }

    pub(crate) fn timer_is_armed(&self) -> bool {
        self.armed
    }

    /// The timer has gone off. `false`: it had been disarmed by then, and does not count.
    pub(crate) fn timer_expired(&mut self) -> bool {
        std::mem::take(&mut self.armed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.context.remove_fd(self.id);
        if let Some(timer) = self.timer {
            self.context.remove_timer(timer);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Calls the owner of a queue at its kick, and at its timer.
struct OnKick<T> {
    owner: Weak<T>,
    kick: Arc<EventFd>,
    kicked: fn(&T),
    expired: Option<fn(&T)>,
}

impl<T: Send + Sync> FdHandler for OnKick<T> {
    fn ready(&self, readiness: Readiness) {
        if !readiness.readable {
            return;
        }
        clear(&self.kick);
        if let Some(owner) = self.owner.upgrade() {
            (self.kicked)(&owner);
        }
    }
}

impl<T: Send + Sync> TimerHandler for OnKick<T> {
    fn expired(&self) {
        if let (Some(owner), Some(expired)) = (self.owner.upgrade(), self.expired) {
            expired(&owner);
        }
    }
}

/// Makes the context look at the queue at its next turn.
pub(crate) fn again(kick: &EventFd) {
    // It fails only when the counter is full, and then it is signalled anyway.
    let _ = kick.write(1);
}

/// Buffers after which a batch ends within a turn: few enough for the driver to do its part while the device does
/// the next, many enough for the end of a batch to cost nothing.
pub(crate) fn batch(queue_size: u16) -> usize {
    (queue_size / 4).clamp(1, MOST_OF_A_BATCH).into()
}

/// The largest [`batch`].
pub(crate) const MOST_OF_A_BATCH: u16 = 64;

/// Looks for a short chain in vain after which a turn looks no more: the driver's are of another kind. Some find nothing
/// because a batch begins.
pub(crate) const MISSES: u32 = 8;

/// Reads the kick empty.
fn clear(kick: &EventFd) {
    // Nothing to read is as good as read.
    let _ = kick.read();
}
