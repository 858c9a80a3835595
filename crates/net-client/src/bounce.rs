//! The buffer through which frames pass from a source to a peer that cannot read it itself.

use std::fmt;
use std::mem;
use std::sync::{Mutex, PoisonError};

use crate::client::{Drained, Frame, FrameSource, Read, Received, Token};
use crate::iovec::IoVec;
use crate::port::Port;
use crate::statistics::DropReason;

/// Frames copied in one turn, before others have theirs.
const BUDGET: usize = 64;

/// One frame's buffer, and what is in it.
///
/// The lock is a leaf: whoever works with the buffer takes it out and leaves `InUse` behind.
#[derive(Default)]
pub(crate) struct Bounce(Mutex<State>);

enum State {
    /// Nothing.
    Idle(Vec<u8>),
    /// A frame of so many bytes that the peer had no room for.
    Held(Vec<u8>, usize),
    /// A read goes on; [`Token::PORT`] ends it. `cleared`: what it brings is not wanted.
    Reading { buffer: Vec<u8>, cleared: bool },
    /// Taken out. `room`: the peer said meanwhile that it has room; `cleared`: it wants no frame from
    /// before.
    InUse { room: bool, cleared: bool },
}

impl State {
    const TAKEN: Self = Self::InUse {
        room: false,
        cleared: false,
    };
}

impl Bounce {
    /// Whether a read into the buffer goes on. Until it ends, nothing may be read past it.
    pub(crate) fn is_reading(&self) -> bool {
        matches!(*self.lock(), State::Reading { .. })
    }

    /// Whether no frame is in it, or on its way there.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(*self.lock(), State::Idle(_))
    }

    /// Hands over the frame that is kept, if any. `false`: the peer has no room for it, or the
    /// buffer is at work further up the stack, which will see to it.
    pub(crate) fn deliver(&self, port: &Port) -> bool {
        let (buffer, len) = {
            let mut state = self.lock();
            match mem::replace(&mut *state, State::TAKEN) {
                State::Held(buffer, len) => (buffer, len),
                State::InUse { cleared, .. } => {
                    let room = true;
                    *state = State::InUse { room, cleared };
                    return false;
                }
                other => {
                    *state = other;
                    return true;
                }
            }
        };
        let handed_over = self.hand_over(port, buffer, len);
        port.flush_own();
        handed_over
    }

    /// Reads frames from `source` and hands each over, up to a turn's budget.
    pub(crate) fn copy(&self, port: &Port, source: &mut dyn FrameSource) -> Drained {
        let mut drained = Drained::Budget;
        for _ in 0..BUDGET {
            let mut buffer = {
                let mut state = self.lock();
                match mem::replace(&mut *state, State::TAKEN) {
                    State::Idle(buffer) => buffer,
                    // One frame at a time: the end of the read asks again.
                    reading @ State::Reading { .. } => {
                        *state = reading;
                        return Drained::Empty;
                    }
                    other => {
                        *state = other;
                        return Drained::NoRoom;
                    }
                }
            };
            buffer.resize(source.max_frame().max(buffer.len()), 0);
            let iov = IoVec::of_buffer(&mut buffer);
            match source.read(Token::PORT, &[iov]) {
                Read::Frame(len) => {
                    if !self.hand_over(port, buffer, len) {
                        drained = Drained::NoRoom;
                        break;
                    }
                }
                Read::Pending => {
                    let cleared = false;
                    *self.lock() = State::Reading { buffer, cleared };
                    drained = Drained::Empty;
                    break;
                }
                Read::Empty | Read::Failed => {
                    *self.lock() = State::Idle(buffer);
                    drained = Drained::Empty;
                    break;
                }
            }
        }
        port.flush_own();
        drained
    }

    /// A read that went on has ended.
    pub(crate) fn read_done(&self, port: &Port, len: usize) {
        let buffer = {
            let mut state = self.lock();
            match mem::replace(&mut *state, State::TAKEN) {
                State::Reading {
                    buffer,
                    cleared: false,
                } if len > 0 => buffer,
                State::Reading { buffer, .. } => {
                    *state = State::Idle(buffer);
                    if len > 0 {
                        port.sent.dropped(DropReason::NotRunning);
                    }
                    return;
                }
                other => {
                    *state = other;
                    return;
                }
            }
        };
        self.hand_over(port, buffer, len);
        port.flush_own();
    }

    /// Forgets a frame that is kept: its receiver is gone. Whether there was one. One that is being
    /// offered is not kept any more, and one that is being read is not handed over.
    pub(crate) fn clear(&self) -> bool {
        let mut state = self.lock();
        match &mut *state {
            State::Held(buffer, _) => {
                *state = State::Idle(mem::take(buffer));
                true
            }
            State::InUse { cleared, .. } => {
                *cleared = true;
                false
            }
            State::Reading { cleared, .. } => {
                *cleared = true;
                false
            }
            State::Idle(_) => false,
        }
    }

    /// Offers the frame in `buffer`, which was taken out, and puts the buffer back: idle (`true`: it
    /// was taken, or cleared meanwhile), or holding the frame.
    fn hand_over(&self, port: &Port, buffer: Vec<u8>, len: usize) -> bool {
        let len = len.min(buffer.len());
        loop {
            let iov = IoVec::of_bytes(&buffer[..len]);
            let received = port.send(&Frame {
                token: None,
                iov: &[iov],
                len,
            });
            let mut state = self.lock();
            if received != Received::Busy {
                *state = State::Idle(buffer);
                return true;
            }
            match &mut *state {
                State::InUse { cleared: true, .. } => {
                    *state = State::Idle(buffer);
                    port.sent.dropped(DropReason::NotRunning);
                    return true;
                }
                State::InUse { room, .. } if *room => {
                    *room = false;
                    continue;
                }
                _ => {}
            }
            *state = State::Held(buffer, len);
            return false;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Idle(Vec::new())
    }
}

impl fmt::Debug for Bounce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &*self.lock() {
            State::Idle(_) => "idle",
            State::Held(..) => "held",
            State::Reading { .. } => "reading",
            State::InUse { .. } => "in use",
        })
    }
}
