//! The model alone, activated: no transport and no machine.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use iothread::EventLoop;
use net_client::Port;
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, Transport, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::QueueIndex;
use virtqueue::mock::Driver;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::frame::TUNNELS;

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// How the driver lays out its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// A frame may be spread over several buffers of 1536 bytes, each a chain of one descriptor
    /// (`VIRTIO_NET_F_MRG_RXBUF`); as Linux receives. What is sent has its header in the same buffer.
    Mergeable,
    /// Each frame is in a chain of descriptors in the ring: its header apart, large ones by pages.
    Direct,
    /// The same chain in an indirect table.
    Indirect,
    /// As `Mergeable`, in a packed ring.
    Packed,
}

impl Buffers {
    /// As a part of a bench's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mergeable => "mergeable",
            Self::Direct => "direct",
            Self::Indirect => "indirect",
            Self::Packed => "packed",
        }
    }

    /// Whether frames are laid out as `Mergeable`.
    pub(crate) fn is_mergeable(self) -> bool {
        matches!(self, Self::Mergeable | Self::Packed)
    }
}

/// A network device after DRIVER_OK, its event loop, and the driver's half of its queues.
#[derive(Debug)]
pub struct Nic {
    device: Arc<VirtioNet<Memory>>,
    pub(crate) memory: Memory,
    context: Arc<EventLoop>,
    queues: Vec<Queue>,
    health: Arc<Health>,
}

/// One queue from the driver's side.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) driver: Driver<Memory>,
    pub(crate) kick: Arc<EventFd>,
    call: Arc<Call>,
}

impl Nic {
    /// A NIC whose backend is `port`, with all features that are offered and not in `without` or `TUNNELS`.
    pub fn new(port: Arc<Port>, without: NetF) -> Self {
        let context = EventLoop::new().unwrap();
        let config = VirtioNetConfig {
            packed: true,
            ..VirtioNetConfig::default()
        };
        let device = VirtioNet::new(config, vec![port], vec![context.clone()]).unwrap();
        let health = Arc::new(Health::default());
        let transport: Weak<Health> = Arc::downgrade(&health);
        device.plugged(transport);
        let offered: F = device.offered_features();
        let features = F::from(NetF::from(offered) - without - TUNNELS);
        device.negotiate(features).unwrap();

        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap());
        let queues: Vec<_> = (0..)
            .zip(device.queue_max_sizes())
            .map(|(index, size)| Queue {
                driver: Driver::new(
                    memory.clone(),
                    GuestAddress(index * RINGS_LEN),
                    size,
                    features,
                ),
                kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
                call: Arc::new(Call::new()),
            })
            .collect();
        let loans = (0..)
            .zip(&queues)
            .map(|(index, queue)| ActiveQueue {
                index: QueueIndex(index),
                config: queue.driver.config(),
                state: queue.driver.state(),
                kick: queue.kick.clone(),
                call: queue.call.clone(),
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
        let nic = Self {
            device,
            memory,
            context,
            queues,
            health,
        };
        // As a transport does.
        for queue in &nic.queues {
            queue.kick.write(1).unwrap();
        }
        nic.settle();
        nic
    }

    /// Turns the event loop once, if there is something to do.
    pub fn turn(&self) {
        self.context.turn(Some(Duration::ZERO)).unwrap();
    }

    /// Turns the event loop until nothing is left to do.
    pub fn settle(&self) {
        while self.context.turn(Some(Duration::ZERO)).unwrap() > 0 {}
    }

    /// The model.
    pub fn device(&self) -> &Arc<VirtioNet<Memory>> {
        &self.device
    }

    pub(crate) fn receive_queue(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    pub(crate) fn transmit_queue(&mut self) -> &mut Queue {
        &mut self.queues[1]
    }

    /// Asserts that the device has found nothing wrong so far.
    pub(crate) fn check(&self) {
        let resets = self.health.resets.load(Ordering::Relaxed);
        assert_eq!(resets, 0, "the device has asked for a reset");
    }
}

impl Queue {
    /// Interrupts since the last call.
    pub(crate) fn take_interrupts(&self) -> u64 {
        self.call.event.read().unwrap_or(0)
    }
}

impl Drop for Nic {
    /// What went wrong unseen is noticed here.
    fn drop(&mut self) {
        let queues = self.device.reset().len();
        if std::thread::panicking() {
            return;
        }
        assert_eq!(queues, self.queues.len(), "the device has lost a queue");
        let sent = self.device.tx_statistics(0).unwrap();
        assert_eq!(sent.dropped_in_all(), 0, "{sent:?}");
    }
}

/// An interrupt by eventfd, as an MSI-X vector's.
#[derive(Debug)]
struct Call {
    event: EventFd,
}

impl Call {
    fn new() -> Self {
        Self {
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }
}

impl GuestNotifier for Call {
    fn notify(&self) {
        self.event.write(1).unwrap();
    }

    fn event_fd(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

#[derive(Debug, Default)]
struct Health {
    resets: AtomicU64,
}

impl Transport for Health {
    fn config_changed(&self) {}

    fn needs_reset(&self, _reason: &str) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// Room for the rings of one queue.
const RINGS_LEN: u64 = 0x1_0000;
/// Where the buffers begin.
pub(crate) const DATA: u64 = 0x10_0000;
const MEMORY_LEN: usize = 32 << 20;
