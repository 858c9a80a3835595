//! Buses: the hooks that the author of one writes, and the state that each has.
//!
//! [`HotplugHandler`] and [`Bus`] are for other crates to implement. [`BusState`] is this crate's to change:
//! devices come on a bus and leave it through the [`Machine`] alone.

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
    /// With the numbers of their links.
    devices: Mutex<Children>,
}

#[derive(Debug, Default)]
struct Children {
    devices: Vec<(usize, Weak<Object>)>,
    /// Numbers are not used again.
    next: usize,
}

fn link_name(number: usize) -> String {
    format!("child[{number}]")
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
        let children = lock(&self.devices);
        let devices = children.devices.iter();
        devices.filter_map(|(_, device)| device.upgrade()).collect()
    }

    /// Whether it has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.has_no_room_beside(&lock(&self.devices))
    }

    fn has_no_room_beside(&self, children: &Children) -> bool {
        let alive = |(_, device): &&(usize, Weak<Object>)| device.strong_count() > 0;
        let taken = children.devices.iter().filter(alive).count();
        self.role.max_devices().is_some_and(|max| taken >= max)
    }

    /// Takes a device, to which `bus`, the object that this is the state of, has a link from here on.
    pub(crate) fn attach(&self, bus: &Object, device: &Arc<Object>) -> Result<(), Error> {
        let number = {
            let mut children = lock(&self.devices);
            if self.has_no_room_beside(&children) {
                return Err(Error::BusFull(self.name.clone()));
            }
            let number = children.next;
            children.next += 1;
            children.devices.push((number, Arc::downgrade(device)));
            number
        };
        let name = link_name(number);
        let linked = bus
            .add_link(&name, device.type_name())
            .and_then(|()| bus.set_link(&name, Some(device)));
        linked.map_err(|error| {
            self.detach(bus, device);
            error.into()
        })
    }

    pub(crate) fn detach(&self, bus: &Object, device: &Arc<Object>) {
        let gone: Vec<_> = lock(&self.devices)
            .devices
            .extract_if(.., |(_, other)| {
                std::ptr::eq(other.as_ptr(), Arc::as_ptr(device)) || other.strong_count() == 0
            })
            .collect();
        for (number, _) in gone {
            bus.remove_link(&link_name(number));
        }
    }
}

impl fmt::Debug for BusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusState")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
