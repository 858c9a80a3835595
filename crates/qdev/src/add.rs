//! Devices from option strings: `device_add`, `device_del`, and which bus a device goes on.
//!
//! The steps and their order are QEMU's, and so are the words of the errors: users search for them. What is
//! done with a device once it is made is in `lifecycle`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keyval::Options;
use qom::{Class, Object, PropertyError};

use crate::lifecycle::Undo;
use crate::{BusState, DEVICE, DeviceClass, DeviceState, Error, Machine, UnplugAnswer, set_text};

impl Machine {
    /// Adds a device from an option string, whose first word is its type:
    /// `virtio-net-pci,id=net0,netdev=tap0`. `bus` names the bus, or gives its path, else the first
    /// with room is taken; `id` names the device; all else are properties.
    ///
    /// # Errors
    /// Of each step its own, see [`Error`]; nothing is left behind.
    #[doc(alias = "qdev_device_add")]
    pub fn device_add(self: &Arc<Self>, options: Options) -> Result<Arc<Object>, Error> {
        self.add(options, self.is_running())
    }

    /// Takes a device out, and puts a fresh one that an option string describes in its place, as if the machine had
    /// been built with it: nobody asks or tells the guest, and the bus need not support hotplugging. For who restores
    /// a saved device into a machine that stands still.
    ///
    /// # Errors
    /// [`Error::Busy`], with the device still there; else those of [`device_add`](Self::device_add), and it is gone.
    pub fn replace(
        self: &Arc<Self>,
        device: &Arc<Object>,
        options: Options,
    ) -> Result<Arc<Object>, Error> {
        self.finish_unplug(device)?;
        self.add(options, false)
    }

    fn add(self: &Arc<Self>, mut options: Options, is_hotplug: bool) -> Result<Arc<Object>, Error> {
        if options.wants_help() {
            return Err(Error::WantsHelp);
        }
        for warning in options.short_forms() {
            tracing::warn!("{warning}");
        }
        let id = options.take_id()?;
        // QEMU 7.2: while the machine is built an id is looked at before all else, later when it is given.
        if let Some(id) = id.as_ref().filter(|id| self.peripheral.child(id).is_some())
            && !is_hotplug
        {
            return Err(self.duplicate_id(id));
        }
        let driver = options.take_required("driver")?;
        let driver = self.registry().canonical_name(&driver);
        let class = self.device_class(driver, is_hotplug)?;
        let bus = self.bus_for(&class, options.take("bus").as_deref(), is_hotplug)?;

        let device = self.registry().new_object(driver)?;
        let mut undo = Undo::new();
        self.adopt(&device, id.as_deref())?;
        undo.push(|| device.unparent());
        DeviceState::of(&device)?.set_id(id.as_deref());
        while let Some((name, text)) = options.take_next() {
            set_text(&device, &name, &text)?;
        }
        self.realize(&device, bus.as_ref())?;
        undo.disarm();
        Ok(device)
    }

    /// Asks the device with this id, or at this path, to leave, and removes it if its bus lets it go at once.
    /// A device without an id has only its path: `/machine/peripheral-anon/device[0]`.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`], [`Error::NotAHotpluggableDevice`] of an object that is no device, and those
    /// of [`request_unplug`](Self::request_unplug).
    #[doc(alias = "qmp_device_del")]
    pub fn device_del(self: &Arc<Self>, id: &str) -> Result<UnplugAnswer, Error> {
        let object = self.peripheral.resolve(id);
        let object = object.ok_or_else(|| Error::DeviceNotFound(id.to_owned()))?;
        if !object.is_a(DEVICE) {
            return Err(Error::NotAHotpluggableDevice(id.to_owned()));
        }
        self.request_unplug(&object)
    }

    /// The device with this id.
    #[must_use]
    pub fn device(&self, id: &str) -> Option<Arc<Object>> {
        self.peripheral.child(id)
    }

    fn device_class(&self, driver: &str, is_hotplug: bool) -> Result<Arc<Class>, Error> {
        let unknown = || Error::NotADeviceModel(driver.to_owned());
        let class = self.registry().class(driver).map_err(|error| match error {
            qom::Error::UnknownType(_) => unknown(),
            error => error.into(),
        })?;
        let Some(device) = class.part::<DeviceClass>().filter(|_| class.is_a(DEVICE)) else {
            return Err(unknown());
        };
        if class.is_abstract() {
            return Err(Error::AbstractDriver);
        }
        device.check_built(driver)?;
        if !device.user_creatable || (is_hotplug && !device.hotpluggable) {
            return Err(Error::NotPluggable);
        }
        Ok(class)
    }

    /// The bus that a device of this class goes on: the one that was asked for, or the first with
    /// room.
    #[doc(alias = "qbus_find")]
    fn bus_for(
        &self,
        class: &Class,
        asked: Option<&str>,
        is_hotplug: bool,
    ) -> Result<Option<Arc<Object>>, Error> {
        let wanted = class.part::<DeviceClass>().and_then(|class| class.bus_type);
        let device = || class.name().to_string();
        let bus = match (asked, wanted) {
            (None, None) => return Ok(None),
            (None, Some(wanted)) => self
                .buses()
                .into_iter()
                .find(|bus| bus.is_a(wanted) && BusState::of(bus).is_ok_and(|bus| !bus.is_full()))
                .ok_or_else(|| Error::NoBus {
                    bus: wanted.to_owned(),
                    device: device(),
                })?,
            (Some(asked), wanted) => {
                let bus = self.find_bus(asked)?;
                let state = BusState::of(&bus)?;
                if state.is_full() {
                    return Err(Error::BusFull(state.name().to_owned()));
                }
                if !wanted.is_some_and(|wanted| bus.is_a(wanted)) {
                    let bus = bus.type_name().to_string();
                    return Err(Error::WrongBus {
                        device: device(),
                        bus,
                    });
                }
                bus
            }
        };
        let state = BusState::of(&bus)?;
        if is_hotplug && !state.role().is_hotpluggable() {
            return Err(Error::BusNotHotpluggable(state.name().to_owned()));
        }
        Ok(Some(bus))
    }

    /// The bus that `bus` names: its name, such as `pci.0`; its path, such as `/machine/pci.0`; or from a
    /// bus by its name down over devices, by id or type, and their buses, such as `pci.0/net0/virtio-bus`,
    /// where the name of a device's only bus may be left out.
    ///
    /// # Errors
    /// [`Error::BusNotFound`], [`Error::DeviceNotFound`], [`Error::NoChildBus`],
    /// [`Error::SeveralChildBuses`].
    pub fn find_bus(&self, asked: &str) -> Result<Arc<Object>, Error> {
        let not_found = |name: &str| Error::BusNotFound(name.to_owned());
        if asked.starts_with('/') {
            let object = self.resolve(asked);
            let bus = object.filter(|object| object.is_a(crate::BUS));
            return bus.ok_or_else(|| not_found(asked));
        }
        let mut names = asked.split('/');
        let first = names.next().unwrap_or_default();
        let mut bus = named_bus(self.buses(), first).ok_or_else(|| not_found(first))?;
        while let Some(name) = names.next() {
            let device = device_on(&bus, name)?;
            let mut buses = DeviceState::of(&device)?.buses();
            bus = match names.next() {
                Some(name) => named_bus(buses, name).ok_or_else(|| not_found(name))?,
                None => match (buses.pop(), buses.is_empty()) {
                    (Some(only), true) => only,
                    (Some(_), false) => return Err(Error::SeveralChildBuses(name.to_owned())),
                    (None, _) => return Err(Error::NoChildBus(name.to_owned())),
                },
            };
        }
        Ok(bus)
    }

    fn duplicate_id(&self, id: &str) -> Error {
        let id = id.to_owned();
        if self.is_running() {
            Error::DuplicateDeviceId(id)
        } else {
            Error::DuplicateId(id)
        }
    }

    fn adopt(&self, device: &Arc<Object>, id: Option<&str>) -> Result<(), Error> {
        if let Some(id) = id {
            return self
                .peripheral
                .add_child(id, device.clone())
                .map_err(|error| match error {
                    PropertyError::Duplicate { name, .. } => self.duplicate_id(&name),
                    error => error.into(),
                });
        }
        let number = self.next_anonymous.fetch_add(1, Ordering::Relaxed);
        Ok(self
            .peripheral_anon
            .add_child(&format!("device[{number}]"), device.clone())?)
    }
}

fn named_bus(buses: Vec<Arc<Object>>, name: &str) -> Option<Arc<Object>> {
    let is_named = |bus: &Arc<Object>| BusState::of(bus).is_ok_and(|bus| bus.name() == name);
    buses.into_iter().find(is_named)
}

/// The device of this id on a bus, else the first one of this type.
#[doc(alias = "qbus_find_dev")]
fn device_on(bus: &Object, name: &str) -> Result<Arc<Object>, Error> {
    let devices = BusState::of(bus)?.devices();
    let has_id = |device: &&Arc<Object>| {
        DeviceState::of(device).is_ok_and(|state| state.id().as_deref() == Some(name))
    };
    let by_id = devices.iter().find(has_id);
    by_id
        .or_else(|| devices.iter().find(|device| &**device.type_name() == name))
        .cloned()
        .ok_or_else(|| Error::DeviceNotFound(name.to_owned()))
}
