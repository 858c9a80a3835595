//! An event loop with a thread of its own.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::clock::{Clock, MonotonicClock};
use crate::context::AioContext;
use crate::event_loop::EventLoop;

/// A thread that turns an [`EventLoop`] for as long as this value lives. [QEMU: `-object iothread`]
///
/// Dropping it runs the work that was scheduled before, then ends the thread and waits for it,
/// unless it is dropped on that very thread, which then ends after its turn. The context itself
/// lives on for those who still hold it, and is from then on turned by hand.
#[doc(alias = "IOThread")]
pub struct IoThread {
    event_loop: Arc<EventLoop>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread called `name`, whose timers run on the host's monotonic clock.
    ///
    /// # Errors
    /// When the process can have no more threads or file descriptors, or the name has a NUL in it.
    pub fn new(name: impl Into<String>) -> io::Result<Self> {
        Self::with_clock(name, Arc::new(MonotonicClock::new()))
    }

    /// As [`new`](Self::new), with timers on `clock`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_clock(name: impl Into<String>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let name = name.into();
        if name.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a thread's name has a NUL in it",
            ));
        }
        let event_loop = EventLoop::with_clock(clock)?;
        let stop = Arc::new(AtomicBool::new(false));
        let runner = Runner {
            event_loop: event_loop.clone(),
            stop: stop.clone(),
        };
        event_loop.set_has_thread(true);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || runner.run())?;
        Ok(Self {
            event_loop,
            stop,
            thread: Some(thread),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        let thread = self.thread.as_ref().and_then(|t| t.thread().name());
        thread.unwrap_or_default()
    }

    /// The context that it runs.
    pub fn context(&self) -> Arc<dyn AioContext> {
        self.event_loop.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.event_loop.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(name, "an I/O thread had panicked");
            }
        }
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoThread")
            .field("name", &self.name())
            .field("context", &self.event_loop)
            .finish_non_exhaustive()
    }
}

/// What runs on the thread. It does not own the [`IoThread`], so that may be dropped here.
struct Runner {
    event_loop: Arc<EventLoop>,
    stop: Arc<AtomicBool>,
}

impl Runner {
    fn run(self) {
        let result = self.turn_until_stopped();
        if let Err(error) = result {
            let name = thread::current().name().unwrap_or_default().to_owned();
            tracing::error!(%error, name, "an I/O thread cannot wait, and ends");
        }
    }

    fn turn_until_stopped(&self) -> io::Result<()> {
        while !self.stop.load(Ordering::Acquire) {
            self.event_loop.turn(None)?;
        }
        // What was scheduled just before the thread was told to stop.
        self.event_loop.turn(Some(std::time::Duration::ZERO))?;
        Ok(())
    }
}

impl Drop for Runner {
    /// Also when a handler panics: nobody waits for a thread that is gone.
    fn drop(&mut self) {
        self.event_loop.set_has_thread(false);
    }
}
