//! The function: one lock around registers, configuration space and what is bound.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use virtio::F;
use virtio_bus::{
    BusTransport, DeviceRef, Health, Hold, KickBinder, PlugError, TransportFeatures, VirtioBus,
    VirtioCore,
};
use vm_memory::GuestAddressSpace;
use vm_pci::{Attachment, BarIndex, BarWindow, ConfigEffect, MsiSink, Msix, PciFunction};

use crate::interrupts::{Interrupts, QueueInterrupt};
use crate::kicks::BoundKicks;
use crate::layout::{self, MAX_QUEUES, MAX_VECTORS, modern_bar};
use crate::plugged::{Plugged, vectors_of};
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
            u16::try_from(device.default_vectors()).map_or(MAX_VECTORS, |all| all.min(MAX_VECTORS))
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
        }
        let vectors = vectors_of(&function);
        interrupts.connect(Arc::clone(&vectors));
        let backlink: Weak<Interrupts> = Arc::downgrade(&interrupts);
        let mut core = VirtioCore::new(
            Arc::clone(device),
            self.memory.clone(),
            &transport_features(),
            backlink,
            health,
            |queue| QueueInterrupt::notifier(&interrupts, &vectors, queue),
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
