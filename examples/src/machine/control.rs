//! What ends or restarts a machine, from whoever notices it to whoever acts on it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::readiness::borrow;

/// Something that the owner of a machine must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The embedded guest program ended with this status.
    GuestExit(u8),
    /// The guest cannot go on by its own doing, and why.
    Crash(String),
    /// KVM cannot go on with code that another processor could run, and why.
    CannotRun(String),
    /// The VMM itself cannot go on, and why.
    Failed(String),
    /// The user left.
    Quit,
    /// The user asked that the processors stop, or go on: see [`RunState`](super::RunState).
    RunState,
}

/// Carries [`Event`]s from vCPU threads and devices to the owner of the machine.
#[derive(Debug)]
pub struct Control {
    /// A leaf lock.
    events: Mutex<VecDeque<Event>>,
    wake: EventFd,
}

impl Control {
    /// With no event.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            events: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Reports an event. A guest can repeat one without end, so what is reported already is not
    /// kept twice.
    pub fn report(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if !events.contains(&event) && events.len() < MAX_EVENTS {
            events.push_back(event);
        }
        // Fails only when the counter is full, and then the owner will wake all the same.
        let _ = self.wake.write(1);
    }

    /// The oldest event, taken out.
    pub fn take(&self) -> Option<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.wake.read();
        let event = events.pop_front();
        if !events.is_empty() {
            let _ = self.wake.write(1);
        }
        event
    }

    /// Forgets what vCPUs and devices reported before a reset, which is not meant for after it. What the user
    /// wants, he wants all the same.
    pub fn clear(&self) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.retain(|event| matches!(event, Event::Quit | Event::RunState));
        if events.is_empty() {
            let _ = self.wake.read();
        }
    }

    /// Readable while there is an event.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.wake)
    }
}

/// Distinct events worth keeping until the owner looks.
const MAX_EVENTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_in_order_and_once() {
        let control = Control::new().unwrap();
        control.report(Event::Reset);
        control.report(Event::Reset);
        control.report(Event::PowerOff);
        assert_eq!(control.take(), Some(Event::Reset));
        assert!(
            control.wake.read().is_ok(),
            "one is left, so the descriptor stays readable"
        );
        assert_eq!(control.take(), Some(Event::PowerOff));
        assert_eq!(control.take(), None);
        assert!(control.wake.read().is_err());
    }

    #[test]
    fn a_reset_forgets_the_guests_events_and_not_the_users() {
        let control = Control::new().unwrap();
        for event in [Event::PowerOff, Event::Quit, Event::RunState, Event::Reset] {
            control.report(event);
        }
        control.clear();
        assert_eq!(control.take(), Some(Event::Quit));
        assert_eq!(control.take(), Some(Event::RunState));
        assert_eq!(control.take(), None);
        control.report(Event::PowerOff);
        control.clear();
        assert!(control.wake.read().is_err());
    }
}
