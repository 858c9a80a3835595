//! Contexts that a machine gives out by name.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::context::AioContext;
use crate::thread::IoThread;

/// Gives out contexts to devices that work on several: a service of a machine's.
pub trait AioContexts: Send + Sync + fmt::Debug {
    /// A context for whoever asks, called `name` where that shows. It is turned for as long as what is returned
    /// lives.
    ///
    /// # Errors
    /// When there is none to be had.
    fn context(&self, name: &str) -> io::Result<ContextLease>;
}

/// A context, and what turns it. Dropped when whoever works on the context is gone.
#[derive(Debug)]
pub struct ContextLease {
    context: Arc<dyn AioContext>,
    _turner: Box<dyn Turner>,
}

trait Turner: Send + Sync + fmt::Debug {}

impl<T: Send + Sync + fmt::Debug> Turner for T {}

impl ContextLease {
    /// A context that is turned for as long as `turner` lives: an [`IoThread`], or `()` for one that others turn.
    pub fn new(
        context: Arc<dyn AioContext>,
        turner: impl Send + Sync + fmt::Debug + 'static,
    ) -> Self {
        Self {
            context,
            _turner: Box::new(turner),
        }
    }

    /// The context.
    pub fn context(&self) -> &Arc<dyn AioContext> {
        &self.context
    }
}

impl From<IoThread> for ContextLease {
    /// The context of a thread that ends with the lease.
    fn from(thread: IoThread) -> Self {
        Self::new(thread.context(), thread)
    }
}

/// A thread of its own for each context asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct IoThreads;

impl AioContexts for IoThreads {
    fn context(&self, name: &str) -> io::Result<ContextLease> {
        IoThread::new(name).map(ContextLease::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn each_lease_has_a_thread_of_its_own_that_ends_with_it() {
        let leases = [
            IoThreads.context("a").unwrap(),
            IoThreads.context("b").unwrap(),
        ];
        let threads = leases.each_ref().map(|lease| {
            let (to, from) = mpsc::channel();
            lease.context().schedule(Box::new(move || {
                to.send(thread::current().id()).unwrap();
            }));
            from.recv().unwrap()
        });
        assert_ne!(threads[0], threads[1]);
        assert!(!threads.contains(&thread::current().id()));

        let kept = leases[0].context().clone();
        drop(leases);
        let (to, from) = mpsc::channel();
        kept.schedule(Box::new(move || to.send(()).unwrap()));
        assert_eq!(from.try_recv(), Err(mpsc::TryRecvError::Empty));
        kept.wait_while(&mut || from.try_recv().is_err());
    }
}
