//! Types, classes, objects, properties and the tree that objects live in.
//!
//! A [`TypeRegistry`] is an ordinary value: types are registered by name, and nothing is global. On
//! first use a class starts as a copy of its parent's class and then runs its own `class_init`,
//! from the root to the leaf; an object runs the `instance_init` of each level of its class,
//! parents first. State belongs to levels: a class holds typed *parts* that a child's `class_init`
//! may change, an object holds typed parts that each level puts there.
//!
//! Properties are declared in a class as constants, have a kind, a default and a description, and
//! are set by value or, one crate up, from text. An object may also have properties of its own:
//! children, which it owns, links, which it does not, aliases of another object's properties, and
//! computed ones. A property that QEMU has and that is not built is declared as such ([`Unbuilt`]): it is
//! refused by name rather than taken and ignored.
//!
//! ```
//! use qom::{PropertyInfo, TypeInfo, TypeRegistry};
//!
//! #[derive(Clone, Default)]
//! struct LampClass {
//!     colour: &'static str,
//! }
//!
//! const LAMP: &[PropertyInfo] = &[
//!     PropertyInfo::bool("dimmable", false).describe("on/off"),
//!     PropertyInfo::u16("lumen", 800),
//! ];
//!
//! let mut registry = TypeRegistry::new();
//! registry.register(
//!     TypeInfo::new("lamp", "object")
//!         .abstract_type()
//!         .class_init(|class| class.add_properties(LAMP)),
//! )?;
//! registry.register(
//!     TypeInfo::new("red-lamp", "lamp")
//!         .class_init(|class| class.part_mut::<LampClass>().colour = "red"),
//! )?;
//! let registry = registry.share();
//!
//! let root = registry.new_root()?;
//! let lamp = registry.new_object("red-lamp")?;
//! root.add_child("hall", lamp.clone())?;
//! lamp.set("lumen", 400u16)?;
//!
//! assert_eq!(lamp.get::<u16>("lumen")?, 400);
//! assert_eq!(lamp.class().part::<LampClass>().map(|class| class.colour), Some("red"));
//! assert_eq!(lamp.path().as_deref(), Some("/hall"));
//! assert_eq!(
//!     lamp.set("volts", 12u16).unwrap_err().to_string(),
//!     "Property 'red-lamp.volts' not found",
//! );
//! # Ok::<(), qom::Error>(())
//! ```
//!
//! Locks: each object has two, one around its properties and place in the tree and one around its
//! parts. Neither is held while a hook, a getter or a setter runs, nor while another object's lock
//! is taken, so there is no order to keep. Everything is `Send` and `Sync`.
//!
//! | module | holds |
//! |---|---|
//! | `types` | [`TypeInfo`], [`TypeRegistry`] |
//! | `class` | [`Class`] and its parts |
//! | `object` | [`Object`]: making, parts, drop |
//! | `tree` | [`Object`]: children, links, paths |
//! | `access` | [`Object`]: reading and setting properties |
//! | `property` | [`PropertyInfo`], [`Kind`], [`Value`] |
//! | `observer` | [`Observer`], told of each step; [`Recorder`] |

mod access;
mod class;
mod error;
mod object;
mod observer;
mod property;
mod sync;
mod tree;
mod types;

pub use access::PropertyEntry;
pub use class::{Class, ClassPart, ClassProperty};
pub use error::{BoxedError, Error, PropertyError};
pub use object::Object;
pub use observer::{Event, Observer, Recorder, Step};
pub use property::{
    Changed, Check, Choices, CustomKind, Kind, OnOffAuto, PropertyInfo, PropertyType, Unbuilt,
    Value,
};
pub use types::{INTERFACE, OBJECT, TypeInfo, TypeRegistry};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
