//! A machine with one bus and a transport that carries a model, in the shape that a virtio device
//! on PCI has: the transport's class has three levels and makes its child, which it realizes on a
//! bus of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};

use keyval::Options;
use qdev::{
    Bus, BusState, DeviceClass, DeviceLevel, Error, HotplugHandler, MAC_ADDRESS, Machine,
    UnplugAnswer,
};
use qom::{Object, PropertyInfo, Recorder, TypeInfo, TypeRegistry};

/// What the levels and buses did, and where they are to fail.
#[derive(Default)]
pub(crate) struct Script {
    done: Mutex<Vec<String>>,
    fail_at: Mutex<Option<String>>,
    /// Objects of the toy types that are alive.
    pub(crate) alive: AtomicUsize,
}

impl Script {
    pub(crate) fn fail_at(&self, step: Option<&str>) {
        *self.fail_at.lock().unwrap_or_else(PoisonError::into_inner) = step.map(str::to_owned);
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn check(&self, step: &str) -> Result<(), Error> {
        let fail_at = self.fail_at.lock().unwrap_or_else(PoisonError::into_inner);
        if fail_at.as_deref() == Some(step) {
            return Err(Error::other(format!("injected at {step}")));
        }
        Ok(())
    }

    fn step(&self, step: String) -> Result<(), Error> {
        self.check(&step)?;
        self.back(step);
        Ok(())
    }

    fn back(&self, step: String) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(step);
    }
}

struct Level(&'static str, Arc<Script>);

impl DeviceLevel for Level {
    fn realize(&self, device: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
        let Self(name, script) = self;
        if *name == "transport" {
            let bus = Arc::new(ToyBus {
                name: "model-bus",
                max: Some(1),
                script: script.clone(),
            });
            machine.add_bus(device, "transport-model-bus", "model-bus", bus)?;
        }
        if *name == "toy" {
            let bus = device
                .child("model-bus")
                .ok_or_else(|| Error::other("no bus"))?;
            let model = device
                .child("backend")
                .ok_or_else(|| Error::other("no backend"))?;
            machine.realize(&model, Some(&bus))?;
        }
        script.step(format!("realize {name}"))
    }

    fn unrealize(&self, _: &Arc<Object>, _: &Arc<Machine>) {
        self.1.back(format!("unrealize {}", self.0));
    }

    fn reset(&self, device: &Arc<Object>) {
        if let Some(gate) = device.part::<Gate>() {
            gate.entered.wait();
            gate.leave.wait();
        }
        self.1.back(format!("reset {}", self.0));
    }
}

pub(crate) struct ToyBus {
    pub(crate) name: &'static str,
    pub(crate) max: Option<usize>,
    pub(crate) script: Arc<Script>,
}

impl HotplugHandler for ToyBus {
    fn pre_plug(&self, _: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        self.script.step(format!("pre_plug {}", self.name))
    }

    fn withdraw(&self, _: &Arc<Object>, _: &Arc<Machine>) {
        self.script.back(format!("withdraw {}", self.name));
    }

    fn plug(&self, _: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        self.script.step(format!("plug {}", self.name))
    }

    fn unplug_request(
        &self,
        _: &Arc<Object>,
        machine: &Arc<Machine>,
    ) -> Result<UnplugAnswer, Error> {
        self.script.step(format!("unplug_request {}", self.name))?;
        let asks_guest = machine.service::<GuestHasASay>().is_ok();
        Ok(if asks_guest {
            UnplugAnswer::WaitForGuest
        } else {
            UnplugAnswer::Now
        })
    }

    fn unplug(&self, device: &Arc<Object>, _: &Arc<Machine>) {
        if let Some(unplugging) = device.part::<Barrier>() {
            unplugging.wait();
        }
        self.script.back(format!("unplug {}", self.name));
    }
}

impl Bus for ToyBus {
    fn max_devices(&self) -> Option<usize> {
        self.max
    }

    fn is_hotpluggable(&self) -> bool {
        self.name != "fixed.0"
    }

    fn reset(&self, _: &Arc<Object>) {
        self.script.back(format!("reset {}", self.name));
    }
}

/// Stops each reset of the device that has it.
pub(crate) struct Gate {
    pub(crate) entered: Barrier,
    pub(crate) leave: Barrier,
}

/// With this service the bus waits for the guest before it lets a device go.
pub(crate) struct GuestHasASay;

pub(crate) struct Toys {
    pub(crate) machine: Arc<Machine>,
    pub(crate) script: Arc<Script>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) slot: Arc<Object>,
}

impl Toys {
    pub(crate) fn new() -> Result<Self, Error> {
        let script = Arc::new(Script::default());
        let recorder = Arc::new(Recorder::default());
        let mut registry = TypeRegistry::new();
        registry.set_observer(recorder.clone());
        qdev::register_types(&mut registry)?;
        register_toys(&mut registry, &script)?;
        let machine = Machine::new(registry.share())?;
        let bus = Arc::new(ToyBus {
            name: "slot.0",
            max: Some(2),
            script: script.clone(),
        });
        let slot = machine.add_bus(machine.object(), "slot-bus", "slot.0", bus)?;
        Ok(Self {
            machine,
            script,
            recorder,
            slot,
        })
    }

    pub(crate) fn add(&self, options: &str) -> Result<Arc<Object>, Error> {
        self.machine
            .device_add(Options::parse(options, Some("driver")))
    }

    /// Panics unless nothing is left of any device.
    pub(crate) fn assert_empty(&self, after: &str) {
        assert_eq!(self.machine.devices(), [], "after {after}");
        assert_eq!(
            self.script.alive.load(Ordering::Relaxed),
            0,
            "after {after}"
        );
        let on_slot = BusState::of(&self.slot).map(|bus| bus.devices().len());
        assert!(matches!(on_slot, Ok(0)), "after {after}");
        assert_eq!(self.machine.buses().len(), 1, "after {after}");
    }
}

fn register_toys(registry: &mut TypeRegistry, script: &Arc<Script>) -> Result<(), qom::Error> {
    let level = |name| {
        let script = script.clone();
        move |class: &mut qom::Class| qdev::add_level(class, Level(name, script.clone()))
    };
    let counted = |info: TypeInfo| {
        let (born, dead) = (script.clone(), script.clone());
        info.instance_init(move |_| {
            born.check("instance_init")?;
            born.alive.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .instance_finalize(move |_| {
            dead.alive.fetch_sub(1, Ordering::Relaxed);
        })
    };
    registry.register(TypeInfo::new("slot-bus", "bus"))?;
    registry.register(TypeInfo::new("model-bus", "bus").abstract_type())?;
    registry.register(TypeInfo::new("transport-model-bus", "model-bus"))?;

    let slot_level = level("slot-device");
    registry.register(
        TypeInfo::new("slot-device", "device")
            .abstract_type()
            .class_init(move |class| {
                class.part_mut::<DeviceClass>().bus_type = Some("slot-bus");
                slot_level(class);
            }),
    )?;
    registry.register(
        TypeInfo::new("transport", "slot-device")
            .abstract_type()
            .class_init(level("transport")),
    )?;
    registry.register(TypeInfo::new("fixture", "slot-device").class_init(|class| {
        class.part_mut::<DeviceClass>().hotpluggable = false;
    }))?;
    registry.register(TypeInfo::new("builtin", "slot-device").class_init(|class| {
        class.part_mut::<DeviceClass>().user_creatable = false;
    }))?;
    registry.register(
        TypeInfo::new("toy", "transport")
            .class_init(level("toy"))
            .instance_init(|toy| {
                let model = toy.registry().new_object("toy-model")?;
                toy.add_child("backend", model.clone())?;
                toy.add_aliases(&model)?;
                Ok(())
            }),
    )?;

    let model_level = level("model");
    registry.register(counted(
        TypeInfo::new("model", "device")
            .abstract_type()
            .class_init(move |class| {
                class.part_mut::<DeviceClass>().bus_type = Some("model-bus");
                model_level(class);
            }),
    ))?;
    let toy_model = level("toy-model");
    registry.register(
        TypeInfo::new("toy-model", "model").class_init(move |class| {
            class.add_properties(&[
                PropertyInfo::bool("mq", false),
                PropertyInfo::u16("size", 256),
                PropertyInfo::size("memory", 0),
                PropertyInfo::i32("speed", -1),
                PropertyInfo::on_off_auto("legacy"),
                PropertyInfo::str("netdev"),
                PropertyInfo::custom("mac", &MAC_ADDRESS),
            ]);
            toy_model(class);
        }),
    )
}
