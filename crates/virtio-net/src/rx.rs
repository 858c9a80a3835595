//! The receive direction.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use net_client::{Drained, DropReason, Frame, FrameSource, IoVec, Port, Read, Received, Token};
use virtio_bus::ActiveQueue;
use virtqueue::{Chain, MAX_SEGMENTS, QueueError, QueueMemory, VirtQueue};

use crate::header::{MAX_HEADER, NUM_BUFFERS};
use crate::kick::{Watch, again};
use crate::lend::{Overflow, copy_frame, lend_from};
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
    queue: VirtQueue<M>,
    /// Popped, checked and not used yet, in the order in which they were made available.
    ready: Chains<M>,
    /// Chains with no buffers, for the next ones.
    spare: Vec<Chain<M>>,
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

/// Chains in order, with the sum of their room.
struct Chains<M: QueueMemory> {
    list: VecDeque<Chain<M>>,
    len: usize,
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
        active.give_back();
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
            queue,
            ready: Chains::new(),
            spare: Vec::new(),
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
        self.loan.state = self.queue.state();
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
        let want = self.guest_len(source.max_frame().max(self.layout.host_header_len));
        let want = want.unwrap_or(self.layout.header_len);
        // Turns of the loop without a frame count too: a driver that makes useless chains available for
        // ever does not keep the thread.
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.gather(want, statistics)?;
            }
            if self.held.is_some() || self.ready.list.is_empty() {
                if self.look_again(statistics)? {
                    continue;
                }
                return Ok(Drained::NoRoom);
            }
            let room = self.lend_ready();
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
        let Some(guest_len) = self.guest_len(frame.len) else {
            statistics.dropped_malformed += 1;
            port.count_dropped_receiving(DropReason::Malformed);
            return Ok(Received::Taken);
        };
        let mut fits = false;
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.gather(guest_len, statistics)?;
                fits = self.fits(guest_len);
                if fits {
                    break;
                }
                if !self.ready.list.is_empty() && (self.is_all() || self.overdue) {
                    self.drop_frame(port, statistics);
                    return Ok(Received::Taken);
                }
            }
            if !self.look_again(statistics)? {
                if !self.ready.list.is_empty() {
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
        for chain in &self.ready.list {
            let left = frame.len - skip;
            if left == 0 {
                break;
            }
            skip += copy_frame(chain.writable(), offset, frame.iov, skip, left);
            offset = offset.saturating_sub(chain.writable_len());
        }
        // A frame that says it is longer than its memory: `skip` is what there was.
        self.deliver_ready(header_len - host_header_len + skip, statistics);
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
        let Some(guest_len) = self.guest_len(len).filter(|len| *len <= room + overflow) else {
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
        if self.is_all() || self.overdue {
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
        self.gather(guest_len, statistics)?;
        if !self.fits(guest_len) {
            return Ok(());
        }
        self.held = None;
        self.ready
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
            match self.guest_len(len) {
                Some(guest_len) if guest_len <= room => {
                    self.deliver(&mut chains, guest_len, statistics);
                }
                Some(guest_len) if overflow && self.mergeable && self.held.is_none() => {
                    // The chains that it needs beside its own come from those that are ready.
                    result = self.gather(guest_len.saturating_sub(chains.len), statistics);
                    while chains.len < guest_len
                        && let Some(chain) = self.ready.pop_front()
                    {
                        chains.push_back(chain);
                    }
                    if chains.len >= guest_len {
                        let rest = guest_len.saturating_sub(room);
                        chains.write(room, self.overflow.bytes(rest));
                        self.deliver(&mut chains, guest_len, statistics);
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
                self.ready.push_front(chain);
            } else {
                self.ready.push_back(chain);
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
        self.queue.disable_notifications();
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

    /// Puts available chains on `ready` until they have room for `want` bytes, or, where frames are not
    /// merged, until there is one.
    fn gather(&mut self, want: usize, statistics: &mut RxStatistics) -> Result<(), QueueError> {
        let mut bad = 0;
        while self.ready.len < want && (self.mergeable || self.ready.list.is_empty()) {
            let mut chain = self.spare.pop().unwrap_or_default();
            let popped = self.queue.pop(&mut chain);
            if !matches!(popped, Ok(true)) {
                self.spare.push(chain);
                return popped.map(|_| ());
            }
            if chain.readable_len() == 0 && chain.writable_len() >= self.layout.header_len {
                self.ready.push_back(chain);
                continue;
            }
            statistics.bad_chains += 1;
            self.use_chain(chain, 0);
            // A driver that makes them available as fast as they are given back gets no more of this turn.
            bad += 1;
            if bad == self.queue.size() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Fills `iov` with what is ready, behind the room for the header where the source has none. Returns the
    /// guest bytes up to the end of it.
    fn lend_ready(&mut self) -> usize {
        let mut skip = self.layout.header_len - self.layout.host_header_len;
        let mut room = 0;
        self.iov.clear();
        let chains = if self.mergeable { usize::MAX } else { 1 };
        for segment in self
            .ready
            .list
            .iter()
            .take(chains)
            .flat_map(Chain::writable)
        {
            // One is left for the overflow.
            if self.iov.len() + 1 >= MAX_SEGMENTS {
                break;
            }
            room += segment.len();
            let here = skip.min(segment.len());
            skip -= here;
            if here < segment.len() {
                self.iov.push(lend_from(segment, here));
            }
        }
        room
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
            && let Some(chain) = self.ready.pop_front()
        {
            reading.chains.push_back(chain);
        }
        reading.busy = true;
        reading.room = room;
        reading.overflow = overflow;
        self.overflow_lent |= overflow;
        self.reading += 1;
    }

    fn deliver_ready(&mut self, guest_len: usize, statistics: &mut RxStatistics) {
        let mut chains = std::mem::replace(&mut self.ready, Chains::new());
        self.deliver(&mut chains, guest_len, statistics);
        self.ready = chains;
    }

    /// Gives the driver a frame that lies in the first `guest_len` bytes of `chains`, header included.
    fn deliver(&mut self, chains: &mut Chains<M>, guest_len: usize, statistics: &mut RxStatistics) {
        let Layout {
            header_len,
            host_header_len,
            little_endian,
            ..
        } = self.layout;
        let mut left = guest_len;
        let mut buffers = 0_u16;
        for chain in &chains.list {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.writable_len());
            // A queue has at most 2^15 chains.
            buffers += 1;
        }
        if let Some(first) = chains.list.front() {
            if host_header_len == 0 {
                let zeroes = [0; MAX_HEADER];
                first.write(0, zeroes.get(..header_len).unwrap_or_default());
            }
            if header_len > NUM_BUFFERS {
                // With VERSION_1 it is 1 where frames are not merged (virtio 1.4, 5.1.6.3.2).
                let bytes = if little_endian {
                    buffers.to_le_bytes()
                } else {
                    buffers.to_ne_bytes()
                };
                first.write(NUM_BUFFERS, &bytes);
            }
        }
        let mut left = guest_len;
        for _ in 0..buffers {
            let Some(chain) = chains.pop_front() else {
                break;
            };
            let part = left.min(chain.writable_len());
            left -= part;
            chain.mark_written(part);
            self.use_chain(chain, part);
        }
        self.overdue = false;
        statistics.frames += 1;
        statistics.bytes += guest_len.saturating_sub(header_len) as u64;
        statistics.buffers += u64::from(buffers);
    }

    fn use_chain(&mut self, chain: Chain<M>, len: usize) {
        // A frame is shorter than 2^32 bytes; where it were not, less is claimed than was written.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let pushed = self.queue.push_used(chain.head(), len);
        debug_assert!(pushed.is_ok(), "{pushed:?}");
        self.spare.push(chain);
    }

    /// There is not room enough: asks the driver to kick when it makes more available. `true` when it
    /// already has.
    fn look_again(&mut self, statistics: &mut RxStatistics) -> Result<bool, QueueError> {
        // The driver gets what it has to fill again before it is waited for.
        self.finish(statistics);
        if self.queue.enable_notifications()? {
            self.queue.disable_notifications();
            return Ok(true);
        }
        self.starved = true;
        statistics.no_room += 1;
        Ok(false)
    }

    /// Ends a batch: the driver sees what it was given.
    fn finish(&mut self, statistics: &mut RxStatistics) {
        if self.queue.publish() == 0 {
            return;
        }
        statistics.batches += 1;
        if self.queue.needs_notification() {
            statistics.notifications += 1;
            self.loan.call.notify();
        }
    }

    /// Gives back what is ready: to the available ring as long as it is the newest there, else used and empty.
    fn give_back(&mut self) {
        let end = self.queue.state().next_avail;
        let list = self.ready.list.make_contiguous();
        list.sort_by_key(|chain| end.wrapping_sub(chain.position()));
        while let Some(mut chain) = self.ready.pop_front() {
            if self.queue.undo_pop(&mut chain) {
                self.spare.push(chain);
            } else {
                self.use_chain(chain, 0);
            }
        }
    }

    /// Guest bytes of a frame of `len` bytes of the source's, unless it is shorter than its header.
    fn guest_len(&self, len: usize) -> Option<usize> {
        len.checked_sub(self.layout.host_header_len)?
            .checked_add(self.layout.header_len)
    }

    /// Whether a frame fits into what is ready: all of it, or, where frames are not merged, the first.
    fn fits(&self, guest_len: usize) -> bool {
        let room = match self.ready.list.front() {
            Some(first) if !self.mergeable => first.writable_len(),
            _ => self.ready.len,
        };
        room >= guest_len
    }

    /// Whether waiting cannot help: frames are not merged, or all entries of the queue are in hand.
    fn is_all(&self) -> bool {
        !self.mergeable || self.ready.list.len() >= usize::from(self.queue.size())
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

impl<M: QueueMemory> Chains<M> {
    fn new() -> Self {
        Self {
            list: VecDeque::new(),
            len: 0,
        }
    }

    fn push_back(&mut self, chain: Chain<M>) {
        // Chains of one queue, each of at most 2^42 bytes.
        self.len += chain.writable_len();
        self.list.push_back(chain);
    }

    fn push_front(&mut self, chain: Chain<M>) {
        self.len += chain.writable_len();
        self.list.push_front(chain);
    }

    fn pop_front(&mut self) -> Option<Chain<M>> {
        let chain = self.list.pop_front()?;
        self.len -= chain.writable_len();
        Some(chain)
    }

    fn pop_back(&mut self) -> Option<Chain<M>> {
        let chain = self.list.pop_back()?;
        self.len -= chain.writable_len();
        Some(chain)
    }

    /// Writes `data` from `offset` on, across chains.
    fn write(&self, mut offset: usize, mut data: &[u8]) {
        for chain in &self.list {
            let written = chain.write(offset, data);
            data = data.get(written..).unwrap_or_default();
            if data.is_empty() {
                return;
            }
            offset = offset.saturating_sub(chain.writable_len());
        }
    }
}

impl<M: QueueMemory> fmt::Debug for Rx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rx")
            .field("queue", &self.active.as_ref().map(|a| &a.queue))
            .field("ready", &self.active.as_ref().map(|a| a.ready.list.len()))
            .field("in_flight", &self.in_flight())
            .field("statistics", &self.statistics)
            .finish_non_exhaustive()
    }
}
