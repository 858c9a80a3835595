//! The transmit direction.

mod short;
mod slab;

use std::fmt;
use std::time::Duration;

use net_client::{DropReason, Frame, IoVec, Port, Received, Sender, Token, copy_from_iov};
use virtio::net::F as NetF;
use virtio_bus::ActiveQueue;
use virtqueue::{Chain, MAX_SEGMENTS, QueueError, QueueMemory, QueueState, VirtQueue};

use self::slab::FrameSlab;
use crate::coalesce::Gate;
use crate::filter::Mac;
use crate::header::{HeaderFault, MAX_HEADER, TxRules};
use crate::kick::{MISSES, Watch, again, batch};
use crate::lend::{lend_from, lend_on, read_at, read_start};
use crate::pair::Layout;
use crate::statistics::{TxStatistics, count_bytes};

/// A transmit queue: at work or not, behind its lock.
pub(crate) struct Tx<M: QueueMemory> {
    pub(crate) active: Option<ActiveTx<M>>,
    /// The driver uses the queue's pair.
    enabled: bool,
    pub(crate) statistics: TxStatistics,
}

/// A transmit queue at work.
pub(crate) struct ActiveTx<M: QueueMemory> {
    loan: ActiveQueue,
    layout: Layout,
    rules: TxRules,
    flight: Flight<M>,
    pub(crate) gate: Gate,
    /// What is popped next; while `pending`, the frame that the peer had no room for.
    chain: Box<Chain<M>>,
    pending: bool,
    /// The peer has got frames since it was last told that a batch is complete.
    unflushed: bool,
    /// Buffers of the frames that it got since, or pages where those are more, and when that are enough for a batch.
    unfinished: usize,
    batch: usize,
    /// Both sides have the usual header, and frames may have any source.
    is_usual: bool,
    iov: Vec<IoVec>,
    /// A turn ended with its burst: what is left needs no kick of the driver's.
    more: bool,
    /// Neither paused nor being stopped.
    pub(crate) running: bool,
    /// Nothing is sent before the peer has room again.
    waiting: bool,
    pub(crate) watch: Option<Watch>,
}

/// The queue, and those of its chains that the peer has.
struct Flight<M: QueueMemory> {
    queue: VirtQueue<M>,
    /// The checked headers, and frames of up to an MTU whole.
    slab: FrameSlab,
    /// By head.
    lent: Box<[Option<Box<Chain<M>>>]>,
    count: usize,
    /// Chains with no frame, for the next ones.
    spare: Vec<Box<Chain<M>>>,
}

/// Bytes of the header of almost every driver: with `num_buffers`, and nothing behind it.
const USUAL_HEADER: usize = 12;

/// Bytes that count as one buffer more of a batch.
const PAGE: usize = 4096;

/// How a turn ended, where something is left to do.
#[derive(Debug)]
pub(crate) enum TurnEnd {
    /// Nothing is left.
    Idle,
    /// What the driver wrote makes no sense; the queue rests.
    Broken(QueueError),
}

impl<M: QueueMemory> Tx<M> {
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            active: None,
            enabled,
            statistics: TxStatistics::default(),
        }
    }

    /// The driver uses the queue's pair from now on, or uses it no more: then what is in the queue is dropped,
    /// so that a driver which sends there all the same has its memory back.
    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
        if let Some(active) = &mut self.active {
            active.waiting = false;
            again(&active.loan().kick);
        }
    }

    /// Notifications have been held back for as long as they may.
    pub(crate) fn held_long_enough(&mut self) {
        if let Some(active) = &mut self.active
            && active.gate.expired()
        {
            active.tell(&mut self.statistics);
        }
    }

    /// Whether the queue is at work, and not held.
    pub(crate) fn is_running(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.running)
    }

    /// The driver has kicked, and what it has made available is sent `delay` later: more may come until then, and no
    /// kick is asked for. `false` where a turn is to be taken now: it has kicked all the same, and has waited.
    pub(crate) fn put_off(&mut self, delay: Duration) -> bool {
        let Some(active) = self.active.as_mut().filter(|a| a.running && !a.waiting) else {
            return false;
        };
        let Some(watch) = &mut active.watch else {
            return false;
        };
        if active.more || watch.timer_is_armed() {
            return false;
        }
        active.flight.queue.disable_notifications();
        watch.arm_timer(delay);
        true
    }

    /// The time after a kick is over. `false` if a turn was taken before it was.
    pub(crate) fn waited(&mut self) -> bool {
        let watch = self.active.as_mut().and_then(|a| a.watch.as_mut());
        watch.is_some_and(Watch::timer_expired)
    }

    /// Sends what the driver has made available, up to `burst` frames.
    #[doc(alias = "virtio_net_flush_tx")]
    pub(crate) fn turn(&mut self, port: &Port, sender: &Sender<'_>, burst: u32) -> TurnEnd {
        let Some(active) = self.active.as_mut().filter(|a| a.running && !a.waiting) else {
            return TurnEnd::Idle;
        };
        active.wait_no_more();
        let end = active.turn(port, sender, burst, self.enabled, &mut self.statistics);
        active.finish(sender, &mut self.statistics);
        match end {
            Ok(()) => TurnEnd::Idle,
            // Said once, when it broke.
            Err(QueueError::Broken) => TurnEnd::Idle,
            Err(error) => {
                if let Some(watch) = &active.watch {
                    watch.rest();
                }
                TurnEnd::Broken(error)
            }
        }
    }

    /// The peer may have room again.
    pub(crate) fn room(&mut self) {
        if let Some(active) = &mut self.active {
            active.waiting = false;
        }
    }

    /// The peer is finished with one frame, outside of a turn.
    #[doc(alias = "virtio_net_tx_complete")]
    pub(crate) fn sent(&mut self, token: Token) {
        if let Some(active) = &mut self.active
            && active.flight.complete(token)
        {
            active.publish(&mut self.statistics);
        } else {
            self.statistics.stray_completions += 1;
        }
    }

    /// Frames that the peer has.
    pub(crate) fn in_flight(&self) -> usize {
        self.active.as_ref().map_or(0, |active| active.flight.count)
    }

    /// Counts all frames as sent that the peer has; returns how many.
    pub(crate) fn write_off(&mut self) -> usize {
        let Some(active) = &mut self.active else {
            return 0;
        };
        let count = active.flight.count;
        for chain in active.flight.lent.iter_mut().filter_map(Option::take) {
            let head = chain.head();
            let pushed = active.flight.queue.push_used(head, 0);
            debug_assert!(pushed.is_ok(), "{pushed:?}");
            active.flight.slab.abandon(head);
            active.flight.spare.push(chain);
        }
        active.flight.count = 0;
        count
    }

    /// Brings the queue's indices to what the driver can see, once nothing is in flight: the frame that
    /// waits for room goes back to the available ring.
    pub(crate) fn settle(&mut self) {
        if let Some(active) = &mut self.active {
            if std::mem::take(&mut active.pending)
                && !active.flight.queue.undo_pop(&mut active.chain)
            {
                active.flight.done(active.chain.head());
            }
            active.waiting = false;
            active.wait_no_more();
            active.publish(&mut self.statistics);
            if active.gate.release() {
                active.tell(&mut self.statistics);
            }
        }
    }
}

/// Both sides have the usual header, and frames may have any source.
fn is_usual(layout: &Layout) -> bool {
    layout.header_len == USUAL_HEADER
        && layout.host_header_len == USUAL_HEADER
        && layout.source.is_none()
}

impl<M: QueueMemory> ActiveTx<M> {
    /// The source that frames must have from here on, if not any.
    pub(crate) fn set_source(&mut self, source: Option<Mac>) {
        self.layout.source = source;
        self.is_usual = is_usual(&self.layout);
    }

    pub(crate) fn new(
        loan: ActiveQueue,
        queue: VirtQueue<M>,
        layout: Layout,
        features: NetF,
        running: bool,
    ) -> Self {
        let size = queue.size();
        Self {
            loan,
            layout,
            rules: TxRules::new(features),
            flight: Flight {
                queue,
                slab: FrameSlab::new(size),
                lent: (0..size).map(|_| None).collect(),
                count: 0,
                spare: Vec::new(),
            },
            gate: Gate::default(),
            chain: Box::default(),
            pending: false,
            unflushed: false,
            unfinished: 0,
            batch: batch(size),
            is_usual: is_usual(&layout),
            iov: Vec::new(),
            more: false,
            running,
            waiting: false,
            watch: None,
        }
    }

    /// The queue as it was lent, with where it stands now.
    pub(crate) fn hand_back(mut self) -> ActiveQueue {
        self.loan.state = self.flight.queue.state();
        self.loan
    }

    /// Where the queue stands, once it is settled.
    pub(crate) fn state(&self) -> QueueState {
        self.flight.queue.state()
    }

    pub(crate) fn loan(&self) -> &ActiveQueue {
        &self.loan
    }

    /// The queue is looked at, whatever for.
    fn wait_no_more(&mut self) {
        self.more = false;
        if let Some(watch) = &mut self.watch {
            watch.disarm_timer();
        }
    }

    fn turn(
        &mut self,
        port: &Port,
        sender: &Sender<'_>,
        burst: u32,
        enabled: bool,
        statistics: &mut TxStatistics,
    ) -> Result<(), QueueError> {
        self.flight.queue.disable_notifications();
        let mut left = burst.max(1);
        // Frames are often of the same kind as those before.
        let mut was_short = false;
        let mut misses = 0;
        loop {
            if was_short && misses < MISSES {
                let before = left;
                if self.send_short(sender, &mut left, statistics) {
                    return Ok(());
                }
                misses += u32::from(left == before);
            }
            if left == 0 {
                // Others on this context have their turn first.
                self.more = true;
                again(&self.loan.kick);
                return Ok(());
            }
            if !self.pending && !self.flight.queue.pop(&mut self.chain)? {
                // The driver sees what is done before it is asked for more.
                self.finish(sender, statistics);
                if !self.flight.queue.enable_notifications()? {
                    return Ok(());
                }
                self.flight.queue.disable_notifications();
                // A driver that lets each look find more, and each pop nothing, does not keep the thread.
                left -= 1;
                continue;
            }
            left -= 1;
            let head = self.chain.head();
            if !enabled {
                statistics.dropped_disabled += 1;
                port.count_dropped_sending(DropReason::NotRunning);
                self.pending = false;
                self.flight.done(head);
                continue;
            }
            was_short = false;
            let prepared = if self.pending {
                self.lend_frame()
            } else if let Some(len) = self.lend_short() {
                was_short = true;
                Ok(len)
            } else {
                self.check_frame().and_then(|()| self.lend_frame())
            };
            let len = match prepared {
                Ok(len) => len,
                Err(fault) => {
                    statistics.faults[fault as usize] += 1;
                    port.count_dropped_sending(DropReason::Malformed);
                    self.pending = false;
                    self.flight.done(head);
                    continue;
                }
            };
            // A page is as dear as a buffer: a driver of large frames does not wait until many are done.
            let weight = self.chain.readable().len().max(len / PAGE);
            let received = sender.send(&Frame {
                token: Some(Token(u32::from(head))),
                iov: &self.iov,
                len,
            });
            self.pending = received == Received::Busy;
            self.unflushed = true;
            match received {
                Received::Taken => self.flight.done(head),
                Received::Lent => self.flight.keep(&mut self.chain, self.iov.first()),
                Received::Busy => {
                    statistics.busy += 1;
                    self.waiting = true;
                    return Ok(());
                }
            }
            statistics.frames += 1;
            self.unfinished += weight;
            // What the peer got, less the header that it got with it.
            let frame_len = len.saturating_sub(self.layout.host_header_len);
            count_bytes(&mut statistics.bytes, frame_len);
            if self.layout.stats {
                let header = self.flight.slab.header(head, self.layout.little_endian);
                header.count(frame_len, statistics);
            }
            if self.unfinished >= self.batch {
                // The driver makes more available meanwhile.
                self.finish(sender, statistics);
            }
        }
    }

    /// Fills `iov` with the frame in `chain` where it is a [short one](short::lend); returns its length. What else there
    /// is, [`check_frame`](Self::check_frame) and [`lend_frame`](Self::lend_frame) find out.
    #[inline]
    fn lend_short(&mut self) -> Option<usize> {
        if !self.is_usual || self.chain.writable_len() != 0 {
            return None;
        }
        let (slab, segments) = (&mut self.flight.slab, self.chain.readable());
        let lent = short::lend(slab, &self.rules, self.layout.little_endian, segments)?;
        // To be counted, or lent once more.
        slab.keep_header(self.chain.head());
        self.iov.clear();
        self.iov.push(lent.frame);
        Some(lent.frame.len())
    }

    /// Copies the header of the frame in `chain`, checks the copy, and keeps what the peer is told.
    fn check_frame(&mut self) -> Result<(), HeaderFault> {
        let Layout {
            header_len,
            little_endian,
            ..
        } = self.layout;
        if self.chain.writable_len() != 0 {
            return Err(HeaderFault::Writable);
        }
        let mut bytes = [0; MAX_HEADER];
        let segments = self.chain.readable();
        if header_len == USUAL_HEADER
            && let Some(start) = read_at::<USUAL_HEADER>(segments, 0)
            && let Some(there) = bytes.first_chunk_mut()
        {
            *there = start;
        } else {
            let there = bytes.get_mut(..header_len).unwrap_or_default();
            if !read_start(segments, there) && self.chain.read(0, there) < header_len {
                return Err(HeaderFault::Short);
            }
        }
        let frame_len = self.chain.readable_len().saturating_sub(header_len);
        let clean = self.rules.clean(&bytes, little_endian, frame_len)?;
        self.flight.slab.set_header(self.chain.head(), clean);
        Ok(())
    }

    /// Fills `iov` with the checked header, where the peer takes one, and the frame; returns its length. A
    /// frame of up to an MTU lies behind its header, copied with it: one piece is cheaper to send than two.
    fn lend_frame(&mut self) -> Result<usize, HeaderFault> {
        let Layout {
            header_len,
            host_header_len,
            ..
        } = self.layout;
        self.iov.clear();
        let slab = &mut self.flight.slab;
        let (head, segments) = (self.chain.head(), self.chain.readable());
        let frame_len = self.chain.readable_len().saturating_sub(header_len);
        if let Some(whole) = slab.copy_frame(head, host_header_len, segments, header_len, frame_len)
        {
            self.iov.push(whole);
            self.check_source()?;
            return Ok(whole.len());
        }
        let mut skip = header_len;
        if self.layout.source.is_some() {
            // What was checked is what is sent.
            let start = slab.lend_start(head, host_header_len, segments, header_len);
            self.iov.push(start.ok_or(HeaderFault::Short)?);
            self.check_source()?;
            skip += ADDRESSES;
        } else if host_header_len != 0 {
            let header = slab.lend_header(head, host_header_len);
            self.iov.push(header.ok_or(HeaderFault::Short)?);
        }
        let segments = self.chain.readable();
        for segment in segments {
            if skip >= segment.len() {
                skip -= segment.len();
            } else if skip > 0 {
                self.iov.push(lend_from(segment, skip));
                skip = 0;
            } else {
                lend_on(&mut self.iov, segment);
            }
        }
        if self.iov.len() > MAX_SEGMENTS {
            return Err(HeaderFault::Giant);
        }
        Ok(host_header_len + frame_len)
    }

    /// Looks at the source address in the first piece of `iov`, a copy of our own.
    fn check_source(&self) -> Result<(), HeaderFault> {
        let Some(source) = self.layout.source else {
            return Ok(());
        };
        let first = self.iov.get(..1).unwrap_or_default();
        let mut there = [0; 6];
        copy_from_iov(first, self.layout.host_header_len + 6, &mut there);
        if there == source {
            Ok(())
        } else {
            Err(HeaderFault::Source)
        }
    }

    /// Ends a batch: the peer sends what it kept back, the driver sees what is done.
    fn finish(&mut self, sender: &Sender<'_>, statistics: &mut TxStatistics) {
        self.unfinished = 0;
        if std::mem::take(&mut self.unflushed) {
            let flight = &mut self.flight;
            sender.flush(&mut |token| {
                if !flight.complete(token) {
                    statistics.stray_completions += 1;
                }
            });
        }
        self.publish(statistics);
    }

    fn publish(&mut self, statistics: &mut TxStatistics) {
        let frames = self.flight.queue.publish();
        if frames == 0 {
            return;
        }
        statistics.batches += 1;
        if self.gate.passes(frames.into()) {
            self.tell(statistics);
        }
    }

    /// Tells the driver of what was published, if it wants to hear of it.
    pub(crate) fn tell(&mut self, statistics: &mut TxStatistics) {
        if self.flight.queue.needs_notification() {
            statistics.notifications += 1;
            self.loan.call.notify();
        }
    }
}

/// Bytes of the addresses at a frame's start.
const ADDRESSES: usize = 12;

impl<M: QueueMemory> Flight<M> {
    /// The frame of `head` is sent or dropped. Nothing was written into it.
    fn done(&mut self, head: u16) {
        let pushed = self.queue.push_used(head, 0);
        debug_assert!(pushed.is_ok(), "{pushed:?}");
    }

    /// The peer keeps the frame in `chain`, of which `first` is the first piece. The chain is replaced by an empty one.
    fn keep(&mut self, chain: &mut Box<Chain<M>>, first: Option<&IoVec>) {
        self.slab.keep(chain.head(), first);
        let empty = self.spare.pop().unwrap_or_default();
        let chain = std::mem::replace(chain, empty);
        // The queue lets no head be in flight twice, and none past its end.
        if let Some(slot) = self.lent.get_mut(usize::from(chain.head())) {
            *slot = Some(chain);
            self.count += 1;
        }
    }

    /// The peer is finished with a frame. `false` if it did not have it.
    fn complete(&mut self, token: Token) -> bool {
        let slot = usize::try_from(token.0)
            .ok()
            .and_then(|head| self.lent.get_mut(head));
        let Some(chain) = slot.and_then(Option::take) else {
            return false;
        };
        self.count -= 1;
        self.slab.release(chain.head());
        self.done(chain.head());
        self.spare.push(chain);
        true
    }
}

impl<M: QueueMemory> fmt::Debug for Tx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("queue", &self.active.as_ref().map(|a| &a.flight.queue))
            .field("in_flight", &self.in_flight())
            .field("enabled", &self.enabled)
            .field("statistics", &self.statistics)
            .finish_non_exhaustive()
    }
}
