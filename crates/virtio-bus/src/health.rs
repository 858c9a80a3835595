//! The few bits about a device that its data path may set while a driver reads registers.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Whether the driver is live, whether the device can go on, and whether its configuration has
/// changed. Shared by a transport's registers, which are under its lock, and the
/// [`Transport`](crate::Transport) that it gives the device, which takes no lock.
#[derive(Debug, Default)]
pub struct Health {
    bits: AtomicU8,
    config_changed: AtomicBool,
    warned: AtomicBool,
}

const LIVE: u8 = 1;
const BROKEN: u8 = 2;
const SUSPENDED: u8 = 4;
/// A configuration change notification was due while the device was suspended.
const HELD_BACK: u8 = 8;

impl Health {
    /// Whether DRIVER_OK is set and the device was told.
    pub fn is_live(&self) -> bool {
        self.bits.load(Ordering::Acquire) & LIVE != 0
    }

    /// Whether DEVICE_NEEDS_RESET is set.
    pub fn is_broken(&self) -> bool {
        self.bits.load(Ordering::Acquire) & BROKEN != 0
    }

    /// Sets DEVICE_NEEDS_RESET. True when a configuration change notification is due now: the driver
    /// is live and has not been told yet (virtio 1.4, 2.1.2). Whichever of this and DRIVER_OK comes
    /// second sends it, so exactly one is sent.
    #[must_use]
    pub fn set_broken(&self) -> bool {
        let before = self.set(|bits| BROKEN | held_back(bits));
        before & (LIVE | BROKEN | SUSPENDED) == LIVE
    }

    /// The device has changed its configuration. True when a notification is due now: the driver is live, and
    /// has not suspended the device, in which case it comes when the device resumes (virtio 1.4, 3.4).
    #[must_use]
    pub fn change_is_due(&self) -> bool {
        self.set_config_changed();
        self.set(held_back) & (LIVE | SUSPENDED) == LIVE
    }

    /// Nothing is notified until [`resume`](Self::resume).
    pub(crate) fn suspend(&self) {
        self.bits.fetch_or(SUSPENDED, Ordering::AcqRel);
    }

    /// The device goes on. True when a notification is due that was held back.
    #[must_use]
    pub(crate) fn resume(&self) -> bool {
        let ended = !(SUSPENDED | HELD_BACK);
        self.bits.fetch_and(ended, Ordering::AcqRel) & HELD_BACK != 0
    }

    /// Sets the bits that `more` makes of those that are set, and returns the latter.
    fn set(&self, more: impl Fn(u8) -> u8) -> u8 {
        let set = |bits| Some(bits | more(bits));
        let done = self
            .bits
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
        done.unwrap_or_else(|bits| bits)
    }

    /// Logs why the device cannot go on: once as a warning, since a guest that resets its device can
    /// bring the same about a million times a second.
    pub fn log_broken(&self, device: &str, reason: &str) {
        if self.warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(device, reason, "device needs reset");
        } else {
            tracing::warn!(device, reason, "device needs reset");
        }
    }

    /// DRIVER_OK is set. True when a configuration change notification is due now, because the device
    /// broke before.
    #[must_use]
    pub(crate) fn set_live(&self) -> bool {
        self.bits.fetch_or(LIVE, Ordering::AcqRel) & (LIVE | BROKEN) == BROKEN
    }

    /// The device has changed its configuration; the generation moves when the driver next looks.
    pub fn set_config_changed(&self) {
        self.config_changed.store(true, Ordering::Release);
    }

    pub(crate) fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::AcqRel)
    }

    /// All that is set, to be set in another.
    pub(crate) fn save(&self) -> (u8, bool) {
        let changed = self.config_changed.load(Ordering::Acquire);
        (self.bits.load(Ordering::Acquire), changed)
    }

    /// Sets what [`save`](Self::save) said of another. Bits that there are not stay clear.
    pub(crate) fn restore(&self, (bits, config_changed): (u8, bool)) {
        let known = bits & Self::KNOWN;
        self.bits.store(known, Ordering::Release);
        self.config_changed.store(config_changed, Ordering::Release);
    }

    /// The bits that there are.
    pub(crate) const KNOWN: u8 = LIVE | BROKEN | SUSPENDED | HELD_BACK;
    /// Of what [`save`](Self::save) says: the driver is live.
    pub(crate) const LIVE: u8 = LIVE;
    /// DEVICE_NEEDS_RESET is set.
    pub(crate) const BROKEN: u8 = BROKEN;
    /// The device is suspended.
    pub(crate) const SUSPENDED: u8 = SUSPENDED;

    /// After a reset.
    pub(crate) fn clear(&self) {
        self.bits.store(0, Ordering::Release);
    }
}

/// What a notification that is due leaves behind.
fn held_back(bits: u8) -> u8 {
    if bits & SUSPENDED != 0 { HELD_BACK } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_told_once_and_only_when_live() {
        let health = Health::default();
        assert!(!health.set_broken(), "told before DRIVER_OK");
        assert!(health.set_live(), "not told at DRIVER_OK");
        assert!(!health.set_broken(), "told twice");
        health.clear();
        assert!(!health.set_live(), "told though nothing broke");
        assert!(health.set_broken(), "not told");
        assert!(!health.set_broken(), "told twice");
    }

    #[test]
    fn what_comes_due_while_suspended_is_told_once_at_the_end() {
        let health = Health::default();
        assert!(!health.change_is_due(), "told before DRIVER_OK");
        assert!(!health.set_live());
        assert!(health.change_is_due());
        health.suspend();
        assert!(!health.change_is_due() && !health.set_broken(), "told");
        assert!(health.resume(), "not told at the end");
        health.suspend();
        assert!(!health.resume(), "told though nothing changed");
        assert!(health.change_is_due());
    }
}
