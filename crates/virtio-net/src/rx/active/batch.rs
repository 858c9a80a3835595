//! Reads that a source does at once.

use net_client::{DropReason, FrameSource, Port, Read, Token};
use virtqueue::{QueueError, QueueMemory};

use super::ActiveRx;
use crate::buffers::Chains;
use crate::statistics::RxStatistics;

/// The buffers of reads that a source does at once; all but empty between two calls.
pub(super) struct Batch<M: QueueMemory> {
    /// By token.
    reads: Vec<Lent<M>>,
    /// The driver takes its buffers back in any order.
    pub(super) allowed: bool,
}

struct Lent<M: QueueMemory> {
    chains: Chains<M>,
    room: usize,
}

/// What came of one.
pub(super) struct BatchEnd {
    pub(super) reads: usize,
    /// A read found no frame: the source has no more.
    pub(super) ended: bool,
}

impl<M: QueueMemory> Batch<M> {
    pub(super) fn new() -> Self {
        Self {
            reads: Vec::new(),
            allowed: false,
        }
    }

    /// The read of `token` is lent the chains of `ready` that its `room` lies in; how many.
    fn lend(&mut self, token: usize, ready: &mut Chains<M>, room: usize) -> usize {
        if token == self.reads.len() {
            self.reads.push(Lent {
                chains: Chains::new(),
                room: 0,
            });
        }
        let Some(read) = self.reads.get_mut(token) else {
            return 0;
        };
        while read.chains.len() < room && ready.move_first(&mut read.chains) {}
        read.room = room;
        read.chains.count()
    }
}

impl<M: QueueMemory> ActiveRx<M> {
    /// Has the source do up to `max` reads at once, each into room for the longest frame, `want` bytes.
    /// `None`: it does better with one, or there is no room for more.
    #[inline(never)]
    pub(super) fn receive_batch(
        &mut self,
        source: &mut dyn FrameSource,
        want: usize,
        max: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Option<BatchEnd>, QueueError> {
        if !self.batch.allowed || self.held.is_some() {
            return Ok(None);
        }
        let max = max.min(source.batch());
        if max < 2 {
            return Ok(None);
        }
        let mut reads = 0;
        let mut gathered = Ok(());
        let mut lent = 0;
        // The driver has the other half to fill again meanwhile.
        while reads < max && lent < usize::from(self.buffers.queue.size() / 2) {
            gathered = self.buffers.gather(want, statistics);
            let room = self.buffers.lend(&mut self.iov, want);
            if gathered.is_err() || room < want || self.iov.is_empty() {
                break;
            }
            source.queue(token_of(reads), &self.iov);
            lent += self.batch.lend(reads, &mut self.buffers.ready, room);
            reads += 1;
        }
        let mut ended = false;
        if reads > 0 {
            source.submit(&mut |token, read| match read {
                Read::Frame(len) => self.batch_frame(token, len, port, statistics),
                Read::Pending | Read::Empty | Read::Failed => ended = true,
            });
            self.take_back(reads);
        }
        gathered?;
        Ok((reads > 0).then_some(BatchEnd { reads, ended }))
    }

    /// A frame of `len` bytes was read into what was lent to the read of `token`.
    fn batch_frame(
        &mut self,
        token: Token,
        len: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) {
        let lent = usize::try_from(token.0)
            .ok()
            .and_then(|token| self.batch.reads.get_mut(token));
        let Some(Lent { chains, room }) = lent else {
            return;
        };
        let (mut chains, room) = (std::mem::replace(chains, Chains::new()), *room);
        match self.buffers.guest_len(len).filter(|len| *len <= room) {
            None => {
                chains.mark_written(room);
                statistics.dropped_malformed += 1;
                port.count_dropped_receiving(DropReason::Malformed);
            }
            Some(guest_len) => {
                self.expected.learn(guest_len);
                match self.passes_in_place(Some(&chains), guest_len, room) {
                    Ok(()) => {
                        self.end_patience();
                        self.buffers.deliver(&mut chains, guest_len, statistics);
                    }
                    Err(refused) => {
                        chains.mark_written(guest_len);
                        refused.count(port, statistics);
                    }
                }
            }
        }
        if let Some(lent) = usize::try_from(token.0)
            .ok()
            .and_then(|token| self.batch.reads.get_mut(token))
        {
            lent.chains = chains;
        }
    }

    /// What the first `reads` of the batch have not used is next.
    fn take_back(&mut self, reads: usize) {
        // In order, so the last is the first to go back.
        for lent in self.batch.reads.iter_mut().take(reads).rev() {
            while lent.chains.move_last(&mut self.buffers.ready) {}
        }
    }
}

fn token_of(read: usize) -> Token {
    Token(u32::try_from(read).unwrap_or(Token::PORT.0))
}
