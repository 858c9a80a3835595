//! The function: one lock around registers, configuration space and what is bound.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use virtio::F;
use virtio_bus::{
    ANY_LAYOUT, BusTransport, DeviceRef, Health, Hold, KickBinder, PlugError, TransportFeatures,
    VirtioBus, VirtioCore,
};
use virtqueue::NOTIFY_ON_EMPTY;
use vm_memory::GuestAddressSpace;
use vm_pci::{Attachment, BarIndex, BarWindow, ConfigEffect, Express, MsiSink, Msix, PciFunction};

use crate::interrupts::{Interrupts, QueueInterrupt};
use crate::kicks::BoundKicks;
use crate::layout::{Form, MAX_QUEUES, MAX_VECTORS};
use crate::plugged::{Plugged, vectors_of};
use crate::saved::{SaveError, SavedPci};
use crate::window::Window;

/// How a [`VirtioPci`] looks and works, where that is not the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioPciConfig {
    /// MSI-X vectors, at most 2048; 0 for a function without MSI-X. `None`: as many as the
    /// device is best given. [QEMU: `vectors`]
    pub vectors: Option<u16>,
    /// The PCI class, three bytes: base class, subclass, programming interface. `None`: what QEMU gives
    /// the type of device.
    pub class: Option<u32>,
    /// Have notify registers bound to kicks, where the machine can. Otherwise each notification goes
    /// through the BAR handler. [QEMU: `ioeventfd`]
    pub ioeventfd: bool,
    /// Have the legacy interface, if the type of device has one: a transitional function, or without
    /// [`modern`](Self::modern) a legacy one. [QEMU: `disable-legacy`]
    pub legacy: bool,
    /// Have the modern interface. [QEMU: `disable-modern`]
    pub modern: bool,
    /// What the legacy interface offers that no other does. [QEMU: `notify_on_empty`, `any_layout`]
    pub legacy_features: F,
    /// A page for each notify register, so that they can be given to guests or processes one by one.
    /// [QEMU: `page-per-vq`]
    pub page_per_vq: bool,
    /// A notify register in ports as well, which is faster where an access to memory has to be decoded first.
    /// [QEMU: `modern-pio-notify`]
    pub modern_pio_notify: bool,
    /// Offer VIRTIO_F_NOTIFICATION_DATA: drivers say with a notification how far they got.
    pub notification_data: bool,
    /// Offer VIRTIO_F_NOTIF_CONFIG_DATA: drivers name a queue in a notification as the device tells them to.
    pub notif_config_data: bool,
    /// Offer VIRTIO_F_ACCESS_PLATFORM, and want it accepted: the addresses that drivers give are those of the
    /// machine's IOMMU. Guest memory is then to be given to [`VirtioPci::new`] as the IOMMU shows it to this function
    /// (`vm_memory::IommuMemory` over the VMM's own `Iommu`). Each part of a ring has to be in one piece there. Buffers
    /// are looked up chain by chain; rings when they are enabled and when the map is another, so a VMM that
    /// withdraws the mapping of a ring puts a new map in place. Not with the legacy interface, which has no such
    /// feature. [QEMU: `iommu_platform`]
    pub iommu_platform: bool,
    /// Offer VIRTIO_F_ORDER_PLATFORM: drivers use the barriers of hardware devices, which are no weaker than what
    /// the rings here ask for.
    pub order_platform: bool,
    /// Offer VIRTIO_F_SUSPEND: drivers may suspend the device and have it resume.
    pub suspend: bool,
    /// The function is the first of a device that has several, and says so. [QEMU: `multifunction`]
    pub multifunction: bool,
    /// The PCI Express form, for a slot where functions have it: capabilities for function-level reset, power
    /// states and the like.
    pub express: Option<Express>,
}

impl Default for VirtioPciConfig {
    fn default() -> Self {
        Self {
            vectors: None,
            class: None,
            ioeventfd: true,
            legacy: true,
            modern: true,
            legacy_features: ANY_LAYOUT.union(NOTIFY_ON_EMPTY),
            page_per_vq: false,
            modern_pio_notify: false,
            notification_data: false,
            notif_config_data: false,
            iommu_platform: false,
            order_platform: false,
            suspend: false,
            multifunction: false,
            express: None,
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
    /// Neither interface.
    #[error("device cannot work as neither modern nor legacy mode is enabled")]
    NoInterface,
}

/// A PCI function that is the transport of one virtio device. By default it is transitional, as QEMU's in a
/// conventional slot: drivers find the modern interface in its capabilities, and older ones the legacy registers
/// in I/O BAR 0. Which one a driver uses is decided by what it writes first, until the next reset.
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
        if !config.legacy && !config.modern {
            return Err(Error::NoInterface);
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

    /// MSI-X vectors that the function has: 0 without MSI-X. `None` while no device is plugged.
    pub fn vectors(&self) -> Option<u16> {
        let state = self.state();
        let msix = state.plugged.as_ref()?.function.msix();
        Some(msix.map_or(0, Msix::vectors))
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

    /// What the driver has set, and what the device is in the middle of. The function is [paused](Self::pause), and may
    /// go on afterwards.
    ///
    /// # Errors
    /// [`SaveError`], but for [`SaveError::NotOnABus`] and [`SaveError::State`].
    #[doc(alias = "virtio_save")]
    pub fn save(&self) -> Result<SavedPci, SaveError> {
        let state = self.state();
        let plugged = state.plugged.as_ref().ok_or(SaveError::NoDevice)?;
        if !state.held_by_vmm {
            return Err(SaveError::NotPaused);
        }
        plugged.save().ok_or(SaveError::Unsupported)
    }

    /// Goes on where another function was when it was saved, here or in another process: it was configured as this one,
    /// its device was created as the one here, and guest memory is as it was. The function is on its PCI bus and
    /// [paused](Self::pause); the device does its first I/O when it is [resumed](Self::resume).
    ///
    /// Whatever the driver of this function has set before is lost.
    ///
    /// # Errors
    /// [`SaveError`]. The function is as after power-on then, but for one that is not paused, is not on a bus or has no
    /// device: that is as it was.
    #[doc(alias = "virtio_load")]
    pub fn restore(&self, saved: &SavedPci) -> Result<(), SaveError> {
        let mut state = self.state();
        let held = state.held_by_vmm;
        let forwarding = (state.attachment.as_ref()).map(|at| Arc::clone(&at.forwarding));
        let plugged = state.plugged.as_mut().ok_or(SaveError::NoDevice)?;
        let forwarding = forwarding.ok_or(SaveError::NotOnABus)?;
        if !held {
            return Err(SaveError::NotPaused);
        }
        let restored = plugged.restore(saved);
        drop(state);
        // The bus asks for them under this lock.
        forwarding.windows_changed(self);
        restored.map_err(SaveError::State)
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

/// What this transport does to the features that a device offers: it has neither virtual functions nor
/// administration queues, and what else it can is the configuration's choice.
fn transport_features(config: &VirtioPciConfig) -> TransportFeatures {
    let mut features = TransportFeatures {
        adds: F::VERSION_1,
        withholds: F::SR_IOV | F::ADMIN_VQ,
    };
    let choices = [
        (config.notification_data, F::NOTIFICATION_DATA),
        (config.notif_config_data, F::NOTIF_CONFIG_DATA),
        (config.iommu_platform, F::ACCESS_PLATFORM),
        (config.order_platform, F::ORDER_PLATFORM),
        (config.suspend, F::SUSPEND),
    ];
    for (wanted, feature) in choices {
        if wanted {
            features.adds |= feature;
        } else {
            features.withholds |= feature;
        }
    }
    features
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
            u16::try_from(device.default_vectors()).map_or(MAX_VECTORS, |all| all.min(MAX_VECTORS))
        });
        let form = Form::new(&self.config, id, vectors, device.config_len())
            .ok_or_else(|| PlugError::Unsuitable(Error::NoInterface.to_string()))?;
        if form.has_legacy() && self.config.iommu_platform {
            return Err(PlugError::Unsuitable(
                "VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device"
                    .to_owned(),
            ));
        }
        let (mut function, window) = form.build().map_err(unsuitable)?;
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
        }
        let vectors = vectors_of(&function);
        interrupts.connect(Arc::clone(&vectors));
        let backlink: Weak<Interrupts> = Arc::downgrade(&interrupts);
        let mut core = VirtioCore::new(
            Arc::clone(device),
            self.memory.clone(),
            &transport_features(&self.config),
            backlink,
            health,
            |queue| QueueInterrupt::notifier(&interrupts, &vectors, queue),
        )
        .map_err(|source| PlugError::Host {
            what: "cannot make a kick for each queue",
            source,
        })?;
        if form.has_legacy() {
            core.offer_legacy(self.config.legacy_features | device.legacy_features());
        }
        core.set_hold(Hold::Vmm, state.held_by_vmm);
        state.plugged = Some(Plugged {
            function,
            core,
            interrupts,
            kicks: (self.config.ioeventfd).then(|| BoundKicks::new(Arc::clone(&self.kick_binder))),
            window: window.map(Window::new),
            form,
        });
        Ok(())
    }

    fn device_unplugged(&self, _device: &DeviceRef<M>) {
        let mut state = self.state();
        let plugged = state.plugged.take();
        let forwarding = (state.attachment.as_ref()).map(|at| Arc::clone(&at.forwarding));
        drop(state);
        // The windows went with the device, and the bus asks for them under this lock.
        if let Some(forwarding) = forwarding {
            forwarding.windows_changed(self);
        }
        if let Some(plugged) = plugged {
            plugged.take_apart();
        }
    }
}

impl<M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static> PciFunction for VirtioPci<M> {
    fn attached(&self, attachment: Attachment) -> Result<(), vm_pci::Error> {
        let mut state = self.state();
        if let Some(plugged) = &mut state.plugged {
            plugged.attach(&attachment, self.msi_sink.as_ref())?;
        }
        state.attachment = Some(attachment);
        Ok(())
    }

    fn detached(&self) {
        let mut state = self.state();
        if let Some(plugged) = &mut state.plugged {
            plugged.detach();
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
            plugged.reset();
        }
    }
}
