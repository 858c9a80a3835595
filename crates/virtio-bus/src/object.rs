//! Virtio devices in the type registry: `virtio-device` and `virtio-bus`, both abstract.
//!
//! A model's type is below `virtio-device`; when it realizes, it puts its [`DeviceRef`] into its object's
//! parts. A transport's realize adds a bus with [`add_bus`] to itself; what is realized on that bus is
//! plugged into the [`VirtioBus`] once all its levels have realized.

use std::fmt;
use std::sync::Arc;

use qdev::{Bus, DEVICE, DeviceClass, DeviceLevel, Error, HotplugHandler, Machine, add_level};
use qom::{Object, PropertyInfo, TypeInfo, TypeRegistry, Unbuilt, Value};
use vm_memory::GuestAddressSpace;

use crate::{DeviceRef, VirtioBus};

/// The abstract parent of all models.
pub const VIRTIO_DEVICE: &str = "virtio-device";
/// The abstract parent of all buses that a model goes on.
pub const VIRTIO_BUS: &str = "virtio-bus";

/// Registers `virtio-device` and `virtio-bus`.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if that was done already.
pub fn register_types(registry: &mut TypeRegistry) -> Result<(), qom::Error> {
    registry.register(TypeInfo::new(VIRTIO_BUS, qdev::BUS).abstract_type())?;
    registry.register(
        TypeInfo::new(VIRTIO_DEVICE, DEVICE)
            .abstract_type()
            .class_init(|class| {
                class.add_properties(PROPERTIES);
                class.part_mut::<DeviceClass>().bus_type = Some(VIRTIO_BUS);
                add_level(class, VirtioDeviceLevel);
            }),
    )
}

/// Those that all models have. `indirect_desc`, `event_idx`, `queue_reset`, `packed` and `in_order` are the
/// model's to offer.
const PROPERTIES: &[PropertyInfo] = &[
    PropertyInfo::bool("indirect_desc", true).describe("on/off"),
    PropertyInfo::bool("event_idx", true).describe("on/off"),
    PropertyInfo::bool("queue_reset", true).describe("on/off"),
    // Of the legacy interface, whose transport asks for them: a modern device's layout is always any.
    PropertyInfo::bool("notify_on_empty", true).describe("on/off"),
    PropertyInfo::bool("any_layout", true).describe("on/off"),
    // It lifts a check of devices that have no legacy form, and the ones here have one: there is nothing to lift.
    PropertyInfo::bool("x-disable-legacy-check", false),
    // The transport asks for it too: memory is handed to it as an IOMMU shows it, where there is one.
    PropertyInfo::bool("iommu_platform", false).describe("on/off"),
    PropertyInfo::bool("packed", false).describe("on/off"),
    // Later than QEMU 7.2.
    PropertyInfo::bool("in_order", false).describe("on/off"),
    // They say what a migration stream has.
    PropertyInfo::bool("use-disabled-flag", true).unbuilt(ON),
    PropertyInfo::bool("use-started", true).unbuilt(ON),
];

const ON: Unbuilt = Unbuilt::Only(&Value::Bool(true));

/// Has nothing to do by itself; stands between `device` and the models in the order of realize.
struct VirtioDeviceLevel;

impl DeviceLevel for VirtioDeviceLevel {
    fn realize(&self, _: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("device of type '{0}' has no model for guest memory of this machine's type")]
struct NoModel(String);

/// Adds `bus` to the transport `owner`, as an object of `type_name`, for its realize; it goes when the
/// transport is unrealized.
///
/// # Errors
/// Those of [`Machine::add_bus`].
pub fn add_bus<M>(
    machine: &Machine,
    owner: &Arc<Object>,
    type_name: &str,
    bus: Arc<VirtioBus<M>>,
) -> Result<Arc<Object>, Error>
where
    M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static,
{
    let name = bus.name().to_owned();
    machine.add_bus(owner, type_name, &name, Arc::new(VirtioBusRole { bus }))
}

/// A [`VirtioBus`] as the tree's bus.
struct VirtioBusRole<M: GuestAddressSpace> {
    bus: Arc<VirtioBus<M>>,
}

impl<M> HotplugHandler for VirtioBusRole<M>
where
    M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static,
{
    fn plug(&self, device: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        let model = device
            .part::<DeviceRef<M>>()
            .ok_or_else(|| Error::other(NoModel(device.type_name().to_string())))?;
        self.bus
            .plug(DeviceRef::clone(&model))
            .map_err(Error::other)
    }

    fn unplug(&self, _: &Arc<Object>, _: &Arc<Machine>) {
        self.bus.unplug();
    }
}

impl<M> Bus for VirtioBusRole<M>
where
    M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static,
{
    fn max_devices(&self) -> Option<usize> {
        Some(1)
    }

    /// The transport is what comes and goes; its model goes with it.
    fn is_hotpluggable(&self) -> bool {
        false
    }
}
