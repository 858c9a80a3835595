//! A receive queue at work: the two doors that frames come through, this the one of those that are read
//! in place.

mod batch;
mod coalesced;
mod copied;
mod expected;
mod short;

use std::fmt;
use std::time::Duration;

use net_client::{Drained, DropReason, FrameSource, IoVec, Port, Read, Token};
use virtio_bus::ActiveQueue;
use virtqueue::{QueueError, QueueMemory, QueueState, VirtQueue};

use self::batch::Batch;
pub(crate) use self::coalesced::Segments;
use self::expected::Expected;
use super::After;
use super::peek::{Place, Refused, is_segmented, tags_len};
use super::reads::{Ended, Reads};
use crate::buffers::{Buffers, Chains};
use crate::coalesce::Gate;
use crate::filter::{FilterView, PEEK};
use crate::hash::HashView;
use crate::header::GSO_TYPE;
use crate::kick::{MISSES, Watch, again};
use crate::lend::Overflow;
use crate::pair::Layout;
use crate::statistics::RxStatistics;

/// Frames taken from a source in one turn.
const BUDGET: usize = 256;
/// How long a frame waits for the rest of the buffers that it needs. Long enough for a driver that was
/// scheduled away, short enough for one that never makes so many available.
const PATIENCE: Duration = Duration::from_millis(100);

/// A receive queue at work.
pub(crate) struct ActiveRx<M: QueueMemory> {
    loan: ActiveQueue,
    layout: Layout,
    mergeable: bool,
    filter: FilterView,
    buffers: Buffers<M>,
    iov: Vec<IoVec>,
    overflow: Overflow,
    /// Reads that go on.
    reads: Reads<M>,
    /// Reads that the source does at once.
    batch: Batch<M>,
    expected: Expected,
    /// A frame that was read, for which there are not enough buffers yet.
    held: Option<Held>,
    /// Segments that are put together, for a driver that has negotiated that.
    segments: Option<Segments>,
    /// Neither paused nor being stopped.
    pub(crate) running: bool,
    /// The peer was told that there is no room; a kick will say otherwise.
    pub(super) starved: bool,
    /// The peer was told so because of a read that goes on; its end says otherwise.
    pub(super) wait_for_read: bool,
    /// A frame has waited long enough: the next that does not fit is dropped.
    overdue: bool,
    pub(crate) watch: Option<Watch>,
}

/// A frame in the first `room` bytes of `ready`, with the rest of it in `overflow`.
#[derive(Clone, Copy)]
struct Held {
    guest_len: usize,
    room: usize,
}

impl<M: QueueMemory> ActiveRx<M> {
    pub(crate) fn new(
        loan: ActiveQueue,
        queue: VirtQueue<M>,
        layout: Layout,
        mergeable: bool,
        filter: FilterView,
        hashes: HashView,
        running: bool,
    ) -> Self {
        Self {
            loan,
            layout,
            mergeable,
            filter,
            buffers: Buffers::new(queue, layout, mergeable, hashes),
            iov: Vec::new(),
            overflow: Overflow::default(),
            reads: Reads::new(),
            batch: Batch::new(),
            expected: Expected::new(layout.header_len),
            held: None,
            segments: None,
            running,
            // The peer may have been told before the queue was there.
            starved: true,
            wait_for_read: false,
            overdue: false,
            watch: None,
        }
    }

    /// The driver takes its buffers back in any order, so several reads may go on at once.
    pub(crate) fn allow_batches(&mut self) {
        self.batch.allowed = true;
    }

    /// The queue as it was lent, with where it stands now.
    pub(crate) fn hand_back(mut self) -> ActiveQueue {
        self.loan.state = self.buffers.queue.state();
        self.loan
    }

    /// Where the queue stands, once it is settled.
    pub(crate) fn state(&self) -> QueueState {
        self.buffers.queue.state()
    }

    pub(crate) fn loan(&self) -> &ActiveQueue {
        &self.loan
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads that the source has not finished.
    pub(super) fn in_flight(&self) -> usize {
        self.reads.len()
    }

    /// Their tokens.
    pub(super) fn reading(&self) -> Vec<Token> {
        self.reads.tokens().collect()
    }

    /// The frame that waits for buffers goes nowhere any more: the queue is stopped.
    pub(super) fn drop_held(&mut self, port: &Port, statistics: &mut RxStatistics) {
        self.end_patience();
        if self.held.take().is_some() {
            statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NotRunning);
        }
    }

    /// Whatever the peer was told, it is told anew at the next kick.
    pub(super) fn tell_anew(&mut self) {
        self.starved = true;
        self.wait_for_read = false;
        self.end_patience();
    }

    /// Chains that were not used go back to the driver.
    pub(super) fn give_back(&mut self) {
        self.buffers.give_back();
    }

    /// A frame has waited for buffers for as long as it may.
    pub(super) fn overdue(&mut self, port: &Port, statistics: &mut RxStatistics) {
        if !self.watch.as_mut().is_some_and(Watch::timer_expired) {
            return;
        }
        if self.held.take().is_some() {
            statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NoRoom);
        } else {
            self.overdue = true;
        }
    }

    pub(super) fn receive_from(
        &mut self,
        source: &mut dyn FrameSource,
        port: &Port,
        most: usize,
        statistics: &mut RxStatistics,
    ) -> Result<Drained, QueueError> {
        let longest = self
            .buffers
            .guest_len(source.max_frame().max(self.layout.host_header_len));
        let longest = longest.unwrap_or(self.layout.header_len);
        // Turns of the loop without a frame count too: a driver that makes useless chains available for
        // ever does not keep the thread.
        let mut left = BUDGET.min(most);
        let mut misses = 0;
        while left > 0 {
            if misses < MISSES
                && self.buffers.is_plain
                && self.buffers.ready.is_empty()
                && self.held.is_none()
            {
                let before = left;
                let end = self.receive_short(source, longest, &mut left, port, statistics)?;
                if let Some(drained) = end {
                    return Ok(drained);
                } else if left == 0 {
                    break;
                }
                misses += u32::from(left == before);
            }
            left -= 1;
            let want = self.expected.room(longest);
            if self.buffers.is_batch(statistics) {
                // The driver fills its buffers again meanwhile.
                self.finish(statistics);
            }
            let mut is_held = self.held.is_some();
            if is_held {
                self.deliver_held(statistics)?;
                is_held = self.held.is_some();
            }
            if !is_held && self.buffers.ready.len() < want {
                self.buffers.gather_now(want, statistics)?;
            }
            if is_held || self.buffers.ready.is_empty() {
                if self.look_again(statistics)? {
                    continue;
                }
                return Ok(Drained::NoRoom);
            }
            if want == longest
                && let Some(batch) = self.receive_batch(source, want, left, port, statistics)?
            {
                if batch.ended {
                    return Ok(Drained::Empty);
                }
                // At least one, of which this turn of the loop has been counted.
                left = left.saturating_sub(batch.reads - 1);
                continue;
            }
            let room = self.buffers.lend(&mut self.iov, want);
            let overflow = longest.saturating_sub(room);
            if overflow > 0 {
                if self.reads.overflow_lent {
                    // Two reads cannot share it.
                    self.wait_for_read = true;
                    return Ok(Drained::NoRoom);
                }
                self.iov.push(self.overflow.lend(overflow));
            }
            let token = self.reads.next_token();
            match source.read(token, &self.iov) {
                Read::Frame(len) => self.take_frame(len, room, overflow, port, statistics)?,
                Read::Pending => {
                    let ready = &mut self.buffers.ready;
                    self.reads.start(token, ready, room, overflow > 0);
                }
                Read::Empty | Read::Failed => return Ok(Drained::Empty),
            }
        }
        Ok(Drained::Budget)
    }

    /// A frame of `len` bytes was read into `room` guest bytes and `overflow` bytes behind them.
    #[inline(always)]
    fn take_frame(
        &mut self,
        len: usize,
        room: usize,
        overflow: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let Some(guest_len) = self
            .buffers
            .guest_len(len)
            .filter(|len| *len <= room + overflow)
        else {
            self.buffers.ready.mark_written(room);
            statistics.dropped_malformed += 1;
            port.count_dropped_receiving(DropReason::Malformed);
            return Ok(());
        };
        self.expected.learn(guest_len);
        if let Err(refused) = self.passes_in_place(None, guest_len, room) {
            // What it was read into is lent again.
            self.buffers.ready.mark_written(guest_len.min(room));
            refused.count(port, statistics);
            return Ok(());
        }
        if guest_len <= room {
            self.deliver_ready(guest_len, statistics);
            return Ok(());
        }
        self.hold_frame(guest_len, room, port, statistics)
    }

    /// A frame was read of which a part lies in the overflow.
    #[inline(never)]
    fn hold_frame(
        &mut self,
        guest_len: usize,
        room: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        // It may be dropped yet.
        self.buffers.ready.mark_written(room);
        self.held = Some(Held { guest_len, room });
        self.deliver_held(statistics)?;
        if self.held.is_none() {
            return Ok(());
        }
        if self.buffers.is_all() || self.overdue {
            self.held = None;
            self.drop_frame(port, statistics);
        } else {
            self.begin_patience();
        }
        Ok(())
    }

    /// Gives the driver the frame that is held, if there are buffers enough by now.
    fn deliver_held(&mut self, statistics: &mut RxStatistics) -> Result<(), QueueError> {
        let Some(Held { guest_len, room }) = self.held else {
            return Ok(());
        };
        self.buffers.gather(guest_len, statistics)?;
        if !self.buffers.fits(guest_len) {
            return Ok(());
        }
        self.held = None;
        self.buffers
            .ready
            .write(room, self.overflow.bytes(guest_len.saturating_sub(room)));
        self.deliver_ready(guest_len, statistics);
        Ok(())
    }

    pub(super) fn read_done(
        &mut self,
        token: Token,
        len: usize,
        enabled: bool,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let Some(ended) = self.reads.end(token) else {
            return Ok(());
        };
        let Ended {
            mut chains,
            room,
            overflow,
        } = ended;
        let mut result = Ok(());
        if len > 0 && !enabled {
            chains.mark_written(self.buffers.guest_len(len).unwrap_or(room).min(room));
            statistics.dropped_disabled += 1;
            port.count_dropped_receiving(DropReason::NotRunning);
        } else if len > 0 {
            let guest_len = self.buffers.guest_len(len);
            let delivered = statistics.frames;
            match guest_len {
                // Where neither holds, the overflow may be another read's: it is not looked at.
                Some(guest_len)
                    if (guest_len <= room || overflow)
                        && let Err(refused) =
                            self.passes_in_place(Some(&chains), guest_len, room) =>
                {
                    refused.count(port, statistics);
                }
                Some(guest_len) if guest_len <= room => {
                    self.buffers.deliver(&mut chains, guest_len, statistics);
                }
                Some(guest_len) if overflow && self.mergeable && self.held.is_none() => {
                    // The chains that it needs beside its own come from those that are ready.
                    result = self
                        .buffers
                        .gather(guest_len.saturating_sub(chains.len()), statistics);
                    while chains.len() < guest_len && self.buffers.ready.move_first(&mut chains) {}
                    if chains.len() >= guest_len {
                        let rest = guest_len.saturating_sub(room);
                        chains.write(room, self.overflow.bytes(rest));
                        self.buffers.deliver(&mut chains, guest_len, statistics);
                    } else {
                        self.drop_frame(port, statistics);
                    }
                }
                Some(_) => self.drop_frame(port, statistics),
                None => {
                    statistics.dropped_malformed += 1;
                    port.count_dropped_receiving(DropReason::Malformed);
                }
            }
            if statistics.frames == delivered {
                chains.mark_written(guest_len.unwrap_or(room).min(room));
            }
        }
        // What it did not use is next, unless a held frame lies in what is ready already.
        let ready = &mut self.buffers.ready;
        while !chains.is_empty() {
            if self.held.is_none() {
                chains.move_last(ready);
            } else {
                chains.move_first(ready);
            }
        }
        self.reads.recycle(token, chains);
        result
    }

    /// Whether the peer can be told that there is room.
    pub(super) fn refilled(&mut self, statistics: &mut RxStatistics) -> Result<bool, QueueError> {
        self.buffers.queue.disable_notifications();
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.starved = false;
                return Ok(true);
            }
            if !self.look_again(statistics)? {
                return Ok(false);
            }
        }
        self.try_later();
        Ok(false)
    }

    /// The driver keeps making available what is of no use; others have their turn first.
    fn try_later(&mut self) {
        self.starved = true;
        again(&self.loan.kick);
    }

    /// Whether the driver wants a frame that was read into the first `room` guest bytes of `chains`, or
    /// of what is ready, and the overflow behind them.
    #[inline(always)]
    fn passes_in_place(
        &mut self,
        chains: Option<&Chains<M>>,
        guest_len: usize,
        room: usize,
    ) -> Result<(), Refused> {
        let over = guest_len > self.layout.longest;
        if self.filter.look().is_open() && !over {
            return Ok(());
        }
        self.peek_in_place(chains, guest_len, room)
    }

    #[inline(never)]
    fn peek_in_place(
        &mut self,
        chains: Option<&Chains<M>>,
        guest_len: usize,
        room: usize,
    ) -> Result<(), Refused> {
        let place = Place {
            chains: chains.unwrap_or(&self.buffers.ready),
            room,
            overflow: &mut self.overflow,
            header_len: self.layout.header_len,
        };
        let mut start = [0; PEEK];
        let start = place.peek(guest_len, &mut start);
        if !self.filter.look().passes(start) {
            return Err(Refused::Filtered);
        }
        if guest_len > self.layout.longest
            && guest_len.saturating_sub(tags_len(start)) > self.layout.longest
            && !self.is_segmented(chains)
        {
            return Err(Refused::OverMtu);
        }
        Ok(())
    }

    /// Whether a frame in `chains`, or in what is ready, stands for several that are shorter.
    fn is_segmented(&self, chains: Option<&Chains<M>>) -> bool {
        if self.layout.host_header_len == 0 || !self.layout.allowed.has_segments() {
            return false;
        }
        let mut gso_type = [0];
        chains
            .unwrap_or(&self.buffers.ready)
            .read_back(GSO_TYPE, &mut gso_type);
        is_segmented(gso_type)
    }

    /// There is not room enough: asks the driver to kick when it makes more available. `true` when it
    /// already has.
    fn look_again(&mut self, statistics: &mut RxStatistics) -> Result<bool, QueueError> {
        // The driver gets what it has to fill again before it is waited for.
        self.finish(statistics);
        if self.buffers.queue.enable_notifications()? {
            self.buffers.queue.disable_notifications();
            return Ok(true);
        }
        self.starved = true;
        statistics.no_room += 1;
        Ok(false)
    }

    #[inline(always)]
    fn deliver_ready(&mut self, guest_len: usize, statistics: &mut RxStatistics) {
        self.end_patience();
        self.buffers.deliver_ready(guest_len, statistics);
    }

    pub(crate) fn count_from(&mut self, statistics: &RxStatistics) {
        self.buffers.count_from(statistics);
    }

    pub(crate) fn gate(&mut self) -> &mut Gate {
        &mut self.buffers.gate
    }

    /// Tells the driver of what it was given, if it wants to hear of it.
    pub(crate) fn tell(&mut self, statistics: &mut RxStatistics) {
        self.buffers.tell(&*self.loan.call, statistics);
    }

    /// Ends a batch: the driver sees what it was given.
    pub(super) fn finish(&mut self, statistics: &mut RxStatistics) {
        self.buffers.finish(&*self.loan.call, statistics);
    }

    fn drop_frame(&mut self, port: &Port, statistics: &mut RxStatistics) {
        let overdue = self.overdue;
        self.end_patience();
        if overdue {
            statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NoRoom);
        } else {
            statistics.dropped_too_long += 1;
            port.count_dropped_receiving(DropReason::TooLong);
        }
    }

    /// A frame waits for buffers from now on, or did so before.
    fn begin_patience(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.arm_timer(PATIENCE);
        }
    }

    /// No frame waits for buffers any more. The next that does so has all its time.
    #[inline]
    fn end_patience(&mut self) {
        self.overdue = false;
        if let Some(watch) = &mut self.watch {
            watch.disarm_timer();
        }
    }

    /// Takes an error aside. The queue rests from then on.
    pub(super) fn settle_error<T>(
        &mut self,
        result: Result<T, QueueError>,
        otherwise: T,
    ) -> (T, After) {
        let broken = match result {
            Ok(value) => return (value, After::default()),
            // Said once, when it broke.
            Err(QueueError::Broken) => None,
            Err(error) => {
                if let Some(watch) = &self.watch {
                    watch.rest();
                }
                Some(error)
            }
        };
        let after = After {
            room: false,
            broken,
        };
        (otherwise, after)
    }
}

impl<M: QueueMemory> fmt::Debug for ActiveRx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveRx")
            .field("queue", &self.buffers.queue)
            .field("ready", &self.buffers.ready.count())
            .field("in_flight", &self.reads.len())
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}
