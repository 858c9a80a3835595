//! Classes: what all objects of one type share.
//!
//! A class is changed by `class_init` alone, before anyone else has it; after that it is read without a lock.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::PropertyInfo;
use crate::types::{FinalizeFn, InstanceInitFn};

/// Data that a class holds and its children start with a copy of. Every `Clone + Send + Sync` type
/// is one.
pub trait ClassPart: Any + Send + Sync {
    /// A copy, for a child class.
    fn clone_part(&self) -> Box<dyn ClassPart>;
}

impl<T: Any + Clone + Send + Sync> ClassPart for T {
    fn clone_part(&self) -> Box<dyn ClassPart> {
        Box::new(self.clone())
    }
}

#[derive(Default)]
struct Parts(HashMap<TypeId, Box<dyn ClassPart>>);

impl Clone for Parts {
    fn clone(&self) -> Self {
        Self(
            self.0
                .iter()
                .map(|(id, part)| (*id, part.as_ref().clone_part()))
                .collect(),
        )
    }
}

/// What one level of a class does with an object.
#[derive(Clone)]
pub(crate) struct Level {
    pub(crate) name: Arc<str>,
    pub(crate) instance_init: Option<InstanceInitFn>,
    pub(crate) finalize: Option<FinalizeFn>,
}

/// A property of a class, and the ancestor that declared it.
#[derive(Debug, Clone)]
pub struct ClassProperty {
    /// Name of the type that declared it.
    pub declared_by: Arc<str>,
    /// The property.
    pub info: PropertyInfo,
}

/// What all objects of one type share.
#[doc(alias = "ObjectClass")]
#[derive(Clone)]
pub struct Class {
    levels: Vec<Level>,
    name: Arc<str>,
    is_abstract: bool,
    interfaces: BTreeSet<Arc<str>>,
    properties: BTreeMap<&'static str, ClassProperty>,
    parts: Parts,
}

impl Class {
    /// The class before its own `class_init`: a copy of its parent's, under another name.
    pub(crate) fn derive(
        parent: Option<&Self>,
        level: Level,
        is_abstract: bool,
        interfaces: impl IntoIterator<Item = Arc<str>>,
    ) -> Self {
        let name = level.name.clone();
        let mut class = parent.cloned().unwrap_or_else(|| Self {
            levels: Vec::new(),
            name: name.clone(),
            is_abstract,
            interfaces: BTreeSet::new(),
            properties: BTreeMap::new(),
            parts: Parts::default(),
        });
        class.levels.push(level);
        class.name = name;
        class.is_abstract = is_abstract;
        class.interfaces.extend(interfaces);
        class
    }

    /// Name of the type.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether there can be no object of exactly this type.
    #[must_use]
    pub fn is_abstract(&self) -> bool {
        self.is_abstract
    }

    /// Names of the type and its ancestors, root first.
    pub fn ancestry(&self) -> impl DoubleEndedIterator<Item = &Arc<str>> {
        self.levels.iter().map(|level| &level.name)
    }

    /// Whether this is the type `name`, descends from it, or implements the interface `name`.
    #[must_use]
    pub fn is_a(&self, name: &str) -> bool {
        self.ancestry().any(|ancestor| &**ancestor == name) || self.interfaces.contains(name)
    }

    /// Names of the interfaces that the type and its ancestors implement.
    pub fn interfaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.interfaces.iter()
    }

    /// The part of type `T`, if a level has made one.
    #[must_use]
    pub fn part<T: ClassPart>(&self) -> Option<&T> {
        let part: &dyn Any = self.parts.0.get(&TypeId::of::<T>())?.as_ref();
        part.downcast_ref()
    }

    /// The part of type `T`, made by default if no ancestor has one. For `class_init`.
    pub fn part_mut<T: ClassPart + Default>(&mut self) -> &mut T {
        if self.part::<T>().is_none() {
            self.set_part(T::default());
        }
        let part = self.parts.0.get_mut(&TypeId::of::<T>()).map(|part| {
            let part: &mut dyn Any = part.as_mut();
            part
        });
        match part.and_then(|part| part.downcast_mut()) {
            Some(part) => part,
            // Parts are stored under their own type's id, and this one was just seen or put there.
            None => unreachable!("class part stored under another type's id"),
        }
    }

    /// Puts a part in, in place of an inherited one of the same type. For `class_init`.
    pub fn set_part<T: ClassPart>(&mut self, part: T) {
        self.parts.0.insert(TypeId::of::<T>(), Box::new(part));
    }

    /// Declares properties; one of the same name as an ancestor's takes its place. For
    /// `class_init`.
    pub fn add_properties(&mut self, properties: &[PropertyInfo]) {
        for info in properties {
            let declared_by = self.name.clone();
            self.properties.insert(
                info.name,
                ClassProperty {
                    declared_by,
                    info: info.clone(),
                },
            );
        }
    }

    /// The declared property of this name, the ancestors' included.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&ClassProperty> {
        self.properties.get(name)
    }

    /// All declared properties, the ancestors' included, by name.
    pub fn properties(&self) -> impl Iterator<Item = &ClassProperty> {
        self.properties.values()
    }

    pub(crate) fn levels(&self) -> &[Level] {
        &self.levels
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class")
            .field("name", &self.name)
            .field("is_abstract", &self.is_abstract)
            .finish_non_exhaustive()
    }
}
