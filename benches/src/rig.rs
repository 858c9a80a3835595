//! A device on a tap, with the device on one processor and the driver on another.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iothread::IoThread;
use net_client::{NetClients, Netdev};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, Transport, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::frame::{FrameSize, HEADER_LEN, PROTOCOL_LEN, TUNNELS};
use crate::nic::Memory;
use crate::processor::{ThreadClock, pin};
use crate::rings::FastRing;

/// The processor that drivers run on.
pub const DRIVER_CPU: usize = 0;
/// The processor that devices and raw loops run on.
pub const DEVICE_CPU: usize = 1;
/// Entries of each queue.
pub(crate) const QUEUE: u16 = 256;
/// Bytes of a receive buffer, as Linux makes them for an MTU of 1500.
pub const BUFFER: usize = 1536;
/// Where buffers lie in their pages, as behind the headroom that a driver leaves: reads into whole pages
/// are slower.
pub(crate) const OFFSET: u64 = 52;

/// A device on a tap, its I/O thread pinned to [`DEVICE_CPU`].
pub struct Rig {
    device: Arc<VirtioNet<Memory>>,
    _netdev: Arc<dyn Netdev>,
    memory: Memory,
    rx: FastRing,
    tx: FastRing,
    /// What receives on the control queue never.
    _ctrl: Vec<FastRing>,
    clock: ThreadClock,
    free: Vec<u16>,
    /// Dropped last: the device's queues are watched there.
    _io: Arc<IoThread>,
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
    pub fn new(netdev: &str, without: NetF) -> Self {
        let io = Arc::new(IoThread::new("device").unwrap());
        Self::on(&io, open_netdev(netdev), without)
    }

    /// As [`new`](Self::new), with an I/O thread that others are on too.
    pub fn on(io: &Arc<IoThread>, netdev: Arc<dyn Netdev>, without: NetF) -> Self {
        let clock = on_context(io, || {
            pin(DEVICE_CPU);
            ThreadClock::of_this_thread()
        });
        let device = VirtioNet::<Memory>::new(
            VirtioNetConfig::default(),
            vec![netdev.ports()[0].clone()],
            vec![io.context()],
        )
        .unwrap();
        let transport: Arc<dyn Transport> = Arc::new(NoTransport);
        device.plugged(Arc::downgrade(&transport));
        let offered: F = device.offered_features();
        let features = F::from(NetF::from(offered) - without - TUNNELS);
        device.negotiate(features).unwrap();
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap());
        let mut rings: Vec<_> = (0..)
            .zip(device.queue_max_sizes())
            .map(|(index, size)| {
                let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
                FastRing::new(&memory, index * RINGS_LEN, size.min(QUEUE), kick)
            })
            .collect();
        let loans = (0..)
            .zip(&rings)
            .map(|(index, ring)| ActiveQueue {
                index: QueueIndex(index),
                config: ring.config(),
                state: QueueState::default(),
                kick: ring.kick.clone(),
                call: Arc::new(Silent::default()),
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
        let (rx, tx) = (rings.remove(0), rings.remove(0));
        Self {
            device,
            _netdev: netdev,
            memory,
            rx,
            tx,
            _ctrl: rings,
            clock,
            free: Vec::new(),
            _io: io.clone(),
        }
    }

    /// Lays frames out to be sent by [`send`](Self::send): header and frame in one buffer, the payload of a
    /// segmented one in pages behind.
    pub fn prepare_to_send(&mut self, size: FrameSize) {
        let bytes = size.bytes([0x02, 0, 0, 0, 0, 2]);
        let first = match size {
            FrameSize::Smallest | FrameSize::Full => bytes.len(),
            FrameSize::Segmented => HEADER_LEN + PROTOCOL_LEN,
        };
        let (start, rest) = bytes.split_at(first);
        let mut place = DATA;
        let mut index = 0;
        let chain_len = 1 + rest.len().div_ceil(PAGE);
        self.free.clear();
        while usize::from(index) + chain_len <= usize::from(QUEUE) {
            self.free.push(index);
            let pieces = std::iter::once((OFFSET, start)).chain(rest.chunks(PAGE).map(|p| (0, p)));
            let count = u16::try_from(chain_len).unwrap();
            for (n, (offset, piece)) in (0..count).zip(pieces) {
                self.memory
                    .write_slice(piece, GuestAddress(place + offset))
                    .unwrap();
                let len = u32::try_from(piece.len()).unwrap();
                let next = (n + 1 < count).then_some(index + 1);
                self.tx.describe(index, (place + offset, len), false, next);
                place += PAGE as u64;
                index += 1;
            }
        }
    }

    /// Sends so many frames, and returns how long it took from the first that was offered to the last that came
    /// back.
    pub fn send(&mut self, frames: u64) -> Took {
        let before = self.clock.now();
        let start = Instant::now();
        let (mut offered, mut back) = (0, 0);
        self.tx.want_no_interrupt();
        let mut patience = Patience::new();
        while back < frames {
            while let Some(head) = self.tx.take() {
                self.free.push(head);
                back += 1;
                patience.renew();
            }
            let mut any = false;
            while offered < frames
                && let Some(head) = self.free.pop()
            {
                self.tx.offer(head);
                offered += 1;
                any = true;
            }
            if any {
                self.tx.publish();
            }
            patience.spin();
        }
        self.took(start, before)
    }

    /// Lays out buffers for [`receive`](Self::receive), none of which is offered yet.
    pub fn prepare_to_receive(&mut self) {
        self.free.clear();
        for index in 0..QUEUE {
            let at = DATA + u64::from(index) * PAGE as u64 + OFFSET;
            self.rx
                .describe(index, (at, u32::try_from(BUFFER).unwrap()), true, None);
            self.free.push(index);
        }
    }

    /// Receives frames that fill `buffers` buffers in all, which wait in the tap: offers exactly as many, so
    /// that the device rests when all have come. How long it took from the first that was offered.
    pub fn receive(&mut self, buffers: u64) -> Took {
        let before = self.clock.now();
        let start = Instant::now();
        let (mut offered, mut back) = (0, 0);
        self.rx.want_no_interrupt();
        let mut patience = Patience::new();
        while back < buffers {
            let mut any = 0;
            while let Some(head) = self.rx.take() {
                self.free.push(head);
                back += 1;
                patience.renew();
            }
            while offered < buffers
                && let Some(head) = self.free.pop()
            {
                self.rx.offer(head);
                offered += 1;
                any += 1;
            }
            if any > 0 {
                self.rx.publish();
            }
            patience.spin();
        }
        self.took(start, before)
    }

    fn took(&self, start: Instant, before: Duration) -> Took {
        Took {
            wall: start.elapsed(),
            cpu: self.clock.now().saturating_sub(before),
        }
    }

    /// The time of the I/O thread.
    pub fn clock(&self) -> ThreadClock {
        self.clock
    }

    /// What the device has dropped, in whatever direction.
    pub fn dropped(&self) -> u64 {
        let sent = self.device.tx_statistics(0).unwrap();
        sent.dropped_in_all()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.device.reset();
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
        if self.spins == 0 {
            assert!(
                self.since.elapsed() < Duration::from_secs(60),
                "nothing moves"
            );
        }
    }
}

#[derive(Debug, Default)]
struct Silent(AtomicU64);

impl GuestNotifier for Silent {
    fn notify(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn event_fd(&self) -> Option<&EventFd> {
        None
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

const PAGE: usize = 4096;
const RINGS_LEN: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const MEMORY_LEN: usize = 32 << 20;
