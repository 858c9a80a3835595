//! Notifications of a pair's queues that are held back.

use virtqueue::QueueMemory;

use super::Pair;
use crate::coalesce::Coalescing;
use crate::shared::lock;
use crate::timer::Timer;

impl<M: QueueMemory> Pair<M> {
    /// Holds notifications of the receive queue back as `coalescing` says. `None` if it does not run.
    pub(crate) fn set_rx_coalescing(&self, coalescing: Coalescing) -> Option<()> {
        let mut rx = lock(&self.rx);
        let rx = &mut *rx;
        let active = rx.active.as_mut()?;
        active.count_from(&rx.statistics);
        if active.gate().set(coalescing, || self.rx_timer()) {
            active.tell(&mut rx.statistics);
        }
        Some(())
    }

    /// Holds notifications of the transmit queue back as `coalescing` says. `None` if it does not run.
    pub(crate) fn set_tx_coalescing(&self, coalescing: Coalescing) -> Option<()> {
        let mut tx = lock(&self.tx);
        let tx = &mut *tx;
        let active = tx.active.as_mut()?;
        if active.gate.set(coalescing, || self.tx_timer()) {
            active.tell(&mut tx.statistics);
        }
        Some(())
    }

    /// How those of the receive queue are held back. `None` if it does not run.
    pub(crate) fn rx_coalescing(&self) -> Option<Coalescing> {
        let mut rx = lock(&self.rx);
        Some(rx.active.as_mut()?.gate().coalescing())
    }

    /// How those of the transmit queue are held back. `None` if it does not run.
    pub(crate) fn tx_coalescing(&self) -> Option<Coalescing> {
        Some(lock(&self.tx).active.as_ref()?.gate.coalescing())
    }

    /// The timers move to the context that is the pair's now; what was held back is not any more.
    pub(super) fn renew_gates(&self) {
        let mut rx = lock(&self.rx);
        let this = &mut *rx;
        if let Some(active) = &mut this.active
            && active.gate().renew(|| self.rx_timer())
        {
            active.tell(&mut this.statistics);
        }
        drop(rx);
        let mut tx = lock(&self.tx);
        let this = &mut *tx;
        if let Some(active) = &mut this.active
            && active.gate.renew(|| self.tx_timer())
        {
            active.tell(&mut this.statistics);
        }
    }

    fn rx_timer(&self) -> Timer {
        Timer::new(&lock(&self.context), self.me.clone(), |pair| {
            lock(&pair.rx).held_long_enough();
        })
    }

    fn tx_timer(&self) -> Timer {
        Timer::new(&lock(&self.context), self.me.clone(), |pair| {
            lock(&pair.tx).held_long_enough();
        })
    }
}
