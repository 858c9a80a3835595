//! What raises interrupts in a machine, and the machine without KVM, whose interrupts whoever
//! drives it from outside looks at.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use virtio_bus::{KickBinder, NoKickBinder};
use vm_pci::{DevFn, IrqLines, MsiMessage, MsiSink, MsiVector};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::readiness::{borrow, wait_any};

/// Everything that a machine needs of whatever runs its vCPUs.
#[derive(Clone, Debug)]
pub struct Interrupts {
    /// Makes message-signalled interrupts.
    pub msi: Arc<dyn MsiSink>,
    /// Drives interrupt lines.
    pub lines: Arc<dyn IrqLines>,
    /// Binds notify registers to descriptors.
    pub kicks: Arc<dyn KickBinder>,
}

/// The interrupt controller of a machine that nobody but the caller drives: messages wait in their
/// vectors until they are [taken](Self::take), levels can be read.
#[derive(Debug, Default)]
pub struct ManualInterrupts {
    /// A leaf lock.
    vectors: Mutex<Vec<Weak<ManualVector>>>,
    /// A leaf lock.
    levels: Mutex<BTreeMap<u32, bool>>,
}

impl ManualInterrupts {
    /// With no vectors, and all lines released.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What a machine is made with: these interrupts, and every kick through the BAR handler.
    pub fn interrupts(self: &Arc<Self>) -> Interrupts {
        Interrupts {
            msi: Arc::new(ManualMsi(self.clone())),
            lines: self.clone(),
            kicks: Arc::new(NoKickBinder),
        }
    }

    /// Takes all messages that were sent since the last call, each once however often it was sent.
    pub fn take(&self) -> Vec<MsiMessage> {
        let mut messages = Vec::new();
        for vector in self.live() {
            let route = *vector.route.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(message) = route
                && vector.event.read().is_ok()
            {
                messages.push(message);
            }
        }
        messages
    }

    /// Takes all messages, as [`take`](Self::take) does; where there are none, waits for one up to
    /// `timeout`.
    pub fn wait(&self, timeout: Duration) -> Vec<MsiMessage> {
        let live = self.live();
        let routed: Vec<_> = live
            .iter()
            .filter(|vector| vector.is_routed())
            .map(|vector| borrow(&vector.event))
            .collect();
        // Waiting in vain is no worse than not at all.
        let _ = wait_any(&routed, timeout);
        self.take()
    }

    /// Vectors that exist, and how many of them have a route.
    pub fn vectors(&self) -> (usize, usize) {
        let live = self.live();
        let routed = live.iter().filter(|vector| vector.is_routed()).count();
        (live.len(), routed)
    }

    /// Whether the line `gsi` is asserted.
    pub fn level(&self, gsi: u32) -> bool {
        let levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.get(&gsi).copied().unwrap_or(false)
    }

    fn live(&self) -> Vec<Arc<ManualVector>> {
        let mut vectors = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        vectors.retain(|vector| vector.strong_count() > 0);
        vectors.iter().filter_map(Weak::upgrade).collect()
    }
}

impl IrqLines for ManualInterrupts {
    fn set(&self, gsi: u32, asserted: bool) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        levels.insert(gsi, asserted);
    }
}

/// The sink half, apart so that vectors do not own the table that lists them.
#[derive(Debug)]
struct ManualMsi(Arc<ManualInterrupts>);

impl MsiSink for ManualMsi {
    fn vector(&self, _requester: DevFn) -> io::Result<Arc<dyn MsiVector>> {
        let vector = Arc::new(ManualVector {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            route: Mutex::new(None),
        });
        let mut vectors = self
            .0
            .vectors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        vectors.retain(|vector| vector.strong_count() > 0);
        vectors.push(Arc::downgrade(&vector));
        Ok(vector)
    }
}

#[derive(Debug)]
struct ManualVector {
    event: EventFd,
    /// A leaf lock.
    route: Mutex<Option<MsiMessage>>,
}

impl ManualVector {
    fn is_routed(&self) -> bool {
        self.route
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }
}

impl MsiVector for ManualVector {
    fn event_fd(&self) -> &EventFd {
        &self.event
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.route.lock().unwrap_or_else(PoisonError::into_inner) = message;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_sent_while_masked_is_taken_once_after_it_is_routed() {
        let manual = ManualInterrupts::new();
        let vector = manual.interrupts().msi.vector(DevFn::from_byte(8)).unwrap();
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0x41,
        };
        vector.event_fd().write(1).unwrap();
        vector.event_fd().write(1).unwrap();
        assert_eq!(manual.take(), []);
        vector.route(Some(message)).unwrap();
        assert_eq!(manual.take(), [message]);
        assert_eq!(manual.take(), []);
        assert_eq!(manual.vectors(), (1, 1));
        drop(vector);
        assert_eq!(manual.vectors(), (0, 0));
    }
}
