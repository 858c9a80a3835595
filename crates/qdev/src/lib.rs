//! Realize, plug, unplug and reset of devices, and the owner of devices and buses.
//!
//! A [`Machine`] owns a tree of objects: devices that were added by an option string under
//! `/machine/peripheral/ID` or `/machine/peripheral-anon/device[N]`, those that code made under
//! `/machine/unattached`, and buses below what has them. A device's class is a chain of levels,
//! such as `device`, `pci-device`, `virtio-pci`, `virtio-net-pci`; each that has something to do
//! adds a [`DeviceLevel`] in its `class_init`. Adding a device then is, in order:
//!
//! 1. the class is looked up, a bus of its bus type found, and the object made and put in the tree;
//! 2. its properties are set from the text, and are final from here on;
//! 3. its bus accepts it: [`HotplugHandler::pre_plug`];
//! 4. each level realizes, parents first: [`DeviceLevel::realize`];
//! 5. its bus takes it: [`HotplugHandler::plug`].
//!
//! Removal is the same backwards. A failure at any step undoes what stands, in reverse, and leaves
//! nothing behind.
//!
//! ```
//! use std::sync::Arc;
//!
//! use keyval::Options;
//! use qdev::{Bus, DeviceClass, DeviceLevel, Error, HotplugHandler, Machine, Phase};
//! use qom::{Object, PropertyInfo, TypeInfo, TypeRegistry};
//!
//! /// What the machine provides and the lamp needs.
//! struct Mains {
//!     volts: u16,
//! }
//!
//! /// What a realized lamp holds.
//! struct Lit {
//!     watts: u16,
//! }
//!
//! struct LampLevel;
//!
//! impl DeviceLevel for LampLevel {
//!     fn realize(&self, lamp: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
//!         let mains = machine.service::<Mains>()?;
//!         lamp.set_part(Lit { watts: mains.volts / lamp.get::<u16>("ohm")? });
//!         Ok(())
//!     }
//!
//!     fn unrealize(&self, lamp: &Arc<Object>, _: &Arc<Machine>) {
//!         lamp.take_part::<Lit>();
//!     }
//! }
//!
//! struct Rail;
//! impl HotplugHandler for Rail {}
//! impl Bus for Rail {}
//!
//! let mut registry = TypeRegistry::new();
//! qdev::register_types(&mut registry)?;
//! registry.register(TypeInfo::new("rail", "bus"))?;
//! registry.register(TypeInfo::new("lamp", "device").class_init(|class| {
//!     class.add_properties(&[PropertyInfo::u16("ohm", 23)]);
//!     class.part_mut::<DeviceClass>().bus_type = Some("rail");
//!     qdev::add_level(class, LampLevel);
//! }))?;
//!
//! let machine = Machine::new(registry.share())?;
//! machine.provide(Arc::new(Mains { volts: 230 }));
//! machine.add_bus(machine.object(), "rail", "rail.0", Arc::new(Rail))?;
//!
//! let lamp = machine.device_add(Options::parse("lamp,id=hall,ohm=10", Some("driver")))?;
//! assert_eq!(lamp.path().as_deref(), Some("/machine/peripheral/hall"));
//! assert_eq!(lamp.part::<Lit>().map(|lit| lit.watts), Some(23));
//! assert_eq!(machine.devices()[0].phase, Phase::Plugged);
//!
//! let error = machine.device_add(Options::parse("lamp,lumen=1", Some("driver"))).unwrap_err();
//! assert_eq!(error.to_string(), "Property 'lamp.lumen' not found");
//!
//! // The tree is read as QEMU's `qom-list` and `qom-get` do.
//! assert_eq!(machine.qom_get("hall", "ohm")?.json().to_string(), "10");
//! assert_eq!(machine.qom_list("rail.0")?[0].to_string(), "child[0] (link<lamp>)");
//! assert_eq!(
//!     qdev::help::device_help(machine.registry(), "lamp")?,
//!     "lamp options:\n  ohm=<uint16>           -  (default: 23)\n",
//! );
//!
//! machine.device_del("hall")?;
//! assert!(machine.devices().is_empty());
//! # Ok::<(), Error>(())
//! ```
//!
//! Locks: one in each device and each bus around its own small state, one in the machine around its
//! services. None is held while a hook runs or another is taken. Adding, removing and resetting may
//! be done from any thread; of two threads that move the same device the second gets
//! [`Error::Busy`]. One that takes a device down waits for another that is busy with a device below
//! it.
//!
//! | module | holds |
//! |---|---|
//! | `object` | the types `device` and `bus` |
//! | `device` | [`DeviceClass`], [`DeviceLevel`], [`DeviceState`] |
//! | `bus` | [`HotplugHandler`], [`Bus`], [`BusState`] |
//! | `category` | [`Category`], the heads of help's list |
//! | `phase` | [`Phase`] and its table of legal moves |
//! | `machine` | [`Machine`]: the tree, buses, services, lists |
//! | `lifecycle` | [`Machine`]: realize, unplug, unrealize, reset |
//! | `add` | [`Machine`]: devices from option strings |
//! | `text` | property values from text; [`MacAddr`] |
//! | `tree` | [`Machine`]: the tree listed and read, as QEMU's `qom-list` and `qom-get` do |
//! | [`help`](mod@help) | what `-device help` prints |

mod add;
mod bus;
mod category;
mod device;
mod error;
pub mod help;
mod lifecycle;
mod machine;
mod object;
mod phase;
mod sync;
mod text;
mod tree;

pub use bus::{Bus, BusState, HotplugHandler, UnplugAnswer};
pub use category::Category;
pub use device::{DeviceClass, DeviceLevel, DeviceState, add_level};
pub use error::Error;
pub use machine::{DeviceInfo, Machine};
pub use object::{BUS, DEVICE, register_types};
pub use phase::Phase;
pub use text::{BadMacAddr, MAC_ADDRESS, MacAddr, set_text};
pub use tree::QomProperty;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
