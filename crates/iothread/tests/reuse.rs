//! In a process of its own, since it says which descriptor numbers are free.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside their functions"
)]

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use iothread::{AioContext, EventLoop, FdHandler, Interest, Readiness};

const NOW: Option<Duration> = Some(Duration::ZERO);

#[derive(Default)]
struct Counter(AtomicUsize);

impl Counter {
    fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl FdHandler for Counter {
    fn ready(&self, _readiness: Readiness) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn weak(handler: &Arc<Counter>) -> Weak<dyn FdHandler> {
    let handler: Arc<dyn FdHandler> = handler.clone();
    Arc::downgrade(&handler)
}

fn pair() -> (Arc<UnixStream>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Arc::new(ours), theirs)
}

#[test]
fn a_descriptor_number_can_be_reused_within_one_turn() {
    let context = EventLoop::new().unwrap();
    let old = Arc::new(Counter::default());
    let new = Arc::new(Counter::default());
    let (fd, mut other) = pair();
    other.write_all(b"x").unwrap();
    let raw = fd.as_raw_fd();
    let id = context
        .add_fd(fd.clone(), Interest::READ, weak(&old))
        .unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 1);

    // Removed, and added again as another watch, with no turn between.
    context.remove_fd(id);
    let id = context.add_fd(fd, Interest::READ, weak(&new)).unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 1);
    assert_eq!((old.calls(), new.calls()), (1, 1));

    // Removed and let go by its owner: the number stays taken until the loop has forgotten it.
    context.remove_fd(id);
    let (fresh, mut other) = pair();
    assert_ne!(fresh.as_raw_fd(), raw);
    context.turn(NOW).unwrap();
    let reused: OwnedFd = fresh.try_clone().unwrap().into();
    assert_eq!(reused.as_raw_fd(), raw);
    context
        .add_fd(Arc::new(reused), Interest::READ, weak(&new))
        .unwrap();
    other.write_all(b"x").unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 1);
    assert_eq!((old.calls(), new.calls()), (1, 2));
}
