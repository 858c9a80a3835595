//! One queue of a tap as a net client.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iothread::{AioContext, FdHandler, Interest, Readiness, WatchId};
use net_client::{
    Drained, DropReason, Frame, FrameSource, IoVec, NetClient, Offloads, Port, Read, Received,
    Token, VnetHeader, total_len,
};

use crate::config::EngineKind;
use crate::engine::{self, Engine, Syscalls};
use crate::error::TapError;
use crate::tap::{FRAME_MAX, INITIAL_HEADER_LEN, Tap};

/// One queue of a tap: writes the frames that its peer sends, and offers its peer to read those that
/// the host has.
///
/// Sending takes no lock. When the host has no room the peer is told to keep the frame, and told
/// again when there is room. When the peer has none the tap is not read until there is.
#[derive(Debug)]
pub struct TapQueue {
    tap: Arc<Tap>,
    engine: Box<dyn Engine>,
    port: Arc<Port>,
    header_len: AtomicUsize,
    /// Bytes of the longest frame that the host gives, as it is set up, the header not counted.
    longest: AtomicUsize,
    /// As the peer has it.
    offloads: Mutex<Offloads>,
    /// The peer said that it has room since frames were last offered to it.
    room_heard: AtomicBool,
    /// The interface is gone; said once.
    gone: AtomicBool,
    /// A leaf lock but for the context's own.
    watch: Mutex<Watch>,
    me: Weak<Self>,
}

/// What the queue waits for, and where.
#[derive(Debug, Default)]
struct Watch {
    at: Option<(Arc<dyn AioContext>, WatchId)>,
    interest: Interest,
    /// Not enabled: detached from the interface.
    rests: bool,
}

impl TapQueue {
    /// Makes the queue of an open tap; its port is called `name`. Frames are moved one system call each.
    pub fn new(name: impl Into<String>, tap: Arc<Tap>) -> Arc<Self> {
        let engine = Box::new(Syscalls(tap.clone()));
        Self::with_engine(name, tap, engine)
    }

    /// As [`new`](Self::new), with frames moved by `engine`.
    ///
    /// # Errors
    /// [`TapError::IoUring`] when the kernel has not got it, and it was asked for by name.
    pub fn with(
        name: impl Into<String>,
        tap: Arc<Tap>,
        engine: EngineKind,
    ) -> Result<Arc<Self>, TapError> {
        let engine = engine::make(engine, &tap)?;
        Ok(Self::with_engine(name, tap, engine))
    }

    fn with_engine(name: impl Into<String>, tap: Arc<Tap>, engine: Box<dyn Engine>) -> Arc<Self> {
        let header_len = if tap.has_vnet_header() {
            INITIAL_HEADER_LEN
        } else {
            0
        };
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            tap,
            engine,
            port: Port::new(name, me.clone()),
            header_len: AtomicUsize::new(header_len),
            longest: AtomicUsize::new(FRAME_MAX),
            offloads: Mutex::default(),
            room_heard: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            watch: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Its end of the link.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// The interface.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// Attaches the queue to the interface, or detaches it. See [`NetClient::set_enabled`].
    ///
    /// # Errors
    /// When the kernel refuses; the queue is as it was.
    pub fn enable(&self, enabled: bool) -> Result<(), TapError> {
        if !self.tap.is_multi_queue() {
            return Ok(());
        }
        let mut watch = self.lock();
        if watch.rests == enabled {
            self.tap.set_attached(enabled)?;
            watch.rests = !enabled;
        }
        Ok(())
    }

    /// Whether the queue takes part; a tap's only queue always does.
    pub fn is_enabled(&self) -> bool {
        !self.lock().rests
    }

    fn change_interest(&self, change: impl FnOnce(&mut Interest)) {
        let mut watch = self.lock();
        let before = watch.interest;
        change(&mut watch.interest);
        if let (Some((context, id)), true) = (&watch.at, watch.interest != before) {
            context.set_interest(*id, watch.interest);
        }
    }

    /// Whether the interface is gone for good after `error`; if so it is watched no more.
    fn gone_after(&self, error: &io::Error) -> bool {
        let gone = matches!(
            error.raw_os_error(),
            Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO)
        );
        if gone {
            self.give_up(error);
        }
        gone
    }

    /// Watches the interface no more. A peer that waits for room goes on, to have its frames dropped:
    /// the descriptor will never say that there is any.
    fn give_up(&self, error: &dyn std::fmt::Display) {
        self.detach();
        if self.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!(
            interface = self.tap.name(),
            %error,
            "the tap interface is gone; its frames are dropped from now on"
        );
        // Not from here: the peer may be further up the stack.
        if let Some(context) = self.port.context() {
            let me = self.me.clone();
            context.schedule(Box::new(move || {
                if let Some(queue) = me.upgrade() {
                    queue.port.room();
                }
            }));
        }
    }

    /// Counts a frame that was not sent, for its reason; returns that.
    fn drop_sent(&self, error: &io::Error) {
        self.gone_after(error);
        let reason = match error.raw_os_error() {
            // A header that does not fit its frame, more pieces than the host takes, or memory that is
            // not there.
            Some(libc::EINVAL | libc::EFAULT | libc::EMSGSIZE) => DropReason::Malformed,
            Some(libc::EIO) => DropReason::LinkDown,
            Some(libc::EAGAIN) => DropReason::NoRoom,
            _ => DropReason::Backend,
        };
        self.port.count_dropped_receiving(reason);
    }

    /// What became of a read of frames from the host into `room` bytes.
    fn came(&self, result: io::Result<usize>, room: usize) -> Read {
        let error = match result {
            Ok(len) if len < self.header_len.load(Ordering::Relaxed) => {
                self.port.count_dropped_sending(DropReason::Malformed);
                return Read::Failed;
            }
            Ok(len) if len >= room && self.longest.load(Ordering::Relaxed) < FRAME_MAX => {
                // Perhaps cut off, where the host's MTU is larger than when it was last asked for.
                let before = self.longest.load(Ordering::Relaxed);
                self.measure();
                if self.longest.load(Ordering::Relaxed) > before {
                    self.port.count_dropped_sending(DropReason::TooLong);
                    return Read::Failed;
                }
                return Read::Frame(len);
            }
            Ok(len) => return Read::Frame(len),
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            return Read::Empty;
        }
        if !self.gone_after(&error) {
            match error.raw_os_error() {
                // The frame is lost, the next one is not.
                Some(libc::EFAULT | libc::EINVAL | libc::ENOMEM | libc::ENOBUFS) => {}
                // It would be reported over and over.
                _ => self.give_up(&error),
            }
        }
        self.port.count_dropped_sending(DropReason::Backend);
        Read::Failed
    }

    /// Looks how long the host's frames may be.
    fn measure(&self) {
        let offloads = *self.offloads.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = self.tap.longest_frame(offloads);
        self.longest.store(longest, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetClient for TapQueue {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        if self.gone.load(Ordering::Relaxed) {
            self.port.count_dropped_receiving(DropReason::Backend);
            return Received::Taken;
        }
        let error = match self.engine.write(frame) {
            Ok(received) => return received,
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            self.change_interest(|interest| interest.writable = true);
            return Received::Busy;
        }
        self.drop_sent(&error);
        Received::Taken
    }

    fn flush(&self, done: &mut dyn FnMut(Token)) {
        self.engine.flush(&mut |token, sent| {
            if let Err(error) = sent {
                self.drop_sent(&error);
            }
            done(token);
        });
    }

    fn room(&self) {
        self.room_heard.store(true, Ordering::Relaxed);
        self.change_interest(|interest| interest.readable = true);
    }

    fn revoke(&self) {
        // Reads end in the call that they are made in.
        self.flush(&mut |token| self.port.sent(token));
    }

    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        self.detach();
        if self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.measure();
        let handler: Weak<dyn FdHandler> = self.me.clone();
        let mut watch = self.lock();
        watch.interest = Interest::READ;
        let id = context.add_fd(self.tap.clone(), watch.interest, handler)?;
        watch.at = Some((context.clone(), id));
        Ok(())
    }

    fn detach(&self) {
        if let Some((context, id)) = self.lock().at.take() {
            context.remove_fd(id);
        }
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.enable(enabled).map_err(into_io)
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        self.tap.has_vnet_header().then_some(self)
    }
}

impl FdHandler for TapQueue {
    fn ready(&self, readiness: Readiness) {
        if readiness.error {
            self.give_up(&"it reports an error");
            return;
        }
        if readiness.writable {
            self.change_interest(|interest| interest.writable = false);
            self.port.room();
        }
        if readiness.readable {
            self.room_heard.store(false, Ordering::Relaxed);
            let drained = self.port.offer(&mut Source {
                queue: self,
                room: usize::MAX,
            });
            if drained == Drained::NoRoom && !self.room_heard.load(Ordering::Relaxed) {
                self.change_interest(|interest| interest.readable = false);
            }
        }
    }
}

impl VnetHeader for TapQueue {
    fn supported_offloads(&self) -> Offloads {
        self.tap.supported_offloads()
    }

    fn header_len(&self) -> usize {
        self.header_len.load(Ordering::Relaxed)
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.tap.set_header_len(len).map_err(into_io)?;
        self.header_len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn set_little_endian(&self, little_endian: bool) -> io::Result<()> {
        self.tap.set_little_endian(little_endian).map_err(into_io)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.tap.set_offloads(offloads).map_err(into_io)?;
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner) = offloads;
        self.measure();
        Ok(())
    }
}

impl Drop for TapQueue {
    fn drop(&mut self) {
        // The context would keep the descriptor, and with it the interface.
        self.detach();
        self.revoke();
    }
}

/// The frames that the host has for the peer.
struct Source<'a> {
    queue: &'a TapQueue,
    /// The least that a read of the batch has room for.
    room: usize,
}

impl FrameSource for Source<'_> {
    fn max_frame(&self) -> usize {
        let header_len = self.queue.header_len.load(Ordering::Relaxed);
        let longest = self.queue.longest.load(Ordering::Relaxed);
        longest.saturating_add(header_len)
    }

    fn read(&mut self, _token: Token, iov: &[IoVec]) -> Read {
        let queue = self.queue;
        queue.came(queue.engine.read(iov), total_len(iov))
    }

    fn batch(&mut self) -> usize {
        self.queue.engine.batch()
    }

    fn queue(&mut self, token: Token, iov: &[IoVec]) {
        self.room = self.room.min(total_len(iov));
        self.queue.engine.queue(token, iov);
    }

    fn submit(&mut self, done: &mut dyn FnMut(Token, Read)) {
        let (queue, room) = (self.queue, self.room);
        queue.engine.submit(&mut |token, result| {
            done(token, queue.came(result, room));
        });
        self.room = usize::MAX;
    }
}

impl Drop for Source<'_> {
    /// A reader that has left without submitting takes its memory along.
    fn drop(&mut self) {
        if self.room != usize::MAX {
            self.queue.engine.forget();
        }
    }
}

fn into_io(error: TapError) -> io::Error {
    let kind = match &error {
        TapError::Ioctl { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use iothread::EventLoop;
    use net_client::Recorder;

    use super::*;

    /// Answers as it is told, in order; then that there is no room and no frame.
    #[derive(Debug, Default)]
    struct Scripted {
        writes: Mutex<VecDeque<Result<Received, i32>>>,
        reads: Mutex<VecDeque<Result<usize, i32>>>,
        calls: AtomicUsize,
        /// Reads that are kept.
        kept: AtomicUsize,
    }

    impl Scripted {
        fn next<T>(&self, answers: &Mutex<VecDeque<Result<T, i32>>>) -> io::Result<T> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let answer = answers.lock().unwrap().pop_front();
            answer
                .unwrap_or(Err(libc::EAGAIN))
                .map_err(io::Error::from_raw_os_error)
        }
    }

    impl Engine for Arc<Scripted> {
        fn write(&self, _frame: &Frame<'_>) -> io::Result<Received> {
            self.next(&self.writes)
        }

        fn read(&self, _iov: &[IoVec]) -> io::Result<usize> {
            self.next(&self.reads)
        }

        fn queue(&self, _token: Token, _iov: &[IoVec]) {
            self.kept.fetch_add(1, Ordering::Relaxed);
        }

        fn forget(&self) {
            self.kept.store(0, Ordering::Relaxed);
        }
    }

    struct Bench {
        queue: Arc<TapQueue>,
        engine: Arc<Scripted>,
        nic: Arc<Recorder>,
        context: Arc<EventLoop>,
    }

    /// A queue whose descriptor is one end of a socket pair, always writable.
    fn bench() -> Bench {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        // Kept open, so that nothing hangs up.
        std::mem::forget(theirs);
        let tap = Arc::new(Tap::for_tests(ours.into()));
        let engine = Arc::new(Scripted::default());
        let queue = TapQueue::with_engine("tap0", tap, Box::new(engine.clone()));
        let nic = Recorder::new("nic");
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        Port::connect(nic.port(), queue.port(), &shared).unwrap();
        Bench {
            queue,
            engine,
            nic,
            context,
        }
    }

    #[test]
    fn a_write_that_would_block_is_tried_again_when_there_is_room_and_once() {
        let Bench {
            queue: _queue,
            nic,
            context,
            ..
        } = bench();
        assert_eq!(nic.port().send_bytes(b"x"), Received::Busy);
        assert_eq!(nic.rooms_heard(), 0);
        context
            .turn(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        assert_eq!(nic.rooms_heard(), 1);
        // Nobody waits any more.
        assert_eq!(context.turn(Some(std::time::Duration::ZERO)).unwrap(), 0);
    }

    #[test]
    fn a_peer_that_waits_for_room_hears_of_it_on_the_context_that_it_moved_to() {
        let bench = bench();
        assert_eq!(bench.nic.port().send_bytes(b"x"), Received::Busy);
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        bench.nic.port().move_to(&shared).unwrap();
        context
            .turn(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        assert_eq!(bench.nic.rooms_heard(), 1);
    }

    #[test]
    fn each_error_of_a_write_drops_the_frame_for_its_reason() {
        let table = [
            (libc::EIO, DropReason::LinkDown),
            (libc::EINVAL, DropReason::Malformed),
            (libc::EFAULT, DropReason::Malformed),
            (libc::ENOBUFS, DropReason::Backend),
            (libc::ENOMEM, DropReason::Backend),
            (libc::EBADFD, DropReason::Backend),
        ];
        for (errno, reason) in table {
            let bench = bench();
            bench.engine.writes.lock().unwrap().push_back(Err(errno));
            assert_eq!(bench.nic.port().send_bytes(b"x"), Received::Taken);
            let received = bench.queue.port().statistics().received;
            assert_eq!(received.dropped(reason), 1, "errno {errno}");
            let watched = bench.queue.lock().at.is_some();
            assert_eq!(watched, errno != libc::EBADFD, "errno {errno}");
        }
    }

    #[test]
    fn a_read_error_that_stays_ends_the_watch_and_one_that_passes_does_not() {
        let table = [
            (libc::EAGAIN, true, 0),
            (libc::ENOBUFS, true, 1),
            (libc::EFAULT, true, 1),
            (libc::EBADFD, false, 1),
            (libc::ENODEV, false, 1),
            (libc::EIO, false, 1),
        ];
        for (errno, stays, drops) in table {
            let bench = bench();
            bench.engine.reads.lock().unwrap().push_back(Err(errno));
            bench.queue.ready(Readiness {
                readable: true,
                ..Readiness::default()
            });
            assert_eq!(bench.queue.lock().at.is_some(), stays, "errno {errno}");
            let sent = bench.queue.port().statistics().sent;
            assert_eq!(sent.dropped(DropReason::Backend), drops, "errno {errno}");
        }
    }

    #[test]
    fn a_peer_that_waits_for_room_hears_when_the_interface_goes_and_has_its_frames_dropped() {
        let readable = Readiness {
            readable: true,
            ..Readiness::default()
        };
        let error = Readiness {
            error: true,
            ..Readiness::default()
        };
        let all = Readiness {
            writable: true,
            ..error
        };
        // What the descriptor reports, and what a read of it says then.
        let table = [
            (error, None),
            (all, None),
            (readable, Some(libc::EBADFD)),
            (readable, Some(libc::EIO)),
        ];
        for (readiness, errno) in table {
            let bench = bench();
            let reads = errno.map(Err);
            bench.engine.reads.lock().unwrap().extend(reads);
            assert_eq!(bench.nic.port().send_bytes(b"x"), Received::Busy);
            bench.queue.ready(readiness);
            bench.context.turn(Some(std::time::Duration::ZERO)).unwrap();
            let case = format!("{readiness:?}, errno {errno:?}");
            assert_eq!(bench.nic.rooms_heard(), 1, "{case}");
            assert_eq!(bench.nic.port().send_bytes(b"x"), Received::Taken, "{case}");
            let received = bench.queue.port().statistics().received;
            assert_eq!(received.dropped(DropReason::Backend), 1, "{case}");
        }
    }

    #[test]
    fn a_frame_that_the_host_takes_only_a_part_of_is_dropped() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let queue = TapQueue::new("tap0", Arc::new(Tap::for_tests(ours.into())));
        let nic = Recorder::new("nic");
        let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
        Port::connect(nic.port(), queue.port(), &context).unwrap();
        // More than a socket holds at once.
        assert_eq!(nic.port().send_bytes(&vec![0; 16 << 20]), Received::Taken);
        let received = queue.port().statistics().received;
        assert_eq!(received.dropped(DropReason::Backend), 1);
        // Now it is full, which is another thing.
        assert_eq!(nic.port().send_bytes(b"x"), Received::Busy);
        drop(theirs);
    }

    #[test]
    fn reads_that_nobody_submits_are_forgotten_with_their_source() {
        let Bench { queue, engine, .. } = bench();
        let room = usize::MAX;
        let mut source = Source {
            queue: &queue,
            room,
        };
        source.queue(Token(0), &[]);
        assert_eq!(engine.kept.load(Ordering::Relaxed), 1);
        drop(source);
        assert_eq!(engine.kept.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_error_of_the_descriptor_ends_the_watch() {
        let bench = bench();
        bench.queue.ready(Readiness {
            error: true,
            ..Readiness::default()
        });
        assert!(bench.queue.lock().at.is_none());
        assert_eq!(bench.engine.calls.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_frame_shorter_than_its_header_is_dropped() {
        let bench = bench();
        let reads = [Ok(9), Ok(10)];
        bench.engine.reads.lock().unwrap().extend(reads);
        for _ in 0..2 {
            bench.queue.ready(Readiness {
                readable: true,
                ..Readiness::default()
            });
        }
        let sent = bench.queue.port().statistics().sent;
        assert_eq!((sent.dropped(DropReason::Malformed), sent.frames), (1, 1));
    }
}
