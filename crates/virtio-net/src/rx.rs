//! The receive direction.

use std::fmt;
use std::time::Duration;

use net_client::{Drained, DropReason, Frame, FrameSource, IoVec, Port, Read, Received, Token};
use virtio_bus::ActiveQueue;
use virtqueue::{QueueError, QueueMemory, VirtQueue};

use crate::buffers::{Buffers, Chains};
use crate::kick::{Watch, again};
use crate::lend::{Overflow, copy_frame};
use crate::pair::Layout;
use crate::statistics::RxStatistics;

/// Frames taken from a source in one turn.
const BUDGET: usize = 256;
/// How long a frame waits for the rest of the buffers that it needs. Long enough for a driver that was
/// scheduled away, short enough for one that never makes so many available.
const PATIENCE: Duration = Duration::from_millis(100);

/// A receive queue: at work or not, behind its lock.
pub(crate) struct Rx<M: QueueMemory> {
    pub(crate) active: Option<ActiveRx<M>>,
    pub(crate) statistics: RxStatistics,
}

/// A receive queue at work.
pub(crate) struct ActiveRx<M: QueueMemory> {
    loan: ActiveQueue,
    layout: Layout,
    mergeable: bool,
    buffers: Buffers<M>,
    iov: Vec<IoVec>,
    overflow: Overflow,
    /// A read that goes on has `overflow`.
    overflow_lent: bool,
    /// Reads that go on, by token.
    reads: Vec<Reading<M>>,
    reading: usize,
    /// A frame that was read, for which there are not enough buffers yet.
    held: Option<Held>,
    /// Neither paused nor being stopped.
    pub(crate) running: bool,
    /// The peer was told that there is no room; a kick will say otherwise.
    starved: bool,
    /// The peer was told so because of a read that goes on; its end says otherwise.
    wait_for_read: bool,
    /// A frame has waited long enough: the next that does not fit is dropped.
    overdue: bool,
    pub(crate) watch: Option<Watch>,
}

/// A read that the source has not finished.
struct Reading<M: QueueMemory> {
    busy: bool,
    chains: Chains<M>,
    /// Guest bytes that were lent.
    room: usize,
    overflow: bool,
}

/// A frame in the first `room` bytes of `ready`, with the rest of it in `overflow`.
#[derive(Clone, Copy)]
struct Held {
    guest_len: usize,
    room: usize,
}

/// What a call into the queue left to do without the lock.
#[derive(Debug, Default)]
pub(crate) struct After {
    /// The peer has room again.
    pub(crate) room: bool,
    /// What the driver wrote makes no sense; the queue rests.
    pub(crate) broken: Option<QueueError>,
}

impl<M: QueueMemory> Rx<M> {
    pub(crate) fn new() -> Self {
        Self {
            active: None,
            statistics: RxStatistics::default(),
        }
    }

    /// Reads frames of `source` into the driver's buffers.
    pub(crate) fn receive_from(
        &mut self,
        source: &mut dyn FrameSource,
        port: &Port,
    ) -> (Drained, After) {
        let Some(active) = self.active.as_mut().filter(|a| a.running) else {
            return (Drained::NoRoom, After::default());
        };
        let drained = active.receive_from(source, port, &mut self.statistics);
        active.finish(&mut self.statistics);
        active.settle_error(drained, Drained::NoRoom)
    }

    /// Copies a frame into the driver's buffers; the driver sees it at [`flush`](Self::flush).
    #[doc(alias = "virtio_net_receive")]
    pub(crate) fn receive(&mut self, frame: &Frame<'_>, port: &Port) -> (Received, After) {
        let Some(active) = self.active.as_mut().filter(|a| a.running) else {
            return (Received::Busy, After::default());
        };
        let received = active.receive(frame, port, &mut self.statistics);
        if received.is_err() {
            active.finish(&mut self.statistics);
        }
        // A frame for a queue that is broken from now on stays where it is: the queue is reset soon.
        active.settle_error(received, Received::Busy)
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
        let done = active.read_done(token, len, port, &mut self.statistics);
        active.finish(&mut self.statistics);
        let room = std::mem::take(&mut active.wait_for_read);
        let ((), after) = active.settle_error(done, ());
        After { room, ..after }
    }

    /// The driver has kicked: it made buffers available.
    #[doc(alias = "virtio_net_handle_rx")]
    pub(crate) fn kicked(&mut self) -> After {
        let Some(active) = self.active.as_mut().filter(|a| a.running && a.starved) else {
            return After::default();
        };
        let room = active.refilled(&mut self.statistics);
        active.finish(&mut self.statistics);
        let (room, after) = active.settle_error(room, false);
        After { room, ..after }
    }

    /// A frame has waited for buffers for as long as it may.
    pub(crate) fn overdue(&mut self, port: &Port) -> After {
        let Some(active) = self.active.as_mut().filter(|a| a.running) else {
            return After::default();
        };
        if active.held.take().is_some() {
            self.statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NoRoom);
        } else {
            active.overdue = true;
        }
        After {
            room: true,
            broken: None,
        }
    }

    /// Reads that the source has not finished.
    pub(crate) fn in_flight(&self) -> usize {
        self.active.as_ref().map_or(0, |active| active.reading)
    }

    /// Brings the queue's indices to what the driver can see, once no read goes on: chains that were not
    /// used go back to the available ring.
    pub(crate) fn settle(&mut self, port: &Port) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.held.take().is_some() {
            self.statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NotRunning);
        }
        active.buffers.give_back();
        active.finish(&mut self.statistics);
        // Whatever the peer was told, it is told anew at the next kick.
        active.starved = true;
        active.wait_for_read = false;
        active.overdue = false;
    }
}

impl<M: QueueMemory> ActiveRx<M> {
    pub(crate) fn new(
        loan: ActiveQueue,
        queue: VirtQueue<M>,
        layout: Layout,
        mergeable: bool,
        running: bool,
    ) -> Self {
        Self {
            loan,
            layout,
            mergeable,
            buffers: Buffers::new(queue, layout, mergeable),
            iov: Vec::new(),
            overflow: Overflow::default(),
            overflow_lent: false,
            reads: Vec::new(),
            reading: 0,
            held: None,
            running,
            // The peer may have been told before the queue was there.
            starved: true,
            wait_for_read: false,
            overdue: false,
            watch: None,
        }
    }

    /// The queue as it was lent, with where it stands now.
    pub(crate) fn hand_back(mut self) -> ActiveQueue {
        self.loan.state = self.buffers.queue.state();
        self.loan
    }

    pub(crate) fn loan(&self) -> &ActiveQueue {
        &self.loan
    }

    fn receive_from(
        &mut self,
        source: &mut dyn FrameSource,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Drained, QueueError> {
        let want = self
            .buffers
            .guest_len(source.max_frame().max(self.layout.host_header_len));
        let want = want.unwrap_or(self.layout.header_len);
        // Turns of the loop without a frame count too: a driver that makes useless chains available for
        // ever does not keep the thread.
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.buffers.gather(want, statistics)?;
            }
            if self.held.is_some() || self.buffers.ready.list.is_empty() {
                if self.look_again(statistics)? {
                    continue;
                }
                return Ok(Drained::NoRoom);
            }
            let room = self.buffers.lend(&mut self.iov);
            let overflow = want.saturating_sub(room);
            if overflow > 0 {
                if self.overflow_lent {
                    // Two reads cannot share it.
                    self.wait_for_read = true;
                    return Ok(Drained::NoRoom);
                }
                self.iov.push(self.overflow.lend(overflow));
            }
            let slot = self.free_slot();
            let token = Token(u32::try_from(slot).unwrap_or(Token::PORT.0));
            match source.read(token, &self.iov) {
                Read::Frame(len) => self.take_frame(len, room, overflow, port, statistics)?,
                Read::Pending => self.start_reading(slot, room, overflow > 0),
                Read::Empty | Read::Failed => return Ok(Drained::Empty),
            }
        }
        Ok(Drained::Budget)
    }

    fn receive(
        &mut self,
        frame: &Frame<'_>,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Received, QueueError> {
        let Some(guest_len) = self.buffers.guest_len(frame.len) else {
            statistics.dropped_malformed += 1;
            port.count_dropped_receiving(DropReason::Malformed);
            return Ok(Received::Taken);
        };
        let mut fits = false;
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.buffers.gather(guest_len, statistics)?;
                fits = self.buffers.fits(guest_len);
                if fits {
                    break;
                }
                if !self.buffers.ready.list.is_empty() && (self.buffers.is_all() || self.overdue) {
                    self.drop_frame(port, statistics);
                    return Ok(Received::Taken);
                }
            }
            if !self.look_again(statistics)? {
                if !self.buffers.ready.list.is_empty() {
                    self.arm_timer();
                }
                return Ok(Received::Busy);
            }
        }
        if !fits {
            self.try_later();
            return Ok(Received::Busy);
        }
        let Layout {
            header_len,
            host_header_len,
            ..
        } = self.layout;
        let mut skip = 0;
        // The frame's own header comes first, at the start of the first chain; where it has none, what
        // comes first lies behind the room for one.
        let mut offset = header_len - host_header_len;
        for chain in &self.buffers.ready.list {
            let left = frame.len - skip;
            if left == 0 {
                break;
            }
            skip += copy_frame(chain.writable(), offset, frame.iov, skip, left);
            offset = offset.saturating_sub(chain.writable_len());
        }
        // A frame that says it is longer than its memory: `skip` is what there was.
        self.buffers
            .deliver_ready(header_len - host_header_len + skip, statistics);
        Ok(Received::Taken)
    }

    /// A frame of `len` bytes was read into `room` guest bytes and `overflow` bytes behind them.
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
            statistics.dropped_malformed += 1;
            port.count_dropped_receiving(DropReason::Malformed);
            return Ok(());
        };
        if guest_len <= room {
            self.deliver_ready(guest_len, statistics);
            return Ok(());
        }
        self.held = Some(Held { guest_len, room });
        self.deliver_held(statistics)?;
        if self.held.is_none() {
            return Ok(());
        }
        if self.buffers.is_all() || self.overdue {
            self.held = None;
            self.drop_frame(port, statistics);
        } else {
            self.arm_timer();
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
        if let Some(watch) = &self.watch {
            watch.disarm_timer();
        }
        Ok(())
    }

    fn read_done(
        &mut self,
        token: Token,
        len: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<(), QueueError> {
        let slot = usize::try_from(token.0)
            .ok()
            .and_then(|slot| self.reads.get_mut(slot));
        let Some(reading) = slot.filter(|reading| reading.busy) else {
            return Ok(());
        };
        reading.busy = false;
        self.reading -= 1;
        let room = reading.room;
        let overflow = std::mem::take(&mut reading.overflow);
        let mut chains = std::mem::replace(&mut reading.chains, Chains::new());
        if overflow {
            self.overflow_lent = false;
        }
        let mut result = Ok(());
        if len > 0 {
            match self.buffers.guest_len(len) {
                Some(guest_len) if guest_len <= room => {
                    self.buffers.deliver(&mut chains, guest_len, statistics);
                }
                Some(guest_len) if overflow && self.mergeable && self.held.is_none() => {
                    // The chains that it needs beside its own come from those that are ready.
                    result = self
                        .buffers
                        .gather(guest_len.saturating_sub(chains.len), statistics);
                    while chains.len < guest_len
                        && let Some(chain) = self.buffers.ready.pop_front()
                    {
                        chains.push_back(chain);
                    }
                    if chains.len >= guest_len {
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
        }
        // What it did not use is next, unless a held frame lies in what is ready already.
        while let Some(chain) = chains.pop_back() {
            if self.held.is_none() {
                self.buffers.ready.push_front(chain);
            } else {
                self.buffers.ready.push_back(chain);
            }
        }
        // The list itself is used again.
        if let Some(reading) = self.reads.get_mut(token.0 as usize) {
            reading.chains = chains;
        }
        result
    }

    /// Whether the peer can be told that there is room.
    fn refilled(&mut self, statistics: &mut RxStatistics) -> Result<bool, QueueError> {
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

    fn free_slot(&mut self) -> usize {
        if let Some(slot) = self.reads.iter().position(|reading| !reading.busy) {
            return slot;
        }
        self.reads.push(Reading {
            busy: false,
            chains: Chains::new(),
            room: 0,
            overflow: false,
        });
        self.reads.len() - 1
    }

    /// The read into what was just lent goes on.
    fn start_reading(&mut self, slot: usize, room: usize, overflow: bool) {
        let Some(reading) = self.reads.get_mut(slot) else {
            return;
        };
        while reading.chains.len < room
            && let Some(chain) = self.buffers.ready.pop_front()
        {
            reading.chains.push_back(chain);
        }
        reading.busy = true;
        reading.room = room;
        reading.overflow = overflow;
        self.overflow_lent |= overflow;
        self.reading += 1;
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

    fn deliver_ready(&mut self, guest_len: usize, statistics: &mut RxStatistics) {
        self.overdue = false;
        self.buffers.deliver_ready(guest_len, statistics);
    }

    /// Ends a batch: the driver sees what it was given.
    fn finish(&mut self, statistics: &mut RxStatistics) {
        self.buffers.finish(&*self.loan.call, statistics);
    }

    fn drop_frame(&mut self, port: &Port, statistics: &mut RxStatistics) {
        if std::mem::take(&mut self.overdue) {
            statistics.dropped_no_buffers += 1;
            port.count_dropped_receiving(DropReason::NoRoom);
        } else {
            statistics.dropped_too_long += 1;
            port.count_dropped_receiving(DropReason::TooLong);
        }
    }

    fn arm_timer(&self) {
        if let Some(watch) = &self.watch {
            watch.arm_timer(PATIENCE);
        }
    }

    /// Takes an error aside. The queue rests from then on.
    fn settle_error<T>(&mut self, result: Result<T, QueueError>, otherwise: T) -> (T, After) {
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

impl<M: QueueMemory> fmt::Debug for Rx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rx")
            .field("queue", &self.active.as_ref().map(|a| &a.buffers.queue))
            .field(
                "ready",
                &self.active.as_ref().map(|a| a.buffers.ready.list.len()),
            )
            .field("in_flight", &self.in_flight())
            .field("statistics", &self.statistics)
            .finish_non_exhaustive()
    }
}
