//! A client that lends, as a NIC does, and notices what becomes of its memory.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use net_client::{
    Drained, Frame, FrameSource, IoVec, NetClient, Port, Read, Received, Token, copy_from_iov,
};

const LENDS: u32 = 8;
const SIZE: usize = 2048;
/// What is in a buffer that is not lent.
const SCRIBBLE: u8 = 0xee;

/// Sends frames from buffers that it lends, and reads its peer's frames into others.
#[derive(Debug)]
pub(crate) struct Lender {
    port: Arc<Port>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Buffers 0.. to send from, then those to read into.
    buffers: Vec<Vec<u8>>,
    lent: HashSet<u32>,
    backlog: VecDeque<Vec<u8>>,
    stopped: bool,
    got: Vec<Vec<u8>>,
    in_place: usize,
}

impl Lender {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new(name, me.clone()),
            state: Mutex::new(State {
                buffers: vec![vec![SCRIBBLE; SIZE]; 2 * LENDS as usize],
                ..State::default()
            }),
        })
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(crate) fn queue(&self, frame: impl Into<Vec<u8>>) {
        self.state().backlog.push_back(frame.into());
    }

    /// Sends what it can.
    pub(crate) fn pump(&self) {
        loop {
            let mut state = self.state();
            let free = (0..LENDS).find(|token| !state.lent.contains(token));
            let (Some(token), false) = (free, state.stopped) else {
                break;
            };
            let Some(bytes) = state.backlog.front().cloned() else {
                break;
            };
            let iov = state.lend(token, bytes.len());
            state.buffers[token as usize][..bytes.len()].copy_from_slice(&bytes);
            drop(state);
            let received = self.port.send(&Frame {
                token: Some(Token(token)),
                iov: &[iov],
                len: bytes.len(),
            });
            let mut state = self.state();
            if received != Received::Busy {
                state.backlog.pop_front();
            }
            if received != Received::Lent {
                state.have_back(token);
            }
            if received == Received::Busy {
                state.stopped = true;
            }
        }
        self.port
            .flush(&mut |Token(token)| self.state().have_back(token));
    }

    pub(crate) fn backlog(&self) -> usize {
        self.state().backlog.len()
    }

    pub(crate) fn lent(&self) -> usize {
        self.state().lent.len()
    }

    pub(crate) fn take_frames(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.state().got)
    }

    /// Frames that were read straight into its buffers, ever.
    pub(crate) fn in_place(&self) -> usize {
        self.state().in_place
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    #[expect(unsafe_code, reason = "lends memory, as a client does")]
    fn lend(&mut self, token: u32, len: usize) -> IoVec {
        assert!(self.lent.insert(token));
        let base = self.buffers[token as usize].as_mut_ptr();
        // SAFETY: buffers are neither freed nor resized, and the peer is revoked before they go.
        unsafe { IoVec::new(base, len) }
    }

    fn have_back(&mut self, token: u32) {
        assert!(self.lent.remove(&token), "{token} was not lent");
        self.buffers[token as usize].fill(SCRIBBLE);
    }

    fn read(&mut self, token: u32, len: usize) {
        let bytes = self.buffers[token as usize][..len].to_vec();
        self.have_back(token);
        if len > 0 {
            self.in_place += 1;
            self.got.push(bytes);
        }
    }
}

impl NetClient for Lender {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut bytes = vec![0; frame.len];
        copy_from_iov(frame.iov, 0, &mut bytes);
        self.state().got.push(bytes);
        Received::Taken
    }

    fn receive_from(&self, source: &mut dyn FrameSource) -> Drained {
        for token in LENDS..2 * LENDS {
            let mut state = self.state();
            if state.lent.contains(&token) {
                continue;
            }
            let iov = state.lend(token, SIZE);
            drop(state);
            let read = source.read(Token(token), &[iov]);
            let mut state = self.state();
            match read {
                Read::Frame(len) => state.read(token, len),
                Read::Pending => {}
                Read::Empty | Read::Failed => {
                    state.have_back(token);
                    return Drained::Empty;
                }
            }
        }
        Drained::Budget
    }

    fn sent(&self, Token(token): Token) {
        self.state().have_back(token);
    }

    fn read_done(&self, Token(token): Token, len: usize) {
        self.state().read(token, len);
    }

    fn room(&self) {
        self.state().stopped = false;
    }
}
