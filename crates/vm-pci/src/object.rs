//! PCI in the type registry: the bus type `PCI`, and `pci-device`, the abstract parent of all functions.
//!
//! A machine puts its [`PciBus`] into the tree with [`add_bus`]. A type below `pci-device` makes its
//! function when it realizes and hands it over with [`PciDevice::set_function`]; the bus puts it at the
//! address that `addr` names, or at the first free one, once all levels have realized.

use std::sync::{Arc, Mutex};

use qdev::{
    Bus, BusState, DEVICE, DeviceClass, DeviceLevel, DeviceState, Error, HotplugHandler, Machine,
    add_level,
};
use qom::{CustomKind, Kind, Object, PropertyInfo, TypeInfo, TypeRegistry, Unbuilt, Value};

use crate::lock::Locked;
use crate::{DevFn, PciBus, PciFunction};

/// The abstract parent of all functions.
pub const PCI_DEVICE: &str = "pci-device";
/// The type of a conventional PCI bus.
pub const PCI_BUS: &str = "PCI";

/// Registers `PCI` and `pci-device`.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if that was done already.
pub fn register_types(registry: &mut TypeRegistry) -> Result<(), qom::Error> {
    registry.register(TypeInfo::new(PCI_BUS, qdev::BUS))?;
    registry.register(
        TypeInfo::new(PCI_DEVICE, DEVICE)
            .abstract_type()
            .class_init(|class| {
                class.add_properties(PROPERTIES);
                class.part_mut::<PciDeviceClass>();
                class.part_mut::<DeviceClass>().bus_type = Some(PCI_BUS);
                add_level(class, PciDeviceLevel);
            })
            .instance_init(|device| {
                Ok(device.add_computed("legacy-addr", Kind::Str, |device| {
                    Some(Value::from(PciDevice::of(device).ok()?.devfn.to_string()))
                })?)
            }),
    )
}

/// What all functions of a class say that they are; a part of the class, for `class_init` to fill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciDeviceClass {
    /// Base class, subclass and programming interface in three bytes; `None` where the function decides
    /// when it is made, as it does of its other ids.
    pub class_id: Option<u32>,
}

/// `06.0` or `06`: device and function number, in hexadecimal.
const ADDRESS: CustomKind = CustomKind {
    type_name: "int32",
    parse: |text| {
        let (device, function) = text.split_once('.').unwrap_or((text, "0"));
        let number = |digits: &str| {
            let digits = digits.strip_prefix("0x").unwrap_or(digits);
            (digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .then(|| u8::from_str_radix(digits, 16).ok())
                .flatten()
        };
        let devfn = DevFn::new(number(device)?, number(function)?).ok()?;
        Some(Value::from(devfn.to_byte()))
    },
    accepts: |value| matches!(value, Value::Int(-1..=255)),
};

const ON: Unbuilt = Unbuilt::Only(&Value::Bool(true));

const PROPERTIES: &[PropertyInfo] = &[
    PropertyInfo::custom_with("addr", &ADDRESS, Value::Int(-1))
        .describe("Slot and optional function number, example: 06.0 or 06"),
    PropertyInfo::bool("multifunction", false).describe("on/off"),
    PropertyInfo::u32("acpi-index", 0).unbuilt(Unbuilt::Only(&Value::Int(0))),
    PropertyInfo::str("failover_pair_id").unbuilt(Unbuilt::NoValue),
    // There is no ROM: none is shown, whether it might be (1, as QEMU has it) or not.
    PropertyInfo::u32("rombar", 1).unbuilt(Unbuilt::OneOf(&[Value::Int(1), Value::Int(0)])),
    PropertyInfo::str("romfile").unbuilt(Unbuilt::NoValue),
    PropertyInfo::u32("romsize", u32::MAX).unbuilt(Unbuilt::Only(&Value::Int(u32::MAX as i128))),
    // They say something only of PCI Express.
    PropertyInfo::bool("x-pcie-extcap-init", true)
        .describe("on/off")
        .unbuilt(ON),
    PropertyInfo::bool("x-pcie-lnksta-dllla", true)
        .describe("on/off")
        .unbuilt(ON),
];

/// What a realized function has; a part of its object.
#[derive(Debug)]
pub struct PciDevice {
    devfn: DevFn,
    /// A leaf lock.
    function: Mutex<Option<Arc<dyn PciFunction>>>,
}

impl PciDevice {
    /// Of a device whose `pci-device` level has realized.
    ///
    /// # Errors
    /// When it has not.
    pub fn of(device: &Object) -> Result<Arc<Self>, Error> {
        device
            .part()
            .ok_or_else(|| Error::other(NotRealized(device.type_name().to_string())))
    }

    /// Where the function is or is going to be.
    pub fn devfn(&self) -> DevFn {
        self.devfn
    }

    /// Hands the function over. For a level's realize; `None` for its unrealize.
    pub fn set_function(&self, function: Option<Arc<dyn PciFunction>>) {
        *self.function.locked() = function;
    }

    /// The function.
    pub fn function(&self) -> Option<Arc<dyn PciFunction>> {
        self.function.locked().clone()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("device of type '{0}' has no PCI function")]
struct NotRealized(String);

#[derive(Debug, thiserror::Error)]
#[error(
    "PCI: slot {} function {} not available for {driver}, in use by {holder}",
    .devfn.device(), .devfn.function()
)]
struct AddressInUse {
    devfn: DevFn,
    driver: String,
    holder: String,
}

#[derive(Debug, thiserror::Error)]
enum SingleFunction {
    #[error(
        "PCI: single function device can't be populated in function {:x}.{:x}",
        .0.device(), .0.function()
    )]
    Behind(DevFn),
    #[error(
        "PCI: {:x}.{:x} indicates single function, but {:x}.{:x} is already populated.",
        .zero.device(), .zero.function(), .other.device(), .other.function()
    )]
    Before { zero: DevFn, other: DevFn },
}

/// The place that the bus keeps for a device from `pre_plug` on.
#[derive(Debug)]
struct Reservation(DevFn);

struct PciDeviceLevel;

impl DeviceLevel for PciDeviceLevel {
    fn realize(&self, device: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        let reserved = device
            .part::<Reservation>()
            .ok_or_else(|| Error::other(NotRealized(device.type_name().to_string())))?;
        device.set_part(PciDevice {
            devfn: reserved.0,
            function: Mutex::new(None),
        });
        device.settle("addr", reserved.0.to_byte())?;
        Ok(())
    }

    fn unrealize(&self, device: &Arc<Object>, _: &Arc<Machine>) {
        device.take_part::<PciDevice>();
    }

    fn reset(&self, device: &Arc<Object>) {
        let bus = DeviceState::bus_of(device).and_then(|bus| bus.part::<PciBus>());
        if let (Some(bus), Ok(this)) = (bus, PciDevice::of(device)) {
            bus.reset_function(this.devfn);
        }
    }
}

/// Puts `bus` into the tree of `machine`, as `name` (`pci.0`) below `owner`. Devices come and go on it at any time; that
/// the guest hears of it is the machine's to see to: see [`add_fixed_bus`] for one that does not.
///
/// # Errors
/// [`qom::PropertyError::Duplicate`] if the owner has something of this name.
pub fn add_bus(
    machine: &Machine,
    owner: &Arc<Object>,
    name: &str,
    bus: Arc<PciBus>,
) -> Result<Arc<Object>, Error> {
    add_bus_of(machine, owner, name, bus, true)
}

/// As [`add_bus`], of a bus that says no to hotplugging, as QEMU's root bus `pcie.0` does: once the machine
/// [runs](Machine::set_running), devices neither come nor are asked to leave.
///
/// # Errors
/// [`qom::PropertyError::Duplicate`] if the owner has something of this name.
pub fn add_fixed_bus(
    machine: &Machine,
    owner: &Arc<Object>,
    name: &str,
    bus: Arc<PciBus>,
) -> Result<Arc<Object>, Error> {
    add_bus_of(machine, owner, name, bus, false)
}

fn add_bus_of(
    machine: &Machine,
    owner: &Arc<Object>,
    name: &str,
    bus: Arc<PciBus>,
    is_hotpluggable: bool,
) -> Result<Arc<Object>, Error> {
    let role = PciBusRole {
        bus: bus.clone(),
        is_hotpluggable,
    };
    let object = machine.add_bus(owner, PCI_BUS, name, Arc::new(role))?;
    object.share_part(bus);
    Ok(object)
}

/// A [`PciBus`] as the tree's bus.
struct PciBusRole {
    bus: Arc<PciBus>,
    is_hotpluggable: bool,
}

impl PciBusRole {
    /// The devices that have, or are about to have, places on the bus of `device`.
    fn siblings(device: &Arc<Object>) -> Vec<(DevFn, Arc<Object>)> {
        let bus = DeviceState::bus_of(device).and_then(|bus| BusState::of(&bus).ok());
        let devices = bus.map_or_else(Vec::new, |bus| bus.devices());
        (devices.into_iter())
            .filter(|sibling| !Arc::ptr_eq(sibling, device))
            .filter_map(|sibling| Some((sibling.part::<Reservation>()?.0, sibling)))
            .collect()
    }

    /// Who has or is about to have this place, as QEMU names it.
    fn holder(&self, device: &Arc<Object>, devfn: DevFn) -> Option<String> {
        let siblings = Self::siblings(device);
        if let Some((_, sibling)) = siblings.iter().find(|(at, _)| *at == devfn) {
            let id = DeviceState::of(sibling).ok().and_then(|state| state.id());
            let id = id.map_or_else(String::new, |id| format!(",id={id}"));
            return Some(format!("{}{id}", sibling.type_name()));
        }
        self.bus.function(devfn).map(|_| "the machine".to_owned())
    }

    /// Whether `device` may go to `devfn`: a device has functions above 0 only if its function 0 says so.
    fn check_functions(&self, device: &Arc<Object>, devfn: DevFn) -> Result<(), Error> {
        let zero = DevFn::from_byte(devfn.to_byte() & !7);
        let siblings = Self::siblings(device);
        if devfn != zero {
            let first = siblings.iter().find(|(at, _)| *at == zero);
            let is_single = match first {
                Some((_, first)) => !first.get::<bool>("multifunction")?,
                None => self.bus.function(zero).is_some(),
            };
            if is_single {
                return Err(Error::other(SingleFunction::Behind(devfn)));
            }
        } else if !device.get::<bool>("multifunction")? {
            let of_this = |at: &DevFn| at.device() == zero.device() && *at != zero;
            let other = siblings.iter().map(|(at, _)| *at).filter(of_this).min();
            if let Some(other) = other {
                return Err(Error::other(SingleFunction::Before { zero, other }));
            }
        }
        Ok(())
    }

    /// Function 0 of the first device number that nobody has or is about to have.
    fn free_place(&self, device: &Arc<Object>) -> Result<DevFn, Error> {
        let reserved = Self::siblings(device).into_iter().map(|(at, _)| at);
        let there = self.bus.slots().into_iter().map(|(at, _)| at);
        let taken: Vec<u8> = reserved.chain(there).map(DevFn::device).collect();
        (0..32)
            .find(|number| !taken.contains(number))
            .ok_or(crate::Error::NoFreeSlot)
            .and_then(|number| DevFn::new(number, 0))
            .map_err(Error::other)
    }
}

impl HotplugHandler for PciBusRole {
    fn pre_plug(&self, device: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        let devfn = match device.get::<Option<i32>>("addr")?.map(u8::try_from) {
            Some(Ok(byte)) => {
                let devfn = DevFn::from_byte(byte);
                if let Some(holder) = self.holder(device, devfn) {
                    return Err(Error::other(AddressInUse {
                        devfn,
                        driver: device.type_name().to_string(),
                        holder,
                    }));
                }
                self.check_functions(device, devfn)?;
                devfn
            }
            _ => self.free_place(device)?,
        };
        device.set_part(Reservation(devfn));
        Ok(())
    }

    fn withdraw(&self, device: &Arc<Object>, _: &Arc<Machine>) {
        device.take_part::<Reservation>();
    }

    fn plug(&self, device: &Arc<Object>, _: &Arc<Machine>) -> Result<(), Error> {
        let this = PciDevice::of(device)?;
        let function = this
            .function()
            .ok_or_else(|| Error::other(NotRealized(device.type_name().to_string())))?;
        self.bus.attach(this.devfn, function).map_err(Error::other)
    }

    fn unplug(&self, device: &Arc<Object>, _: &Arc<Machine>) {
        if let Ok(this) = PciDevice::of(device) {
            // It was attached by `plug`; an empty place is what is wanted.
            let _ = self.bus.detach(this.devfn);
        }
    }
}

impl Bus for PciBusRole {
    fn is_hotpluggable(&self) -> bool {
        self.is_hotpluggable
    }

    /// Resets what on the bus is no device of the tree: the machine's own functions, such as the host
    /// bridge. The devices' were reset with them.
    fn reset(&self, bus: &Arc<Object>) {
        let devices = BusState::of(bus).map_or_else(|_| Vec::new(), |bus| bus.devices());
        let theirs: Vec<_> = (devices.iter())
            .filter_map(|device| Some(device.part::<Reservation>()?.0))
            .collect();
        for (devfn, _) in self.bus.slots() {
            if !theirs.contains(&devfn) {
                self.bus.reset_function(devfn);
            }
        }
    }
}
