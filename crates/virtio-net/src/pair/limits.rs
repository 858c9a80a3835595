//! What the host allows: turns within a limit, and addresses.

use net_client::{Drained, FrameSource, Sender};
use virtqueue::QueueMemory;

use super::Pair;
use crate::limit::GRAIN;
use crate::rx::After;
use crate::rx::Rx;
use crate::shared::lock;
use crate::timer::Timer;
use crate::tx::{TurnEnd, Tx};

/// Where a pair waits for its limits. Leaf locks, but for the context's.
#[derive(Debug, Default)]
pub(super) struct Waits {
    pub(super) rx: std::sync::Mutex<Option<Timer>>,
    pub(super) tx: std::sync::Mutex<Option<Timer>>,
}

impl<M: QueueMemory> Pair<M> {
    /// Whether frames for the driver have to wait; the peer is then told when they have no more.
    pub(super) fn rx_waits(&self) -> bool {
        let Some(wait) = self.shared.rx_limit.wait() else {
            return false;
        };
        let mut timer = lock(&self.waits.rx);
        let timer = timer.get_or_insert_with(|| {
            Timer::new(&lock(&self.context), self.me.clone(), |pair: &Self| {
                if let Some(timer) = &mut *lock(&pair.waits.rx) {
                    timer.expired();
                }
                pair.port.room();
            })
        });
        timer.arm(wait);
        true
    }

    /// Works on the receive queue, and counts what it gives to the driver.
    pub(super) fn spend_rx<R>(
        &self,
        rx: &mut Rx<M>,
        work: impl FnOnce(&mut Rx<M>) -> (R, After),
    ) -> (R, After) {
        if !self.shared.rx_limit.is_on() {
            return work(rx);
        }
        let before = rx.statistics;
        let result = work(rx);
        let frames = rx.statistics.frames.wrapping_sub(before.frames);
        let bytes = rx.statistics.bytes.wrapping_sub(before.bytes);
        self.shared.rx_limit.spend(frames, bytes);
        result
    }

    /// Reads frames into the driver's buffers.
    pub(super) fn read_frames(
        &self,
        rx: &mut Rx<M>,
        source: &mut dyn FrameSource,
    ) -> (Drained, After) {
        let most = if self.shared.rx_limit.is_on() {
            usize::try_from(GRAIN).unwrap_or(1)
        } else {
            usize::MAX
        };
        self.spend_rx(rx, |rx| rx.receive_from(source, &self.port, most))
    }

    /// Takes a turn of the transmit queue, as long as the limit allows.
    ///
    /// `sender` is the port's, made before the queue was locked and dropped after: it may be the last that keeps the
    /// peer, which gives back what it was lent when it goes, and that takes the lock.
    pub(super) fn send_frames(&self, tx: &mut Tx<M>, sender: &Sender<'_>) -> TurnEnd {
        let limit = &self.shared.tx_limit;
        if !limit.is_on() {
            return tx.turn(&self.port, sender, self.burst);
        }
        if let Some(wait) = limit.wait() {
            let mut timer = lock(&self.waits.tx);
            let timer = timer.get_or_insert_with(|| {
                Timer::new(&lock(&self.context), self.me.clone(), |pair: &Self| {
                    if let Some(timer) = &mut *lock(&pair.waits.tx) {
                        timer.expired();
                    }
                    let sender = pair.port.sender();
                    pair.with_tx(|tx| pair.send_frames(tx, &sender));
                })
            });
            timer.arm(wait);
            tx.statistics.throttled += 1;
            return TurnEnd::Idle;
        }
        let before = tx.statistics;
        let end = tx.turn(&self.port, sender, self.burst.min(GRAIN));
        let frames = tx.statistics.frames.wrapping_sub(before.frames);
        let bytes = tx.statistics.bytes.wrapping_sub(before.bytes);
        limit.spend(frames, bytes);
        end
    }

    /// From the next frame on they have to have the source that there is now.
    pub(crate) fn renew_source(&self) {
        let source = self.shared.source();
        if let Some(active) = &mut lock(&self.tx).active {
            active.set_source(source);
        }
    }

    /// Timers of another context are of no use here. What waits on them is looked at at once: the transmit queue by a
    /// kick, frames for the driver when the port has its ends offer again.
    pub(super) fn forget_waits(&self) {
        *lock(&self.waits.rx) = None;
        *lock(&self.waits.tx) = None;
    }
}
