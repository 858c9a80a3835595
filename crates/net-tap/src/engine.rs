//! How frames get in and out of the interface.

use std::fmt;
use std::io;
use std::sync::Arc;

use net_client::{Frame, IoVec, Read, Received, Token};

use crate::tap::Tap;

/// The data plane behind a tap's queue.
///
/// One that works asynchronously answers [`Received::Lent`] and [`Read::Pending`], and completes
/// through the queue's port; one that works at once never does. Errors are the host's, `WouldBlock`
/// among them: the queue decides what each means.
pub(crate) trait Engine: Send + Sync + fmt::Debug {
    /// Sends one frame. [`Received::Busy`] is said by the error `WouldBlock` alone.
    fn write(&self, frame: &Frame<'_>) -> io::Result<Received>;

    /// Puts what was kept back for batching on its way.
    fn flush(&self, done: &mut dyn FnMut(Token));

    /// Reads one frame. [`Read::Empty`] is said by the error `WouldBlock` alone.
    fn read(&self, token: Token, iov: &[IoVec]) -> io::Result<Read>;

    /// Completes everything that is lent.
    fn revoke(&self);
}

/// One system call a frame.
#[derive(Debug)]
pub(crate) struct Syscalls(pub(crate) Arc<Tap>);

impl Engine for Syscalls {
    fn write(&self, frame: &Frame<'_>) -> io::Result<Received> {
        // The host takes a frame whole. Should it ever take less, the rest is no frame of its own.
        if self.0.write(frame.iov)? < frame.len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(Received::Taken)
    }

    fn flush(&self, _done: &mut dyn FnMut(Token)) {}

    fn read(&self, _token: Token, iov: &[IoVec]) -> io::Result<Read> {
        self.0.read(iov).map(Read::Frame)
    }

    fn revoke(&self) {}
}
