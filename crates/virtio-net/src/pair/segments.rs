//! Segments that are put together before the driver gets them.

use virtio::net::F as NetF;
use virtqueue::QueueMemory;

use super::{Layout, Pair};
use crate::rsc::{Coalescer, Families};
use crate::rx::{ActiveRx, Segments};
use crate::shared::lock;
use crate::timer::Timer;

impl<M: QueueMemory> Pair<M> {
    /// Has a receive queue that begins put segments together, if that was negotiated with large frames that they can be
    /// told as.
    pub(super) fn keep_segments(&self, active: &mut ActiveRx<M>, features: NetF, layout: &Layout) {
        // Without a backend there is nothing to keep.
        if Families::of(features).is_none() || layout.host_header_len != layout.header_len {
            return;
        }
        let families = *lock(&self.shared.families);
        let interval = self.shared.rsc_interval;
        let coalescer = Coalescer::new(families, layout.allowed, layout.header_len, interval);
        active.put_together(Segments::new(coalescer, self.segments_timer()));
    }

    /// Has the receive queue put together such packets' segments only. When this returns no others come that are.
    pub(crate) fn set_families(&self, families: Families) {
        self.with_rx(|rx| ((), rx.set_families(families, &self.port)));
    }

    /// The timer moves to the context that is the pair's now.
    pub(super) fn renew_segments(&self) {
        if let Some(active) = &mut lock(&self.rx).active {
            active.renew_timer(|| self.segments_timer());
        }
    }

    fn segments_timer(&self) -> Timer {
        Timer::new(&lock(&self.context), self.me.clone(), |pair| {
            pair.with_rx(|rx| pair.spend_rx(rx, |rx| ((), rx.interval_over(&pair.port))));
        })
    }
}
