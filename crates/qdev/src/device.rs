//! Devices: what each level of a class does, what a class says of all its devices, and where one device is
//! in its life.
//!
//! A device's phase moves only under a claim, which one thread has at a time: whoever moves a device claims
//! it first and holds no lock meanwhile.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, ThreadId};

use qom::{Class, Object};

use crate::sync::lock;
use crate::{Category, Error, Machine, Phase};

/// What one level of a device's class does. One value serves all devices of the class; what a
/// device has of its own is in the parts of its object.
///
/// Called by the [`Machine`] with no lock held, on the thread that moves the device; never for the
/// same device on two threads at once.
#[doc(alias = "DeviceClass")]
pub trait DeviceLevel: Send + Sync {
    /// Makes the device work, as far as this level is concerned: reads the properties, takes what
    /// it needs from the machine, and puts its state into the object's parts.
    ///
    /// Before: the properties are final, the bus has accepted the device, and the levels of the
    /// parents have realized. After: the levels of the children may build on this one. Devices that
    /// this level makes itself, such as the model behind a transport, it realizes with
    /// [`Machine::realize`] on a bus that it adds with [`Machine::add_bus`]; both are undone
    /// without its help. Called again only after [`unrealize`](Self::unrealize).
    ///
    /// # Errors
    /// Whatever the device has to say. The level itself undoes what it did; the levels before it
    /// are unrealized.
    fn realize(&self, device: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error>;

    /// Undoes [`realize`](Self::realize). The device is off its bus, the devices on its own buses
    /// are unrealized, and so are the levels of the children. Called once for each realize that
    /// succeeded.
    ///
    /// It is not called when the machine is dropped: what a part holds must also go when the part
    /// is dropped.
    fn unrealize(&self, device: &Arc<Object>, machine: &Arc<Machine>) {
        let _ = (device, machine);
    }

    /// Goes back to the state after [`realize`](Self::realize), keeping the properties. The devices
    /// on its own buses were reset before, and so were the levels of the children. May be called
    /// any number of times while realized.
    fn reset(&self, device: &Arc<Object>) {
        let _ = device;
    }
}

#[derive(Clone)]
pub(crate) struct Level {
    pub(crate) name: Arc<str>,
    pub(crate) role: Arc<dyn DeviceLevel>,
}

/// What all devices of a class share; a part of the class. A class starts with its parent's.
#[derive(Clone)]
pub struct DeviceClass {
    /// Type of the bus that such a device goes on; `None` if on none.
    pub bus_type: Option<&'static str>,
    /// Can be added by an option string.
    pub user_creatable: bool,
    /// Can come and go while the machine runs.
    pub hotpluggable: bool,
    /// What help prints of it; may be empty.
    pub description: &'static str,
    /// Where help lists it.
    pub category: Category,
    /// Why there can be no such devices yet: QEMU has the type, and it is refused by name. The end of a
    /// sentence, such as `there is no legacy interface`.
    pub unbuilt: Option<&'static str>,
    pub(crate) levels: Vec<Level>,
}

impl Default for DeviceClass {
    fn default() -> Self {
        Self {
            bus_type: None,
            user_creatable: true,
            hotpluggable: true,
            description: "",
            category: Category::default(),
            unbuilt: None,
            levels: Vec::new(),
        }
    }
}

impl DeviceClass {
    pub(crate) fn check_built(&self, driver: &str) -> Result<(), Error> {
        self.unbuilt.map_or(Ok(()), |reason| {
            Err(Error::NotBuilt {
                driver: driver.to_owned(),
                reason,
            })
        })
    }
}

impl fmt::Debug for DeviceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceClass")
            .field("bus_type", &self.bus_type)
            .field("user_creatable", &self.user_creatable)
            .field("hotpluggable", &self.hotpluggable)
            .field(
                "levels",
                &self
                    .levels
                    .iter()
                    .map(|level| &level.name)
                    .collect::<Vec<_>>(),
            )
            .finish_non_exhaustive()
    }
}

/// Adds the level of the class that is being initialized, below those of its parents. For
/// `class_init`.
#[doc(alias = "device_class_set_parent_realize")]
pub fn add_level(class: &mut Class, role: impl DeviceLevel + 'static) {
    let name = class.name().clone();
    class.part_mut::<DeviceClass>().levels.push(Level {
        name,
        role: Arc::new(role),
    });
}

/// What every device has; a part of its object.
#[derive(Debug)]
pub struct DeviceState {
    inner: Mutex<Inner>,
    /// Signalled when a claim is given up.
    released: Condvar,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// The thread that is moving the device.
    claimed: Option<ThreadId>,
    id: Option<Arc<str>>,
    hotplugged: bool,
    buses: Vec<OwnBus>,
}

#[derive(Debug)]
struct OwnBus {
    bus: Weak<Object>,
    /// A level added it while it realized, so it goes when the device is unrealized.
    of_realize: bool,
}

impl Default for DeviceState {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                phase: Phase::Created,
                claimed: None,
                id: None,
                hotplugged: false,
                buses: Vec::new(),
            }),
            released: Condvar::new(),
        }
    }
}

impl DeviceState {
    pub(crate) const PARENT_BUS: &'static str = "parent_bus";

    /// The state of a device.
    ///
    /// # Errors
    /// [`Error::NotADevice`].
    pub fn of(device: &Object) -> Result<Arc<Self>, Error> {
        device
            .part()
            .ok_or_else(|| Error::NotADevice(device.type_name().to_string()))
    }

    /// The bus that a device is on.
    #[must_use]
    pub fn bus_of(device: &Object) -> Option<Arc<Object>> {
        device.link(Self::PARENT_BUS)
    }

    /// Where the device is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        lock(&self.inner).phase
    }

    /// The id that the user gave it.
    #[must_use]
    pub fn id(&self) -> Option<Arc<str>> {
        lock(&self.inner).id.clone()
    }

    /// Whether it came while the machine was running.
    #[must_use]
    pub fn is_hotplugged(&self) -> bool {
        lock(&self.inner).hotplugged
    }

    /// The buses that the device has, in the order in which they were added.
    #[must_use]
    pub fn buses(&self) -> Vec<Arc<Object>> {
        lock(&self.inner)
            .buses
            .iter()
            .filter_map(|own| own.bus.upgrade())
            .collect()
    }

    pub(crate) fn set_id(&self, id: Option<&str>) {
        lock(&self.inner).id = id.map(Into::into);
    }

    pub(crate) fn set_hotplugged(&self, hotplugged: bool) {
        lock(&self.inner).hotplugged = hotplugged;
    }

    pub(crate) fn add_bus(&self, bus: &Arc<Object>) {
        let mut inner = lock(&self.inner);
        let of_realize = inner.claimed.is_some();
        inner.buses.push(OwnBus {
            bus: Arc::downgrade(bus),
            of_realize,
        });
    }

    /// Takes the buses out that levels added, in the order in which they did.
    pub(crate) fn take_buses_of_realize(&self) -> Vec<Arc<Object>> {
        let mut inner = lock(&self.inner);
        let taken = inner.buses.extract_if(.., |own| own.of_realize);
        taken.filter_map(|own| own.bus.upgrade()).collect()
    }

    /// Makes this thread the one that moves the device, until the claim is dropped.
    pub(crate) fn claim<'a>(&'a self, device: &'a Object) -> Result<Claim<'a>, Error> {
        let mut inner = lock(&self.inner);
        if inner.claimed.is_some() {
            return Err(Error::Busy(device.type_name().to_string()));
        }
        inner.claimed = Some(thread::current().id());
        drop(inner);
        Ok(Claim {
            state: self,
            device,
        })
    }

    /// As [`claim`](Self::claim), but waits for another thread to give its claim up. Only for a
    /// device below one that this thread has claimed: such waits go down the tree, and nobody waits
    /// upwards.
    pub(crate) fn claim_below<'a>(&'a self, device: &'a Object) -> Result<Claim<'a>, Error> {
        let this_thread = thread::current().id();
        let mut inner = lock(&self.inner);
        while let Some(thread) = inner.claimed {
            if thread == this_thread {
                return Err(Error::Busy(device.type_name().to_string()));
            }
            inner = self
                .released
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner.claimed = Some(this_thread);
        drop(inner);
        Ok(Claim {
            state: self,
            device,
        })
    }

    /// Goes to another phase if that is legal from where the device is.
    pub(crate) fn advance(&self, device: &Object, to: Phase) -> Result<(), Error> {
        let mut inner = lock(&self.inner);
        let from = inner.phase;
        if from.may_become(to) {
            inner.phase = to;
            return Ok(());
        }
        drop(inner);
        Err(Error::IllegalMove {
            device: device.type_name().to_string(),
            from,
            to,
        })
    }
}

/// The right to move one device.
pub(crate) struct Claim<'a> {
    state: &'a DeviceState,
    device: &'a Object,
}

impl Claim<'_> {
    pub(crate) fn advance(&self, to: Phase) -> Result<(), Error> {
        self.state.advance(self.device, to)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.state.inner).claimed = None;
        self.state.released.notify_all();
    }
}
