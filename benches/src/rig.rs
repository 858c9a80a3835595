//! A device on a tap, with the device on one processor and the driver on another.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iothread::{AioContext, IoThread};
use net_client::{NetClients, Netdev};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, Transport, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::frame::TUNNELS;
use crate::layout::{Layout, PAGE, QUEUE};
use crate::nic::Memory;
use crate::ping::wait_for;
use crate::processor::{ThreadClock, pin};
use crate::rings::{FastRing, Format};

/// The processor that drivers run on.
pub const DRIVER_CPU: usize = 0;
/// The processor that devices and raw loops run on.
pub const DEVICE_CPU: usize = 1;

/// A device on a tap, its I/O thread pinned to [`DEVICE_CPU`].
pub struct Rig {
    device: Arc<VirtioNet<Memory>>,
    _netdev: Arc<dyn Netdev>,
    pub(crate) memory: Memory,
    pub(crate) pairs: Vec<Pair>,
    ctrl: Option<FastRing>,
    /// Dropped last: the device's queues are watched there.
    io: Vec<Arc<IoThread>>,
}

/// The driver's half of a pair of queues.
pub(crate) struct Pair {
    pub(crate) rx: FastRing,
    pub(crate) tx: FastRing,
    /// Heads of `tx` and of `rx` that the device has not got, in the order in which they came back.
    pub(crate) to_send: VecDeque<u16>,
    pub(crate) to_fill: VecDeque<u16>,
    call: Arc<Call>,
    clock: ThreadClock,
    /// Where frames lie that are sent, and buffers.
    sent_from: u64,
    received_at: u64,
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Rig {
    /// A device on a netdev made of `netdev`, with all features that are offered but `without` and
    /// `TUNNELS`, mergeable buffers among them.
    pub fn new(netdev: &str, format: Format, without: NetF) -> Self {
        let io = Arc::new(IoThread::new("device").unwrap());
        Self::on(&io, open_netdev(netdev), format, without)
    }

    /// As [`new`](Self::new), with an I/O thread that others are on too.
    pub fn on(io: &Arc<IoThread>, netdev: Arc<dyn Netdev>, format: Format, without: NetF) -> Self {
        Self::with(vec![io.clone()], &[DEVICE_CPU], netdev, format, without)
    }

    /// As [`new`](Self::new), with a pair of queues on each of `cpus`, on an I/O thread of its own.
    pub fn with_pairs(netdev: &str, format: Format, without: NetF, cpus: &[usize]) -> Self {
        let io = (cpus.iter())
            .map(|cpu| Arc::new(IoThread::new(format!("pair{cpu}")).unwrap()))
            .collect();
        Self::with(io, cpus, open_netdev(netdev), format, without)
    }

    fn with(
        io: Vec<Arc<IoThread>>,
        cpus: &[usize],
        netdev: Arc<dyn Netdev>,
        format: Format,
        without: NetF,
    ) -> Self {
        let clocks: Vec<_> = (io.iter().zip(cpus))
            .map(|(io, &cpu)| {
                on_context(io, move || {
                    pin(cpu);
                    ThreadClock::of_this_thread()
                })
            })
            .collect();
        let config = VirtioNetConfig {
            packed: format == Format::Packed,
            mq: io.len() > 1,
            ..VirtioNetConfig::default()
        };
        let ports = netdev.ports().iter().take(io.len()).cloned().collect();
        let contexts = io.iter().map(|io| io.context() as Arc<dyn AioContext>);
        let device = VirtioNet::<Memory>::new(config, ports, contexts.collect()).unwrap();
        let transport: Arc<dyn Transport> = Arc::new(NoTransport);
        device.plugged(Arc::downgrade(&transport));
        let offered: F = device.offered_features();
        let features = F::from(NetF::from(offered) - without - TUNNELS);
        device.negotiate(features).unwrap();
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap());
        let mut rings: VecDeque<_> = (0..)
            .zip(device.queue_max_sizes())
            .map(|(index, size)| FastRing::new(&memory, index * RINGS_LEN, size.min(QUEUE), format))
            .collect();
        // One for each pair, and one for the control queue, which nobody waits for.
        let calls: Vec<_> = (0..=io.len()).map(|_| Arc::new(Call::new())).collect();
        let loans = (0..)
            .zip(&rings)
            .map(|(index, ring)| ActiveQueue {
                index: QueueIndex(index),
                config: ring.config(),
                state: QueueState::initial(features),
                kick: ring.kick.clone(),
                call: calls[usize::from(index) / 2].clone(),
                in_flight: None,
            })
            .collect();
        device
            .activate(Activation {
                features,
                memory: memory.clone(),
                queues: loans,
            })
            .unwrap();
        let pairs = (0..).zip(clocks).zip(&calls).map(|((n, clock), call)| {
            let sent_from = DATA + 2 * n * AREA;
            Pair {
                rx: rings.pop_front().unwrap(),
                tx: rings.pop_front().unwrap(),
                to_send: VecDeque::new(),
                to_fill: VecDeque::new(),
                call: call.clone(),
                clock,
                sent_from,
                received_at: sent_from + AREA,
            }
        });
        let pairs = pairs.collect();
        let mut rig = Self {
            device,
            _netdev: netdev,
            memory,
            pairs,
            ctrl: rings.pop_front(),
            io,
        };
        if rig.pairs.len() > 1 {
            rig.use_pairs();
        }
        rig
    }

    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET` (virtio 1.4, 5.1.6.5.5): all pairs.
    fn use_pairs(&mut self) {
        let count = u16::try_from(self.pairs.len()).unwrap();
        let [low, high] = count.to_le_bytes();
        let command = [4, 0, low, high];
        self.memory
            .write_slice(&command, GuestAddress(COMMAND))
            .unwrap();
        let ack = COMMAND + 4;
        self.memory.write_obj(0xff_u8, GuestAddress(ack)).unwrap();
        let ctrl = self.ctrl.as_mut().unwrap();
        ctrl.describe(0, (COMMAND, 4), false, Some(1));
        ctrl.describe(1, (ack, 1), true, None);
        ctrl.want_no_interrupt();
        ctrl.offer(0);
        ctrl.publish();
        let mut patience = Patience::new();
        while ctrl.take().is_none() {
            patience.spin();
        }
        let ack: u8 = self.memory.read_obj(GuestAddress(ack)).unwrap();
        assert_eq!(ack, 0, "the device refuses so many pairs");
    }

    /// Lays frames out to be sent by [`send`](Self::send), on each pair.
    pub fn prepare_to_send(&mut self, layout: Layout) {
        assert!(u64::try_from(layout.memory_len()).unwrap() <= AREA);
        let bytes = layout.size.bytes([0x02, 0, 0, 0, 0, 2]);
        let pieces = layout.pieces_to_send();
        for pair in &mut self.pairs {
            pair.to_send.clear();
            let mut index = 0;
            for place in layout.places_to_send() {
                pair.to_send.push_back(index);
                let mut rest = &*bytes;
                for (n, &(at, len)) in pieces.iter().enumerate() {
                    let (piece, behind) = rest.split_at(len);
                    let at = pair.sent_from + u64::try_from(place + at).unwrap();
                    self.memory.write_slice(piece, GuestAddress(at)).unwrap();
                    let next = (n + 1 < pieces.len()).then_some(index + 1);
                    let len = u32::try_from(len).unwrap();
                    pair.tx.describe(index, (at, len), false, next);
                    index += 1;
                    rest = behind;
                }
            }
        }
    }

    /// Sends so many frames, and returns how long it took from the first that was offered to the last that came
    /// back.
    pub fn send(&mut self, frames: u64) -> Took {
        let before = self.clock().now();
        let start = Instant::now();
        let Pair { tx, to_send, .. } = &mut self.pairs[0];
        let (mut offered, mut back) = (0, 0);
        tx.want_no_interrupt();
        let mut patience = Patience::new();
        while back < frames {
            while let Some(head) = tx.take() {
                to_send.push_back(head);
                back += 1;
                patience.renew();
            }
            let mut any = false;
            while offered < frames
                && let Some(head) = to_send.pop_front()
            {
                tx.offer(head);
                offered += 1;
                any = true;
            }
            if any {
                tx.publish();
            }
            patience.spin();
        }
        self.took(start, before)
    }

    /// Sends a queue full of frames on each of `pairs`, all at once, and sleeps until they have come back: so each
    /// device has a processor, and none is lost to the driver. The time that the I/O thread of each has had.
    pub fn burst(&mut self, pairs: &[usize]) -> Vec<Took> {
        let mut waits = Vec::new();
        for &n in pairs {
            let pair = &mut self.pairs[n];
            let count = u16::try_from(pair.to_send.len()).unwrap();
            // What was left from when the device was idle.
            pair.call.take();
            pair.tx.want_interrupt(count);
            while let Some(head) = pair.to_send.pop_front() {
                pair.tx.offer(head);
            }
            waits.push((n, count, pair.clock.now()));
        }
        let start = Instant::now();
        for &n in pairs {
            self.pairs[n].tx.publish();
        }
        let mut took = Vec::new();
        for (n, count, before) in waits {
            let pair = &mut self.pairs[n];
            while pair.to_send.len() < usize::from(count) {
                let Some(head) = pair.tx.take() else {
                    let left = count - u16::try_from(pair.to_send.len()).unwrap();
                    if !pair.tx.want_interrupt(left) {
                        pair.wait_for_interrupt();
                    }
                    continue;
                };
                pair.to_send.push_back(head);
            }
            took.push((n, before, start.elapsed()));
        }
        // The thread has gone to sleep, so its clock stands still.
        took.into_iter()
            .map(|(n, before, wall)| {
                on_context(&self.io[n], || ());
                Took {
                    wall,
                    cpu: self.pairs[n].clock.now() - before,
                }
            })
            .collect()
    }

    /// Lays out buffers for [`receive`](Self::receive), none of which is offered yet.
    pub fn prepare_to_receive(&mut self, layout: Layout) {
        let (len, _) = layout.buffer();
        let len = u32::try_from(len).unwrap();
        for pair in &mut self.pairs {
            pair.to_fill.clear();
            for index in 0..QUEUE {
                let at = pair.buffer_at(layout, index);
                pair.rx.describe(index, (at, len), true, None);
                pair.to_fill.push_back(index);
            }
        }
    }

    /// Receives frames that fill `buffers` buffers in all, which wait in the tap: offers exactly as many, so
    /// that the device rests when all have come. How long it took from the first that was offered.
    pub fn receive(&mut self, buffers: u64) -> Took {
        let before = self.clock().now();
        let start = Instant::now();
        let Pair { rx, to_fill, .. } = &mut self.pairs[0];
        let (mut offered, mut back) = (0, 0);
        rx.want_no_interrupt();
        let mut patience = Patience::new();
        while back < buffers {
            let mut any = 0;
            while let Some(head) = rx.take() {
                to_fill.push_back(head);
                back += 1;
                patience.renew();
            }
            while offered < buffers
                && let Some(head) = to_fill.pop_front()
            {
                rx.offer(head);
                offered += 1;
                any += 1;
            }
            if any > 0 {
                rx.publish();
            }
            patience.spin();
        }
        self.took(start, before)
    }

    pub(crate) fn took(&self, start: Instant, before: Duration) -> Took {
        Took {
            wall: start.elapsed(),
            cpu: self.clock().now().saturating_sub(before),
        }
    }

    /// Returns when the I/O threads have done what they had to do.
    pub fn settle(&self) {
        for io in &self.io {
            on_context(io, || ());
        }
    }

    /// The time of the I/O thread, the first pair's.
    pub fn clock(&self) -> ThreadClock {
        self.pairs[0].clock
    }
}

impl Pair {
    /// Where a frame is sent from, of those that are one piece.
    pub(crate) fn frame_at(&self, layout: Layout, head: u16) -> u64 {
        let (at, _) = layout.pieces_to_send()[0];
        self.sent_from + u64::from(head) * PAGE as u64 + u64::try_from(at).unwrap()
    }

    /// Where a buffer is.
    pub(crate) fn buffer_at(&self, layout: Layout, index: u16) -> u64 {
        let (_, offset) = layout.buffer();
        self.received_at + u64::from(index) * PAGE as u64 + u64::try_from(offset).unwrap()
    }

    /// Sleeps until the device interrupts.
    pub(crate) fn wait_for_interrupt(&self) {
        wait_for(self.call.fd());
        self.call.take();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.device.reset();
        if std::thread::panicking() {
            return;
        }
        for n in 0..self.pairs.len() {
            let sent = self.device.tx_statistics(n).unwrap();
            assert_eq!(sent.dropped_in_all(), 0, "{sent:?}");
        }
    }
}

/// Opens a netdev by its options.
pub fn open_netdev(options: &str) -> Arc<dyn Netdev> {
    let netdevs = NetClients::new();
    net_tap::register(&netdevs);
    netdevs.add(options).unwrap()
}

/// How long some frames took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// By the clock on the wall.
    pub wall: Duration,
    /// Of the time of the thread that moved them.
    pub cpu: Duration,
}

/// Runs `work` on the I/O thread, and returns what it gives.
pub(crate) fn on_context<T: Send + 'static>(
    io: &IoThread,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (give, take) = mpsc::channel();
    io.context()
        .schedule(Box::new(move || give.send(work()).unwrap()));
    take.recv().unwrap()
}

/// Only ends a bench that hangs.
struct Patience {
    since: Instant,
    spins: u32,
}

impl Patience {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            spins: 0,
        }
    }

    fn renew(&mut self) {
        self.spins = 0;
    }

    fn spin(&mut self) {
        std::hint::spin_loop();
        self.spins = self.spins.wrapping_add(1);
        if self.spins == 1 << 20 {
            // No clock is read before something seems to be late.
            self.since = Instant::now();
        } else if self.spins.is_multiple_of(1 << 20) {
            assert!(
                self.since.elapsed() < Duration::from_secs(20),
                "nothing moves"
            );
        }
    }
}

/// An interrupt by eventfd.
#[derive(Debug)]
struct Call(EventFd);

impl Call {
    fn new() -> Self {
        Self(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap())
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes the interrupts that there were.
    fn take(&self) {
        let _ = self.0.read();
    }
}

impl GuestNotifier for Call {
    fn notify(&self) {
        self.0.write(1).unwrap();
    }

    fn event_fd(&self) -> Option<&EventFd> {
        Some(&self.0)
    }
}

#[derive(Debug)]
struct NoTransport;

impl Transport for NoTransport {
    fn config_changed(&self) {}

    fn needs_reset(&self, reason: &str) {
        panic!("the device has asked for a reset: {reason}");
    }
}

const RINGS_LEN: u64 = 0x1_0000;
/// Where a command for the control queue lies.
const COMMAND: u64 = 0xf_0000;
/// Where frames lie: for each pair an area that is sent from, and one that is received into.
const DATA: u64 = 0x10_0000;
const AREA: u64 = 2 << 20;
const MEMORY_LEN: usize = 32 << 20;
