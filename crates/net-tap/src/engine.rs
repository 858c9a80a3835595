//! How frames get in and out of the interface.

mod batch;
mod io_uring;

use std::fmt;
use std::io;
use std::sync::Arc;

use net_client::{Frame, IoVec, Received, Token};

pub(crate) use self::io_uring::IoUringEngine;
use crate::config::EngineKind;
use crate::error::TapError;
use crate::tap::Tap;

/// The data plane behind a tap's queue.
///
/// It may keep frames and reads back for a batch, never for longer than to the end of the peer's turn:
/// what [`flush`](Self::flush) and [`submit`](Self::submit) start has ended when they return. Errors are the
/// host's, `WouldBlock` among them: the queue decides what each means.
pub(crate) trait Engine: Send + Sync + fmt::Debug {
    /// Sends one frame, or keeps it for the batch. [`Received::Busy`] is said by the error `WouldBlock` alone.
    fn write(&self, frame: &Frame<'_>) -> io::Result<Received>;

    /// Sends what was kept, and names each frame to `done`, in order. May be called on any thread; `done` is
    /// called with no lock held.
    fn flush(&self, done: &mut dyn FnMut(Token, io::Result<()>)) {
        let _ = done;
    }

    /// Reads one frame, and returns its length. That there is none is said by the error `WouldBlock` alone.
    fn read(&self, iov: &[IoVec]) -> io::Result<usize>;

    /// How many reads pay off at once now.
    fn batch(&self) -> usize {
        1
    }

    /// Keeps a read for [`submit`](Self::submit).
    fn queue(&self, token: Token, iov: &[IoVec]) {
        let _ = (token, iov);
    }

    /// Forgets the reads that were kept: whoever lent memory for them has gone without [`submit`](Self::submit).
    fn forget(&self) {}

    /// Does the reads that were kept, and names each to `done`, in order.
    fn submit(&self, done: &mut dyn FnMut(Token, io::Result<usize>)) {
        let _ = done;
    }
}

/// The engine that `kind` asks for.
pub(crate) fn make(kind: EngineKind, tap: &Arc<Tap>) -> Result<Box<dyn Engine>, TapError> {
    let syscalls = || Box::new(Syscalls(tap.clone()));
    match kind {
        EngineKind::Sync => Ok(syscalls()),
        EngineKind::IoUring => match IoUringEngine::new(tap) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(source) => Err(TapError::IoUring { source }),
        },
        EngineKind::Auto => Ok(if io_uring::pays_off(tap.name()) {
            match IoUringEngine::new(tap) {
                Ok(engine) => Box::new(engine),
                Err(_) => syscalls(),
            }
        } else {
            syscalls()
        }),
    }
}

/// One system call a frame.
#[derive(Debug)]
pub(crate) struct Syscalls(pub(crate) Arc<Tap>);

impl Engine for Syscalls {
    fn write(&self, frame: &Frame<'_>) -> io::Result<Received> {
        whole(self.0.write(frame.iov)?, frame.len)?;
        Ok(Received::Taken)
    }

    fn read(&self, iov: &[IoVec]) -> io::Result<usize> {
        self.0.read(iov)
    }
}

/// The host takes a frame whole. Should it ever take less, the rest is no frame of its own.
fn whole(written: usize, len: usize) -> io::Result<()> {
    if written < len {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
