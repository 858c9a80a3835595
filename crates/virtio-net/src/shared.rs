//! What the parts of one device share, beside their queues.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use iothread::AioContext;
use virtio::net::S;
use virtio_bus::Transport;
use virtqueue::QueueError;

use crate::VirtioNetConfig;
use crate::coalesce::Coalescing;
use crate::filter::{Filter, FilterCell, Mac};
use crate::hash::{HashCell, Hashing};
use crate::limit::Limiter;
use crate::rsc::Families;

/// The filters, the hashes, the link and the way to the transport.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) filter: Arc<FilterCell>,
    pub(crate) hashing: Arc<HashCell>,
    /// Frames go to the pair that their hash leads to, and there are several; as `hashing` has it.
    steered: AtomicBool,
    /// A leaf lock: the transport is called without it.
    transport: Mutex<Option<Weak<dyn Transport>>>,
    link_down: AtomicBool,
    /// Which packets' segments are put together for the driver. A leaf lock.
    pub(crate) families: Mutex<Families>,
    /// How long they are kept for that.
    pub(crate) rsc_interval: Duration,
    /// What queues begin with. A leaf lock.
    pub(crate) coalescing: Mutex<CoalescingByDirection>,
    pub(crate) rx_limit: Limiter,
    pub(crate) tx_limit: Limiter,
    /// Frames that are sent have the source `own_mac`.
    anti_spoof: AtomicBool,
    /// The address that the NIC was made with.
    own_mac: Mac,
    /// The longest frame that the driver takes unless it is to be segmented, if it has agreed to one.
    pub(crate) mtu: u16,
    /// A leaf lock.
    announcing: Mutex<Announcing>,
}

/// What was said of all queues of each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CoalescingByDirection {
    pub(crate) rx: Coalescing,
    pub(crate) tx: Coalescing,
}

/// Whether the driver can be asked to announce itself, and whether it is.
#[derive(Clone, Copy, Debug, Default)]
struct Announcing {
    negotiated: bool,
    /// `VIRTIO_NET_S_ANNOUNCE`.
    asked: bool,
}

impl Shared {
    pub(crate) fn new(config: &VirtioNetConfig, clock: &Arc<dyn AioContext>) -> Self {
        Self {
            filter: FilterCell::new(Filter::new(config.mac, false)),
            hashing: HashCell::new(Hashing::new()),
            steered: AtomicBool::new(false),
            transport: Mutex::new(None),
            link_down: AtomicBool::new(false),
            families: Mutex::default(),
            rsc_interval: Duration::from_nanos(config.rsc_interval.into()),
            coalescing: Mutex::default(),
            rx_limit: Limiter::new(clock.clone(), config.rx_limit),
            tx_limit: Limiter::new(clock.clone(), config.tx_limit),
            anti_spoof: AtomicBool::new(config.anti_spoof),
            own_mac: config.mac,
            mtu: config.host_mtu,
            announcing: Mutex::default(),
        }
    }

    /// Changes what the driver has said of hashes.
    pub(crate) fn change_hashing(&self, change: impl FnOnce(&mut Hashing)) {
        self.hashing.change(|hashing| {
            change(hashing);
            self.steered
                .store(hashing.steering().is_some(), Ordering::Release);
        });
    }

    /// Whether each frame goes to the pair that its hash leads to.
    pub(crate) fn is_steered(&self) -> bool {
        self.steered.load(Ordering::Acquire)
    }

    /// The source of all frames that may be sent, if there is only one.
    pub(crate) fn source(&self) -> Option<Mac> {
        self.anti_spoof
            .load(Ordering::Acquire)
            .then_some(self.own_mac)
    }

    /// Whether there is only one; queues that run are told apart.
    pub(crate) fn set_anti_spoof(&self, on: bool) {
        self.anti_spoof.store(on, Ordering::Release);
    }

    pub(crate) fn set_transport(&self, transport: Option<Weak<dyn Transport>>) {
        *lock(&self.transport) = transport;
    }

    /// The configuration space's field.
    pub(crate) fn status(&self) -> S {
        let mut status = S::empty();
        if !self.link_down.load(Ordering::Acquire) {
            status |= S::LINK_UP;
        }
        if lock(&self.announcing).asked {
            status |= S::ANNOUNCE;
        }
        status
    }

    /// From here on the driver can be asked to announce itself, or cannot. It is not asked yet.
    pub(crate) fn set_announcing(&self, negotiated: bool) {
        *lock(&self.announcing) = Announcing {
            negotiated,
            asked: false,
        };
    }

    /// Asks the driver to announce itself, if it can be asked. One that was asked and has not answered is told again.
    #[doc(alias = "virtio_net_announce_notify")]
    pub(crate) fn ask_to_announce(&self) {
        let asked = {
            let mut announcing = lock(&self.announcing);
            announcing.asked = announcing.negotiated;
            announcing.asked
        };
        if asked && let Some(transport) = self.transport() {
            transport.config_changed();
        }
    }

    /// Whether the driver can be asked to announce itself, and whether it is and has not answered.
    pub(crate) fn announcing(&self) -> (bool, bool) {
        let Announcing { negotiated, asked } = *lock(&self.announcing);
        (negotiated, asked)
    }

    /// The driver, if it can be, was asked to announce itself by another device that this one goes on for.
    pub(crate) fn restore_asked(&self, asked: bool) {
        let mut announcing = lock(&self.announcing);
        announcing.asked = asked && announcing.negotiated;
    }

    /// The driver is to look at the configuration space.
    pub(crate) fn config_changed(&self) {
        if let Some(transport) = self.transport() {
            transport.config_changed();
        }
    }

    /// The driver has been asked.
    pub(crate) fn announced(&self) {
        lock(&self.announcing).asked = false;
    }

    /// A queue is broken: the device cannot go on as a whole. (Its other queues do.)
    pub(crate) fn needs_reset(&self, queue: &str, error: &QueueError) {
        tracing::debug!(queue, %error, "queue is broken");
        if let Some(transport) = self.transport() {
            transport.needs_reset(&format!("{queue}: {error}"));
        }
    }

    pub(crate) fn set_link(&self, up: bool) {
        if self.link_down.swap(!up, Ordering::AcqRel) == up
            && let Some(transport) = self.transport()
        {
            transport.config_changed();
        }
    }

    fn transport(&self) -> Option<Arc<dyn Transport>> {
        lock(&self.transport).as_ref()?.upgrade()
    }
}

/// A panic elsewhere while the lock was held leaves state that each method can still work on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
