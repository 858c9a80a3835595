//! The function: one lock around registers, configuration space and what is bound.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use virtio::F;
use virtio_bus::{
    BusTransport, DeviceRef, Half, Health, Hold, KickAddress, KickBinder, KickSpace, PlugError,
    QueueArea, StatusEffect, TransportFeatures, VirtioBus, VirtioCore, signal,
};
use vm_memory::GuestAddressSpace;
use vm_pci::registers::Command;
use vm_pci::{
    Attachment, BarIndex, BarSpace, BarWindow, ConfigEffect, FunctionState, MsiSink, PciFunction,
};

use crate::interrupts::{Interrupts, QueueInterrupt};
use crate::kicks::BoundKicks;
use crate::layout::{
    self, MAX_QUEUES, MAX_VECTORS, NOTIFY_MULTIPLIER, NOTIFY_OFFSET, Region, modern_bar,
};
use crate::registers::{self, Register, RegisterFile};
use crate::window::Window;

/// How a [`VirtioPci`] looks and works, where that is not the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioPciConfig {
    /// MSI-X vectors, at most 2048; 0 for a function without MSI-X. `None`: one for each queue and one
    /// for configuration changes. [QEMU: `vectors`]
    pub vectors: Option<u16>,
    /// The PCI class, three bytes: base class, subclass, programming interface. `None`: what QEMU gives
    /// the type of device.
    pub class: Option<u32>,
    /// Have notify registers bound to kicks, where the machine can. Otherwise each notification goes
    /// through the BAR handler. [QEMU: `ioeventfd`]
    pub ioeventfd: bool,
}

impl Default for VirtioPciConfig {
    fn default() -> Self {
        Self {
            vectors: None,
            class: None,
            ioeventfd: true,
        }
    }
}

/// Why no transport was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More vectors than an MSI-X capability can have.
    #[error("a function has at most 2048 MSI-X vectors, not {0}")]
    TooManyVectors(u16),
}

/// A PCI function that is the transport of one virtio device. Modern only: device id 0x1040 + type,
/// revision 1, no legacy I/O BAR.
///
/// With no device on its [`bus`](Self::bus) there is no function either: configuration space reads all
/// ones. Plug the device, then put the function on its PCI bus.
///
/// While the driver has bus mastering off, the device is held: it must not read or write memory (PCI
/// 3.0, 6.2.2). A driver that never switches it on, as some firmware does, is served all the same,
/// except that MSI-X messages are memory writes and stay pending.
pub struct VirtioPci<M: GuestAddressSpace> {
    config: VirtioPciConfig,
    memory: M,
    msi_sink: Arc<dyn MsiSink>,
    kick_binder: Arc<dyn KickBinder>,
    bus: Arc<VirtioBus<M>>,
    /// The transport's one lock. Taken after the bus's slot, before anything of the device, of the
    /// interrupt pin or of the machine. Never taken by a data path.
    state: Mutex<State<M>>,
}

#[derive(Debug)]
struct State<M: GuestAddressSpace> {
    plugged: Option<Plugged<M>>,
    attachment: Option<Attachment>,
    held_by_vmm: bool,
}

/// All that there is only with a device.
#[derive(Debug)]
struct Plugged<M: GuestAddressSpace> {
    function: FunctionState,
    core: VirtioCore<M>,
    interrupts: Arc<Interrupts>,
    /// `None` without `ioeventfd`.
    kicks: Option<BoundKicks>,
    window: Window,
    bar: BarIndex,
}

impl<M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static> VirtioPci<M> {
    /// A transport with an empty bus. `memory` is handed to the device when its driver is live,
    /// `msi_sink` makes the vectors when the function goes on its PCI bus, and `kick_binder` is asked
    /// to bind notify registers while the driver is live.
    ///
    /// # Errors
    /// [`Error`], for a configuration that no function can have.
    pub fn new(
        config: VirtioPciConfig,
        memory: M,
        msi_sink: Arc<dyn MsiSink>,
        kick_binder: Arc<dyn KickBinder>,
    ) -> Result<Arc<Self>, Error> {
        if let Some(vectors) = config.vectors.filter(|vectors| *vectors > MAX_VECTORS) {
            return Err(Error::TooManyVectors(vectors));
        }
        Ok(Arc::new_cyclic(|weak: &Weak<Self>| Self {
            config,
            memory,
            msi_sink,
            kick_binder,
            bus: Arc::new(VirtioBus::new("virtio-bus", weak.clone())),
            state: Mutex::new(State {
                plugged: None,
                attachment: None,
                held_by_vmm: false,
            }),
        }))
    }

    /// The bus that the device goes on.
    pub fn bus(&self) -> &Arc<VirtioBus<M>> {
        &self.bus
    }

    /// Stops all I/O of the device and waits for what is in flight. Registers go on working. May be
    /// called twice.
    pub fn pause(&self) {
        self.hold(true);
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.hold(false);
    }

    fn hold(&self, held: bool) {
        let mut state = self.state();
        state.held_by_vmm = held;
        if let Some(plugged) = &mut state.plugged {
            plugged.core.set_hold(Hold::Vmm, held);
        }
    }
}

impl<M: GuestAddressSpace> VirtioPci<M> {
    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: GuestAddressSpace> Drop for VirtioPci<M> {
    /// A device may be in the middle of its work: it stops before its memory and queues go.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugged) = state.plugged.take() {
            plugged.take_apart();
        }
    }
}

impl<M: GuestAddressSpace> fmt::Debug for VirtioPci<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What this transport does to the features that a device offers: it is never legacy, and it does not
/// carry data in notifications, virtual functions, administration queues or suspension.
fn transport_features() -> TransportFeatures {
    TransportFeatures {
        adds: F::VERSION_1,
        withholds: F::NOTIFICATION_DATA
            | F::NOTIF_CONFIG_DATA
            | F::SR_IOV
            | F::ADMIN_VQ
            | F::SUSPEND,
    }
}

impl<M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static> BusTransport<M> for VirtioPci<M> {
    fn pre_plug(&self, device: &DeviceRef<M>) -> Result<(), PlugError> {
        let queues = device.queue_max_sizes().len();
        if queues > MAX_QUEUES {
            return Err(PlugError::Unsuitable(format!(
                "virtio-pci has at most {MAX_QUEUES} queues, not {queues}"
            )));
        }
        Ok(())
    }

    fn device_plugged(&self, device: &DeviceRef<M>) -> Result<(), PlugError> {
        let unsuitable = |error: vm_pci::Error| PlugError::Unsuitable(error.to_string());
        let id = device.device_type();
        let queues = device.queue_max_sizes().len();
        let vectors = self.config.vectors.unwrap_or_else(|| {
            u16::try_from(queues.saturating_add(1)).map_or(MAX_VECTORS, |all| all.min(MAX_VECTORS))
        });
        let (mut function, window) =
            layout::build(id, self.config.class, vectors).map_err(unsuitable)?;
        let health = Arc::new(Health::default());
        let interrupts = Arc::new(Interrupts::new(
            format!("virtio-pci {id:?}"),
            Arc::clone(&health),
            function.intx(),
            vectors,
            queues,
        ));
        let mut state = self.state();
        if let Some(attachment) = &state.attachment {
            function
                .connect(attachment, self.msi_sink.as_ref())
                .map_err(unsuitable)?;
            interrupts.connect(vectors_of(&function));
        }
        let backlink: Weak<Interrupts> = Arc::downgrade(&interrupts);
        let mut core = VirtioCore::new(
            Arc::clone(device),
            self.memory.clone(),
            &transport_features(),
            backlink,
            health,
            |queue| {
                Arc::new(QueueInterrupt {
                    interrupts: Arc::clone(&interrupts),
                    queue: queue.0,
                })
            },
        )
        .map_err(|source| PlugError::Host {
            what: "cannot make a kick for each queue",
            source,
        })?;
        core.set_hold(Hold::Vmm, state.held_by_vmm);
        state.plugged = Some(Plugged {
            function,
            core,
            interrupts,
            kicks: (self.config.ioeventfd).then(|| BoundKicks::new(Arc::clone(&self.kick_binder))),
            window: Window::new(window),
            bar: modern_bar().map_err(unsuitable)?,
        });
        Ok(())
    }

    fn device_unplugged(&self, _device: &DeviceRef<M>) {
        let plugged = self.state().plugged.take();
        if let Some(plugged) = plugged {
            plugged.take_apart();
        }
    }
}

impl<M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static> PciFunction for VirtioPci<M> {
    fn attached(&self, attachment: Attachment) -> Result<(), vm_pci::Error> {
        let mut state = self.state();
        if let Some(plugged) = &mut state.plugged {
            let function = &mut plugged.function;
            function.connect(&attachment, self.msi_sink.as_ref())?;
            plugged.interrupts.connect(vectors_of(function));
        }
        state.attachment = Some(attachment);
        Ok(())
    }

    fn detached(&self) {
        let mut state = self.state();
        if let Some(plugged) = &mut state.plugged {
            plugged.reset_device();
            plugged.function.disconnect();
        }
        state.attachment = None;
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        match &mut self.state().plugged {
            Some(plugged) => plugged.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        match &mut self.state().plugged {
            Some(plugged) => plugged.config_write(offset, data),
            None => ConfigEffect::default(),
        }
    }

    fn windows(&self) -> Vec<BarWindow> {
        (self.state().plugged.as_ref()).map_or_else(Vec::new, |plugged| plugged.function.windows())
    }

    fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        match &mut self.state().plugged {
            Some(plugged) => plugged.bar_read(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if let Some(plugged) = &mut self.state().plugged {
            plugged.bar_write(bar, offset, data);
        }
    }

    fn reset(&self) {
        if let Some(plugged) = &mut self.state().plugged {
            plugged.reset_device();
            plugged.function.reset();
            plugged.interrupts.set_msix(false);
            plugged.core.set_hold(Hold::BusMaster, false);
        }
    }
}

fn vectors_of(function: &FunctionState) -> Vec<Arc<dyn vm_pci::MsiVector>> {
    (0..MAX_VECTORS)
        .map_while(|index| function.vector(index))
        .collect()
}

impl<M: GuestAddressSpace> Plugged<M> {
    /// The device is leaving: nothing is bound, nothing asserted, and it knows.
    fn take_apart(mut self) {
        self.reset_device();
        self.function.disconnect();
        self.core.unplug();
    }

    fn reset_device(&mut self) {
        self.core.reset();
        self.interrupts.reset();
        self.bind_kicks();
    }

    /// Binds the notify registers of live queues where BAR 4 is decoded now, and none elsewhere.
    fn bind_kicks(&mut self) {
        let Some(kicks) = &mut self.kicks else {
            return;
        };
        let bar = self.bar;
        let window = (self.function.windows().into_iter())
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

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
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

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect {
        let change = self.function.config_write(offset, data);
        if change.msix_toggled {
            self.interrupts.set_msix(self.function.msix_enabled());
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

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if bar == self.bar {
            self.modern_read(offset, data);
        } else if !self.function.msix_read(bar, offset, data) {
            data.fill(0);
        }
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
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
                self.interrupts.set_queue_vector(queue, low(value));
            }
            // "The driver MUST NOT write a 0 to queue_enable" (virtio 1.4, 4.1.4.3.2): only 1 means
            // anything, in either register.
            Register::QueueEnable => {
                if value == 1 && core.enable_queue() {
                    self.bind_kicks();
                }
            }
            Register::QueueReset => {
                if value == 1 {
                    core.reset_queue();
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
