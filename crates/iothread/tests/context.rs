//! The contract of `AioContext`, kept by a loop run by hand and by one with a thread.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside their functions"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;

use iothread::{
    AioContext, EventLoop, FdHandler, Interest, IoThread, Readiness, TimerHandler, VirtualClock,
};

/// Only ends a hung test.
const DEADLINE: Duration = Duration::from_secs(20);
const NOW: Option<Duration> = Some(Duration::ZERO);

/// Calls a closure, and counts.
struct Handler<F> {
    calls: AtomicUsize,
    run: F,
}

impl<F> Handler<F> {
    fn new(run: F) -> Arc<Self> {
        let calls = AtomicUsize::new(0);
        Arc::new(Self { calls, run })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl<F: Fn(Readiness) + Send + Sync> FdHandler for Handler<F> {
    fn ready(&self, readiness: Readiness) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        (self.run)(readiness);
    }
}

struct Alarm<F>(F);

impl<F: Fn() + Send + Sync> TimerHandler for Alarm<F> {
    fn expired(&self) {
        (self.0)();
    }
}

fn weak<F: Fn(Readiness) + Send + Sync + 'static>(
    handler: &Arc<Handler<F>>,
) -> Weak<dyn FdHandler> {
    let handler: Arc<dyn FdHandler> = handler.clone();
    Arc::downgrade(&handler)
}

fn alarm(run: impl Fn() + Send + Sync + 'static) -> Arc<dyn TimerHandler> {
    Arc::new(Alarm(run))
}

fn pair() -> (Arc<UnixStream>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Arc::new(ours), theirs)
}

#[test]
fn a_ready_descriptor_is_reported_for_as_long_as_it_stays_ready() {
    let context = EventLoop::new().unwrap();
    let (fd, mut other) = pair();
    let handler = Handler::new(|r: Readiness| assert!(r.readable && !r.writable && !r.error));
    let id = context
        .add_fd(fd.clone(), Interest::READ, weak(&handler))
        .unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 0);
    other.write_all(b"x").unwrap();
    assert_eq!(context.turn(None).unwrap(), 1);
    assert_eq!(context.turn(None).unwrap(), 1);
    let _ = (&*fd).read(&mut [0; 8]).unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 0);
    context.remove_fd(id);
    other.write_all(b"x").unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 0);
    assert_eq!(handler.calls(), 2);
}

#[test]
fn interest_decides_what_is_reported() {
    let context = EventLoop::new().unwrap();
    let (fd, mut other) = pair();
    other.write_all(b"x").unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handler =
        Handler::new(move |r: Readiness| log.lock().unwrap().push((r.readable, r.writable)));
    let id = context.add_fd(fd, Interest::NONE, weak(&handler)).unwrap();
    let both = Interest {
        readable: true,
        writable: true,
    };
    let table = [
        (Interest::NONE, None),
        (Interest::READ, Some((true, false))),
        (Interest::WRITE, Some((false, true))),
        (both, Some((true, true))),
        (Interest::NONE, None),
        (Interest::WRITE, Some((false, true))),
    ];
    for (interest, expected) in table {
        context.set_interest(id, interest);
        context.turn(NOW).unwrap();
        assert_eq!(seen.lock().unwrap().pop(), expected, "{interest:?}");
    }
}

#[test]
fn a_descriptor_is_watched_once_until_it_is_removed() {
    let context = EventLoop::new().unwrap();
    let (fd, _other) = pair();
    let handler = Handler::new(|_| ());
    let first = context
        .add_fd(fd.clone(), Interest::READ, weak(&handler))
        .unwrap();
    let error = context
        .add_fd(fd.clone(), Interest::READ, weak(&handler))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    context.remove_fd(first);
    context.add_fd(fd, Interest::READ, weak(&handler)).unwrap();
}

#[test]
fn a_file_that_cannot_be_polled_is_refused_at_once() {
    let context = EventLoop::new().unwrap();
    let file = Arc::new(std::fs::File::open("/proc/self/exe").unwrap());
    let handler = Handler::new(|_| ());
    let error = context
        .add_fd(file, Interest::READ, weak(&handler))
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn a_watch_removed_by_an_earlier_handler_of_the_turn_is_not_called() {
    let context = EventLoop::new().unwrap();
    let (a, mut a_other) = pair();
    let (b, mut b_other) = pair();
    let ids = Arc::new(Mutex::new(Vec::new()));
    let remover = Handler::new({
        let (context, ids) = (context.clone(), ids.clone());
        move |_| {
            ids.lock()
                .unwrap()
                .drain(..)
                .for_each(|id| context.remove_fd(id));
        }
    });
    for fd in [a, b] {
        let id = context.add_fd(fd, Interest::READ, weak(&remover)).unwrap();
        ids.lock().unwrap().push(id);
    }
    a_other.write_all(b"x").unwrap();
    b_other.write_all(b"x").unwrap();
    assert_eq!(context.turn(None).unwrap(), 1);
    assert_eq!(context.turn(NOW).unwrap(), 0);
}

#[test]
fn a_dropped_handler_ends_its_watch_and_frees_the_descriptor() {
    let context = EventLoop::new().unwrap();
    let (fd, mut other) = pair();
    let handler = Handler::new(|_| ());
    context
        .add_fd(fd.clone(), Interest::READ, weak(&handler))
        .unwrap();
    drop(handler);
    other.write_all(b"x").unwrap();
    assert_eq!(context.turn(NOW).unwrap(), 0);
    context.turn(NOW).unwrap();
    assert_eq!(Arc::strong_count(&fd), 1);
}

#[test]
fn a_hang_up_is_an_error_and_a_resting_watch_does_not_hear_it() {
    let context = EventLoop::new().unwrap();
    let (fd, other) = pair();
    let handler = Handler::new(|r: Readiness| assert!(r.readable && r.error));
    let id = context.add_fd(fd, Interest::READ, weak(&handler)).unwrap();
    drop(other);
    assert_eq!(context.turn(None).unwrap(), 1);
    context.set_interest(id, Interest::NONE);
    assert_eq!(context.turn(NOW).unwrap(), 0);
}

#[test]
fn timers_expire_in_the_order_of_their_deadlines() {
    let clock = VirtualClock::new();
    let context = EventLoop::with_clock(clock.clone()).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut alarms = Vec::new();
    for seconds in [5, 1, 3, 9] {
        let log = order.clone();
        let handler = alarm(move || log.lock().unwrap().push(seconds));
        let timer = context.add_timer(Arc::downgrade(&handler));
        context.arm_timer(timer, Duration::from_secs(seconds));
        alarms.push((timer, handler));
    }
    context.disarm_timer(alarms[2].0);
    let table: [(u64, &[u64]); 4] = [(0, &[]), (4, &[1]), (1, &[1, 5]), (100, &[1, 5, 9])];
    for (step, expected) in table {
        clock.advance(Duration::from_secs(step));
        context.turn(NOW).unwrap();
        assert_eq!(
            *order.lock().unwrap(),
            expected,
            "after {step} more seconds"
        );
    }
}

#[test]
fn a_timer_that_arms_itself_for_the_past_does_not_keep_the_turn() {
    let context = EventLoop::with_clock(VirtualClock::new()).unwrap();
    let id = Arc::new(Mutex::new(None));
    let handler = alarm({
        let (context, id) = (context.clone(), id.clone());
        move || context.arm_timer(id.lock().unwrap().unwrap(), Duration::ZERO)
    });
    let timer = context.add_timer(Arc::downgrade(&handler));
    *id.lock().unwrap() = Some(timer);
    context.arm_timer(timer, Duration::ZERO);
    assert_eq!(context.turn(None).unwrap(), 1);
    assert_eq!(context.turn(None).unwrap(), 1);
    context.remove_timer(timer);
    assert_eq!(context.turn(NOW).unwrap(), 0);
}

#[test]
fn a_real_timer_ends_the_wait_of_a_turn_and_not_too_early() {
    let context = EventLoop::new().unwrap();
    let (send, expired) = mpsc::channel();
    let now = context.clone();
    let handler = alarm(move || send.send(now.now()).unwrap());
    let timer = context.add_timer(Arc::downgrade(&handler));
    let deadline = context.now() + Duration::from_micros(300);
    context.arm_timer(timer, deadline);
    context.wait_while(&mut || context.now() < deadline);
    while expired
        .try_recv()
        .map(|at| assert!(at >= deadline))
        .is_err()
    {
        context.turn(Some(DEADLINE)).unwrap();
    }
}

#[test]
fn work_scheduled_by_work_runs_in_the_next_turn() {
    let context = EventLoop::new().unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let (inner_context, inner_ran) = (context.clone(), ran.clone());
    context.schedule(Box::new(move || {
        inner_ran.fetch_add(1, Ordering::SeqCst);
        let ran = inner_ran.clone();
        inner_context.schedule(Box::new(move || {
            ran.fetch_add(10, Ordering::SeqCst);
        }));
    }));
    assert_eq!(context.turn(None).unwrap(), 1);
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    assert_eq!(context.turn(None).unwrap(), 1);
    assert_eq!(ran.load(Ordering::SeqCst), 11);
}

#[test]
fn work_scheduled_after_a_removal_finds_the_descriptor_let_go() {
    let thread = IoThread::new("io").unwrap();
    let context = thread.context();
    let handler = Handler::new(|_| ());
    for _ in 0..200 {
        let (fd, _other) = pair();
        let id = context
            .add_fd(fd.clone(), Interest::READ, weak(&handler))
            .unwrap();
        let (send, count) = mpsc::channel();
        context.remove_fd(id);
        context.schedule(Box::new(move || send.send(Arc::strong_count(&fd)).unwrap()));
        assert_eq!(count.recv_timeout(DEADLINE).unwrap(), 1);
    }
}

#[test]
fn a_handler_may_turn_the_loop_and_waits_for_what_the_turn_still_owes() {
    let context = EventLoop::new().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (inner, flag) = (context.clone(), done.clone());
    context.schedule(Box::new(move || {
        assert!(inner.is_current());
        inner.wait_while(&mut || !flag.load(Ordering::SeqCst));
        assert!(inner.is_current());
    }));
    let flag = done.clone();
    context.schedule(Box::new(move || flag.store(true, Ordering::SeqCst)));
    assert!(!context.is_current());
    context.turn(None).unwrap();
    assert!(done.load(Ordering::SeqCst));
    assert!(!context.is_current());
}

#[test]
fn calls_from_other_threads_wake_a_waiting_loop() {
    let thread = IoThread::new("io").unwrap();
    let context = thread.context();
    let (send, received) = mpsc::channel();

    // A descriptor added while the loop sleeps.
    let (fd, mut other) = pair();
    let reader = fd.clone();
    let bytes = send.clone();
    let handler = Handler::new(move |_| {
        let mut buffer = [0; 8];
        if let Ok(count) = (&*reader).read(&mut buffer) {
            bytes.send(buffer[..count].to_vec()).unwrap();
        }
    });
    let id = context.add_fd(fd, Interest::READ, weak(&handler)).unwrap();
    other.write_all(b"fd").unwrap();
    assert_eq!(received.recv_timeout(DEADLINE).unwrap(), b"fd");

    // A timer armed while it sleeps.
    let fired = send.clone();
    let handler = alarm(move || fired.send(b"timer".to_vec()).unwrap());
    let timer = context.add_timer(Arc::downgrade(&handler));
    context.arm_timer(timer, context.now() + Duration::from_micros(50));
    assert_eq!(received.recv_timeout(DEADLINE).unwrap(), b"timer");

    // Work.
    context.schedule(Box::new(move || send.send(b"work".to_vec()).unwrap()));
    assert_eq!(received.recv_timeout(DEADLINE).unwrap(), b"work");
    context.remove_fd(id);
}

#[test]
fn a_stepped_clock_wakes_a_thread_that_waits_for_it() {
    let clock = VirtualClock::new();
    let thread = IoThread::with_clock("io", clock.clone()).unwrap();
    let context = thread.context();
    let (send, received) = mpsc::channel();
    let handler = alarm(move || send.send(()).unwrap());
    let timer = context.add_timer(Arc::downgrade(&handler));
    context.arm_timer(timer, Duration::from_secs(1_000_000));
    clock.advance(Duration::from_secs(1_000_000));
    received.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn wait_while_sleeps_until_a_turn_of_the_thread_ends_the_condition() {
    let thread = IoThread::new("io").unwrap();
    let context = thread.context();
    let count = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let n = count.clone();
        context.schedule(Box::new(move || {
            n.fetch_add(1, Ordering::SeqCst);
        }));
    }
    context.wait_while(&mut || count.load(Ordering::SeqCst) < 100);
    assert_eq!(count.load(Ordering::SeqCst), 100);
    assert!(!context.is_current());
}

#[test]
fn wait_while_ends_though_another_thread_keeps_turning_a_loop_run_by_hand() {
    let context = EventLoop::new().unwrap();
    let (turner, stop) = (context.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            turner.turn(None).unwrap();
        }
    });
    for _ in 0..200 {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        context.schedule(Box::new(move || flag.store(true, Ordering::SeqCst)));
        context.wait_while(&mut || !done.load(Ordering::SeqCst));
    }
    stop.store(true, Ordering::SeqCst);
    context.wake();
    thread.join().unwrap();
}

#[test]
fn dropping_the_thread_runs_what_was_scheduled_and_leaves_a_loop_to_turn_by_hand() {
    let thread = IoThread::new("io").unwrap();
    let context = thread.context();
    let ran = Arc::new(AtomicUsize::new(0));
    let n = ran.clone();
    context.schedule(Box::new(move || {
        n.fetch_add(1, Ordering::SeqCst);
    }));
    drop(thread);
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    let n = ran.clone();
    context.schedule(Box::new(move || {
        n.fetch_add(1, Ordering::SeqCst);
    }));
    context.wait_while(&mut || ran.load(Ordering::SeqCst) < 2);
}

#[test]
fn the_thread_can_be_dropped_on_itself() {
    let thread = IoThread::new("io").unwrap();
    assert_eq!(thread.name(), "io");
    let context = thread.context();
    let (send, done) = mpsc::channel();
    context.schedule(Box::new(move || {
        drop(thread);
        send.send(()).unwrap();
    }));
    done.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn nobody_waits_for_a_thread_whose_handler_panicked() {
    let thread = IoThread::new("io").unwrap();
    let context = thread.context();
    context.schedule(Box::new(|| panic!("on purpose")));
    let done = Arc::new(AtomicBool::new(false));
    let flag = done.clone();
    // Run by the thread before it ends, or by this one.
    context.schedule(Box::new(move || flag.store(true, Ordering::SeqCst)));
    context.wait_while(&mut || !done.load(Ordering::SeqCst));
    drop(thread);
}

#[test]
fn an_idle_thread_uses_no_processor_time() {
    let thread = IoThread::new("io").unwrap();
    let context = thread.context();
    // A pair with its other end gone, whose watch rests; and a timer far away.
    let (fd, other) = pair();
    drop(other);
    let handler = Handler::new(|_| ());
    context.add_fd(fd, Interest::NONE, weak(&handler)).unwrap();
    let far = alarm(|| ());
    let timer = context.add_timer(Arc::downgrade(&far));
    context.arm_timer(timer, context.now() + Duration::from_secs(3600));

    // Turns happen only for what is asked of the loop: as many as pieces of work, not more. The
    // condition is looked at once before each turn that is waited for.
    let looks = AtomicUsize::new(0);
    for n in 1..=20 {
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        context.schedule(Box::new(move || flag.store(true, Ordering::SeqCst)));
        context.wait_while(&mut || {
            looks.fetch_add(1, Ordering::SeqCst);
            !done.load(Ordering::SeqCst)
        });
        assert!(
            looks.load(Ordering::SeqCst) <= 4 * n,
            "the loop turns for nothing"
        );
    }
    assert_eq!(handler.calls(), 0);
}

#[test]
fn dropping_a_context_leaves_none_of_it_behind() {
    let context = EventLoop::new().unwrap();
    let (fd, _other) = pair();
    let handler = Handler::new(|_| ());
    context
        .add_fd(fd.clone(), Interest::READ, weak(&handler))
        .unwrap();
    context.turn(NOW).unwrap();
    let gone = Arc::downgrade(&context);
    drop(context);
    assert!(gone.upgrade().is_none());
    assert_eq!(
        (Arc::strong_count(&fd), Arc::strong_count(&handler)),
        (1, 1)
    );
}
