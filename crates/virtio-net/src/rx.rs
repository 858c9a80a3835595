//! The receive direction.

mod active;
mod peek;
mod reads;

use std::fmt;

use net_client::{Drained, DropReason, Frame, FrameSource, Port, Received, Token};
use virtqueue::{QueueError, QueueMemory};

pub(crate) use self::active::{ActiveRx, Segments};
use crate::kick::again;
use crate::rsc::Families;
use crate::statistics::RxStatistics;

/// A receive queue: at work or not, behind its lock.
pub(crate) struct Rx<M: QueueMemory> {
    pub(crate) active: Option<ActiveRx<M>>,
    /// The driver uses the queue's pair.
    enabled: bool,
    pub(crate) statistics: RxStatistics,
}

/// What a call into the queue left to do.
#[derive(Debug, Default)]
pub(crate) struct After {
    /// The peer has room again: told it without the lock.
    pub(crate) room: bool,
    /// What the driver wrote makes no sense; the queue rests.
    pub(crate) broken: Option<QueueError>,
}

impl<M: QueueMemory> Rx<M> {
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            active: None,
            enabled,
            statistics: RxStatistics::default(),
        }
    }

    /// The driver uses the queue's pair from now on, or uses it no more: then no frame is received.
    pub(crate) fn set_enabled(&mut self, enabled: bool, port: &Port) -> After {
        self.enabled = enabled;
        let Some(active) = &mut self.active else {
            return After::default();
        };
        let mut flushed = Ok(());
        if enabled {
            again(&active.loan().kick);
        } else {
            flushed = active.flush_all(port, &mut self.statistics);
            active.drop_held(port, &mut self.statistics);
            // What was received before is told before; the flush that it waits for may come after.
            active.finish(&mut self.statistics);
        }
        active.tell_anew();
        active.settle_error(flushed, ()).1
    }

    /// Reads frames of `source` into the driver's buffers, at most so many.
    pub(crate) fn receive_from(
        &mut self,
        source: &mut dyn FrameSource,
        port: &Port,
        most: usize,
    ) -> (Drained, After) {
        let Some(active) = self.active.as_mut().filter(|a| a.running && self.enabled) else {
            return (Drained::NoRoom, After::default());
        };
        if active.is_keeping() {
            // Frames that stay for a while stay in memory of our own.
            return (Drained::CannotLend, After::default());
        }
        let drained = active.receive_from(source, port, most, &mut self.statistics);
        active.finish(&mut self.statistics);
        active.settle_error(drained, Drained::NoRoom)
    }

    /// Copies a frame into the driver's buffers; the driver sees it at [`flush`](Self::flush).
    #[doc(alias = "virtio_net_receive")]
    pub(crate) fn receive(&mut self, frame: &Frame<'_>, port: &Port) -> (Received, After) {
        let Some(active) = self.active.as_mut().filter(|a| a.running && self.enabled) else {
            return (Received::Busy, After::default());
        };
        let received = active.receive(frame, port, &mut self.statistics);
        if received.is_err() {
            active.finish(&mut self.statistics);
        }
        // A frame for a queue that is broken from now on stays where it is: the queue is reset soon.
        active.settle_error(received, Received::Busy)
    }

    /// Takes a frame that its hash has led here, perhaps from another pair's port: what has no room, or finds no queue,
    /// is dropped, so that it does not hold up frames for other queues (virtio 1.4, 5.1.9.5.7.3).
    pub(crate) fn receive_steered(
        &mut self,
        frame: &Frame<'_>,
        host_header_len: usize,
        port: &Port,
    ) -> (Received, After) {
        let is_ours =
            |active: &&mut ActiveRx<M>| active.layout().host_header_len == host_header_len;
        match self.active.as_mut().filter(is_ours) {
            // All are paused, and go on together.
            Some(active) if !active.running => return (Received::Busy, After::default()),
            Some(_) if self.enabled => {}
            _ => {
                self.statistics.dropped_disabled += 1;
                port.count_dropped_receiving(DropReason::NotRunning);
                return (Received::Taken, After::default());
            }
        }
        let (received, after) = self.receive(frame, port);
        if received == Received::Busy {
            self.statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NoRoom);
        }
        (Received::Taken, after)
    }

    /// The peer has been told that there is no room, in another queue: this one's next kick says otherwise. `false`
    /// if the queue is not there, so that no kick comes.
    pub(crate) fn tell_at_next_kick(&mut self) -> bool {
        let Some(active) = &mut self.active else {
            return false;
        };
        active.starved = true;
        true
    }

    /// Ends a batch of [`receive`](Self::receive)s.
    pub(crate) fn flush(&mut self) {
        if let Some(active) = &mut self.active {
            active.finish(&mut self.statistics);
        }
    }

    /// A read that went on has ended.
    pub(crate) fn read_done(&mut self, token: Token, len: usize, port: &Port) -> After {
        let Some(active) = &mut self.active else {
            return After::default();
        };
        let done = active.read_done(token, len, self.enabled, port, &mut self.statistics);
        active.finish(&mut self.statistics);
        let room = std::mem::take(&mut active.wait_for_read);
        let ((), after) = active.settle_error(done, ());
        After { room, ..after }
    }

    /// The driver has kicked: it made buffers available.
    #[doc(alias = "virtio_net_handle_rx")]
    pub(crate) fn kicked(&mut self, port: &Port) -> After {
        let Some(active) = self.active.as_mut().filter(|a| a.running && self.enabled) else {
            return After::default();
        };
        self.statistics.kicks += 1;
        if !active.starved {
            return After::default();
        }
        let mut room = active.refilled(&mut self.statistics);
        if let Ok(true) = room {
            room = active.flush_refused(port, &mut self.statistics);
        }
        active.finish(&mut self.statistics);
        let (room, after) = active.settle_error(room, false);
        After { room, ..after }
    }

    /// A frame has waited for buffers for as long as it may.
    pub(crate) fn overdue(&mut self, port: &Port) -> After {
        let Some(active) = self.active.as_mut().filter(|a| a.running && self.enabled) else {
            return After::default();
        };
        active.overdue(port, &mut self.statistics);
        let flushed = active.flush_refused(port, &mut self.statistics).map(|_| ());
        active.finish(&mut self.statistics);
        let ((), after) = active.settle_error(flushed, ());
        After {
            room: true,
            ..after
        }
    }

    /// Segments have been kept for as long as they may.
    pub(crate) fn interval_over(&mut self, port: &Port) -> After {
        let Some(active) = self.active.as_mut().filter(|a| a.running && self.enabled) else {
            return After::default();
        };
        let flushed = active.interval_over(port, &mut self.statistics);
        active.finish(&mut self.statistics);
        active.settle_error(flushed, ()).1
    }

    /// The driver wants other packets' segments put together.
    pub(crate) fn set_families(&mut self, families: Families, port: &Port) -> After {
        let Some(active) = &mut self.active else {
            return After::default();
        };
        let flushed = active.set_families(families, port, &mut self.statistics);
        active.finish(&mut self.statistics);
        active.settle_error(flushed, ()).1
    }

    /// Notifications have been held back for as long as they may.
    pub(crate) fn held_long_enough(&mut self) {
        if let Some(active) = &mut self.active
            && active.gate().expired()
        {
            active.tell(&mut self.statistics);
        }
    }

    /// Reads that the source has not finished.
    pub(crate) fn in_flight(&self) -> usize {
        self.active.as_ref().map_or(0, ActiveRx::in_flight)
    }

    /// Counts all reads that go on as ended without a frame; returns how many.
    pub(crate) fn write_off(&mut self, port: &Port) -> usize {
        let Some(active) = &mut self.active else {
            return 0;
        };
        let tokens = active.reading();
        for token in &tokens {
            // Without a frame nothing is popped, so nothing can be found broken.
            let ended = active.read_done(*token, 0, self.enabled, port, &mut self.statistics);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
        tokens.len()
    }

    /// Brings the queue's indices to what the driver can see, once no read goes on: chains that were not
    /// used go back to the available ring.
    pub(crate) fn settle(&mut self, port: &Port) -> After {
        let Some(active) = &mut self.active else {
            return After::default();
        };
        let flushed = active.flush_all(port, &mut self.statistics);
        active.drop_held(port, &mut self.statistics);
        active.give_back();
        active.finish(&mut self.statistics);
        if active.gate().release() {
            active.tell(&mut self.statistics);
        }
        active.tell_anew();
        active.settle_error(flushed, ()).1
    }
}

impl<M: QueueMemory> fmt::Debug for Rx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rx")
            .field("active", &self.active)
            .field("enabled", &self.enabled)
            .field("statistics", &self.statistics)
            .finish()
    }
}
