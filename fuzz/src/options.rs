//! What must hold of every option string.

use std::cell::OnceCell;
use std::sync::Arc;

use keyval::Options;
use qdev::{Bus, DeviceClass, HotplugHandler, MAC_ADDRESS, Machine};
use qom::{PropertyInfo, TypeInfo, TypeRegistry};

/// Pairs that are written with their commas doubled are parsed as the same pairs. Keys that came from
/// a bare word may have commas or `=`, which no written pair can have.
pub fn check_round_trip(options: &Options) {
    let pairs: Vec<_> = options
        .iter()
        .filter(|(key, _)| !key.contains([',', '=']))
        .collect();
    let text: Vec<_> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={}", value.replace(',', ",,")))
        .collect();
    let again = Options::parse(&text.join(","), None);
    assert_eq!(again.iter().collect::<Vec<_>>(), pairs, "{text:?}");
    assert!(!again.wants_help() && again.short_forms().count() == 0);
}

/// Each typed take ends in a value or an error and leaves nothing of its key; what is left is what
/// `finish` refuses.
pub fn check_takes(mut options: Options) {
    let keys: Vec<_> = options.iter().map(|(key, _)| key.to_owned()).collect();
    for (n, key) in keys.iter().enumerate() {
        // Every pair but every fifth is taken in some way.
        match n % 8 {
            0 => drop(options.take_bool(key)),
            1 => drop(options.take_u16(key)),
            2 => drop(options.take_u32(key)),
            3 => drop(options.take_u64(key)),
            4 => drop(options.take_size(key)),
            5 => drop(options.take_choice(key, &["on", "off", "auto"])),
            6 => drop(options.take_required(key)),
            _ => continue,
        }
        assert_eq!(options.get(key), None);
    }
    drop(options.take_id());
    let left = options.iter().next().map(|(key, _)| key.to_owned());
    match (left, options.finish()) {
        (None, Ok(())) => {}
        (Some(key), Err(keyval::Error::Unknown(refused))) => assert_eq!(key, refused),
        (left, finished) => panic!("{left:?} is left, but finish says {finished:?}"),
    }
}

/// A device from this text is in the machine and can be removed, or there is none.
pub fn check_device_add(text: &str) {
    MACHINE.with(|machine| {
        let machine = machine.get_or_init(machine_of_toys);
        let buses = machine.buses().len();
        match machine.device_add(Options::parse(text, Some("driver"))) {
            Ok(device) => {
                assert!(machine.devices().iter().any(|info| info.bus.is_some()));
                machine
                    .request_unplug(&device)
                    .expect("a device that was added can be removed");
            }
            // An error can be put into words.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert_eq!(machine.devices(), [], "{text:?}");
        assert_eq!(machine.buses().len(), buses, "{text:?}");
    });
}

thread_local! {
    static MACHINE: OnceCell<Arc<Machine>> = const { OnceCell::new() };
}

struct ToyBus;

impl HotplugHandler for ToyBus {}

impl Bus for ToyBus {
    fn max_devices(&self) -> Option<usize> {
        Some(1)
    }
}

/// One bus, and a type for it that has a property of each kind.
fn machine_of_toys() -> Arc<Machine> {
    let mut registry = TypeRegistry::new();
    qdev::register_types(&mut registry).expect("the first types");
    let types = [
        TypeInfo::new("toy-bus", qdev::BUS),
        TypeInfo::new("toy", qdev::DEVICE).class_init(|class| {
            class.part_mut::<DeviceClass>().bus_type = Some("toy-bus");
            class.add_properties(&[
                PropertyInfo::bool("switch", false),
                PropertyInfo::u16("u16", 256),
                PropertyInfo::u32("u32", 1),
                PropertyInfo::size("size", 0),
                PropertyInfo::on_off_auto("choice"),
                PropertyInfo::str("text"),
                PropertyInfo::custom("mac", &MAC_ADDRESS),
            ]);
        }),
    ];
    for info in types {
        registry.register(info).expect("a type of its own name");
    }
    let machine = Machine::new(registry.share()).expect("a machine");
    machine
        .add_bus(machine.object(), "toy-bus", "toy.0", Arc::new(ToyBus))
        .expect("the first bus");
    machine
}
