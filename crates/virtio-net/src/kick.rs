//! Watching a queue's kick.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use iothread::{AioContext, FdHandler, Interest, TimerHandler, TimerId, WatchId, WatchedEventFd};
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
    pub(crate) fn new(
        context: &Arc<dyn AioContext>,
        kick: &Arc<EventFd>,
        handler: Arc<dyn FdHandler>,
    ) -> io::Result<Self> {
        let id = context.add_fd(
            Arc::new(WatchedEventFd(kick.clone())),
            Interest::READ,
            Arc::downgrade(&handler),
        )?;
        Ok(Self {
            context: context.clone(),
            id,
            timer: None,
            armed: false,
            _handler: handler,
        })
    }

    /// As [`new`](Self::new), with a timer that the same handler answers to.
    pub(crate) fn with_timer<H: FdHandler + TimerHandler + 'static>(
        context: &Arc<dyn AioContext>,
        kick: &Arc<EventFd>,
        handler: Arc<H>,
    ) -> io::Result<Self> {
        let timer = Arc::downgrade(&handler) as Weak<dyn TimerHandler>;
        let mut watch = Self::new(context, kick, handler)?;
        watch.timer = Some(context.add_timer(timer));
        Ok(watch)
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

    pub(crate) fn disarm_timer(&mut self) {
        if let Some(timer) = self.timer
            && std::mem::take(&mut self.armed)
        {
            self.context.disarm_timer(timer);
        }
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

/// Makes the context look at the queue at its next turn.
pub(crate) fn again(kick: &EventFd) {
    // It fails only when the counter is full, and then it is signalled anyway.
    let _ = kick.write(1);
}

/// Reads the kick empty.
pub(crate) fn clear(kick: &EventFd) {
    // Nothing to read is as good as read.
    let _ = kick.read();
}
