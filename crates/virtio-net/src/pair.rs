//! One receive and one transmit queue with their port: the net client.

mod all;
mod delay;
mod limits;
mod notifications;
mod segments;
mod steering;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError, Weak};
use std::time::Duration;

use iothread::AioContext;
use net_client::{
    Drained, Frame, FrameSource, NetClient, Offloads, Port, Received, Token, VnetHeader,
};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::ActiveQueue;
use virtqueue::{QueueMemory, QueueState, VirtQueue};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::all::{set_guest_offloads, set_offloads, set_queue_pairs};
use self::limits::Waits;
use self::steering::Steering;
use crate::VirtioNetConfig;
use crate::features::header_len;
use crate::filter::{FilterView, Mac};
use crate::hash::HashView;
use crate::header::Allowed;
use crate::kick::{Watch, again};
use crate::rx::{ActiveRx, After, Rx};
use crate::shared::{Shared, lock};
use crate::statistics::{RxStatistics, TxStatistics};
use crate::tx::{ActiveTx, TurnEnd, Tx};

/// The header in front of each frame, on either side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The driver's header: 10, 12 or more bytes.
    pub(crate) header_len: usize,
    /// The peer's: as long as the driver's, or 0 if it carries none.
    pub(crate) host_header_len: usize,
    /// Of the header's fields.
    pub(crate) little_endian: bool,
    /// The source that frames which are sent must have, if not any.
    pub(crate) source: Option<Mac>,
    /// The longest frame, header included, that the driver takes unless it is to be segmented.
    pub(crate) longest: usize,
    /// The driver may ask for what headers have said.
    pub(crate) stats: bool,
    /// The driver's header has the frame's hash.
    pub(crate) hash: bool,
    /// What headers of received frames may say.
    pub(crate) allowed: Allowed,
}

impl Layout {
    /// `num_buffers` of a header.
    #[inline]
    pub(crate) fn count(&self, buffers: u16) -> [u8; 2] {
        if self.little_endian {
            buffers.to_le_bytes()
        } else {
            buffers.to_ne_bytes()
        }
    }
}

/// A queue pair: the net client at the NIC's end of a link.
///
/// Locks: `tx` may be held when `rx` is taken, not the other way. Both are held while the peer is called
/// in their own direction, and neither while anything else of another component is, but the context's
/// and the transport's leaves. The two directions share none.
///
/// On cache lines of its own (two, which processors fetch together): pairs may be at work on several processors.
#[repr(align(128))]
pub(crate) struct Pair<M: QueueMemory> {
    me: Weak<Self>,
    name: String,
    shared: Arc<Shared>,
    port: Arc<Port>,
    burst: u32,
    /// How long after its kick the transmit queue is looked at, where not at once.
    delay: Option<Duration>,
    /// A leaf lock.
    context: Mutex<Arc<dyn AioContext>>,
    rx: Mutex<Rx<M>>,
    tx: Mutex<Tx<M>>,
    /// The peer has said that it has room, perhaps while `tx` was held: by the thread that called it, even.
    tx_room: AtomicBool,
    /// The transmit queue's kick, for who finds `tx` taken. A leaf lock.
    tx_kick: Mutex<Option<Arc<EventFd>>>,
    /// As the two queues have it.
    enabled: AtomicBool,
    /// What the backend was told last that the driver copes with. A leaf lock.
    offloads: Mutex<Offloads>,
    /// All pairs of the device, this one too.
    siblings: OnceLock<Box<[Weak<Self>]>>,
    /// A leaf lock.
    steering: Mutex<Steering>,
    waits: Waits,
}

impl<M: QueueMemory> Pair<M> {
    /// A pair that the driver uses (`enabled`) or does not use yet.
    pub(crate) fn new(
        name: String,
        shared: Arc<Shared>,
        config: &VirtioNetConfig,
        context: Arc<dyn AioContext>,
        enabled: bool,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            me: me.clone(),
            port: Port::new(name.clone(), me.clone() as Weak<dyn NetClient>),
            name,
            burst: config.x_txburst,
            delay: delay::of(config),
            context: Mutex::new(context),
            rx: Mutex::new(Rx::new(enabled)),
            tx: Mutex::new(Tx::new(enabled)),
            tx_room: AtomicBool::new(false),
            tx_kick: Mutex::new(None),
            siblings: OnceLock::new(),
            steering: Mutex::new(Steering::new(shared.hashing.clone())),
            waits: Waits::default(),
            enabled: AtomicBool::new(enabled),
            offloads: Mutex::new(Offloads::default()),
            shared,
        })
    }

    /// The driver uses the pair from now on, or uses it no more. When this returns for a pair that it does
    /// not use, nothing more goes on its receive queue. Called by the control queue and, while that is
    /// stopped, by the device.
    ///
    /// # Errors
    /// When the backend cannot take part; the pair stays unused.
    pub(crate) fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        if self.enabled.load(Ordering::Relaxed) == enabled {
            return Ok(());
        }
        // A frame that it gives while one of us is in use and the other is not yet finds no room, and waits.
        if enabled {
            self.set_backend_enabled(true)?;
        } else if let Err(error) = self.set_backend_enabled(false) {
            // What it has to give finds no room from here on.
            tracing::debug!(pair = self.name, %error, "backend keeps a queue that is not used");
        }
        self.enabled.store(enabled, Ordering::Relaxed);
        self.with_rx(|rx| ((), rx.set_enabled(enabled, &self.port)));
        lock(&self.tx).set_enabled(enabled);
        Ok(())
    }

    fn set_backend_enabled(&self, enabled: bool) -> io::Result<()> {
        match self.port.peer().and_then(|peer| peer.client()) {
            Some(backend) => backend.set_enabled(enabled),
            None => Ok(()),
        }
    }

    /// Sets the backend up for a driver that has negotiated `features`.
    pub(crate) fn set_up_backend(&self, features: NetF) -> io::Result<()> {
        let set_up = self.with_backend(|backend| {
            backend.set_header_len(header_len(features))?;
            backend.set_little_endian(little_endian(features))
        });
        lock(&self.steering).host_header_len = self.layout(features).host_header_len;
        set_up.unwrap_or(Ok(()))
    }

    /// Tells the backend what the driver copes with.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.with_backend(|backend| backend.set_offloads(offloads))
            .unwrap_or(Ok(()))?;
        *lock(&self.offloads) = offloads;
        Ok(())
    }

    /// Runs a receive queue. On failure it comes back.
    pub(crate) fn start_rx(
        &self,
        loan: ActiveQueue,
        queue: VirtQueue<M>,
        features: NetF,
        running: bool,
    ) -> Result<(), (ActiveQueue, io::Error)> {
        let mergeable = features.contains(NetF::MRG_RXBUF);
        let filter = FilterView::new(self.shared.filter.clone());
        let layout = self.layout(features);
        let hashes = HashView::new(self.shared.hashing.clone());
        let mut active = ActiveRx::new(loan, queue, layout, mergeable, filter, hashes, running);
        // With this feature a buffer that a read has not used holds up those behind it.
        if !F::from(features).contains(F::IN_ORDER) {
            active.allow_batches();
        }
        let mut rx = lock(&self.rx);
        // Under the lock: whatever is put together from another moment on is told to a queue that is there.
        self.keep_segments(&mut active, features, &layout);
        match self.watch_rx(&active.loan().kick) {
            Ok(watch) => active.watch = Some(watch),
            Err(error) => return Err((active.hand_back(), error)),
        }
        rx.active = Some(active);
        drop(rx);
        let _ = self.set_rx_coalescing(lock(&self.shared.coalescing).rx);
        Ok(())
    }

    /// Runs a transmit queue. On failure it comes back.
    pub(crate) fn start_tx(
        &self,
        loan: ActiveQueue,
        queue: VirtQueue<M>,
        features: NetF,
        running: bool,
    ) -> Result<(), (ActiveQueue, io::Error)> {
        let mut active = ActiveTx::new(loan, queue, self.layout(features), features, running);
        let mut tx = lock(&self.tx);
        match self.watch_tx(&active.loan().kick) {
            Ok(watch) => active.watch = Some(watch),
            Err(error) => return Err((active.hand_back(), error)),
        }
        *lock(&self.tx_kick) = Some(active.loan().kick.clone());
        tx.active = Some(active);
        drop(tx);
        let _ = self.set_tx_coalescing(lock(&self.shared.coalescing).tx);
        Ok(())
    }

    /// Stops the queues named, and returns when nothing of them is in flight and their indices are what the
    /// driver can see.
    pub(crate) fn quiesce(&self, rx: bool, tx: bool) {
        if rx && let Some(active) = &mut lock(&self.rx).active {
            active.running = false;
        }
        if tx && let Some(active) = &mut lock(&self.tx).active {
            active.running = false;
        }
        // From here on nothing more is lent, so what is lent only gets less.
        let lent = || rx && lock(&self.rx).in_flight() > 0 || tx && lock(&self.tx).in_flight() > 0;
        if lent() {
            // Completions come while no lock of ours is held.
            if let Some(peer) = self.port.peer().and_then(|peer| peer.client()) {
                peer.revoke();
            }
            if lent() {
                let context = lock(&self.context).clone();
                // Where there is no peer, nobody is left who could complete anything.
                context.wait_while(&mut || lent() && self.port.peer().is_some());
                self.write_off(rx, tx);
            }
        }
        if rx {
            self.with_rx(|rx| ((), rx.settle(&self.port)));
        }
        if tx {
            lock(&self.tx).settle();
        }
    }

    /// Counts as back what a peer has that is gone.
    fn write_off(&self, rx: bool, tx: bool) {
        let reads = if rx {
            lock(&self.rx).write_off(&self.port)
        } else {
            0
        };
        let frames = if tx { lock(&self.tx).write_off() } else { 0 };
        if reads + frames > 0 {
            tracing::warn!(
                pair = self.name,
                reads,
                frames,
                "the peer went without giving back what it was lent"
            );
        }
    }

    /// Goes on after [`quiesce`](Self::quiesce); [`look`](Self::look) follows.
    pub(crate) fn resume(&self) {
        if let Some(active) = &mut lock(&self.rx).active {
            active.running = true;
        }
        if let Some(active) = &mut lock(&self.tx).active {
            active.running = true;
        }
    }

    /// Has the queues looked at. Called when all pairs go on: a frame from the port of one may be for the queue
    /// of another, and one that finds that at rest waits for a kick again.
    pub(crate) fn look(&self) {
        if let Some(active) = &lock(&self.rx).active {
            again(&active.loan().kick);
        }
        if let Some(active) = &lock(&self.tx).active {
            again(&active.loan().kick);
        }
    }

    /// Where the receive queue stands, while it rests.
    pub(crate) fn rx_state(&self) -> Option<QueueState> {
        lock(&self.rx).active.as_ref().map(ActiveRx::state)
    }

    /// Where the transmit queue stands, while it rests.
    pub(crate) fn tx_state(&self) -> Option<QueueState> {
        lock(&self.tx).active.as_ref().map(ActiveTx::state)
    }

    /// Whether the driver uses the pair.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// What the backend was told last that the driver copes with.
    pub(crate) fn offloads(&self) -> Offloads {
        *lock(&self.offloads)
    }

    /// Stops the receive queue and takes it out.
    pub(crate) fn stop_rx(&self) -> Option<ActiveQueue> {
        self.quiesce(true, false);
        let active = lock(&self.rx).active.take();
        // What found it at rest is dropped from here on, and holds up no frame for another.
        self.wake_steered();
        active.map(ActiveRx::hand_back)
    }

    /// Stops the transmit queue and takes it out.
    pub(crate) fn stop_tx(&self) -> Option<ActiveQueue> {
        self.quiesce(false, true);
        let active = lock(&self.tx).active.take();
        *lock(&self.tx_kick) = None;
        active.map(ActiveTx::hand_back)
    }

    /// Forgets the frames that were on their way here when the driver before, or its negotiation, ended: their
    /// header is that one's. Called with no queue's lock held; waits for a turn of the context if there may
    /// be any.
    pub(crate) fn forget_arriving(&self) {
        if self.port.awaits_frames() {
            self.port.purge();
        }
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(crate) fn rx_statistics(&self) -> RxStatistics {
        lock(&self.rx).statistics
    }

    pub(crate) fn tx_statistics(&self) -> TxStatistics {
        lock(&self.tx).statistics
    }

    /// Goes on counting from there.
    pub(crate) fn set_statistics(&self, rx_statistics: RxStatistics, tx: TxStatistics) {
        let mut rx = lock(&self.rx);
        rx.statistics = rx_statistics;
        if let Some(active) = &mut rx.active {
            // What the driver has not been told of is counted by the same numbers.
            active.count_from(&rx_statistics);
        }
        drop(rx);
        lock(&self.tx).statistics = tx;
    }

    /// What the backend can do as a receiver; `None` if it carries no header.
    pub(crate) fn backend_offloads(&self) -> Option<Offloads> {
        self.with_backend(|backend| backend.supported_offloads())
    }

    fn with_backend<R>(&self, ask: impl FnOnce(&dyn VnetHeader) -> R) -> Option<R> {
        let backend = self.port.peer()?.client()?;
        backend.vnet_header().map(ask)
    }

    fn layout(&self, features: NetF) -> Layout {
        let header_len = header_len(features);
        let has_header = self.with_backend(|_| ()).is_some();
        Layout {
            header_len,
            host_header_len: if has_header { header_len } else { 0 },
            little_endian: little_endian(features),
            source: self.shared.source(),
            longest: if features.contains(NetF::MTU) {
                header_len + ETHERNET_HEADER + usize::from(self.shared.mtu)
            } else {
                usize::MAX
            },
            stats: features.contains(NetF::DEVICE_STATS),
            hash: features.contains(NetF::HASH_REPORT),
            allowed: Allowed::new(features),
        }
    }

    fn watch_rx(&self, kick: &Arc<EventFd>) -> io::Result<Watch> {
        let kicked = |pair: &Self| {
            pair.with_rx(|rx| pair.spend_rx(rx, |rx| ((), rx.kicked(&pair.port))));
        };
        let expired = |pair: &Self| {
            pair.with_rx(|rx| pair.spend_rx(rx, |rx| ((), rx.overdue(&pair.port))));
        };
        let context = lock(&self.context);
        Watch::with_timer(&context, kick, self.me.clone(), kicked, Some(expired))
    }

    /// Works on the receive queue, then does what that has left to do. That the queue is broken is said under
    /// its lock: a reset waits for that, so it is not said of the next driver's.
    fn with_rx<R>(&self, work: impl FnOnce(&mut Rx<M>) -> (R, After)) -> R {
        let mut rx = lock(&self.rx);
        let (result, After { room, broken }) = work(&mut rx);
        if let Some(error) = broken {
            self.shared
                .needs_reset(&format!("{} rx", self.name), &error);
        }
        drop(rx);
        if room {
            self.port.room();
        }
        result
    }

    /// The driver has kicked: takes a turn of the transmit queue, now or later.
    #[doc(alias = "virtio_net_handle_tx_bh")]
    #[doc(alias = "virtio_net_handle_tx_timer")]
    fn turn_tx(&self) {
        let sender = self.port.sender();
        self.with_tx(|tx| {
            if tx.is_running() {
                tx.statistics.kicks += 1;
            }
            match self.delay {
                Some(delay) if tx.put_off(delay) => TurnEnd::Idle,
                _ => self.send_frames(tx, &sender),
            }
        });
    }

    /// Works on the transmit queue, then does what was asked of it meanwhile.
    fn with_tx(&self, work: impl FnOnce(&mut Tx<M>) -> TurnEnd) {
        let mut tx = lock(&self.tx);
        let end = work(&mut tx);
        self.after_tx(end);
        drop(tx);
        self.take_room();
    }

    /// Goes on sending if the peer has said that it has room. Where the lock is taken, by this thread
    /// further up the stack or by one that only looks, the queue's next turn does.
    fn take_room(&self) {
        while self.tx_room.load(Ordering::SeqCst) {
            let sender = self.port.sender();
            let mut tx = match self.tx.try_lock() {
                Ok(tx) => tx,
                Err(TryLockError::Poisoned(error)) => error.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    if let Some(kick) = &*lock(&self.tx_kick) {
                        again(kick);
                    }
                    return;
                }
            };
            self.tx_room.store(false, Ordering::SeqCst);
            tx.room();
            let end = self.send_frames(&mut tx, &sender);
            self.after_tx(end);
        }
    }

    /// Says that the queue is broken, under its lock as [`with_rx`](Self::with_rx) does.
    fn after_tx(&self, end: TurnEnd) {
        if let TurnEnd::Broken(error) = end {
            self.shared
                .needs_reset(&format!("{} tx", self.name), &error);
        }
    }
}

impl<M: QueueMemory> NetClient for Pair<M> {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        if self.rx_waits() {
            return Received::Busy;
        }
        if self.shared.is_steered() {
            return self.receive_steered(frame);
        }
        self.with_rx(|rx| self.spend_rx(rx, |rx| rx.receive(frame, &self.port)))
    }

    fn flush(&self, _done: &mut dyn FnMut(Token)) {
        // No frame of the peer's is ever kept.
        lock(&self.rx).flush();
        self.flush_steered();
    }

    fn receive_from(&self, source: &mut dyn FrameSource) -> Drained {
        if self.shared.is_steered() {
            // Which queue's buffers they are for only they themselves say.
            return Drained::CannotLend;
        }
        if self.rx_waits() {
            return Drained::NoRoom;
        }
        self.with_rx(|rx| self.read_frames(rx, source))
    }

    fn sent(&self, token: Token) {
        self.with_tx(|tx| {
            tx.sent(token);
            TurnEnd::Idle
        });
    }

    fn read_done(&self, token: Token, len: usize) {
        self.with_rx(|rx| self.spend_rx(rx, |rx| ((), rx.read_done(token, len, &self.port))));
    }

    fn room(&self) {
        self.tx_room.store(true, Ordering::SeqCst);
        self.take_room();
    }

    fn link_status_changed(&self, up: bool) {
        self.shared.set_link(up);
    }

    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        *lock(&self.context) = context.clone();
        if let Some(active) = &mut lock(&self.rx).active {
            active.watch = None;
            active.watch = Some(self.watch_rx(&active.loan().kick)?);
        }
        if let Some(active) = &mut lock(&self.tx).active {
            active.watch = None;
            active.watch = Some(self.watch_tx(&active.loan().kick)?);
            // It may have waited for a timer that goes with the old context.
            again(&active.loan().kick);
        }
        self.renew_gates();
        self.renew_segments();
        self.forget_waits();
        Ok(())
    }

    // `detach` does nothing: without a peer frames are still taken from the driver, and dropped by the port.
}

impl<M: QueueMemory> fmt::Debug for Pair<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not waiting for locks: this may be called from anywhere.
        f.debug_struct("Pair")
            .field("name", &self.name)
            .field("enabled", &self.enabled)
            .field("rx", &self.rx.try_lock().ok())
            .field("tx", &self.tx.try_lock().ok())
            .finish_non_exhaustive()
    }
}

const ETHERNET_HEADER: usize = 14;

/// Whether header fields, and numbers on the control queue, are little-endian: with VERSION_1, or on a guest
/// that is so anyway.
pub(crate) fn little_endian(features: NetF) -> bool {
    features.contains(NetF::VERSION_1) || cfg!(target_endian = "little")
}
