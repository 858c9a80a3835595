//! The tree listed and read, and buses found by path.

use qdev::Error;
use qom::Value;

use crate::machine::Toys;

#[test]
fn the_tree_is_drawn_with_types() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=t0")?;
    toys.add("toy")?;
    let peripheral = "\
/peripheral (container)
  /t0 (toy)
    /backend (toy-model)
    /model-bus (transport-model-bus)
";
    assert_eq!(toys.machine.qom_tree("/machine/peripheral")?, peripheral);
    assert_eq!(toys.machine.qom_tree("peripheral")?, peripheral);
    let all = toys.machine.qom_tree("/")?;
    assert!(
        all.starts_with("/ (container)\n  /machine (container)\n    /peripheral"),
        "{all}"
    );
    assert!(all.contains("\n    /slot.0 (slot-bus)\n"), "{all}");
    Ok(())
}

#[test]
fn properties_are_listed_and_read_by_path() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=t0,size=512")?;
    let list = |path: &str| -> Result<Vec<String>, Error> {
        let properties = toys.machine.qom_list(path)?;
        Ok(properties.iter().map(ToString::to_string).collect())
    };
    assert_eq!(
        list("/machine/peripheral")?,
        ["t0 (child<toy>)", "type (string)"]
    );
    assert_eq!(
        list("slot.0")?,
        ["child[0] (link<toy>)", "realized (bool)", "type (string)"]
    );
    let toy = list("t0")?;
    for line in [
        "backend (child<toy-model>)",
        "hotplugged (bool)",
        "mac (str)",
        "parent_bus (link<bus>)",
        "size (uint16)",
        "speed (int32)",
    ] {
        assert!(toy.iter().any(|listed| listed == line), "{line} in {toy:?}");
    }
    // (path, property, value)
    for (path, property, value) in [
        ("/machine/peripheral/t0", "size", "512"),
        ("t0", "backend", "\"/machine/peripheral/t0/backend\""),
        ("t0", "parent_bus", "\"/machine/slot.0\""),
        ("t0", "realized", "true"),
        ("t0", "netdev", "\"\""),
        ("t0", "legacy", "\"auto\""),
        ("t0", "type", "\"toy\""),
        ("slot.0", "child[0]", "\"/machine/peripheral/t0\""),
        (
            "t0/model-bus",
            "child[0]",
            "\"/machine/peripheral/t0/backend\"",
        ),
    ] {
        let read = toys.machine.qom_get(path, property)?.json().to_string();
        assert_eq!(read, value, "{path} {property}");
    }
    Ok(())
}

#[test]
fn what_is_not_in_the_tree_is_refused_in_qemus_words() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=t0")?;
    toys.add("toy,id=t1")?;
    for (path, property, expected) in [
        ("/nosuch", "type", "Device '/nosuch' not found"),
        ("nosuch", "type", "Device 'nosuch' not found"),
        ("backend", "type", "Path 'backend' is ambiguous"),
        ("", "type", "Device '' not found"),
        ("t0", "nosuch", "Property 'toy.nosuch' not found"),
    ] {
        let error = toys
            .machine
            .qom_get(path, property)
            .map_err(|error| error.to_string());
        assert_eq!(error, Err(expected.to_owned()), "{path} {property}");
    }
    Ok(())
}

#[test]
fn a_bus_has_a_link_to_each_device_while_it_is_there() -> Result<(), Error> {
    let toys = Toys::new()?;
    let at = |name: &str| toys.machine.qom_get("/machine/slot.0", name).ok();
    toys.add("toy,id=t0")?;
    toys.add("toy,id=t1")?;
    toys.machine.device_del("t0")?;
    assert_eq!(at("child[0]"), None);
    assert_eq!(at("child[1]"), Some(Value::from("/machine/peripheral/t1")));
    // Numbers are not used again.
    toys.add("toy,id=t2")?;
    assert_eq!(at("child[0]"), None);
    assert_eq!(at("child[2]"), Some(Value::from("/machine/peripheral/t2")));
    Ok(())
}

#[test]
fn a_bus_is_found_by_name_by_path_and_over_devices() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=t0")?;
    toys.add("fixture,id=f0")?;
    let model_bus = "/machine/peripheral/t0/model-bus";
    for (asked, expected) in [
        ("slot.0", Ok("/machine/slot.0")),
        ("/machine/slot.0", Ok("/machine/slot.0")),
        (model_bus, Ok(model_bus)),
        ("model-bus", Ok(model_bus)),
        ("slot.0/t0/model-bus", Ok(model_bus)),
        ("slot.0/t0", Ok(model_bus)),
        ("slot.0/toy", Ok(model_bus)),
        ("", Err("Bus '' not found")),
        ("nosuch/t0", Err("Bus 'nosuch' not found")),
        ("/machine", Err("Bus '/machine' not found")),
        ("slot.0/nosuch", Err("Device 'nosuch' not found")),
        ("slot.0/t0/nosuch", Err("Bus 'nosuch' not found")),
        ("slot.0/f0", Err("Device 'f0' has no child bus")),
    ] {
        let found = match toys.machine.find_bus(asked) {
            Ok(bus) => Ok(bus.path().unwrap_or_default()),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(
            found.as_deref().map_err(String::as_str),
            expected,
            "{asked:?}"
        );
    }
    Ok(())
}
