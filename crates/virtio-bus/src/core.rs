//! The part of a transport that is the same on every bus: status, and who has the queues.

mod legacy;
mod registers;
mod saved;
mod suspend;

use std::io;
use std::sync::{Arc, Weak};

use virtio::{DeviceStatus, F};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Activation, ActiveQueue, DeviceRef, GuestNotifier, NotActivated, Transport};
use crate::features::{Features, TransportFeatures};
use crate::health::Health;
use crate::slot::QueueSlot;
use crate::status::{MOVES, Step};

pub use legacy::ANY_LAYOUT;
pub use registers::{Half, QueueArea};
pub use saved::{QueuePhase, SavedCore, SavedQueue};

/// What a write to the status field came to, as far as a transport has to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum StatusEffect {
    /// Bits were noted, refused or ignored.
    Noted,
    /// The device was reset: no queue is live.
    Reset,
    /// The device runs: bind the kicks of the live queues, then
    /// [`kick_live`](VirtioCore::kick_live).
    Live,
}

/// Through which registers a driver uses its device.
///
/// What a driver does first decides it, until the next reset: a transitional device has both, and a driver that
/// writes the other's registers later changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Those of virtio 1.0 and later: VIRTIO_F_VERSION_1 is negotiated.
    Modern,
    /// Those from before: VIRTIO_F_VERSION_1 is not.
    Legacy,
}

/// Why a device does not run although its driver is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The VMM has paused the machine.
    Vmm,
    /// The driver has taken away the device's right to access memory (PCI: bus mastering).
    BusMaster,
    /// The driver has put the device to sleep (PCI: D3hot).
    Power,
}

/// One queue: its registers, and the two ends of its notifications. The kick lasts as long as the device
/// is plugged, the call until [`VirtioCore::set_calls`].
#[derive(Debug)]
struct Queue {
    slot: QueueSlot,
    kick: Arc<EventFd>,
    call: Arc<dyn GuestNotifier>,
    /// Where it starts when it is lent; `None`: at the beginning, which depends on the features.
    state: Option<QueueState>,
    /// Where it stood when it last came back.
    returned: Option<QueueState>,
}

impl Queue {
    /// Back to what a driver finds first; what came from the device is kept.
    fn reset(&mut self, returned: Option<ActiveQueue>) {
        if let Some(queue) = returned {
            self.returned = Some(queue.state);
        }
        self.slot = QueueSlot::new(self.slot.config().max_size);
        self.state = None;
    }
}

/// A plugged device's registers, as every transport has them.
///
/// A transport keeps it under its one lock and turns accesses to its own layout into calls here. The
/// device is called with that lock held, and calls back only through [`Transport`] and
/// [`GuestNotifier`], which do not take it.
#[derive(Debug)]
pub struct VirtioCore<M: GuestAddressSpace> {
    device: DeviceRef<M>,
    memory: M,
    transport: Weak<dyn Transport>,
    health: Arc<Health>,
    features: Features,
    /// What the legacy interface offers beside the device's own features; `None` without that interface.
    legacy: Option<F>,
    /// Which interface the driver has used since the last reset.
    interface: Option<Interface>,
    status: DeviceStatus,
    generation: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    /// While the driver has suspended the device: its configuration space from before.
    suspended: Option<Box<[u8]>>,
    held_by_vmm: bool,
    held_by_bus_master: bool,
    held_by_power: bool,
}

impl<M: GuestAddressSpace> VirtioCore<M> {
    /// Takes a device in: asks what it offers, makes a kick for each queue, asks `call` for each
    /// queue's way to the guest, and tells the device where to report.
    ///
    /// `health` is what `transport` shares with these registers.
    ///
    /// # Errors
    /// When the host has no more descriptors.
    pub fn new(
        device: DeviceRef<M>,
        memory: M,
        filter: &TransportFeatures,
        transport: Weak<dyn Transport>,
        health: Arc<Health>,
        mut call: impl FnMut(QueueIndex) -> Arc<dyn GuestNotifier>,
    ) -> io::Result<Self> {
        let queues = (0..=u16::MAX)
            .zip(device.queue_max_sizes())
            .map(|(index, max_size)| {
                Ok(Queue {
                    slot: QueueSlot::new(max_size),
                    kick: Arc::new(EventFd::new(EFD_NONBLOCK)?),
                    call: call(QueueIndex(index)),
                    state: None,
                    returned: None,
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let features = Features::new(device.offered_features(), filter);
        health.clear();
        device.plugged(transport.clone());
        Ok(Self {
            device,
            memory,
            transport,
            health,
            features,
            legacy: None,
            interface: None,
            status: DeviceStatus::empty(),
            generation: 0,
            queue_select: 0,
            queues,
            suspended: None,
            held_by_vmm: false,
            held_by_bus_master: false,
            held_by_power: false,
        })
    }

    /// Replaces each queue's way to the guest, for when the queues are next lent: the transport has moved.
    /// A live queue keeps the one that it was lent with, so reset first.
    pub fn set_calls(&mut self, mut call: impl FnMut(QueueIndex) -> Arc<dyn GuestNotifier>) {
        for (index, queue) in (0..=u16::MAX).zip(&mut self.queues) {
            queue.call = call(QueueIndex(index));
        }
    }

    /// Resets the device and lets it go.
    pub fn unplug(mut self) {
        self.reset();
        self.device.unplugged();
    }

    /// Back to what a driver finds first: the device gives its queues back and status is 0
    /// (virtio 1.4, 2.4.1). Being held is not the driver's state and stays.
    pub fn reset(&mut self) {
        let mut returned = self.device.reset();
        self.end_suspension();
        let Self {
            device: _,
            memory: _,
            transport: _,
            health,
            features,
            legacy: _,
            interface,
            status,
            generation: _,
            queue_select,
            queues,
            suspended: _,
            held_by_vmm: _,
            held_by_bus_master: _,
            held_by_power: _,
        } = self;
        for (index, queue) in (0..=u16::MAX).zip(queues) {
            let at = (returned.iter()).position(|queue| queue.index == QueueIndex(index));
            queue.reset(at.map(|at| returned.swap_remove(at)));
        }
        features.reset();
        *interface = None;
        *status = DeviceStatus::empty();
        *queue_select = 0;
        health.clear();
    }

    /// The driver writes the status field. 0 resets; otherwise each bit that is not set yet is a move
    /// that is made, refused or ignored.
    #[doc(alias = "virtio_set_status")]
    pub fn write_status(&mut self, value: u8) -> StatusEffect {
        if value == 0 {
            self.reset();
            return StatusEffect::Reset;
        }
        let written = DeviceStatus::from_bits_retain(value);
        if let Some(effect) = self.suspend_or_resume(written) {
            return effect;
        }
        let mut effect = StatusEffect::Noted;
        for next in &MOVES {
            if !next.is_made(self.status(), written) {
                continue;
            }
            match next.step {
                Step::Note => self.status |= next.sets,
                Step::Negotiate => {
                    if self.negotiate() {
                        self.status |= next.sets;
                    }
                }
                Step::Activate => {
                    self.status |= next.sets;
                    if self.activate() {
                        effect = StatusEffect::Live;
                    }
                }
            }
        }
        effect
    }

    /// The status field as the driver reads it.
    pub fn status(&self) -> DeviceStatus {
        if self.health.is_broken() {
            self.status | DeviceStatus::DEVICE_NEEDS_RESET
        } else {
            self.status
        }
    }

    /// Whether the device accepts what the driver has chosen. "The device SHOULD accept any valid
    /// subset of features the driver accepts, otherwise it MUST fail to set the FEATURES_OK device
    /// status bit when the driver writes it" (virtio 1.4, 2.2.2).
    fn negotiate(&self) -> bool {
        let Features {
            offered, chosen, ..
        } = self.features;
        if !offered.contains(chosen) {
            tracing::debug!(
                ?offered,
                ?chosen,
                "features were chosen that are not offered"
            );
            return false;
        }
        // "A driver MUST accept VIRTIO_F_VERSION_1 if it is offered", and a device that reaches memory through an
        // IOMMU "MAY fail to operate further if VIRTIO_F_ACCESS_PLATFORM is not accepted" (virtio 1.4, 6.1, 6.2).
        let needed = F::VERSION_1 | F::ACCESS_PLATFORM;
        let missing = (offered & needed) - chosen;
        if !missing.is_empty() {
            tracing::debug!(?missing, "the driver did not accept what it must");
            return false;
        }
        self.device
            .negotiate(chosen)
            .inspect_err(|refused| tracing::debug!(%refused, "FEATURES_OK stays clear"))
            .is_ok()
    }

    /// Lends the enabled queues to the device.
    fn activate(&mut self) -> bool {
        let features = self.features.chosen;
        let queues = (0..=u16::MAX)
            .zip(&mut self.queues)
            .filter_map(|(index, queue)| lend(QueueIndex(index), queue, features))
            .collect();
        let config_changed = self.health.set_live();
        let result = self.device.activate(Activation {
            features,
            memory: self.memory.clone(),
            queues,
        });
        if let Err(refused) = result {
            self.take_back(refused);
            return false;
        }
        if config_changed && let Some(transport) = self.transport.upgrade() {
            transport.config_changed();
        }
        true
    }

    fn take_back(&mut self, refused: NotActivated) {
        for queue in refused.queues {
            if let Some(mine) = self.queues.get_mut(usize::from(queue.index.0)) {
                mine.slot.give_back();
            }
        }
        if let Some(transport) = self.transport.upgrade() {
            transport.needs_reset(&refused.error.to_string());
        }
    }

    /// Holds the device, or lets it go on once nothing else holds it. A held device may be activated
    /// and reset; it does no I/O.
    pub fn set_hold(&mut self, hold: Hold, held: bool) {
        let was_held = self.is_held();
        match hold {
            Hold::Vmm => self.held_by_vmm = held,
            Hold::BusMaster => self.held_by_bus_master = held,
            Hold::Power => self.held_by_power = held,
        }
        self.follow_hold(was_held);
    }

    fn follow_hold(&self, was_held: bool) {
        match (was_held, self.is_held()) {
            (false, true) => self.device.pause(),
            (true, false) => self.device.resume(),
            _ => {}
        }
    }

    /// Which interface the driver uses, once it has done something that decides it.
    pub fn interface(&self) -> Option<Interface> {
        self.interface
    }

    /// A driver writes a register of `interface`: whether the write counts. The first one after a reset
    /// decides; what it writes to reset the device always counts, and is not asked here.
    #[must_use]
    pub fn claim(&mut self, interface: Interface) -> bool {
        *self.interface.get_or_insert(interface) == interface
    }

    /// Whether anything holds the device.
    pub fn is_held(&self) -> bool {
        self.suspended.is_some()
            || self.held_by_vmm
            || self.held_by_bus_master
            || self.held_by_power
    }

    /// The device.
    pub fn device(&self) -> &DeviceRef<M> {
        &self.device
    }

    /// What was negotiated, once FEATURES_OK is set. The legacy interface has no such step: features are
    /// final from the first use on (virtio 1.4, 3.1.2).
    pub fn negotiated(&self) -> F {
        let is_final = match self.interface {
            Some(Interface::Legacy) => self.health.is_live(),
            _ => self.status.contains(DeviceStatus::FEATURES_OK),
        };
        if is_final {
            self.features.chosen
        } else {
            F::empty()
        }
    }
}

fn lend(index: QueueIndex, queue: &mut Queue, features: F) -> Option<ActiveQueue> {
    Some(ActiveQueue {
        index,
        config: queue.slot.lend()?,
        state: queue.state.unwrap_or_else(|| QueueState::initial(features)),
        kick: Arc::clone(&queue.kick),
        call: Arc::clone(&queue.call),
        in_flight: None,
    })
}

/// Signals a kick. It can fail only when 2^64 - 1 signals are pending, and then it is signalled.
pub fn signal(kick: &EventFd) {
    let _ = kick.write(1);
}
