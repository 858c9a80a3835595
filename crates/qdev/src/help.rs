//! What `-device help` and `-device TYPE,help` print, in QEMU's layout.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use keyval::help::is_help;
use keyval::{OptionInfo, Options};
use qom::{Class, PropertyEntry, TypeRegistry};

use crate::{Category, DEVICE, DeviceClass, Error};

/// What `-device` prints with these options, if they ask for help: of a type, its properties as
/// [`device_help`] has them; else [`device_list`]. `None` if they ask for a device.
///
/// # Errors
/// Those of [`device_help`].
#[doc(alias = "qdev_device_help")]
pub fn help(registry: &Arc<TypeRegistry>, options: &Options) -> Result<Option<String>, Error> {
    let driver = options.get("driver").filter(|driver| !is_help(driver));
    match driver {
        Some(_) if !options.wants_help() => Ok(None),
        Some(driver) => device_help(registry, driver).map(Some),
        None if options.wants_help() || options.get("driver").is_some() => {
            device_list(registry).map(Some)
        }
        None => Ok(None),
    }
}

/// The types that `-device` takes, by category and name. Those that are [not built](DeviceClass::unbuilt)
/// are listed apart.
///
/// # Errors
/// When a registered type has no class, as its parent is unknown.
pub fn device_list(registry: &TypeRegistry) -> Result<String, Error> {
    let mut categories: BTreeMap<(bool, Category), Vec<String>> = BTreeMap::new();
    for name in registry.type_names() {
        let class = registry.class(name)?;
        if let Some(device) = concrete_device(&class)
            && device.user_creatable
        {
            let category = (device.unbuilt.is_some(), device.category);
            let line = type_line(registry, name, device);
            categories.entry(category).or_default().push(line);
        }
    }
    let sections: Vec<_> = (categories.into_iter())
        .map(|((is_unbuilt, category), lines)| {
            let not_built = if is_unbuilt {
                " that are not built"
            } else {
                ""
            };
            format!("{category} devices{not_built}:\n{}", lines.concat())
        })
        .collect();
    Ok(sections.join("\n"))
}

fn type_line(registry: &TypeRegistry, name: &str, device: &DeviceClass) -> String {
    let mut line = format!("name \"{name}\"");
    let alias = registry.alias_of(name).map(AsRef::as_ref);
    let description = Some(device.description).filter(|text| !text.is_empty());
    let bus = device.bus_type.map(|bus| format!(", bus {bus}"));
    line.push_str(&bus.unwrap_or_default());
    for (word, text) in [("alias", alias), ("desc", description)] {
        if let Some(text) = text {
            // Writing to a `String` does not fail.
            let _ = write!(line, ", {word} \"{text}\"");
        }
    }
    line.push('\n');
    line
}

/// The properties that can be set of devices of a type, by name, and the children that they are made with.
/// Apart from them those that QEMU does not have, and those that are not built, whose default is only what
/// it is where they are.
///
/// # Errors
/// [`Error::DeviceNotFound`] if there is no such type, [`Error::NotAConcreteType`],
/// [`Error::NotBuilt`], and what an `instance_init` reports.
#[doc(alias = "qmp_device_list_properties")]
pub fn device_help(registry: &Arc<TypeRegistry>, driver: &str) -> Result<String, Error> {
    let name = registry.canonical_name(driver);
    let class = registry.class(name).map_err(|error| match error {
        qom::Error::UnknownType(_) => Error::DeviceNotFound(driver.to_owned()),
        error => error.into(),
    })?;
    let device = concrete_device(&class).ok_or(Error::NotAConcreteType)?;
    device.check_built(name)?;
    let object = registry.new_object(name)?;
    let (ours, qemus): (Vec<_>, Vec<_>) = (object.properties().into_iter())
        .filter(|property| property.is_settable || property.is_child)
        .partition(|property| property.is_our_own);

    let mut text = format!("{name} options:\n");
    text.extend(qemus.iter().map(option_line));
    if !ours.is_empty() {
        text.push_str(&format!("\n{name} options that QEMU does not have:\n"));
        text.extend(ours.iter().map(option_line));
    }
    let unbuilt: String = qemus.iter().filter_map(unbuilt_line).collect();
    if !unbuilt.is_empty() {
        text.push_str(&format!(
            "\n{name} options that are not built and take nothing else than:\n{unbuilt}"
        ));
    }
    Ok(text)
}

fn option_line(property: &PropertyEntry) -> String {
    let default = (property.default.as_ref()).map(|value| value.json().to_string());
    let line = OptionInfo {
        name: &property.name,
        type_name: &property.type_name,
        description: property.description,
        default: default.as_deref(),
    };
    format!("{line}\n")
}

fn unbuilt_line(property: &PropertyEntry) -> Option<String> {
    let name = &property.name;
    Some(match property.unbuilt?.values() {
        None => format!("  {name} (no value)\n"),
        Some(values) => format!("  {name}={}\n", values.join("|")),
    })
}

fn concrete_device(class: &Class) -> Option<&DeviceClass> {
    let is_device = class.is_a(DEVICE) && !class.is_abstract();
    class.part::<DeviceClass>().filter(|_| is_device)
}
