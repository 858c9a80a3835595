//! The bus between one transport and one device.

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError, Weak};

use vm_memory::GuestAddressSpace;

use crate::device::DeviceRef;

/// Why a device was not plugged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlugError {
    /// The bus has a device already.
    #[error("Bus '{0}' is full")]
    Full(String),
    /// The transport is gone.
    #[error("Bus '{0}' has no transport")]
    NoTransport(String),
    /// The transport does not take the device as it is.
    #[error("{0}")]
    Unsuitable(String),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// The transport, as its bus sees it.
#[doc(alias = "VirtioBusClass")]
pub trait BusTransport<M: GuestAddressSpace>: Send + Sync + fmt::Debug {
    /// A device is about to be plugged. Nothing stands yet, so an error needs no undoing.
    ///
    /// # Errors
    /// When the transport cannot take this device.
    fn pre_plug(&self, device: &DeviceRef<M>) -> Result<(), PlugError> {
        let _ = device;
        Ok(())
    }

    /// The device is on the bus: show it to the guest, and tell it with
    /// [`plugged`](crate::VirtioDevice::plugged) where to report.
    ///
    /// # Errors
    /// The device leaves the bus; the transport has undone what it did.
    fn device_plugged(&self, device: &DeviceRef<M>) -> Result<(), PlugError>;

    /// The device leaves the bus: reset it, tell it with
    /// [`unplugged`](crate::VirtioDevice::unplugged), and hide it from the guest.
    fn device_unplugged(&self, device: &DeviceRef<M>);
}

/// The place where one device meets one transport. Owned by the transport; owns the device.
#[derive(Debug)]
pub struct VirtioBus<M: GuestAddressSpace> {
    name: String,
    transport: Weak<dyn BusTransport<M>>,
    /// Held while the transport is called, which takes its own lock within; never taken by a
    /// device or a data path.
    slot: Mutex<Option<DeviceRef<M>>>,
}

impl<M: GuestAddressSpace> VirtioBus<M> {
    /// The bus of `transport`, called `name` (`virtio-bus`), with no device.
    pub fn new(name: impl Into<String>, transport: Weak<dyn BusTransport<M>>) -> Self {
        Self {
            name: name.into(),
            transport,
            slot: Mutex::new(None),
        }
    }

    /// The name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts `device` on the bus and has the transport show it.
    ///
    /// # Errors
    /// [`PlugError`]; the bus is then as it was.
    #[doc(alias = "virtio_bus_device_plugged")]
    pub fn plug(&self, device: DeviceRef<M>) -> Result<(), PlugError> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_some() {
            return Err(PlugError::Full(self.name.clone()));
        }
        let transport = self
            .transport
            .upgrade()
            .ok_or_else(|| PlugError::NoTransport(self.name.clone()))?;
        transport.pre_plug(&device)?;
        transport.device_plugged(&device)?;
        *slot = Some(device);
        Ok(())
    }

    /// Takes the device off the bus, reset and told so. Does nothing on an empty bus.
    #[doc(alias = "virtio_bus_device_unplugged")]
    pub fn unplug(&self) -> Option<DeviceRef<M>> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let device = slot.take()?;
        if let Some(transport) = self.transport.upgrade() {
            transport.device_unplugged(&device);
        }
        Some(device)
    }

    /// The device on the bus.
    pub fn device(&self) -> Option<DeviceRef<M>> {
        self.slot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
