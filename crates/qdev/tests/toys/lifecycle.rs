//! The order of a device's life, and what is left when a step of it fails.

use std::sync::{Arc, Barrier};

use crate::machine::{Gate, GuestHasASay, ToyBus, Toys};
use keyval::Options;
use qdev::{BusState, DeviceState, Error, Machine, Phase, UnplugAnswer};

const UP: [&str; 9] = [
    "pre_plug slot.0",
    "realize slot-device",
    "realize transport",
    "pre_plug model-bus",
    "realize model",
    "realize toy-model",
    "plug model-bus",
    "realize toy",
    "plug slot.0",
];

#[test]
fn a_device_is_made_in_the_order_of_its_ancestry() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.recorder.take();
    toys.add("toy,id=t0,size=512")?;
    assert_eq!(
        toys.recorder.take_lines(),
        [
            "class_init device",
            "class_init slot-device",
            "class_init transport",
            "class_init toy",
            "instance_init object of toy",
            "instance_init device of toy",
            "instance_init slot-device of toy",
            "instance_init transport of toy",
            "instance_init toy",
            "class_init model",
            "class_init toy-model",
            "instance_init object of toy-model",
            "instance_init device of toy-model",
            "instance_init model of toy-model",
            "instance_init toy-model",
            "pre_plug slot-bus of toy",
            "realize slot-device of toy",
            "realize transport of toy",
            "class_init model-bus",
            "class_init transport-model-bus",
            "instance_init object of transport-model-bus",
            "instance_init bus of transport-model-bus",
            "instance_init model-bus of transport-model-bus",
            "instance_init transport-model-bus",
            "realize toy",
            "pre_plug transport-model-bus of toy-model",
            "realize model of toy-model",
            "realize toy-model",
            "plug transport-model-bus of toy-model",
            "plug slot-bus of toy",
        ]
    );
    assert_eq!(toys.script.take(), UP);
    let tree = [
        "/machine/peripheral/t0/backend",
        "/machine/peripheral/t0/model-bus",
    ];
    assert!(tree.iter().all(|path| toys.machine.resolve(path).is_some()));
    Ok(())
}

#[test]
fn removal_is_the_same_backwards() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.add("toy,id=t0")?;
    toys.script.take();
    toys.recorder.take();
    assert_eq!(toys.machine.device_del("t0")?, UnplugAnswer::Now);
    assert_eq!(
        toys.script.take(),
        [
            "unplug_request slot.0",
            "unplug slot.0",
            "unplug model-bus",
            "unrealize toy-model",
            "unrealize model",
            "withdraw model-bus",
            "unrealize toy",
            "unrealize transport",
            "unrealize slot-device",
            "withdraw slot.0",
        ]
    );
    let last: Vec<_> = toys.recorder.take_lines();
    assert!(last.ends_with(&[
        "instance_finalize toy".to_owned(),
        "instance_finalize transport of toy".to_owned(),
        "instance_finalize slot-device of toy".to_owned(),
        "instance_finalize device of toy".to_owned(),
        "instance_finalize object of toy".to_owned(),
    ]));
    toys.assert_empty("removal");
    // The id and the place on the bus are free again.
    toys.add("toy,id=t0")?;
    Ok(())
}

const OF_MODEL: [&str; 3] = ["model-bus", "model", "toy-model"];

/// Panics unless all that was done is undone in reverse, in the model and in the toy, and the
/// model's first.
fn assert_undone(steps: &[String], injected: &str) {
    let (mut of_model, mut of_toy) = (Vec::new(), Vec::new());
    for step in steps {
        let (verb, who) = step.split_once(' ').unwrap_or((step, ""));
        let is_of_model = OF_MODEL.contains(&who);
        let standing = if is_of_model {
            &mut of_model
        } else {
            &mut of_toy
        };
        let undone = match verb {
            "unrealize" => "realize",
            "unplug" => "plug",
            "withdraw" => "pre_plug",
            _ => {
                standing.push((verb, who));
                continue;
            }
        };
        assert_eq!(standing.pop(), Some((undone, who)), "{injected}: {steps:?}");
        assert!(is_of_model || of_model.is_empty(), "{injected}: {steps:?}");
    }
    assert!(
        of_model.is_empty() && of_toy.is_empty(),
        "{injected}: {steps:?}"
    );
}

#[test]
fn a_failure_at_any_step_leaves_nothing_behind() -> Result<(), Error> {
    let toys = Toys::new()?;
    for (at, step) in UP.iter().enumerate() {
        for id in ["", ",id=t0"] {
            toys.script.fail_at(Some(step));
            let error = toys
                .add(&format!("toy{id}"))
                .map(|_| ())
                .map_err(|e| e.to_string());
            assert_eq!(error, Err(format!("injected at {step}")));
            let steps = toys.script.take();
            assert!(
                steps.iter().take(at).eq(UP.iter().take(at)),
                "{step}: {steps:?}"
            );
            assert_undone(&steps, step);
            toys.assert_empty(step);
        }
    }
    // Before anything is realized.
    toys.script.fail_at(Some("instance_init"));
    assert!(toys.add("toy,id=t0").is_err());
    toys.assert_empty("instance_init");
    toys.script.fail_at(None);
    for options in [
        "toy,id=t0,nonsense=1",
        "toy,id=t0,size=70000",
        "toy,size=512,mq=maybe",
    ] {
        assert!(toys.add(options).is_err());
        assert_eq!(toys.script.take(), Vec::<String>::new());
        toys.assert_empty(options);
    }
    // And nothing stands in the way of the next.
    toys.add("toy,id=t0")?;
    assert_eq!(toys.script.take(), UP);
    Ok(())
}

#[test]
fn a_device_whose_realize_failed_can_be_mended_and_realized() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = toys.machine.registry().new_object("toy")?;
    for step in ["realize toy", "plug slot.0", "plug model-bus"] {
        toys.script.fail_at(Some(step));
        assert!(toys.machine.realize(&toy, Some(&toys.slot)).is_err());
        assert_eq!(DeviceState::of(&toy)?.phase(), Phase::Created);
        assert!(toy.parent().is_none() && DeviceState::bus_of(&toy).is_none());
        toy.set("size", 512u16)?;
    }
    toys.script.fail_at(None);
    toys.machine.realize(&toy, Some(&toys.slot))?;
    assert_eq!(toy.path().as_deref(), Some("/machine/unattached/device[3]"));
    toys.machine.unrealize(&toy)?;
    toys.machine.unrealize(&toy)?;
    toys.machine.realize(&toy, Some(&toys.slot))?;
    assert_eq!(DeviceState::of(&toy)?.phase(), Phase::Plugged);
    Ok(())
}

#[test]
fn properties_are_final_while_realized() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = toys.add("toy,id=t0,mq=on")?;
    assert!(toy.get::<bool>("realized")?);
    assert_eq!(toy.get::<String>("parent_bus")?, "/machine/slot.0");
    let error = toy.set("mq", false).map_err(|error| error.to_string());
    let words = "Attempt to set property 'mq' on anonymous device (type 'toy-model') \
                 after it was realized";
    assert_eq!(error, Err(words.to_owned()));
    toys.machine.unrealize(&toy)?;
    toy.set("mq", false)?;
    assert!(!toy.get::<bool>("realized")?);
    Ok(())
}

#[test]
fn reset_goes_from_the_innermost_bus_outwards_and_skips_what_is_not_realized() -> Result<(), Error>
{
    let toys = Toys::new()?;
    toys.add("toy,id=t0")?;
    let cold = toys.machine.registry().new_object("toy")?;
    toys.machine.object().add_child("cold", cold)?;
    toys.script.take();
    toys.machine.reset();
    assert_eq!(
        toys.script.take(),
        [
            "reset toy-model",
            "reset model",
            "reset model-bus",
            "reset toy",
            "reset transport",
            "reset slot-device",
            "reset slot.0",
        ]
    );
    Ok(())
}

#[test]
fn a_guest_may_take_its_time_over_an_unplug_or_refuse_it() -> Result<(), Error> {
    let toys = Toys::new()?;
    toys.machine.provide(Arc::new(GuestHasASay));
    let toy = toys.add("toy,id=t0")?;
    let state = DeviceState::of(&toy)?;
    assert!(toys.machine.cancel_unplug(&toy).is_err());
    assert_eq!(toys.machine.device_del("t0")?, UnplugAnswer::WaitForGuest);
    assert_eq!(state.phase(), Phase::UnplugRequested);
    let again = toys
        .machine
        .device_del("t0")
        .map_err(|error| error.to_string());
    assert_eq!(
        again,
        Err("Device t0 is already in the process of unplug".to_owned())
    );
    toys.machine.cancel_unplug(&toy)?;
    assert_eq!(state.phase(), Phase::Plugged);

    toys.script.fail_at(Some("unplug_request slot.0"));
    assert!(toys.machine.device_del("t0").is_err());
    assert_eq!(state.phase(), Phase::Plugged);
    toys.script.fail_at(None);

    toys.machine.device_del("t0")?;
    toys.machine.finish_unplug(&toy)?;
    drop((toy, state));
    toys.assert_empty("the guest's consent");
    Ok(())
}

#[test]
fn removal_waits_for_a_reset_below_and_nobody_else_gets_in() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = toys.add("toy,id=t0")?;
    let model = toy.child("backend").ok_or(Error::other("no backend"))?;
    let gate = model.set_part(Gate {
        entered: Barrier::new(2),
        leave: Barrier::new(2),
    });
    let unplugging = toy.set_part(Barrier::new(2));
    std::thread::scope(|scope| {
        let resetting = scope.spawn(|| toys.machine.reset_device(&model));
        gate.entered.wait();
        let busy = toys
            .machine
            .unrealize(&model)
            .map_err(|error| error.to_string());
        assert_eq!(busy, Err("device 'toy-model' is busy".to_owned()));
        let removing = scope.spawn(|| toys.machine.device_del("t0"));
        // The toy is off its bus, and its model still resets.
        unplugging.wait();
        assert!(matches!(toys.machine.unrealize(&toy), Err(Error::Busy(_))));
        assert!(
            !toys
                .script
                .take()
                .iter()
                .any(|step| step.starts_with("unrealize"))
        );
        // Its level "toy-model" is let go, then its level "model".
        gate.leave.wait();
        gate.entered.wait();
        gate.leave.wait();
        assert!(resetting.join().is_ok());
        assert!(matches!(removing.join(), Ok(Ok(UnplugAnswer::Now))));
    });
    assert_eq!(
        toys.script
            .take()
            .iter()
            .filter(|step| step.starts_with("unrealize"))
            .count(),
        5
    );
    drop((toy, model, gate));
    toys.assert_empty("removal");
    Ok(())
}

#[test]
fn a_device_that_is_realized_is_not_realized_again() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = toys.add("toy,id=t0")?;
    toys.script.take();
    let error = toys
        .machine
        .realize(&toy, Some(&toys.slot))
        .map_err(|error| error.to_string());
    assert_eq!(
        error,
        Err("device 'toy' cannot go from plugged to realized".to_owned())
    );
    assert_eq!(toys.script.take(), Vec::<String>::new());
    assert_eq!(BusState::of(&toys.slot)?.devices().len(), 1);
    Ok(())
}

#[test]
fn dropping_the_machine_frees_devices_that_are_still_plugged() -> Result<(), Error> {
    let toys = Toys::new()?;
    let toy = Arc::downgrade(&toys.add("toy,id=t0")?);
    let backend = Arc::downgrade(
        &toys
            .machine
            .resolve("/machine/peripheral/t0/backend")
            .ok_or(Error::other("x"))?,
    );
    let Toys {
        machine,
        script,
        recorder: _,
        slot,
    } = toys;
    let machine_left = Arc::downgrade(&machine);
    drop((machine, slot));
    assert!(machine_left.upgrade().is_none());
    assert!(toy.upgrade().is_none() && backend.upgrade().is_none());
    assert_eq!(script.alive.load(std::sync::atomic::Ordering::Relaxed), 0);
    // Only the owner's drop: no hook ran.
    assert_eq!(script.take(), UP);
    Ok(())
}

#[test]
fn services_are_found_by_type_and_missed_by_name() -> Result<(), Error> {
    trait Sink: Send + Sync {
        fn number(&self) -> u32;
    }
    struct Seven;
    impl Sink for Seven {
        fn number(&self) -> u32 {
            7
        }
    }
    let toys = Toys::new()?;
    let machine: &Arc<Machine> = &toys.machine;
    let error = machine
        .service::<dyn Sink>()
        .map(|_| ())
        .map_err(|error| error.to_string());
    assert!(error.is_err_and(|words| {
        words.starts_with("the machine provides no dyn ") && words.ends_with("Sink")
    }));
    assert!(machine.provide::<dyn Sink>(Arc::new(Seven)).is_none());
    assert_eq!(machine.service::<dyn Sink>()?.number(), 7);
    assert!(machine.service::<Seven>().is_err());
    assert!(machine.provide::<dyn Sink>(Arc::new(Seven)).is_some());
    Ok(())
}

#[test]
fn a_running_machine_takes_only_what_can_be_hot_plugged() -> Result<(), Error> {
    let toys = Toys::new()?;
    let fixed = ToyBus {
        name: "fixed.0",
        max: None,
        script: toys.script.clone(),
    };
    toys.machine.add_bus(
        toys.machine.object(),
        "slot-bus",
        "fixed.0",
        Arc::new(fixed),
    )?;
    toys.add("toy,bus=fixed.0,id=cold")?;
    toys.add("fixture,id=lamp")?;
    toys.machine.set_running();
    for (result, expected) in [
        (
            toys.add("toy,bus=fixed.0").map(|_| ()),
            "Bus 'fixed.0' does not support hotplugging",
        ),
        (
            toys.add("fixture").map(|_| ()),
            "Parameter 'driver' expects a pluggable device type",
        ),
        (
            toys.add("toy,id=lamp").map(|_| ()),
            "Duplicate device ID 'lamp'",
        ),
        (
            toys.machine.device_del("cold").map(|_| ()),
            "Bus 'fixed.0' does not support hotplugging",
        ),
        (
            toys.machine.device_del("lamp").map(|_| ()),
            "Device 'lamp' does not support hotplugging",
        ),
    ] {
        assert_eq!(
            result.map_err(|error| error.to_string()),
            Err(expected.to_owned())
        );
    }
    assert!(toys.add("toy")?.get::<bool>("hotplugged")?);
    Ok(())
}

#[test]
fn a_device_is_replaced_on_a_bus_that_lets_none_come_or_go() -> Result<(), Error> {
    let toys = Toys::new()?;
    let fixed = ToyBus {
        name: "fixed.0",
        max: Some(1),
        script: toys.script.clone(),
    };
    toys.machine.add_bus(
        toys.machine.object(),
        "slot-bus",
        "fixed.0",
        Arc::new(fixed),
    )?;
    let before = toys.add("toy,bus=fixed.0,id=cold")?;
    toys.machine.set_running();
    let options = |text: &str| Options::parse(text, Some("driver"));
    let after = toys
        .machine
        .replace(&before, options("toy,bus=fixed.0,id=cold"))?;
    assert!(!Arc::ptr_eq(&before, &after));
    assert_eq!(DeviceState::of(&before)?.phase(), Phase::Created);
    assert_eq!(DeviceState::of(&after)?.phase(), Phase::Plugged);
    let named = toys.machine.device("cold");
    assert!(named.is_some_and(|device| Arc::ptr_eq(&device, &after)));
    // One that cannot be made leaves an empty place.
    let refused = toys.machine.replace(&after, options("toy,nosuch=1"));
    assert!(refused.is_err());
    assert!(toys.machine.device("cold").is_none());
    Ok(())
}
