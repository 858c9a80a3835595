//! A client that writes down what it gets.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::client::{Drained, Frame, FrameSource, NetClient, Read, Received, Token};
use crate::iovec::{IoVec, copy_from_iov};
use crate::port::Port;

/// Frames that a [`Recorder`] reads in one turn.
const BUDGET: usize = 64;

/// Keeps every frame that it gets, and sends what it is told to. The peer of a client under test.
///
/// Its room is limited on request, so that its peer meets back-pressure: see
/// [`set_room`](Self::set_room).
#[derive(Debug)]
pub struct Recorder {
    port: Arc<Port>,
    log: Mutex<Log>,
    changed: Condvar,
    lends: bool,
}

#[derive(Debug)]
struct Log {
    frames: VecDeque<Vec<u8>>,
    room: usize,
    refused: usize,
    rooms_heard: usize,
    links: Vec<bool>,
    /// Where frames are read to.
    buffer: Vec<u8>,
}

impl Recorder {
    /// Makes one whose port is called `name`, and to which frames are handed over.
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Self::build(name.into(), false)
    }

    /// Makes one that reads its peer's frames itself, into its own buffers.
    pub fn lending(name: impl Into<String>) -> Arc<Self> {
        Self::build(name.into(), true)
    }

    fn build(name: String, lends: bool) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new(name, me.clone()),
            log: Mutex::new(Log {
                frames: VecDeque::new(),
                room: usize::MAX,
                refused: 0,
                rooms_heard: 0,
                links: Vec::new(),
                buffer: Vec::new(),
            }),
            changed: Condvar::new(),
            lends,
        })
    }

    /// Its end of the link.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Has room for so many more frames from now on, and tells the peer if that is any.
    pub fn set_room(&self, frames: usize) {
        self.lock().room = frames;
        if frames > 0 {
            self.port.room();
        }
    }

    /// Takes the frames recorded so far, header included where there is one.
    pub fn take_frames(&self) -> Vec<Vec<u8>> {
        self.lock().frames.drain(..).collect()
    }

    /// How many frames there are to take.
    pub fn len(&self) -> usize {
        self.lock().frames.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often the peer was refused for want of room.
    pub fn refused(&self) -> usize {
        self.lock().refused
    }

    /// How often the peer said that it has room.
    pub fn rooms_heard(&self) -> usize {
        self.lock().rooms_heard
    }

    /// The changes of the link that it was told of.
    pub fn links(&self) -> Vec<bool> {
        self.lock().links.clone()
    }

    /// Waits until a frame is `wanted`, and takes it and those before it; `None` after `deadline`.
    /// For contexts with a thread of their own.
    pub fn wait_for(
        &self,
        deadline: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let end = Instant::now() + deadline;
        let mut log = self.lock();
        loop {
            while let Some(frame) = log.frames.pop_front() {
                if wanted(&frame) {
                    return Some(frame);
                }
            }
            let left = end.checked_duration_since(Instant::now())?;
            log = self
                .changed
                .wait_timeout(log, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetClient for Recorder {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut log = self.lock();
        if log.room == 0 {
            log.refused += 1;
            return Received::Busy;
        }
        log.room -= 1;
        let mut bytes = vec![0; frame.len];
        let copied = copy_from_iov(frame.iov, 0, &mut bytes);
        bytes.truncate(copied);
        log.frames.push_back(bytes);
        self.changed.notify_all();
        Received::Taken
    }

    fn receive_from(&self, source: &mut dyn FrameSource) -> Drained {
        if !self.lends {
            return Drained::CannotLend;
        }
        for _ in 0..BUDGET {
            let mut log = self.lock();
            if log.room == 0 {
                log.refused += 1;
                return Drained::NoRoom;
            }
            log.buffer.resize(source.max_frame(), 0);
            let iov = IoVec::of_buffer(&mut log.buffer);
            match source.read(Token(0), &[iov]) {
                Read::Frame(len) => {
                    log.room -= 1;
                    let frame = log.buffer.get(..len).unwrap_or_default().to_vec();
                    log.frames.push_back(frame);
                    self.changed.notify_all();
                }
                Read::Pending | Read::Empty | Read::Failed => return Drained::Empty,
            }
        }
        Drained::Budget
    }

    fn room(&self) {
        self.lock().rooms_heard += 1;
        self.changed.notify_all();
    }

    fn link_status_changed(&self, up: bool) {
        self.lock().links.push(up);
        self.changed.notify_all();
    }
}
