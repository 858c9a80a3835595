//! A timer of one of a queue's own.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use iothread::{AioContext, TimerHandler, TimerId};

/// A timer that calls its owner, while that lives; it ends with its drop.
pub(crate) struct Timer {
    context: Arc<dyn AioContext>,
    id: TimerId,
    armed: bool,
    /// The context has a `Weak` of it.
    _handler: Arc<dyn TimerHandler>,
}

impl Timer {
    /// A timer on `context`, disarmed, that calls `expired` with `owner`.
    pub(crate) fn new<T: Send + Sync + 'static>(
        context: &Arc<dyn AioContext>,
        owner: Weak<T>,
        expired: fn(&T),
    ) -> Self {
        let handler = Arc::new(OnTimer { owner, expired });
        let weak = Arc::downgrade(&handler) as Weak<dyn TimerHandler>;
        Self {
            context: context.clone(),
            id: context.add_timer(weak),
            armed: false,
            _handler: handler,
        }
    }

    /// Arms it, unless it is armed: then it goes off when it was to.
    pub(crate) fn arm(&mut self, after: Duration) {
        if !std::mem::replace(&mut self.armed, true) {
            let deadline = self.context.now().saturating_add(after);
            self.context.arm_timer(self.id, deadline);
        }
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.armed
    }

    /// What the context's clock says.
    pub(crate) fn now(&self) -> Duration {
        self.context.now()
    }

    pub(crate) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.context.disarm_timer(self.id);
        }
    }

    /// It has gone off. `false`: it had been disarmed by then, and does not count.
    pub(crate) fn expired(&mut self) -> bool {
        std::mem::take(&mut self.armed)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.context.remove_timer(self.id);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer")
            .field("id", &self.id)
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

struct OnTimer<T> {
    owner: Weak<T>,
    expired: fn(&T),
}

impl<T: Send + Sync> TimerHandler for OnTimer<T> {
    fn expired(&self) {
        if let Some(owner) = self.owner.upgrade() {
            (self.expired)(&owner);
        }
    }
}
