//! `info qtree`: buses, the devices on them, and what their properties came to.

use std::fmt::Write;
use std::sync::Arc;

use qdev::{BusState, DeviceState, Machine};
use qom::{Object, Value};

/// The buses that no device has, each with what is below it.
#[doc(alias = "hmp_info_qtree")]
pub(super) fn info_qtree(machine: &Machine) -> String {
    let mut text = String::new();
    for bus in machine.buses() {
        if !bus.parent().is_some_and(|owner| owner.is_a(qdev::DEVICE)) {
            bus_lines(&mut text, 0, &bus);
        }
    }
    text
}

fn bus_lines(text: &mut String, depth: usize, bus: &Arc<Object>) {
    let Ok(state) = BusState::of(bus) else { return };
    // Writing to a `String` does not fail.
    let _ = writeln!(text, "{:depth$}bus: {}", "", state.name());
    let _ = writeln!(text, "{:depth$}  type {}", "", bus.type_name());
    for device in state.devices() {
        device_lines(text, depth + 2, &device);
    }
}

fn device_lines(text: &mut String, depth: usize, device: &Arc<Object>) {
    let Ok(state) = DeviceState::of(device) else {
        return;
    };
    let id = state.id();
    let id = id.as_deref().unwrap_or_default();
    let _ = writeln!(
        text,
        "{:depth$}dev: {}, id \"{id}\"",
        "",
        device.type_name()
    );
    for property in device.class().properties() {
        let name = property.info.name;
        let value = device.value(name).ok().flatten();
        let value = value.unwrap_or_else(|| Value::from(""));
        let shown = match &value {
            // As 64 bits, whatever the property's width.
            #[expect(clippy::cast_possible_truncation, reason = "a negative value wraps")]
            Value::Int(number) => format!("{number} ({:#x})", *number as u64),
            other => other.json().to_string(),
        };
        let _ = writeln!(text, "{:depth$}  {name} = {shown}", "");
    }
    for bus in state.buses() {
        bus_lines(text, depth + 2, &bus);
    }
}
