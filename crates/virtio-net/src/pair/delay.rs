//! A transmit queue that is looked at some time after its kick.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use virtqueue::QueueMemory;
use vmm_sys_util::eventfd::EventFd;

use super::Pair;
use crate::kick::Watch;
use crate::shared::lock;
use crate::tx::TurnEnd;
use crate::{TxMitigation, VirtioNetConfig};

/// How long a kick is left alone, if it is.
pub(super) fn of(config: &VirtioNetConfig) -> Option<Duration> {
    match config.tx {
        TxMitigation::Bh => None,
        TxMitigation::Timer => Some(Duration::from_nanos(config.x_txtimer.into())),
    }
}

impl<M: QueueMemory> Pair<M> {
    /// Watches the transmit queue's kick, with the timer that goes off after it.
    pub(super) fn watch_tx(&self, kick: &Arc<EventFd>) -> io::Result<Watch> {
        let expired = self.delay.map(|_| Self::waited as fn(&Self));
        let context = lock(&self.context);
        Watch::with_timer(&context, kick, self.me.clone(), Self::turn_tx, expired)
    }

    /// The transmit queue's timer has gone off.
    #[doc(alias = "virtio_net_tx_timer")]
    fn waited(&self) {
        let sender = self.port.sender();
        self.with_tx(|tx| {
            if tx.waited() {
                self.send_frames(tx, &sender)
            } else {
                TurnEnd::Idle
            }
        });
    }
}
