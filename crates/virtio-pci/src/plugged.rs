//! What there is while a device is plugged: what each access to configuration space and BARs does.

use std::sync::Arc;

use virtio_bus::{Half, Hold, KickAddress, KickSpace, QueueArea, StatusEffect, VirtioCore, signal};
use virtqueue::QueueIndex;
use vm_memory::GuestAddressSpace;
use vm_pci::registers::Command;
use vm_pci::{Attachment, BarIndex, BarSpace, ConfigEffect, Error, FunctionState, MsiSink};

use crate::interrupts::{Interrupts, NO_VECTOR, QueueInterrupt, Vectors};
use crate::kicks::BoundKicks;
use crate::layout::{MAX_VECTORS, NOTIFY_MULTIPLIER, NOTIFY_OFFSET, Region};
use crate::registers::{self, Register, RegisterFile};
use crate::window::Window;

/// All that there is only with a device.
#[derive(Debug)]
pub(crate) struct Plugged<M: GuestAddressSpace> {
    pub(crate) function: FunctionState,
    pub(crate) core: VirtioCore<M>,
    pub(crate) interrupts: Arc<Interrupts>,
    /// `None` without `ioeventfd`.
    pub(crate) kicks: Option<BoundKicks>,
    pub(crate) window: Window,
    pub(crate) bar: BarIndex,
}

impl<M: GuestAddressSpace> Plugged<M> {
    /// The device is leaving: nothing is bound, nothing asserted, and it knows.
    pub(crate) fn take_apart(mut self) {
        self.reset_device();
        self.function.disconnect();
        self.core.unplug();
    }

    /// The function goes on its bus, as after power-on: what was left of its last bus is no longer true.
    pub(crate) fn attach(&mut self, at: &Attachment, sink: &dyn MsiSink) -> Result<(), Error> {
        self.reset();
        self.function.connect(at, sink)?;
        self.connect_interrupts();
        Ok(())
    }

    /// The function leaves its bus: nothing is bound, and it has neither vectors nor a line.
    pub(crate) fn detach(&mut self) {
        self.reset();
        self.function.disconnect();
        self.connect_interrupts();
    }

    fn connect_interrupts(&mut self) {
        let vectors = vectors_of(&self.function);
        let interrupts = &self.interrupts;
        interrupts.connect(Arc::clone(&vectors));
        let call = |queue| QueueInterrupt::notifier(interrupts, &vectors, queue);
        self.core.set_calls(call);
    }

    /// Back to the state after power-on.
    pub(crate) fn reset(&mut self) {
        self.reset_device();
        self.function.reset();
        self.interrupts.set_msix(false);
        self.core.set_hold(Hold::BusMaster, false);
    }

    fn reset_device(&mut self) {
        self.core.reset();
        self.interrupts.reset();
        self.bind_kicks();
    }

    /// Binds the notify registers of live queues where accesses come to BAR 4 now, and none elsewhere:
    /// what a guest has put over RAM or over a device of the machine stays theirs.
    fn bind_kicks(&mut self) {
        let Some(kicks) = &mut self.kicks else {
            return;
        };
        let bar = self.bar;
        let window = (self.function.forwarded_windows().into_iter())
            .find(|window| window.bar == bar && window.space == BarSpace::Memory);
        let wanted: Vec<_> = window
            .iter()
            .flat_map(|window| {
                self.core.live_queues().filter_map(|(queue, kick)| {
                    let register = u64::from(queue.0) * u64::from(NOTIFY_MULTIPLIER);
                    let at = KickAddress {
                        space: KickSpace::Mmio,
                        address: window.base.checked_add(NOTIFY_OFFSET + register)?,
                        len: None,
                        value: None,
                    };
                    Some((at, Arc::clone(kick)))
                })
            })
            .collect();
        kicks.update(&wanted);
    }

    pub(crate) fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.window.is_touched(offset, data.len()) {
            let mut value = [0; 4];
            let bytes = self.window_access();
            if let Some((at, bytes)) = bytes
                && let Some(bytes) = value.get_mut(..bytes)
            {
                self.modern_read(at, bytes);
            }
            let at = self.window.data().start;
            self.function.config_mut().store(at, &value);
        }
        self.function.config_read(offset, data);
    }

    pub(crate) fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        let change = self.function.config_write(offset, data);
        if change.msix_toggled {
            self.interrupts.set_msix(self.function.msix_enabled());
            for (queue, _) in self.core.live_queues() {
                if self.interrupts.queue_vector(queue.0) != NO_VECTOR {
                    self.core.call_changed(queue);
                }
            }
        }
        let was_master = change.old_command.contains(Command::BUS_MASTER);
        let is_master = change.command.contains(Command::BUS_MASTER);
        if was_master != is_master {
            self.core.set_hold(Hold::BusMaster, !is_master);
        }
        if change.effect.windows_changed {
            self.bind_kicks();
        }
        if self.window.is_touched(offset, data.len())
            && let Some((at, len)) = self.window_access()
        {
            let mut value = [0; 4];
            let from = self.window.data().start;
            self.function.config().read(from, &mut value);
            if let Some(bytes) = value.get(..len) {
                self.modern_write(at, bytes);
            }
        }
        change.effect
    }

    fn window_access(&self) -> Option<(u64, usize)> {
        let size = self.function.bars().size(self.bar)?;
        let config = self.function.config();
        let access = self.window.access(config, self.bar.get(), size)?;
        Some((access.offset, access.len))
    }

    pub(crate) fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if bar == self.bar {
            self.modern_read(offset, data);
        } else if !self.function.msix_read(bar, offset, data) {
            data.fill(0);
        }
    }

    pub(crate) fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        if bar == self.bar {
            self.modern_write(offset, data);
        } else {
            self.function.msix_write(bar, offset, data);
        }
    }

    /// Reads the structures in BAR 4; an access over the end of one goes on in the next.
    fn modern_read(&mut self, mut offset: u64, mut data: &mut [u8]) {
        while let Some((region, inside, room)) = Region::at(offset) {
            let (part, rest) = data.split_at_mut(room.min(data.len()));
            match region {
                Region::Common => registers::read(self, inside, part),
                Region::Device => self.core.read_config(inside, part),
                Region::Isr => {
                    part.fill(0);
                    if let (0, Some(first)) = (inside, part.first_mut()) {
                        *first = self.interrupts.take_isr();
                    }
                }
                Region::Notify => part.fill(0),
            }
            if rest.is_empty() {
                return;
            }
            offset = offset.saturating_add(part.len() as u64);
            data = rest;
        }
        data.fill(0);
    }

    fn modern_write(&mut self, mut offset: u64, mut data: &[u8]) {
        while let Some((region, inside, room)) = Region::at(offset) {
            let (part, rest) = data.split_at(room.min(data.len()));
            match region {
                Region::Common => registers::write(self, inside, part),
                Region::Device => self.core.write_config(inside, part),
                Region::Isr => {}
                Region::Notify => self.notify(inside),
            }
            if rest.is_empty() {
                return;
            }
            offset = offset.saturating_add(part.len() as u64);
            data = rest;
        }
    }

    /// A write to the notify structure, of any width and value, is a notification for the queue in
    /// whose register it starts, if the device has that queue.
    fn notify(&self, offset: u64) {
        let queue = offset / u64::from(NOTIFY_MULTIPLIER);
        let live = (self.core.live_queues()).find(|(index, _)| u64::from(index.0) == queue);
        if let Some((_, kick)) = live {
            signal(kick);
        }
    }

    fn write_status(&mut self, value: u8) {
        match self.core.write_status(value) {
            StatusEffect::Noted => {}
            StatusEffect::Reset => {
                self.interrupts.reset();
                self.bind_kicks();
            }
            StatusEffect::Live => {
                self.bind_kicks();
                self.core.kick_live();
            }
        }
    }

    fn set_address(&mut self, area: QueueArea, half: Half, value: u32) {
        self.core.set_queue_address(area, half, value);
    }
}

/// The vectors that the function has now.
pub(crate) fn vectors_of(function: &FunctionState) -> Vectors {
    (0..MAX_VECTORS)
        .map_while(|index| function.vector(index))
        .collect()
}

/// The half of a 64-bit register.
fn half(value: u64, half: Half) -> u32 {
    let shift = match half {
        Half::Low => 0,
        Half::High => 32,
    };
    #[expect(clippy::cast_possible_truncation, reason = "the half is 32 bits")]
    let bits = (value >> shift) as u32;
    bits
}

/// The low 16 bits, which is all that a register of two bytes is written with.
fn low(value: u32) -> u16 {
    let [a, b, _, _] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

impl<M: GuestAddressSpace> RegisterFile for Plugged<M> {
    fn read(&mut self, register: Register) -> u32 {
        let core = &mut self.core;
        match register {
            Register::DeviceFeatureSelect => core.device_feature_select(),
            Register::DeviceFeature => core.device_feature(),
            Register::DriverFeatureSelect => core.driver_feature_select(),
            Register::DriverFeature => core.driver_feature(),
            Register::ConfigMsixVector => self.interrupts.config_vector().into(),
            Register::NumQueues => core.num_queues().into(),
            Register::DeviceStatus => core.status().bits().into(),
            Register::ConfigGeneration => core.config_generation().into(),
            Register::QueueSelect => core.queue_select().into(),
            Register::QueueSize => core.queue_size().into(),
            Register::QueueMsixVector => self.interrupts.queue_vector(core.queue_select()).into(),
            Register::QueueEnable => core.queue_enabled().into(),
            Register::QueueNotifyOff => core.selected().map_or(0, |queue| queue.0.into()),
            Register::QueueDescLow => half(core.queue_address(QueueArea::Descriptor), Half::Low),
            Register::QueueDescHigh => half(core.queue_address(QueueArea::Descriptor), Half::High),
            Register::QueueDriverLow => half(core.queue_address(QueueArea::Driver), Half::Low),
            Register::QueueDriverHigh => half(core.queue_address(QueueArea::Driver), Half::High),
            Register::QueueDeviceLow => half(core.queue_address(QueueArea::Device), Half::Low),
            Register::QueueDeviceHigh => half(core.queue_address(QueueArea::Device), Half::High),
            // A queue is reset before the write returns; the other three belong to features that this
            // transport does not offer.
            Register::QueueReset
            | Register::QueueNotifConfigData
            | Register::AdminQueueIndex
            | Register::AdminQueueNum => 0,
        }
    }

    fn write(&mut self, register: Register, value: u32) {
        let core = &mut self.core;
        match register {
            Register::DeviceFeatureSelect => core.set_device_feature_select(value),
            Register::DriverFeatureSelect => core.set_driver_feature_select(value),
            Register::DriverFeature => core.set_driver_feature(value),
            Register::ConfigMsixVector => self.interrupts.set_config_vector(low(value)),
            Register::DeviceStatus => self.write_status(value.to_le_bytes()[0]),
            Register::QueueSelect => core.set_queue_select(low(value)),
            Register::QueueSize => core.set_queue_size(low(value)),
            Register::QueueMsixVector => {
                let queue = core.queue_select();
                let before = self.interrupts.queue_vector(queue);
                self.interrupts.set_queue_vector(queue, low(value));
                let changed = self.interrupts.queue_vector(queue) != before;
                if changed && self.function.msix_enabled() {
                    core.call_changed(QueueIndex(queue));
                }
            }
            // "The driver MUST NOT write a 0 to queue_enable" (virtio 1.4, 4.1.4.3.2): only 1 means
            // anything, in either register.
            Register::QueueEnable => {
                if value == 1 && core.enable_queue() {
                    self.bind_kicks();
                }
            }
            Register::QueueReset => {
                let queue = core.queue_select();
                if value == 1 && core.reset_queue() {
                    // "The device MUST reset any state of a virtqueue to the default state" (virtio
                    // 1.4, 2.6.1.1); its vector is none.
                    self.interrupts.set_queue_vector(queue, NO_VECTOR);
                    self.bind_kicks();
                }
            }
            Register::QueueDescLow => self.set_address(QueueArea::Descriptor, Half::Low, value),
            Register::QueueDescHigh => self.set_address(QueueArea::Descriptor, Half::High, value),
            Register::QueueDriverLow => self.set_address(QueueArea::Driver, Half::Low, value),
            Register::QueueDriverHigh => self.set_address(QueueArea::Driver, Half::High, value),
            Register::QueueDeviceLow => self.set_address(QueueArea::Device, Half::Low, value),
            Register::QueueDeviceHigh => self.set_address(QueueArea::Device, Half::High, value),
            Register::DeviceFeature
            | Register::NumQueues
            | Register::ConfigGeneration
            | Register::QueueNotifyOff
            | Register::QueueNotifConfigData
            | Register::AdminQueueIndex
            | Register::AdminQueueNum => {}
        }
    }
}
