//! Frames that are kept to be put together with those behind them.

use net_client::{DropReason, Frame, Port, Received, copy_from_iov};
use virtqueue::{QueueError, QueueMemory};

use super::ActiveRx;
use crate::rsc::{Coalescer, Families, FlushReason, Step, Unit};
use crate::rx::peek::Refused;
use crate::statistics::RxStatistics;
use crate::timer::Timer;

/// What is kept, and when it is given to the driver at the latest.
#[derive(Debug)]
pub(crate) struct Segments {
    coalescer: Coalescer,
    timer: Timer,
}

/// What became of a unit.
enum Flushed {
    /// The driver has it, or nobody.
    Gone,
    /// It waits for room.
    Waits,
}

impl Segments {
    pub(crate) fn new(coalescer: Coalescer, timer: Timer) -> Self {
        Self { coalescer, timer }
    }

    /// Has the timer go off when the next unit is to go, if it is not to before. It is armed whenever there is one that
    /// does not wait for room.
    fn arm(&mut self) {
        if !self.timer.is_armed()
            && let Some(deadline) = self.coalescer.next_deadline()
        {
            self.timer.arm(deadline.saturating_sub(self.timer.now()));
        }
    }
}

impl<M: QueueMemory> ActiveRx<M> {
    /// Has segments put together from now on.
    pub(crate) fn put_together(&mut self, segments: Segments) {
        self.segments = Some(segments);
    }

    /// Whether frames are looked at before they are in the driver's buffers.
    pub(in crate::rx) fn is_keeping(&self) -> bool {
        self.segments.is_some()
    }

    /// Keeps a frame that the driver wants, or has it go past.
    pub(super) fn coalesce(
        &mut self,
        frame: &Frame<'_>,
        guest_len: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Received, QueueError> {
        // Each turn but the last gives away a unit, of which there are a few.
        loop {
            let Some(Segments { coalescer, timer }) = &mut self.segments else {
                return self.copy_in(frame, guest_len, None, port, statistics);
            };
            let copy = |at: usize, to: &mut [u8]| copy_from_iov(frame.iov, at, to);
            let step = coalescer.offer(frame.len, &copy, || timer.now());
            statistics.csum_bad += std::mem::take(&mut coalescer.bad_checksums);
            match step {
                Step::Pass(said) => {
                    return self.copy_in(frame, guest_len, said, port, statistics);
                }
                Step::Kept => {
                    if let Some(segments) = &mut self.segments {
                        segments.arm();
                    }
                    return Ok(Received::Taken);
                }
                Step::Complete(at, reason) => {
                    // Where there is no room it waits for some, and is no more the peer's.
                    let _ = self.flush_unit(at, reason, port, statistics)?;
                    return Ok(Received::Taken);
                }
                Step::First(at, reason) => match self.flush_unit(at, reason, port, statistics)? {
                    Flushed::Gone => {}
                    Flushed::Waits => return Ok(Received::Busy),
                },
            }
        }
    }

    /// Gives the driver a unit.
    fn flush_unit(
        &mut self,
        at: usize,
        reason: FlushReason,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Flushed, QueueError> {
        let take = |segments: &mut Segments| segments.coalescer.take(at);
        let Some(mut unit) = self.segments.as_mut().and_then(take) else {
            return Ok(Flushed::Gone);
        };
        if !self.filter.look().passes(unit.frame()) {
            // The driver has changed its mind meanwhile.
            Refused::Filtered.count(port, statistics);
            self.recycle(unit);
            return Ok(Flushed::Gone);
        }
        // Both headers are as long.
        unit.finish();
        let guest_len = unit.bytes().len();
        let room = self.make_room(guest_len, port, statistics);
        if matches!(room, Err(_) | Ok(Some(Received::Busy))) {
            if let Some(segments) = &mut self.segments {
                segments.coalescer.put_back(at, unit, reason);
            }
            return room.map(|_| Flushed::Waits);
        }
        if let Ok(None) = room {
            self.buffers.ready.write(0, unit.bytes());
            self.deliver_ready(guest_len, statistics);
            statistics.count_flushed(&unit, reason);
        }
        self.recycle(unit);
        Ok(Flushed::Gone)
    }

    fn recycle(&mut self, unit: Unit) {
        if let Some(segments) = &mut self.segments {
            segments.coalescer.recycle(unit);
        }
    }

    /// The timer has gone off: gives the driver what has been kept for the interval.
    pub(in crate::rx) fn interval_over(
        &mut self,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let Some(segments) = self.segments.as_mut() else {
            return Ok(());
        };
        if !segments.timer.expired() {
            return Ok(());
        }
        let now = segments.timer.now();
        let is_gone = self.flush_while(|coalescer| coalescer.due(now), port, statistics)?;
        if let Some(segments) = &mut self.segments {
            if !is_gone {
                segments.coalescer.refuse_due(now);
            }
            segments.arm();
        }
        Ok(())
    }

    /// There may be room: gives the driver what it had none for. Whether all of that is gone.
    pub(in crate::rx) fn flush_refused(
        &mut self,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<bool, QueueError> {
        self.flush_while(Coalescer::refused, port, statistics)
    }

    /// Gives the driver all that is kept. What it has no room for is dropped: the queue stops, or such frames are not
    /// wanted any more. Where the queue is found broken, or was before, there is no room either.
    pub(in crate::rx) fn flush_all(
        &mut self,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let all = |coalescer: &Coalescer| {
            let kept = !coalescer.is_empty();
            kept.then_some((0, FlushReason::Stopped))
        };
        let flushed = self.flush_while(all, port, statistics);
        if let Some(Segments { coalescer, timer }) = &mut self.segments {
            timer.disarm();
            while let Some(unit) = coalescer.take(0) {
                statistics.dropped_no_buffers += 1;
                port.count_dropped_receiving(DropReason::NotRunning);
                coalescer.recycle(unit);
            }
        }
        flushed.map(|_| ())
    }

    /// Gives the driver one unit after another as long as there is one and room for it. Whether there was room for all.
    fn flush_while(
        &mut self,
        next: impl Fn(&Coalescer) -> Option<(usize, FlushReason)>,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<bool, QueueError> {
        while let Some(segments) = &self.segments
            && let Some((at, reason)) = next(&segments.coalescer)
        {
            if let Flushed::Waits = self.flush_unit(at, reason, port, statistics)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is put together is other from now on.
    pub(in crate::rx) fn set_families(
        &mut self,
        families: Families,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let flushed = self.flush_all(port, statistics);
        if let Some(segments) = &mut self.segments {
            segments.coalescer.set_families(families);
        }
        flushed
    }

    /// The context is another.
    pub(crate) fn renew_timer(&mut self, timer: impl FnOnce() -> Timer) {
        if let Some(segments) = &mut self.segments {
            segments.timer = timer();
            segments.arm();
        }
    }
}
