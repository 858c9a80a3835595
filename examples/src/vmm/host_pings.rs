//! The host's side of the default run: it pings the embedded guest while that pings it.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::output::say;
use crate::ping::Pinger;

/// Pings that the guest is to answer.
#[derive(Debug)]
pub(super) struct HostPings {
    pinger: Arc<Pinger>,
    target: Ipv4Addr,
    wanted: u16,
}

impl HostPings {
    /// Prepares to have `wanted` pings of `target` answered.
    ///
    /// # Errors
    /// When the host lets nobody ping.
    pub(super) fn new(target: Ipv4Addr, wanted: u16) -> io::Result<Self> {
        Ok(Self {
            pinger: Arc::new(Pinger::new(target)?),
            target,
            wanted,
        })
    }

    /// Pings on a thread of its own while `body` runs, and says afterwards what came of it.
    pub(super) fn during<T>(&self, body: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        let (result, answered) = thread::scope(|scope| {
            let thread = scope.spawn(|| self.ping_until(&over));
            let result = body();
            over.store(true, Ordering::Relaxed);
            (result, thread.join().unwrap_or(0))
        });
        say(format_args!(
            "{answered} of the host's {} pings of {} answered",
            self.wanted, self.target
        ));
        result
    }

    /// How many were answered. Those that come before the guest is up do not count as sent.
    fn ping_until(&self, over: &AtomicBool) -> u16 {
        let mut answered = 0;
        let mut sequence = 0u16;
        while answered < self.wanted && !over.load(Ordering::Relaxed) {
            sequence = sequence.wrapping_add(1);
            match self.pinger.ping(sequence, PATIENCE) {
                Ok(Some(_)) => answered += 1,
                Ok(None) => {}
                // No route before the tap is up, no neighbour before the guest is: all in good time.
                Err(_) => thread::sleep(PATIENCE),
            }
        }
        answered
    }
}

/// How long to wait for one answer, and so for the thread to notice that all is over.
const PATIENCE: Duration = Duration::from_millis(300);
