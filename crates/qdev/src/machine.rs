//! The owner of the tree: its buses, its devices, and the services that devices ask for.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use qom::{Object, Step, TypeRegistry};

use crate::sync::lock;
use crate::{Bus, BusState, DEVICE, DeviceState, Error, Phase};

/// The owner of devices and buses.
///
/// It is dropped like any value: the tree goes with the last reference, without unrealizing. Hold a
/// `Weak` inside of devices, buses and services.
pub struct Machine {
    registry: Arc<TypeRegistry>,
    /// Owns the rest of the tree.
    root: Arc<Object>,
    object: Arc<Object>,
    pub(crate) peripheral: Arc<Object>,
    pub(crate) peripheral_anon: Arc<Object>,
    pub(crate) unattached: Arc<Object>,
    pub(crate) next_anonymous: AtomicUsize,
    pub(crate) next_unattached: AtomicUsize,
    is_running: AtomicBool,
    services: Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
}

/// One line of the list of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Type of the device.
    pub type_name: Arc<str>,
    /// The id that the user gave it.
    pub id: Option<Arc<str>>,
    /// Path in the tree.
    pub path: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Name of the bus that it is on.
    pub bus: Option<String>,
}

impl Machine {
    /// A machine with no device and no bus: `/machine` and its containers.
    ///
    /// # Errors
    /// None, if the registry was made by [`TypeRegistry::new`].
    pub fn new(registry: Arc<TypeRegistry>) -> Result<Arc<Self>, Error> {
        let root = registry.new_root()?;
        let container = |parent: &Arc<Object>, name| -> Result<Arc<Object>, Error> {
            let object = registry.new_object("container")?;
            parent.add_child(name, object.clone())?;
            Ok(object)
        };
        let object = container(&root, "machine")?;
        Ok(Arc::new(Self {
            peripheral: container(&object, "peripheral")?,
            peripheral_anon: container(&object, "peripheral-anon")?,
            unattached: container(&object, "unattached")?,
            next_anonymous: AtomicUsize::new(0),
            next_unattached: AtomicUsize::new(0),
            is_running: AtomicBool::new(false),
            services: Mutex::default(),
            registry,
            root,
            object,
        }))
    }

    /// The types of the machine.
    #[must_use]
    pub fn registry(&self) -> &Arc<TypeRegistry> {
        &self.registry
    }

    /// The object at `/machine`.
    #[must_use]
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    pub(crate) fn root(&self) -> &Arc<Object> {
        &self.root
    }

    /// The object at a path such as `/machine/peripheral/net0`.
    #[must_use]
    pub fn resolve(&self, path: &str) -> Option<Arc<Object>> {
        self.object.resolve(path)
    }

    /// Ends the building: what is added from here on is hot-plugged, which its bus and class must
    /// support.
    pub fn set_running(&self) {
        self.is_running.store(true, Ordering::Release);
    }

    /// Whether the building has ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    /// Provides a service, by its type, to devices that are realized from here on; `T` may be a
    /// trait object. Returns the one that it replaces.
    pub fn provide<T: ?Sized + Send + Sync + 'static>(&self, service: Arc<T>) -> Option<Arc<T>> {
        let replaced = lock(&self.services).insert(TypeId::of::<T>(), Box::new(service));
        replaced?.downcast().ok().map(|service| *service)
    }

    /// The service of type `T`, such as `dyn MsiSink`.
    ///
    /// # Errors
    /// [`Error::MissingService`], naming the type.
    pub fn service<T: ?Sized + Send + Sync + 'static>(&self) -> Result<Arc<T>, Error> {
        let services = lock(&self.services);
        let service = services
            .get(&TypeId::of::<T>())
            .and_then(|service| service.downcast_ref());
        service
            .cloned()
            .ok_or_else(|| Error::MissingService(std::any::type_name::<T>()))
    }

    /// Adds a bus below `owner`: the device that has it, or [`object`](Self::object) for one of the
    /// machine's own. A bus that a level adds while its device is realized goes when the device is
    /// unrealized.
    ///
    /// # Errors
    /// [`Error::NotABus`] if the type is none, [`qom::PropertyError::Duplicate`] if the owner has
    /// something of this name.
    #[doc(alias = "qbus_new")]
    pub fn add_bus(
        &self,
        owner: &Arc<Object>,
        type_name: &str,
        name: &str,
        role: Arc<dyn Bus>,
    ) -> Result<Arc<Object>, Error> {
        let bus = self.registry.new_object(type_name)?;
        if !bus.is_a(crate::BUS) {
            return Err(Error::NotABus(type_name.to_owned()));
        }
        bus.set_part(BusState::new(name, role));
        owner.add_child(name, bus.clone())?;
        if let Some(state) = owner.part::<DeviceState>() {
            state.add_bus(&bus);
        }
        Ok(bus)
    }

    /// All buses: each before those below it, in the order in which they were added.
    #[must_use]
    pub fn buses(&self) -> Vec<Arc<Object>> {
        self.objects_of(crate::BUS)
    }

    /// All devices: each before those below it, in the order in which they were added.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let info = |device: Arc<Object>| {
            let state = DeviceState::of(&device).ok()?;
            let bus = DeviceState::bus_of(&device).and_then(|bus| BusState::of(&bus).ok());
            Some(DeviceInfo {
                type_name: device.type_name().clone(),
                id: state.id(),
                path: device.path()?,
                phase: state.phase(),
                bus: bus.map(|bus| bus.name().to_owned()),
            })
        };
        self.objects_of(DEVICE)
            .into_iter()
            .filter_map(info)
            .collect()
    }

    pub(crate) fn objects_of(&self, type_name: &str) -> Vec<Arc<Object>> {
        let mut found = Vec::new();
        let mut ahead = vec![self.object.clone()];
        while let Some(object) = ahead.pop() {
            ahead.extend(object.children().into_iter().rev().map(|(_, child)| child));
            if object.is_a(type_name) {
                found.push(object);
            }
        }
        found
    }

    pub(crate) fn observe(&self, step: Step, level: &Arc<str>, object: &Object) {
        tracing::trace!(
            step = step.as_str(),
            level = &**level,
            object = &**object.type_name()
        );
        self.registry.observe(step, level, object.type_name());
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("devices", &self.devices())
            .finish_non_exhaustive()
    }
}
