//! What there is while a device is plugged: what each access to configuration space and BARs does.

use std::sync::Arc;

use virtio::F;
use virtio_bus::{
    Half, Hold, Interface, KickAddress, KickSpace, QueueArea, StatusEffect, VirtioCore, signal,
};
use virtqueue::QueueIndex;
use vm_memory::GuestAddressSpace;
use vm_pci::registers::Command;
use vm_pci::{Attachment, BarIndex, ConfigEffect, Error, FunctionState, MsiSink};

use crate::interrupts::{Interrupts, NO_VECTOR, QueueInterrupt, Vectors};
use crate::kicks::BoundKicks;
use crate::layout::{Contents, Form, MAX_VECTORS, NOTIFY_OFFSET, Region};
use crate::legacy;
use crate::registers::{self, COMMON, Register, RegisterFile};
use crate::saved::{self, SavedPci};
use crate::window::Window;

/// All that there is only with a device.
#[derive(Debug)]
pub(crate) struct Plugged<M: GuestAddressSpace> {
    pub(crate) function: FunctionState,
    pub(crate) core: VirtioCore<M>,
    pub(crate) interrupts: Arc<Interrupts>,
    /// `None` without `ioeventfd`.
    pub(crate) kicks: Option<BoundKicks>,
    /// `None` without the modern interface.
    pub(crate) window: Option<Window>,
    pub(crate) form: Form,
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
        self.core.set_hold(Hold::Power, false);
    }

    /// Takes over what another function, made as this one, was saved as; as after power-on when that fails. The VMM
    /// holds the device.
    pub(crate) fn restore(&mut self, saved: &SavedPci) -> Result<(), vmstate::Error> {
        self.reset();
        let restored = self.take_over(saved);
        if restored.is_err() {
            self.reset();
        }
        restored
    }

    fn take_over(&mut self, saved: &SavedPci) -> Result<(), vmstate::Error> {
        self.function.restore(&saved.function)?;
        self.interrupts
            .restore(&saved.interrupts)
            .map_err(|field| {
                vmstate::Error::refused(saved::SECTION, field, "the function has no such vector")
            })?;
        self.interrupts.set_msix(self.function.msix_enabled());
        self.core.set_hold(Hold::Power, !self.function.is_on());
        self.core.restore(&saved.core, &saved.device)?;
        self.bind_kicks();
        // What was made available before, and a kick that was on its way.
        self.core.kick_live();
        Ok(())
    }

    fn reset_device(&mut self) {
        self.core.reset();
        self.interrupts.reset();
        self.bind_kicks();
    }

    /// Binds the notify registers of live queues where accesses come to them now, and none elsewhere:
    /// what a guest has put over RAM or over a device of the machine stays theirs.
    fn bind_kicks(&mut self) {
        let Some(kicks) = &mut self.kicks else {
            return;
        };
        // A write with more than the queue's number in it matches no value.
        let with_data = self.core.negotiated().contains(F::NOTIFICATION_DATA);
        let is_legacy = self.core.interface() == Some(Interface::Legacy);
        let form = &self.form;
        let mut wanted = Vec::new();
        for window in self.function.forwarded_windows() {
            let register = |queue: QueueIndex| match form.contents(window.bar)? {
                Contents::Modern if !is_legacy => {
                    let offset = u64::from(queue.0) * u64::from(form.notify_multiplier());
                    Some(KickAddress {
                        space: KickSpace::Mmio,
                        address: window.base.checked_add(u64::from(NOTIFY_OFFSET) + offset)?,
                        len: None,
                        value: None,
                    })
                }
                Contents::PioNotify if !is_legacy && !with_data => {
                    Some(by_value(window.base, queue))
                }
                Contents::Legacy if is_legacy => {
                    Some(by_value(window.base.checked_add(legacy::NOTIFY)?, queue))
                }
                _ => None,
            };
            for (queue, kick) in self.core.live_queues() {
                wanted.extend(register(queue).map(|at| (at, Arc::clone(kick))));
            }
        }
        kicks.update(&wanted);
    }

    pub(crate) fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(window) = self.touched_window(offset, data.len()) {
            let mut value = [0; 4];
            if let Some((bar, at, len)) = self.window_access(window)
                && let Some(bytes) = value.get_mut(..len)
            {
                self.bar_read(bar, at, bytes);
            }
            let at = window.data().start;
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
        if change.function_reset {
            // It takes BARs and command register along (PCI Express 6.0, 6.6.2).
            self.reset();
            return ConfigEffect {
                windows_changed: true,
            };
        }
        self.core.set_hold(Hold::Power, !change.is_on);
        let was_master = change.old_command.contains(Command::BUS_MASTER);
        let is_master = change.command.contains(Command::BUS_MASTER);
        if was_master != is_master {
            self.core.set_hold(Hold::BusMaster, !is_master);
        }
        if change.effect.windows_changed {
            self.bind_kicks();
        }
        if let Some(window) = self.touched_window(offset, data.len())
            && let Some((bar, at, len)) = self.window_access(window)
        {
            let mut value = [0; 4];
            let from = window.data().start;
            self.function.config().read(from, &mut value);
            if let Some(bytes) = value.get(..len) {
                self.bar_write(bar, at, bytes);
            }
        }
        change.effect
    }

    /// The window in configuration space, if the access touches what is behind it.
    fn touched_window(&self, offset: u16, len: usize) -> Option<Window> {
        self.window.filter(|window| window.is_touched(offset, len))
    }

    fn window_access(&self, window: Window) -> Option<(BarIndex, u64, usize)> {
        let access = window.access(self.function.config(), |bar| {
            let bar = BarIndex::new(bar).ok()?;
            match self.form.contents(bar)? {
                Contents::Modern | Contents::PioNotify => self.function.bars().size(bar),
                Contents::Legacy => None,
            }
        })?;
        let bar = BarIndex::new(access.bar).ok()?;
        Some((bar, access.offset, access.len))
    }

    pub(crate) fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        match self.form.contents(bar) {
            Some(Contents::Modern) => self.modern_read(offset, data),
            Some(Contents::Legacy) => self.legacy_read(offset, data),
            Some(Contents::PioNotify) => data.fill(0),
            None => {
                if !self.function.msix_read(bar, offset, data) {
                    data.fill(0);
                }
            }
        }
    }

    pub(crate) fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        match self.form.contents(bar) {
            Some(Contents::Modern) => self.modern_write(offset, data),
            Some(Contents::Legacy) => self.legacy_write(offset, data),
            Some(Contents::PioNotify) => self.notify_by_value(data),
            None => {
                self.function.msix_write(bar, offset, data);
            }
        }
    }

    /// Reads the structures in BAR 4; an access over the end of one goes on in the next.
    fn modern_read(&mut self, mut offset: u64, mut data: &mut [u8]) {
        while let Some((region, inside, room)) = Region::at(offset, &self.form) {
            let (part, rest) = data.split_at_mut(room.min(data.len()));
            match region {
                Region::Common => registers::read(self, &COMMON, inside, part),
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
        while let Some((region, inside, room)) = Region::at(offset, &self.form) {
            let (part, rest) = data.split_at(room.min(data.len()));
            match region {
                Region::Common => registers::write(self, &COMMON, inside, part),
                Region::Device => {
                    if self.core.interface() != Some(Interface::Legacy) {
                        self.core.write_config(inside, part);
                    }
                }
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
    /// whose register it starts, if the device has that queue. What else the value may say
    /// (VIRTIO_F_NOTIFICATION_DATA) the device finds in the ring.
    fn notify(&self, offset: u64) {
        let queue = offset / u64::from(self.form.notify_multiplier());
        if let Ok(queue) = u16::try_from(queue) {
            self.signal_modern(QueueIndex(queue));
        }
    }

    /// A write to the one notify register for all queues: its first two bytes name the queue.
    fn notify_by_value(&self, data: &[u8]) {
        let value = match *data {
            [low, high, ..] => u16::from_le_bytes([low, high]),
            [low] => low.into(),
            [] => return,
        };
        self.signal_modern(QueueIndex(value));
    }

    fn signal_modern(&self, queue: QueueIndex) {
        if self.core.interface() == Some(Interface::Legacy) {
            return;
        }
        if let Some((_, kick)) = self.core.live_queues().find(|(live, _)| *live == queue) {
            signal(kick);
        }
    }

    /// What a write to either status register, or one that made the device run, came to.
    pub(crate) fn take_effect(&mut self, effect: StatusEffect) {
        match effect {
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

    /// Maps the selected queue to `vector`.
    pub(crate) fn map_queue(&mut self, vector: u16) {
        let queue = self.core.queue_select();
        let before = self.interrupts.queue_vector(queue);
        self.interrupts.set_queue_vector(queue, vector);
        let changed = self.interrupts.queue_vector(queue) != before;
        if changed && self.function.msix_enabled() {
            self.core.call_changed(QueueIndex(queue));
        }
    }

    /// Whether a driver's write to a modern register counts, which none but a reset does while another uses the
    /// legacy interface. The registers that only select or map do not yet say which interface it is.
    fn counts(&mut self, register: Register, value: u32) -> bool {
        match register {
            Register::DeviceStatus if value == 0 => true,
            Register::ConfigMsixVector | Register::QueueMsixVector if self.core.is_suspended() => {
                false
            }
            Register::DeviceFeatureSelect
            | Register::DriverFeatureSelect
            | Register::QueueSelect
            | Register::ConfigMsixVector
            | Register::QueueMsixVector => self.core.interface() != Some(Interface::Legacy),
            _ => self.core.claim(Interface::Modern),
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

/// Ports in which the value names the queue.
fn by_value(address: u64, queue: QueueIndex) -> KickAddress {
    KickAddress {
        space: KickSpace::Port,
        address,
        len: Some(2),
        value: Some(queue.0.into()),
    }
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
pub(crate) fn low(value: u32) -> u16 {
    let [a, b, _, _] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

impl<M: GuestAddressSpace> RegisterFile<Register> for Plugged<M> {
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
            // What drivers are to call a queue in a notification: by its index.
            Register::QueueNotifConfigData => match core.selected() {
                Some(queue) if core.negotiated().contains(F::NOTIF_CONFIG_DATA) => queue.0.into(),
                _ => 0,
            },
            // A queue is reset before the write returns; there are no administration queues.
            Register::QueueReset | Register::AdminQueueIndex | Register::AdminQueueNum => 0,
        }
    }

    fn write(&mut self, register: Register, value: u32) {
        if !self.counts(register, value) {
            return;
        }
        let core = &mut self.core;
        match register {
            Register::DeviceFeatureSelect => core.set_device_feature_select(value),
            Register::DriverFeatureSelect => core.set_driver_feature_select(value),
            Register::DriverFeature => core.set_driver_feature(value),
            Register::ConfigMsixVector => self.interrupts.set_config_vector(low(value)),
            Register::DeviceStatus => {
                let effect = core.write_status(value.to_le_bytes()[0]);
                self.take_effect(effect);
            }
            Register::QueueSelect => core.set_queue_select(low(value)),
            Register::QueueSize => core.set_queue_size(low(value)),
            Register::QueueMsixVector => self.map_queue(low(value)),
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
