//! One queue of a tap as a net client.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iothread::{AioContext, FdHandler, Interest, Readiness, WatchId};
use net_client::{
    Drained, DropReason, Frame, FrameSource, IoVec, NetClient, Offloads, Port, Read, Received,
    Token, VnetHeader,
};

use crate::engine::{Engine, Syscalls};
use crate::error::TapError;
use crate::tap::{INITIAL_HEADER_LEN, Tap};

/// The longest frame without its `virtio_net_hdr`: an IP packet of 64 KiB behind an Ethernet header
/// with a VLAN tag.
const FRAME_MAX: usize = 65535 + 14 + 4;

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
}

impl TapQueue {
    /// Makes the queue of an open tap; its port is called `name`.
    pub fn new(name: impl Into<String>, tap: Arc<Tap>) -> Arc<Self> {
        let engine = Box::new(Syscalls(tap.clone()));
        Self::with_engine(name, tap, engine)
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

    fn give_up(&self, error: &dyn std::fmt::Display) {
        self.detach();
        if !self.gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                interface = self.tap.name(),
                %error,
                "the tap interface is gone; its frames are dropped from now on"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetClient for TapQueue {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let error = match self.engine.write(frame) {
            Ok(received) => return received,
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            self.change_interest(|interest| interest.writable = true);
            return Received::Busy;
        }
        self.gone_after(&error);
        let reason = match error.raw_os_error() {
            // A header that does not fit its frame, more pieces than the host takes, or memory that is
            // not there.
            Some(libc::EINVAL | libc::EFAULT | libc::EMSGSIZE) => DropReason::Malformed,
            Some(libc::EIO) => DropReason::LinkDown,
            _ => DropReason::Backend,
        };
        self.port.count_dropped_receiving(reason);
        Received::Taken
    }

    fn flush(&self, done: &mut dyn FnMut(Token)) {
        self.engine.flush(done);
    }

    fn room(&self) {
        self.room_heard.store(true, Ordering::Relaxed);
        self.change_interest(|interest| interest.readable = true);
    }

    fn revoke(&self) {
        self.engine.revoke();
    }

    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        self.detach();
        if self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
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
            let drained = self.port.offer(&mut Source { queue: self });
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

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.tap.set_header_len(len).map_err(into_io)?;
        self.header_len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn set_little_endian(&self, little_endian: bool) -> io::Result<()> {
        self.tap.set_little_endian(little_endian).map_err(into_io)
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.tap.set_offloads(offloads).map_err(into_io)
    }
}

impl Drop for TapQueue {
    fn drop(&mut self) {
        // The context would keep the descriptor, and with it the interface.
        self.detach();
    }
}

/// The frames that the host has for the peer.
struct Source<'a> {
    queue: &'a TapQueue,
}

impl FrameSource for Source<'_> {
    fn max_frame(&self) -> usize {
        FRAME_MAX.saturating_add(self.queue.header_len.load(Ordering::Relaxed))
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        let error = match self.queue.engine.read(token, iov) {
            Ok(Read::Frame(len)) if len < self.queue.header_len.load(Ordering::Relaxed) => {
                self.queue.port.count_dropped_sending(DropReason::Malformed);
                return Read::Failed;
            }
            Ok(read) => return read,
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            return Read::Empty;
        }
        if !self.queue.gone_after(&error) {
            match error.raw_os_error() {
                // The frame is lost, the next one is not.
                Some(libc::EFAULT | libc::EINVAL | libc::ENOMEM | libc::ENOBUFS) => {}
                // It would be reported over and over.
                _ => self.queue.give_up(&error),
            }
        }
        self.queue.port.count_dropped_sending(DropReason::Backend);
        Read::Failed
    }
}

fn into_io(error: TapError) -> io::Error {
    let kind = match &error {
        TapError::Ioctl { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
