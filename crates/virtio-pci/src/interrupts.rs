//! Interrupts: what the data path does to the guest, without the transport's lock.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use virtio::pci::IsrStatus;
use virtio_bus::{GuestNotifier, Health, Transport, signal};
use virtqueue::QueueIndex;
use vm_pci::{Intx, MsiVector};
use vmm_sys_util::eventfd::EventFd;

/// VIRTIO_MSI_NO_VECTOR: an event that is mapped to no vector (virtio 1.4, 4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// The vectors that a function has on its bus; none while it is on none.
pub(crate) type Vectors = Arc<[Arc<dyn MsiVector>]>;

/// What a driver has mapped to which MSI-X vector, and what is pending without them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedInterrupts {
    /// ISR status, as the next read finds it.
    pub isr: u8,
    /// The vector of configuration changes; 0xffff is none, here and below.
    pub config_vector: u16,
    /// The vector of each queue.
    pub queue_vectors: Vec<u16>,
}

/// A function's way to its guest: ISR status and pin, or one MSI-X vector an event.
///
/// Registers write here under the transport's lock; the data path reads atomics. A used buffer
/// notification takes a lock, the pin's own, only while MSI-X is off. A configuration change takes
/// that one always, as it sets the ISR bit either way, and then that of `vectors`.
#[derive(Debug)]
pub(crate) struct Interrupts {
    name: String,
    health: Arc<Health>,
    pin: Arc<Intx>,
    isr: AtomicU8,
    msix: AtomicBool,
    /// For configuration changes; each [`QueueInterrupt`] has its own. A leaf lock.
    vectors: RwLock<Vectors>,
    vector_count: u16,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl Interrupts {
    pub(crate) fn new(
        name: String,
        health: Arc<Health>,
        pin: Arc<Intx>,
        vector_count: u16,
        queues: usize,
    ) -> Self {
        Self {
            name,
            health,
            pin,
            isr: AtomicU8::new(0),
            msix: AtomicBool::new(false),
            vectors: RwLock::new(Vectors::from([])),
            vector_count,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// The function goes on its bus and has these vectors, or leaves it and has none.
    pub(crate) fn connect(&self, vectors: Vectors) {
        *(self.vectors.write()).unwrap_or_else(PoisonError::into_inner) = vectors;
    }

    /// MSI-X was switched on or off.
    pub(crate) fn set_msix(&self, enabled: bool) {
        self.msix.store(enabled, Ordering::Release);
    }

    /// Reads ISR status, which clears it and releases the pin (virtio 1.4, 4.1.4.5).
    pub(crate) fn take_isr(&self) -> u8 {
        let mut isr = 0;
        self.pin.update(|| {
            isr = self.isr.swap(0, Ordering::AcqRel);
            false
        });
        isr
    }

    /// After a reset: no event is mapped to a vector (virtio 1.4, 4.1.5.1.2.1), nothing is pending.
    pub(crate) fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.take_isr();
    }

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Maps configuration changes to `vector`; to none if the function has no such vector.
    pub(crate) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::Release);
    }

    pub(crate) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Maps a queue to `vector`; to none if the function has no such vector. Allowed at any time: the
    /// queue is the device's, the way to the guest is not, and "Device MUST support unmapping any
    /// event type" (virtio 1.4, 4.1.5.1.2.1).
    pub(crate) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    /// What is mapped where, and what is pending.
    pub(crate) fn save(&self) -> SavedInterrupts {
        let load = |vector: &AtomicU16| vector.load(Ordering::Acquire);
        SavedInterrupts {
            isr: self.isr.load(Ordering::Acquire),
            config_vector: self.config_vector(),
            queue_vectors: self.queue_vectors.iter().map(load).collect(),
        }
    }

    /// Maps events as `saved` says, and asserts the pin if something is pending. Nothing has changed when it does not
    /// fit: then the field that does not is the answer.
    pub(crate) fn restore(&self, saved: &SavedInterrupts) -> Result<(), &'static str> {
        let exists = |vector: &u16| self.existing(*vector) == *vector;
        if !exists(&saved.config_vector) {
            return Err("config_vector");
        }
        let all_exist = saved.queue_vectors.iter().all(exists);
        if saved.queue_vectors.len() != self.queue_vectors.len() || !all_exist {
            return Err("queue_vectors");
        }
        if IsrStatus::from_bits(saved.isr).is_none() {
            return Err("isr");
        }
        self.set_config_vector(saved.config_vector);
        for (mine, saved) in self.queue_vectors.iter().zip(&saved.queue_vectors) {
            mine.store(*saved, Ordering::Release);
        }
        self.pin.update(|| {
            self.isr.store(saved.isr, Ordering::Release);
            saved.isr != 0
        });
        Ok(())
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.vector_count {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// What signals `vector` now.
    fn fd_of<'a>(&self, vectors: &'a Vectors, vector: u16) -> Option<&'a EventFd> {
        if !self.msix.load(Ordering::Acquire) {
            return None;
        }
        Some(vectors.get(usize::from(vector))?.event_fd())
    }

    fn set_isr(&self, bit: IsrStatus) {
        self.pin.update(|| {
            self.isr.fetch_or(bit.bits(), Ordering::AcqRel);
            true
        });
    }

    /// The ISR bit is set before the notification in either case (virtio 1.4, 4.1.4.5.1).
    fn notify_config(&self) {
        self.set_isr(IsrStatus::DEVICE_CONFIGURATION_INTERRUPT);
        let vectors = self.vectors.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(vector) = self.fd_of(&vectors, self.config_vector()) {
            signal(vector);
        }
    }
}

impl Transport for Interrupts {
    fn config_changed(&self) {
        if self.health.change_is_due() {
            self.notify_config();
        }
    }

    fn needs_reset(&self, reason: &str) {
        self.health.log_broken(&self.name, reason);
        if self.health.set_broken() {
            self.notify_config();
        }
    }
}

/// One queue's way to the guest, for as long as the function stays where it is.
#[derive(Debug)]
pub(crate) struct QueueInterrupt {
    interrupts: Arc<Interrupts>,
    vectors: Vectors,
    queue: u16,
}

impl QueueInterrupt {
    pub(crate) fn notifier(
        interrupts: &Arc<Interrupts>,
        vectors: &Vectors,
        queue: QueueIndex,
    ) -> Arc<dyn GuestNotifier> {
        Arc::new(Self {
            interrupts: Arc::clone(interrupts),
            vectors: Arc::clone(vectors),
            queue: queue.0,
        })
    }
}

impl GuestNotifier for QueueInterrupt {
    fn notify(&self) {
        if !self.interrupts.msix.load(Ordering::Acquire) {
            self.interrupts.set_isr(IsrStatus::QUEUE_INTERRUPT);
        } else if let Some(vector) = self.event_fd() {
            signal(vector);
        }
    }

    fn event_fd(&self) -> Option<&EventFd> {
        let vector = self.interrupts.queue_vector(self.queue);
        self.interrupts.fd_of(&self.vectors, vector)
    }
}
