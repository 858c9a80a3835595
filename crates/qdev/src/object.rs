//! The types `device` and `bus`, from which all others descend, and the properties that every device has.

use std::sync::Arc;

use qom::{Kind, OBJECT, Object, TypeInfo, TypeRegistry, Value};

use crate::{DeviceClass, DeviceState};

/// The root of all device types.
pub const DEVICE: &str = "device";
/// The root of all bus types.
pub const BUS: &str = "bus";

/// Registers `device` and `bus`, the abstract parents of all devices and buses.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if that was done already.
pub fn register_types(registry: &mut TypeRegistry) -> Result<(), qom::Error> {
    registry.register(
        TypeInfo::new(DEVICE, OBJECT)
            .abstract_type()
            .class_init(|class| class.set_part(DeviceClass::default()))
            .instance_init(|device| {
                device_init(device)?;
                Ok(())
            }),
    )?;
    registry.register(
        TypeInfo::new(BUS, OBJECT)
            .abstract_type()
            // A bus is there only while what has it is realized.
            .instance_init(|bus| {
                Ok(bus.add_computed("realized", Kind::Bool, |_| Some(Value::Bool(true)))?)
            }),
    )
}

fn device_init(device: &Arc<Object>) -> Result<(), qom::PropertyError> {
    device.set_part(DeviceState::default());
    let state = |object: &Object| object.part::<DeviceState>();
    device.add_computed("realized", Kind::Bool, move |device| {
        state(device).map(|state| Value::Bool(state.phase().is_realized()))
    })?;
    device.add_computed("hotplugged", Kind::Bool, move |device| {
        state(device).map(|state| Value::Bool(state.is_hotplugged()))
    })?;
    device.add_computed("hotpluggable", Kind::Bool, |device| {
        device
            .class()
            .part::<DeviceClass>()
            .map(|class| Value::Bool(class.hotpluggable))
    })?;
    device.add_link(DeviceState::PARENT_BUS, BUS)
}
