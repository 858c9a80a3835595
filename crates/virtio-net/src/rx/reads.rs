//! Reads that the source has not finished.

use net_client::Token;
use virtqueue::QueueMemory;

use crate::buffers::Chains;

/// Reads into buffers that the source has until it completes their tokens.
pub(super) struct Reads<M: QueueMemory> {
    /// By token.
    list: Vec<Reading<M>>,
    busy: usize,
    /// One of them has the overflow.
    pub(super) overflow_lent: bool,
}

struct Reading<M: QueueMemory> {
    busy: bool,
    chains: Chains<M>,
    room: usize,
    overflow: bool,
}

/// A read that has ended.
pub(super) struct Ended<M: QueueMemory> {
    pub(super) chains: Chains<M>,
    /// Guest bytes that were lent.
    pub(super) room: usize,
    /// It had the overflow behind them.
    pub(super) overflow: bool,
}

impl<M: QueueMemory> Reads<M> {
    pub(super) fn new() -> Self {
        Self {
            list: Vec::new(),
            busy: 0,
            overflow_lent: false,
        }
    }

    /// The token of the next read.
    pub(super) fn next_token(&mut self) -> Token {
        let slot = match self.list.iter().position(|reading| !reading.busy) {
            Some(slot) => slot,
            None => {
                self.list.push(Reading {
                    busy: false,
                    chains: Chains::new(),
                    room: 0,
                    overflow: false,
                });
                self.list.len() - 1
            }
        };
        Token(u32::try_from(slot).unwrap_or(Token::PORT.0))
    }

    /// The read of `token`, the next one's, goes on: it keeps the chains of `ready` that its `room` lies in.
    pub(super) fn start(
        &mut self,
        token: Token,
        ready: &mut Chains<M>,
        room: usize,
        overflow: bool,
    ) {
        let Some(reading) = slot(&mut self.list, token) else {
            return;
        };
        while reading.chains.len() < room && ready.move_first(&mut reading.chains) {}
        reading.busy = true;
        reading.room = room;
        reading.overflow = overflow;
        self.overflow_lent |= overflow;
        self.busy += 1;
    }

    /// The read of `token` has ended. `None` if there is none.
    pub(super) fn end(&mut self, token: Token) -> Option<Ended<M>> {
        let reading = slot(&mut self.list, token).filter(|reading| reading.busy)?;
        reading.busy = false;
        self.busy -= 1;
        if reading.overflow {
            self.overflow_lent = false;
        }
        Some(Ended {
            chains: std::mem::replace(&mut reading.chains, Chains::new()),
            room: reading.room,
            overflow: reading.overflow,
        })
    }

    /// Takes back the list of a read that has ended, empty by now, to be used again.
    pub(super) fn recycle(&mut self, token: Token, chains: Chains<M>) {
        if let Some(reading) = slot(&mut self.list, token) {
            reading.chains = chains;
        }
    }

    /// The tokens of those that go on.
    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> {
        (0..)
            .zip(&self.list)
            .filter(|(_, reading)| reading.busy)
            .map(|(slot, _)| Token(slot))
    }

    /// How many go on.
    pub(super) fn len(&self) -> usize {
        self.busy
    }
}

fn slot<M: QueueMemory>(list: &mut [Reading<M>], token: Token) -> Option<&mut Reading<M>> {
    list.get_mut(usize::try_from(token.0).ok()?)
}
