use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use qom::Object;

use crate::sync::lock;
use crate::{Error, Machine};

/// What a bus answers when a device is asked to leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnplugAnswer {
    /// It leaves now.
    Now,
    /// The guest was told. Once it has let go, the bus calls [`Machine::finish_unplug`]; if it
    /// refuses,
    /// [`Machine::cancel_unplug`].
    WaitForGuest,
}

/// Accepts devices and lets them go. Called by the [`Machine`] with no lock held, for one device on
/// one thread at a time, and for different devices on as many threads as there are.
///
/// [`pre_plug`](Self::pre_plug) pairs with [`withdraw`](Self::withdraw), [`plug`](Self::plug) with
/// [`unplug`](Self::unplug): each that succeeded is followed by its counterpart exactly once, the
/// later pair first. None of them is called when the machine is dropped.
pub trait HotplugHandler: Send + Sync {
    /// May the device come? Judges what only the bus knows, such as an address that is taken, and
    /// reserves it. The device's properties are final; it is not realized. Nothing may be visible
    /// to the guest.
    ///
    /// # Errors
    /// Refuses the device, whose realize then fails with this.
    fn pre_plug(&self, device: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
        let _ = (device, machine);
        Ok(())
    }

    /// Gives back what [`pre_plug`](Self::pre_plug) reserved. The device is not realized, or not
    /// any more.
    fn withdraw(&self, device: &Arc<Object>, machine: &Arc<Machine>) {
        let _ = (device, machine);
    }

    /// Takes the device, which is realized: from here on the guest may see it.
    ///
    /// # Errors
    /// Undoes its own work first. The device is then unrealized.
    fn plug(&self, device: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
        let _ = (device, machine);
        Ok(())
    }

    /// Asks that a plugged device may leave.
    ///
    /// # Errors
    /// The device stays.
    fn unplug_request(
        &self,
        device: &Arc<Object>,
        machine: &Arc<Machine>,
    ) -> Result<UnplugAnswer, Error> {
        let _ = (device, machine);
        Ok(UnplugAnswer::Now)
    }

    /// Lets a device go that is still realized: the guest cannot see it afterwards.
    fn unplug(&self, device: &Arc<Object>, machine: &Arc<Machine>) {
        let _ = (device, machine);
    }
}

/// The role of a concrete bus.
pub trait Bus: HotplugHandler {
    /// How many devices it has room for; `None` if the addresses on it are its own affair.
    fn max_devices(&self) -> Option<usize> {
        None
    }

    /// Whether devices can come and go while the machine runs.
    fn is_hotpluggable(&self) -> bool {
        true
    }

    /// Resets the bus itself, after the devices on it.
    fn reset(&self, bus: &Arc<Object>) {
        let _ = bus;
    }
}

/// What every bus has; a part of its object.
pub struct BusState {
    name: String,
    role: Arc<dyn Bus>,
    devices: Mutex<Vec<Weak<Object>>>,
}

impl BusState {
    pub(crate) fn new(name: &str, role: Arc<dyn Bus>) -> Self {
        Self {
            name: name.to_owned(),
            role,
            devices: Mutex::default(),
        }
    }

    /// The state of a bus.
    ///
    /// # Errors
    /// [`Error::NotABus`].
    pub fn of(bus: &Object) -> Result<Arc<Self>, Error> {
        bus.part()
            .ok_or_else(|| Error::NotABus(bus.type_name().to_string()))
    }

    /// Its name, such as `pci.0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The concrete bus.
    #[must_use]
    pub fn role(&self) -> &Arc<dyn Bus> {
        &self.role
    }

    /// The devices on it, in the order in which they came; those being realized are among them.
    #[must_use]
    pub fn devices(&self) -> Vec<Arc<Object>> {
        lock(&self.devices)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Whether it has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let devices = lock(&self.devices);
        self.no_room_beside(&devices)
    }

    fn no_room_beside(&self, devices: &[Weak<Object>]) -> bool {
        let taken = devices
            .iter()
            .filter(|device| device.strong_count() > 0)
            .count();
        self.role.max_devices().is_some_and(|max| taken >= max)
    }

    pub(crate) fn attach(&self, device: &Arc<Object>) -> Result<(), Error> {
        let mut devices = lock(&self.devices);
        if self.no_room_beside(&devices) {
            return Err(Error::BusFull(self.name.clone()));
        }
        devices.retain(|device| device.strong_count() > 0);
        devices.push(Arc::downgrade(device));
        Ok(())
    }

    pub(crate) fn detach(&self, device: &Arc<Object>) {
        lock(&self.devices).retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(device)));
    }
}

impl fmt::Debug for BusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
