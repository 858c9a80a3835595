//! The part of a transport that is the same on every bus: status, features, queues.

use std::io;
use std::sync::{Arc, Weak};

use virtio::{DeviceStatus, F};
use virtqueue::{QueueConfig, QueueIndex, QueueState};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Activation, ActiveQueue, DeviceRef, GuestNotifier, NotActivated, Transport};
use crate::features::{Features, TransportFeatures};
use crate::health::Health;
use crate::slot::{QueueSlot, size_is_legal};
use crate::status::{MOVES, Step};

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

/// One of the three areas of a queue (virtio 1.4, 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueArea {
    /// Descriptor area.
    Descriptor,
    /// Driver area.
    Driver,
    /// Device area.
    Device,
}

/// Half of a 64-bit register, which a driver writes as two (virtio 1.4, 4.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// Why a device does not run although its driver is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The VMM has paused the machine.
    Vmm,
    /// The driver has taken away the device's right to access memory (PCI: bus mastering).
    BusMaster,
}

/// One queue: its registers, and the two ends of its notifications, which last as long as the device
/// is plugged.
#[derive(Debug)]
struct Queue {
    slot: QueueSlot,
    kick: Arc<EventFd>,
    call: Arc<dyn GuestNotifier>,
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
    status: DeviceStatus,
    generation: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    held_by_vmm: bool,
    held_by_bus_master: bool,
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
            status: DeviceStatus::empty(),
            generation: 0,
            queue_select: 0,
            queues,
            held_by_vmm: false,
            held_by_bus_master: false,
        })
    }

    /// Resets the device and lets it go.
    pub fn unplug(mut self) {
        self.reset();
        self.device.unplugged();
    }

    /// Back to what a driver finds first: the device gives its queues back and status is 0
    /// (virtio 1.4, 2.4.1). Being held is not the driver's state and stays.
    pub fn reset(&mut self) {
        for queue in self.device.reset() {
            tracing::trace!(queue = %queue.index, state = ?queue.state, "queue came back");
        }
        let Self {
            device: _,
            memory: _,
            transport: _,
            health,
            features,
            status,
            generation: _,
            queue_select,
            queues,
            held_by_vmm: _,
            held_by_bus_master: _,
        } = self;
        for queue in queues {
            queue.slot = QueueSlot::new(queue.slot.config().max_size);
        }
        features.reset();
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
        // "A driver MUST accept VIRTIO_F_VERSION_1 if it is offered" (virtio 1.4, 6.1).
        if (offered - chosen).contains(F::VERSION_1) {
            tracing::debug!("the driver did not accept VIRTIO_F_VERSION_1");
            return false;
        }
        self.device
            .negotiate(chosen)
            .inspect_err(|refused| tracing::debug!(%refused, "FEATURES_OK stays clear"))
            .is_ok()
    }

    /// Lends the enabled queues to the device.
    fn activate(&mut self) -> bool {
        let queues = (0..=u16::MAX)
            .zip(&mut self.queues)
            .filter_map(|(index, queue)| lend(QueueIndex(index), queue))
            .collect();
        let config_changed = self.health.set_live();
        let result = self.device.activate(Activation {
            features: self.features.chosen,
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
        }
        match (was_held, self.is_held()) {
            (false, true) => self.device.pause(),
            (true, false) => self.device.resume(),
            _ => {}
        }
    }

    /// Whether anything holds the device.
    pub fn is_held(&self) -> bool {
        self.held_by_vmm || self.held_by_bus_master
    }

    /// The device.
    pub fn device(&self) -> &DeviceRef<M> {
        &self.device
    }

    /// What was negotiated, once FEATURES_OK is set.
    pub fn negotiated(&self) -> F {
        if self.status.contains(DeviceStatus::FEATURES_OK) {
            self.features.chosen
        } else {
            F::empty()
        }
    }
}

/// Feature registers.
impl<M: GuestAddressSpace> VirtioCore<M> {
    /// `device_feature_select`.
    pub fn device_feature_select(&self) -> u32 {
        self.features.device_select
    }

    /// Sets `device_feature_select`. Any value; those without a word show 0.
    pub fn set_device_feature_select(&mut self, select: u32) {
        self.features.device_select = select;
    }

    /// `device_feature`: 32 bits of what is offered.
    pub fn device_feature(&self) -> u32 {
        self.features.offered_word()
    }

    /// `driver_feature_select`.
    pub fn driver_feature_select(&self) -> u32 {
        self.features.driver_select
    }

    /// Sets `driver_feature_select`. Any value; writes to words that do not exist are ignored.
    pub fn set_driver_feature_select(&mut self, select: u32) {
        self.features.driver_select = select;
    }

    /// `driver_feature`: 32 bits of what the driver chose.
    pub fn driver_feature(&self) -> u32 {
        self.features.chosen_word()
    }

    /// Sets 32 bits of the driver's choice. Ignored once FEATURES_OK is set: "The driver MUST NOT
    /// accept new feature bits after this step" (virtio 1.4, 3.1.1 step 5).
    pub fn set_driver_feature(&mut self, value: u32) {
        if !self.status.contains(DeviceStatus::FEATURES_OK) {
            self.features.choose_word(value);
        }
    }
}

/// The device's configuration space.
impl<M: GuestAddressSpace> VirtioCore<M> {
    /// Reads configuration space; what is past its end reads 0.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (Ok(offset), end) = (usize::try_from(offset), self.device.config_len()) else {
            return;
        };
        let len = end.saturating_sub(offset).min(data.len());
        if let Some(inside) = data.get_mut(..len).filter(|data| !data.is_empty()) {
            self.device.read_config(offset, inside);
        }
        self.fold_generation();
    }

    /// Writes configuration space; what is past its end is ignored.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), end) = (usize::try_from(offset), self.device.config_len()) else {
            return;
        };
        let len = end.saturating_sub(offset).min(data.len());
        if let Some(inside) = data.get(..len).filter(|data| !data.is_empty()) {
            self.device.write_config(offset, inside);
        }
    }

    /// `config_generation`. Not counted at each change but when the driver looks after one, so that
    /// eight bits are enough (virtio 1.4, 4.1.4.3.1).
    pub fn config_generation(&mut self) -> u8 {
        self.fold_generation();
        self.generation
    }

    fn fold_generation(&mut self) {
        if self.health.take_config_changed() {
            self.generation = self.generation.wrapping_add(1);
        }
    }
}

/// Queue registers. Those that name no queue act on the one selected; where `queue_select` names
/// none, they read 0 and ignore writes.
impl<M: GuestAddressSpace> VirtioCore<M> {
    /// How many queues the device has.
    pub fn num_queues(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// `queue_select`.
    pub fn queue_select(&self) -> u16 {
        self.queue_select
    }

    /// Sets `queue_select`. Any value.
    pub fn set_queue_select(&mut self, select: u16) {
        self.queue_select = select;
    }

    /// The queue that is selected, if there is one.
    pub fn selected(&self) -> Option<QueueIndex> {
        self.selected_queue().map(|_| QueueIndex(self.queue_select))
    }

    /// `queue_size`; 0 for a queue that does not exist.
    pub fn queue_size(&self) -> u16 {
        self.selected_queue()
            .map_or(0, |queue| queue.slot.config().size)
    }

    /// Sets `queue_size`. 0, more than the largest, no power of two (split rings) and a frozen queue are
    /// refused: the driver reads the old size back.
    pub fn set_queue_size(&mut self, size: u16) {
        let packed = self.features.chosen.contains(F::RING_PACKED);
        if let Some(registers) = self.registers()
            && size_is_legal(size, registers.max_size, packed)
        {
            registers.size = size;
        }
    }

    /// One of the ring addresses.
    pub fn queue_address(&self, area: QueueArea) -> u64 {
        self.selected_queue().map_or(0, |queue| {
            let config = queue.slot.config();
            match area {
                QueueArea::Descriptor => config.desc,
                QueueArea::Driver => config.driver,
                QueueArea::Device => config.device,
            }
        })
    }

    /// Sets half of a ring address. Any value: the device looks at it when it gets the queue.
    pub fn set_queue_address(&mut self, area: QueueArea, half: Half, value: u32) {
        let Some(registers) = self.registers() else {
            return;
        };
        let address = match area {
            QueueArea::Descriptor => &mut registers.desc,
            QueueArea::Driver => &mut registers.driver,
            QueueArea::Device => &mut registers.device,
        };
        let (kept, shift) = match half {
            Half::Low => (0xffff_ffff_0000_0000, 0),
            Half::High => (0x0000_0000_ffff_ffff, 32),
        };
        *address = *address & kept | u64::from(value) << shift;
    }

    /// `queue_enable`.
    pub fn queue_enabled(&self) -> bool {
        self.selected_queue()
            .is_some_and(|queue| queue.slot.is_enabled())
    }

    /// `queue_enable` <- 1. Freezes the queue's registers. After DRIVER_OK only a driver that can
    /// reset rings may do so (virtio 1.4, 2.6.1.2); the device then gets the queue at once, and the
    /// answer is whether it did.
    #[must_use]
    pub fn enable_queue(&mut self) -> bool {
        if self.registers().is_none() {
            return false;
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return false;
        };
        queue.slot.enable();
        if !self.health.is_live() || self.health.is_broken() {
            return false;
        }
        let Some(active) = lend(QueueIndex(self.queue_select), queue) else {
            return false;
        };
        match self.device.start_queue(active) {
            Ok(()) => true,
            Err(refused) => {
                self.take_back(refused);
                false
            }
        }
    }

    /// `queue_reset` <- 1: takes the queue back from the device and its registers back to their
    /// defaults, all before this returns, so `queue_reset` always reads 0 (virtio 1.4, 4.1.4.3.1).
    /// Ignored unless VIRTIO_F_RING_RESET was negotiated.
    pub fn reset_queue(&mut self) {
        if !self.negotiated().contains(F::RING_RESET) {
            return;
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if queue.slot.is_live() {
            drop(self.device.stop_queue(QueueIndex(self.queue_select)));
        }
        queue.slot = QueueSlot::new(queue.slot.config().max_size);
    }

    /// The queues that the device has, each with its kick.
    pub fn live_queues(&self) -> impl Iterator<Item = (QueueIndex, &Arc<EventFd>)> {
        (0..=u16::MAX)
            .zip(&self.queues)
            .filter(|(_, queue)| queue.slot.is_live())
            .map(|(index, queue)| (QueueIndex(index), &queue.kick))
    }

    /// The kicks of all queues by index, for a transport that signals them without its lock. A kick for
    /// a queue that is not live stays in its descriptor and does no harm.
    pub fn kicks(&self) -> Vec<Arc<EventFd>> {
        self.queues
            .iter()
            .map(|queue| Arc::clone(&queue.kick))
            .collect()
    }

    /// Kicks each live queue once, for what was queued before its kick was bound.
    pub fn kick_live(&self) {
        for (_, kick) in self.live_queues() {
            signal(kick);
        }
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue's registers, while the driver may write them: until it is enabled, and not
    /// after DRIVER_OK unless rings can be reset.
    fn registers(&mut self) -> Option<&mut QueueConfig> {
        if self.status.contains(DeviceStatus::DRIVER_OK)
            && !self.negotiated().contains(F::RING_RESET)
        {
            return None;
        }
        self.queues
            .get_mut(usize::from(self.queue_select))?
            .slot
            .registers()
    }
}

fn lend(index: QueueIndex, queue: &mut Queue) -> Option<ActiveQueue> {
    Some(ActiveQueue {
        index,
        config: queue.slot.lend()?,
        state: QueueState::default(),
        kick: Arc::clone(&queue.kick),
        call: Arc::clone(&queue.call),
    })
}

/// Signals a kick. It can fail only when 2^64 - 1 signals are pending, and then it is signalled.
pub fn signal(kick: &EventFd) {
    let _ = kick.write(1);
}
