//! Notifications that are held back, so that one stands for many (virtio 1.4, 5.1.9.5.10).

use std::time::Duration;

use crate::timer::Timer;

/// How long notifications of a queue are held back. By default, and with either number 0, they are not.
#[doc(alias = "virtio_net_ctrl_coal")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coalescing {
    /// Frames after which the driver is notified.
    pub(crate) max_packets: u32,
    /// Microseconds after the first of them after which it is.
    pub(crate) max_usecs: u32,
}

impl Coalescing {
    pub(crate) fn is_off(&self) -> bool {
        self.max_packets == 0 || self.max_usecs == 0
    }
}

/// What of a queue's notifications is held back.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    coalescing: Coalescing,
    /// There while something may be held back.
    timer: Option<Timer>,
    /// Frames of which the driver has not been told.
    frames: u64,
    /// Buffers were used since the driver was last told.
    held: bool,
}

impl Gate {
    /// Holds notifications back from now on as `coalescing` says. `true`: what is held back is not any more, and the
    /// driver is to be told now.
    pub(crate) fn set(&mut self, coalescing: Coalescing, timer: impl FnOnce() -> Timer) -> bool {
        self.coalescing = coalescing;
        if coalescing.is_off() || self.frames >= u64::from(coalescing.max_packets) {
            let held = self.release();
            if coalescing.is_off() {
                self.timer = None;
            } else if self.timer.is_none() {
                self.timer = Some(timer());
            }
            return held;
        }
        if let Some(timer) = &mut self.timer {
            // What is held back has waited already: as long again at most.
            timer.disarm();
        } else {
            self.timer = Some(timer());
        }
        if self.held {
            self.hold();
        }
        false
    }

    /// The context is another. `true` as of [`set`](Self::set).
    pub(crate) fn renew(&mut self, timer: impl FnOnce() -> Timer) -> bool {
        if self.timer.is_some() {
            self.timer = Some(timer());
        }
        self.release()
    }

    pub(crate) fn coalescing(&self) -> Coalescing {
        self.coalescing
    }

    /// Buffers have been used, with so many frames. Whether the driver may be told now.
    #[inline]
    pub(crate) fn passes(&mut self, frames: u64) -> bool {
        self.coalescing.is_off() || self.count(frames)
    }

    fn count(&mut self, frames: u64) -> bool {
        self.frames = self.frames.saturating_add(frames);
        self.held = true;
        if self.frames >= u64::from(self.coalescing.max_packets) {
            return self.release();
        }
        self.hold();
        false
    }

    /// The timer has gone off. Whether the driver may be told now.
    pub(crate) fn expired(&mut self) -> bool {
        self.timer.as_mut().is_some_and(Timer::expired) && self.release()
    }

    /// Nothing is held back any more. Whether anything was.
    pub(crate) fn release(&mut self) -> bool {
        self.frames = 0;
        if let Some(timer) = &mut self.timer {
            timer.disarm();
        }
        std::mem::take(&mut self.held)
    }

    fn hold(&mut self) {
        if let Some(timer) = &mut self.timer {
            timer.arm(Duration::from_micros(self.coalescing.max_usecs.into()));
        }
    }
}
