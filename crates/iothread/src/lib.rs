//! Event loops: watch a file descriptor, arm a timer on a given clock, run work on the loop's thread.
//!
//! A device sees its loop as an [`AioContext`] and does not know whose thread turns it. There are
//! two ways to have one:
//!
//! - [`EventLoop`] is turned by hand, with [`EventLoop::turn`]: a VMM's main loop, a test.
//! - [`IoThread`] turns one on a thread of its own, and ends it when dropped.
//!
//! Both stand on rust-vmm's `event-manager`. What they add to it: calls from any thread, timers,
//! work to run once, waiting for a condition while the loop turns, and a clock that a test steps by
//! hand ([`VirtualClock`]).
//!
//! ```
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use std::time::Duration;
//!
//! use iothread::{AioContext, EventLoop, FdHandler, Interest, Readiness, TimerHandler, VirtualClock};
//!
//! struct Bell {
//!     rope: Arc<UnixStream>,
//!     rung: AtomicU64,
//! }
//!
//! impl FdHandler for Bell {
//!     fn ready(&self, _readiness: Readiness) {
//!         let mut pulls = [0; 16];
//!         let count = (&*self.rope).read(&mut pulls).unwrap_or(0);
//!         self.rung.fetch_add(count as u64, Ordering::Relaxed);
//!     }
//! }
//!
//! impl TimerHandler for Bell {
//!     fn expired(&self) {
//!         self.rung.fetch_add(100, Ordering::Relaxed);
//!     }
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! let clock = VirtualClock::new();
//! let context = EventLoop::with_clock(clock.clone())?;
//!
//! let (rope, mut hand) = UnixStream::pair()?;
//! rope.set_nonblocking(true)?;
//! let bell = Arc::new(Bell { rope: Arc::new(rope), rung: AtomicU64::new(0) });
//!
//! // The context keeps the descriptor open; the handler it holds by `Weak`.
//! let handler: Arc<dyn FdHandler> = bell.clone();
//! context.add_fd(bell.rope.clone(), Interest::READ, Arc::downgrade(&handler))?;
//! hand.write_all(b"...")?;
//! assert_eq!(context.turn(None)?, 1);
//! assert_eq!(bell.rung.load(Ordering::Relaxed), 3);
//!
//! let handler: Arc<dyn TimerHandler> = bell.clone();
//! let timer = context.add_timer(Arc::downgrade(&handler));
//! context.arm_timer(timer, context.now() + Duration::from_secs(3600));
//! assert_eq!(context.turn(Some(Duration::ZERO))?, 0);
//! clock.advance(Duration::from_secs(3600));
//! assert_eq!(context.turn(None)?, 1);
//! assert_eq!(bell.rung.load(Ordering::Relaxed), 103);
//! # Ok(())
//! # }
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `context` | what a device sees: [`AioContext`], handlers |
//! | `clock` | real and virtual time |
//! | `event_loop` | the loop, turned by hand |
//! | `thread` | the loop with a thread of its own |
//! | `contexts` | loops given out by name, for devices that work on several |
//! | `state` | watches, timers and work, as data |
//! | `poller` | descriptors on `event-manager` |

mod clock;
mod context;
mod contexts;
mod event_loop;
mod poller;
mod state;
mod thread;

pub use clock::{Clock, ClockWatcher, MonotonicClock, VirtualClock};
pub use context::{
    AioContext, BottomHalf, FdHandler, Interest, Readiness, TimerHandler, TimerId, WatchId,
    WatchedEventFd, WatchedFd,
};
pub use contexts::{AioContexts, ContextLease, IoThreads};
pub use event_loop::EventLoop;
pub use thread::IoThread;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
