//! Devices from option strings, and the words of what is wrong with one.

use std::sync::Arc;

use crate::machine::{GuestHasASay, ToyBus, Toys};
use qdev::{BusState, Error, MacAddr, Phase, UnplugAnswer};
use qom::OnOffAuto;

#[test]
fn properties_are_read_from_the_text() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = toys.add(
        "toy,id=t0,mq=yes,size=0x400,memory=1.5k,legacy=off,netdev=a,,b,mac=52-54-00-12-34-5A",
    )?;
    let model = toy.child("backend").ok_or(Error::other("no backend"))?;
    assert!(model.get::<bool>("mq")?);
    assert_eq!(model.get::<u16>("size")?, 1024);
    assert_eq!(model.get::<u64>("memory")?, 1536);
    assert_eq!(model.get::<OnOffAuto>("legacy")?, OnOffAuto::Off);
    assert_eq!(model.get::<String>("netdev")?, "a,b");
    assert_eq!(
        model.get::<MacAddr>("mac")?,
        MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x5a])
    );
    assert_eq!(model.get::<String>("mac")?, "52:54:00:12:34:5a");
    Ok(())
}

#[test]
fn of_a_property_given_twice_the_last_value_counts_alone() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = toys.add("toy,size=x,mq=on,size=0x400,mq=off,driver=toy")?;
    let model = toy.child("backend").ok_or(Error::other("no backend"))?;
    assert_eq!(model.get::<u16>("size")?, 1024);
    assert!(!model.get::<bool>("mq")?);

    let error = toys.add("toy,size=1024,size=x").unwrap_err();
    assert_eq!(error.to_string(), "Parameter 'size' expects integer");
    Ok(())
}

#[test]
fn each_refusal_has_qemus_words() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=a")?;
    for (options, expected) in [
        ("", "Parameter 'driver' is missing"),
        ("id=x", "Parameter 'driver' is missing"),
        (
            "toy,id=0bad",
            "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', starting with a \
             letter",
        ),
        ("toy,id=a", "Duplicate ID 'a' for device"),
        ("foo,bar", "'foo' is not a valid device model name"),
        (",id=x", "'' is not a valid device model name"),
        ("toy,,mq=on", "'toy,mq=on' is not a valid device model name"),
        ("container", "'container' is not a valid device model name"),
        ("slot-bus", "'slot-bus' is not a valid device model name"),
        (
            "transport",
            "Parameter 'driver' expects a non-abstract device type",
        ),
        (
            "device",
            "Parameter 'driver' expects a non-abstract device type",
        ),
        (
            "builtin",
            "Parameter 'driver' expects a pluggable device type",
        ),
        ("toy,bus=nope", "Bus 'nope' not found"),
        (
            "toy,bus=/machine/peripheral",
            "Bus '/machine/peripheral' not found",
        ),
        ("toy,bus=model-bus", "Bus 'model-bus' is full"),
        (
            "toy-model,bus=slot.0",
            "Device 'toy-model' can't go on slot-bus bus",
        ),
        (
            "toy-model",
            "No 'model-bus' bus found for device 'toy-model'",
        ),
        ("toy-model,bus=model-bus", "Bus 'model-bus' is full"),
        ("toy,foo=1", "Property 'toy.foo' not found"),
        ("toy,nofoo", "Property 'toy.foo' not found"),
        ("toy,=x", "Property 'toy.' not found"),
        ("toy,backend=x", "Property 'toy.backend' is not writable"),
        ("toy,type=x", "Property 'toy.type' is not writable"),
        (
            "toy,hotplugged=on",
            "Property 'toy.hotplugged' is not writable",
        ),
        ("toy,mq=maybe", "Parameter 'mq' expects 'on' or 'off'"),
        ("toy,mq=1", "Parameter 'mq' expects 'on' or 'off'"),
        ("toy,mq=on,mq=maybe", "Parameter 'mq' expects 'on' or 'off'"),
        ("toy,size=abc", "Parameter 'size' expects integer"),
        ("toy,size=", "Parameter 'size' expects integer"),
        ("toy,size", "Parameter 'size' expects integer"),
        ("toy,size=1K", "Parameter 'size' expects integer"),
        ("toy,speed=2147483648", "Parameter 'speed' expects int32_t"),
        (
            "toy,speed=9223372036854775808",
            "Parameter 'speed' expects integer",
        ),
        ("toy,size=1,,2", "Parameter 'size' expects integer"),
        ("toy,size=70000", "Parameter 'size' expects uint16_t"),
        ("toy,size=-5", "Parameter 'size' expects uint16_t"),
        ("toy,memory=1Q", "Parameter 'memory' expects size"),
        (
            "toy,legacy=maybe",
            "Parameter 'legacy' does not accept value 'maybe'",
        ),
        (
            "toy,mac=zz",
            "Property 'toy-model.mac' doesn't take value 'zz'",
        ),
        (
            "toy,mac=52:54:00:12:34:5",
            "Property 'toy-model.mac' doesn't take value '52:54:00:12:34:5'",
        ),
        ("toy,help", "help was asked for, and no device"),
    ] {
        let error = toys
            .add(options)
            .map(|_| ())
            .map_err(|error| error.to_string());
        assert_eq!(error, Err(expected.to_owned()), "{options:?}");
        assert_eq!(toys.machine.devices().len(), 2, "{options:?}");
    }
    Ok(())
}

#[test]
fn the_first_bus_with_room_is_taken() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy")?;
    toys.add("toy")?;
    let error = toys
        .add("toy")
        .map(|_| ())
        .map_err(|error| error.to_string());
    assert_eq!(
        error,
        Err("No 'slot-bus' bus found for device 'toy'".to_owned())
    );
    let second = ToyBus {
        name: "slot.1",
        max: None,
        script: toys.script.clone(),
    };
    let second = toys.machine.add_bus(
        toys.machine.object(),
        "slot-bus",
        "slot.1",
        Arc::new(second),
    )?;
    toys.add("toy,id=c")?;
    toys.add("toy,id=d,bus=/machine/slot.1")?;
    assert_eq!(BusState::of(&second)?.devices().len(), 2);
    Ok(())
}

#[test]
fn the_list_of_devices_says_where_each_is() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.machine.provide(Arc::new(GuestHasASay));
    toys.add("toy,id=t0")?;
    toys.add("toy")?;
    toys.machine.device_del("t0")?;
    let lines: Vec<_> = toys
        .machine
        .devices()
        .into_iter()
        .map(|device| {
            let id = device.id.unwrap_or_default();
            (
                device.path,
                id.to_string(),
                device.phase,
                device.bus.unwrap_or_default(),
            )
        })
        .collect();
    let line = |path: &str, id: &str, phase, bus: &str| {
        (path.to_owned(), id.to_owned(), phase, bus.to_owned())
    };
    assert_eq!(
        lines,
        [
            line(
                "/machine/peripheral/t0",
                "t0",
                Phase::UnplugRequested,
                "slot.0"
            ),
            line(
                "/machine/peripheral/t0/backend",
                "",
                Phase::Plugged,
                "model-bus"
            ),
            line(
                "/machine/peripheral-anon/device[0]",
                "",
                Phase::Plugged,
                "slot.0"
            ),
            line(
                "/machine/peripheral-anon/device[0]/backend",
                "",
                Phase::Plugged,
                "model-bus"
            ),
        ]
    );
    Ok(())
}

#[test]
fn a_device_leaves_by_its_id_or_its_path_and_nothing_else_does() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=t0")?;
    toys.add("toy")?;
    for (name, expected) in [
        ("zz", "Device 'zz' not found"),
        ("slot.0", "Device 'slot.0' not found"),
        ("peripheral/t0", "Device 'peripheral/t0' not found"),
        ("/machine/zz", "Device '/machine/zz' not found"),
        ("/machine", "/machine is not a hotpluggable device"),
        (
            "/machine/slot.0",
            "/machine/slot.0 is not a hotpluggable device",
        ),
    ] {
        let refused = toys.machine.device_del(name).map_err(|e| e.to_string());
        assert_eq!(refused, Err(expected.to_owned()), "{name}");
    }
    assert_eq!(toys.machine.devices().len(), 4);
    for name in [
        "t0",
        "/machine/peripheral-anon/device[0]",
        "/machine/peripheral/t1",
    ] {
        assert_eq!(toys.machine.device_del(name)?, UnplugAnswer::Now, "{name}");
        if name == "t0" {
            toys.add("toy,id=t1")?;
        }
    }
    toys.assert_empty("all have left");
    Ok(())
}

#[test]
fn ethernet_addresses_are_six_bytes_of_two_digits() {
    for (text, expected) in [
        ("52:54:00:12:34:56", true),
        ("52-54-00-12-34-56", true),
        ("AA:bb:cc:dd:ee:ff", true),
        ("52:54:00:12:34", false),
        ("52:54:00:12:34:56:78", false),
        ("52:54:00:12:34:5", false),
        ("52:54:00:12:34:056", false),
        ("52:54:00:12:34:+6", false),
        ("52:54:00:12:34:5g", false),
        ("", false),
    ] {
        assert_eq!(text.parse::<MacAddr>().is_ok(), expected, "{text}");
    }
}
