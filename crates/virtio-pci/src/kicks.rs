//! Which notify registers are bound to which kicks.

use std::sync::Arc;

use virtio_bus::{KickAddress, KickBinder, signal};
use vmm_sys_util::eventfd::EventFd;

/// The kicks bound now. Dropping it unbinds them all.
#[derive(Debug)]
pub(crate) struct BoundKicks {
    binder: Arc<dyn KickBinder>,
    bound: Vec<(KickAddress, Arc<EventFd>)>,
}

impl BoundKicks {
    pub(crate) fn new(binder: Arc<dyn KickBinder>) -> Self {
        Self {
            binder,
            bound: Vec::new(),
        }
    }

    /// Makes what is bound equal to `wanted`: unbinds first, then binds, then kicks each queue that is
    /// newly bound once, for a notification that was on its way to the old place. What the binder
    /// refuses goes through the BAR handler.
    pub(crate) fn update(&mut self, wanted: &[(KickAddress, Arc<EventFd>)]) {
        let is_wanted = |at: &KickAddress, kick: &Arc<EventFd>| {
            (wanted.iter()).any(|(address, fd)| address == at && Arc::ptr_eq(fd, kick))
        };
        let binder = &self.binder;
        self.bound.retain(|(at, kick)| {
            let stays = is_wanted(at, kick);
            if !stays && let Err(error) = binder.unbind(*at, kick) {
                tracing::debug!(?at, %error, "kick was not bound");
            }
            stays
        });
        for (at, kick) in wanted {
            if self.bound.iter().any(|(address, _)| address == at) {
                continue;
            }
            match self.binder.bind(*at, kick) {
                Ok(()) => self.bound.push((*at, Arc::clone(kick))),
                Err(error) => tracing::debug!(?at, %error, "kick goes through the BAR"),
            }
            signal(kick);
        }
    }
}

impl Drop for BoundKicks {
    fn drop(&mut self) {
        self.update(&[]);
    }
}
