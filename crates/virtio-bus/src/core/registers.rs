//! The registers that a driver reads and writes, whatever their layout on its bus.

use std::sync::Arc;

use virtio::{DeviceStatus, F};
use virtqueue::{QueueConfig, QueueIndex, QueueState};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::{Queue, VirtioCore, lend, signal};
use crate::slot::size_is_legal;

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
            match &self.suspended {
                Some(before) => read_from(before, offset, inside),
                None => self.device.read_config(offset, inside),
            }
        }
        self.fold_generation();
    }

    /// Writes configuration space; what is past its end is ignored, and all while the device is suspended.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.is_suspended() {
            return;
        }
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
        if !self.is_suspended() && self.health.take_config_changed() {
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
    /// reset rings may do so (virtio 1.4, 2.6.1.2); the device then gets the queue at once, its kick is
    /// signalled once for what was queued before, and the answer is whether it did.
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
        let Some(active) = lend(QueueIndex(self.queue_select), queue, self.features.chosen) else {
            return false;
        };
        let kick = Arc::clone(&queue.kick);
        match self.device.start_queue(active) {
            Ok(()) => {
                signal(&kick);
                true
            }
            Err(refused) => {
                self.take_back(refused);
                false
            }
        }
    }

    /// `queue_reset` <- 1: takes the queue back from the device and its registers back to their
    /// defaults, all before this returns, so `queue_reset` always reads 0 (virtio 1.4, 4.1.4.3.1).
    /// Ignored unless VIRTIO_F_RING_RESET was negotiated and there is such a queue; the answer is
    /// whether it was reset, for a transport that has state of its own for each queue.
    pub fn reset_queue(&mut self) -> bool {
        if !self.negotiated().contains(F::RING_RESET) || self.is_suspended() {
            return false;
        }
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return false;
        };
        let returned = (queue.slot.is_live())
            .then(|| self.device.stop_queue(QueueIndex(self.queue_select)))
            .flatten();
        queue.reset(returned);
        true
    }

    /// Sets where `queue` starts when it is next lent, instead of at the first entry: for a queue that went
    /// on elsewhere, before DRIVER_OK or `queue_enable`. A reset, or one of the ring, forgets it.
    /// Refused (`false`) while the device has the queue, and where there is no such queue.
    #[must_use]
    pub fn set_queue_state(&mut self, queue: QueueIndex, state: QueueState) -> bool {
        match self.queues.get_mut(usize::from(queue.0)) {
            Some(queue) if !queue.slot.is_live() => {
                queue.state = Some(state);
                true
            }
            _ => false,
        }
    }

    /// Where `queue` stood when the device last handed it back, at a reset or one of the ring. `None` if
    /// it never has. Entries below `next_avail` that are not used yet were given up.
    pub fn returned_state(&self, queue: QueueIndex) -> Option<QueueState> {
        self.queues.get(usize::from(queue.0))?.returned
    }

    /// Tells the device that the call of `queue` names another descriptor, if it has that queue.
    pub fn call_changed(&self, queue: QueueIndex) {
        let is_live = |queue: &Queue| queue.slot.is_live();
        if (self.queues.get(usize::from(queue.0))).is_some_and(is_live) {
            self.device.call_changed(queue);
        }
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
        let frozen = self.status.contains(DeviceStatus::DRIVER_OK)
            && !self.negotiated().contains(F::RING_RESET);
        if frozen || self.is_suspended() {
            return None;
        }
        self.queues
            .get_mut(usize::from(self.queue_select))?
            .slot
            .registers()
    }
}

fn read_from(bytes: &[u8], offset: usize, data: &mut [u8]) {
    for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset)) {
        *to = *from;
    }
}
