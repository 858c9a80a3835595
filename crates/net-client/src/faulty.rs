//! A client on which nothing goes smoothly, the same way each time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::client::{Drained, Frame, FrameSource, NetClient, Read, Received, Token};
use crate::iovec::{IoVec, copy_from_iov, copy_to_iov};
use crate::port::Port;
use crate::statistics::DropReason;

/// How often what goes wrong, in 1000 frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A frame that the client gets is dropped, and counted.
    pub drop: u16,
    /// A frame is refused; word of room follows at a later [`step`](Faulty::step).
    pub busy: u16,
    /// A lent frame is kept, and completed at a later step, in any order.
    pub late: u16,
    /// A read of the frames that the client has goes on, and ends at a later step, in any order.
    pub slow: u16,
    /// A read fails without a frame; the frame is read next time.
    pub fail: u16,
}

impl Faults {
    /// Much of everything.
    pub const MANY: Self = Self {
        drop: 50,
        busy: 200,
        late: 600,
        slow: 600,
        fail: 100,
    };
}

/// Bytes of a frame that is given to a [`Faulty`] at most; the rest is cut off.
const GIVEN_MAX: usize = 2048;

/// The peer of a client under test, as an asynchronous backend with bad luck: completes late and out of
/// order, has no room now and then, drops, fails. What happens follows from its seed and from what
/// it is called with; time passes by [`step`](Self::step) alone.
///
/// Frames that it gets are read when they are completed, not before, so that memory which its lender
/// had touched or taken back meanwhile shows. Frames that it has, given with
/// [`give`](Self::give), arrive in order: the reads end in any order, each with the frame that is
/// next.
#[derive(Debug)]
pub struct Faulty {
    port: Arc<Port>,
    faults: Faults,
    /// A leaf lock.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Frames that were lent, and their memory.
    kept: Vec<(Token, Vec<IoVec>)>,
    /// Reads that go on, and the memory to read into.
    reads: Vec<(Token, Vec<IoVec>)>,
    /// Frames to be read.
    to_give: VecDeque<Vec<u8>>,
    got: Vec<Vec<u8>>,
    dropped: usize,
    /// It has refused a frame, and not said that it has room.
    owes_room: bool,
    /// Its peer has no room, and has not said that it has.
    stopped: bool,
}

impl Faulty {
    /// Makes one whose port is called `name`.
    pub fn new(name: impl Into<String>, faults: Faults, seed: u64) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new(name, me.clone()),
            faults,
            state: Mutex::new(State {
                random: Random(seed),
                kept: Vec::new(),
                reads: Vec::new(),
                to_give: VecDeque::new(),
                got: Vec::new(),
                dropped: 0,
                owes_room: false,
                stopped: false,
            }),
        })
    }

    /// Its end of the link.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Has one more frame for its peer, header included, of up to 2048 bytes.
    pub fn give(&self, frame: impl Into<Vec<u8>>) {
        self.lock().to_give.push_back(frame.into());
    }

    /// Lets some time pass: completes some of what it keeps, says that it has room, offers what it
    /// has. On the context. Whether there is more to do.
    pub fn step(&self) -> bool {
        let (completions, ends) = {
            let mut state = self.lock();
            (state.random.below(4), state.random.below(4))
        };
        for _ in 0..completions {
            self.complete_one();
        }
        for _ in 0..ends {
            self.end_one(true);
        }
        if std::mem::take(&mut self.lock().owes_room) {
            self.port.room();
        }
        let offers = {
            let state = self.lock();
            !state.stopped && !state.to_give.is_empty()
        };
        if offers && self.port.offer(&mut Source(self)) == Drained::NoRoom {
            self.lock().stopped = true;
        }
        let state = self.lock();
        !state.kept.is_empty()
            || !state.reads.is_empty()
            || state.owes_room
            || (!state.to_give.is_empty() && !state.stopped)
    }

    /// Takes the frames that it got, in the order in which they were completed.
    pub fn take_frames(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lock().got)
    }

    /// Frames that it got and dropped.
    pub fn dropped(&self) -> usize {
        self.lock().dropped
    }

    /// Frames and buffers of its peer's that it has.
    pub fn held(&self) -> usize {
        let state = self.lock();
        let own = |(token, _): &&(Token, Vec<IoVec>)| *token != Token::PORT;
        state.kept.len() + state.reads.iter().filter(own).count()
    }

    /// Frames that it has for its peer and that were not read yet.
    pub fn to_give(&self) -> usize {
        self.lock().to_give.len()
    }

    fn complete_one(&self) -> bool {
        let mut state = self.lock();
        let Some((token, iov)) = state.pick_kept() else {
            return false;
        };
        state.read_frame(&iov);
        drop(state);
        self.port.sent(token);
        true
    }

    /// Ends one read, with the next frame or without.
    fn end_one(&self, with_frame: bool) -> bool {
        let mut state = self.lock();
        let Some((token, iov)) = state.pick_read() else {
            return false;
        };
        let frame = if with_frame {
            state.to_give.pop_front()
        } else {
            None
        };
        drop(state);
        let len = frame.map_or(0, |frame| copy_to_iov(&iov, 0, &frame));
        self.port.read_done(token, len);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn happens(&mut self, per_mille: u16) -> bool {
        self.random.below(1000) < usize::from(per_mille)
    }

    fn pick_kept(&mut self) -> Option<(Token, Vec<IoVec>)> {
        let nth = self.random.below(self.kept.len());
        (nth < self.kept.len()).then(|| self.kept.swap_remove(nth))
    }

    fn pick_read(&mut self) -> Option<(Token, Vec<IoVec>)> {
        let nth = self.random.below(self.reads.len());
        (nth < self.reads.len()).then(|| self.reads.swap_remove(nth))
    }

    fn read_frame(&mut self, iov: &[IoVec]) {
        let mut bytes = vec![0; crate::iovec::total_len(iov)];
        copy_from_iov(iov, 0, &mut bytes);
        self.got.push(bytes);
    }
}

impl NetClient for Faulty {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut state = self.lock();
        if state.happens(self.faults.busy) {
            state.owes_room = true;
            return Received::Busy;
        }
        if state.happens(self.faults.drop) {
            state.dropped += 1;
            self.port.count_dropped_receiving(DropReason::Backend);
            return Received::Taken;
        }
        match frame.token {
            Some(token) if state.happens(self.faults.late) => {
                state.kept.push((token, frame.iov.to_vec()));
                Received::Lent
            }
            _ => {
                state.read_frame(frame.iov);
                Received::Taken
            }
        }
    }

    fn flush(&self, done: &mut dyn FnMut(Token)) {
        // Some end within the batch.
        let mut state = self.lock();
        if state.random.below(2) == 0 {
            return;
        }
        if let Some((token, iov)) = state.pick_kept() {
            state.read_frame(&iov);
            drop(state);
            done(token);
        }
    }

    fn room(&self) {
        self.lock().stopped = false;
    }

    fn revoke(&self) {
        while self.complete_one() {}
        self.cancel_reads();
    }

    fn cancel_reads(&self) {
        while self.end_one(false) {}
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Nobody else knows what it has of its peer's.
        self.revoke();
    }
}

struct Source<'a>(&'a Faulty);

impl FrameSource for Source<'_> {
    fn max_frame(&self) -> usize {
        GIVEN_MAX
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        let faults = self.0.faults;
        let mut state = self.0.lock();
        // What arrives goes to the reads that were begun first.
        if state.to_give.len() <= state.reads.len() {
            return Read::Empty;
        }
        if state.happens(faults.fail) {
            self.0.port.count_dropped_sending(DropReason::Backend);
            return Read::Failed;
        }
        if !state.reads.is_empty() || state.happens(faults.slow) {
            state.reads.push((token, iov.to_vec()));
            return Read::Pending;
        }
        match state.to_give.pop_front() {
            Some(frame) => Read::Frame(copy_to_iov(iov, 0, &frame)),
            None => Read::Empty,
        }
    }
}

/// Numbers that follow from their seed. [splitmix64]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for 0.
    fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        usize::try_from(self.next() % n).unwrap_or(0)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}
