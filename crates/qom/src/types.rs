//! Types by name: what is registered of one, and the registry that makes classes and objects of it.
//!
//! A registry is filled, then shared and never changed again. A class is made on the first use of its type, a
//! parent's before its child's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::class::Level;
use crate::{BoxedError, Class, Error, Event, Object, Observer, Step};

/// The root of all types with objects.
pub const OBJECT: &str = "object";
/// The root of all interfaces.
pub const INTERFACE: &str = "interface";

pub(crate) type ClassInitFn = Arc<dyn Fn(&mut Class) + Send + Sync>;
pub(crate) type InstanceInitFn = Arc<dyn Fn(&Arc<Object>) -> Result<(), BoxedError> + Send + Sync>;
pub(crate) type FinalizeFn = Arc<dyn Fn(&Object) + Send + Sync>;

/// What is registered of a type.
#[derive(Clone)]
pub struct TypeInfo {
    name: Arc<str>,
    parent: Option<Arc<str>>,
    is_abstract: bool,
    interfaces: Vec<Arc<str>>,
    alias: Option<Arc<str>>,
    class_init: Option<ClassInitFn>,
    instance_init: Option<InstanceInitFn>,
    finalize: Option<FinalizeFn>,
}

impl TypeInfo {
    fn root(name: &str) -> Self {
        Self {
            name: name.into(),
            parent: None,
            is_abstract: true,
            interfaces: Vec::new(),
            alias: None,
            class_init: None,
            instance_init: None,
            finalize: None,
        }
    }

    /// A type whose objects can be made. The parent may be registered later.
    #[must_use]
    pub fn new(name: &str, parent: &str) -> Self {
        Self {
            parent: Some(parent.into()),
            is_abstract: false,
            ..Self::root(name)
        }
    }

    /// An interface: a name that types promise to live up to. What it promises is a Rust trait,
    /// whose object each instance holds as a part.
    #[must_use]
    pub fn interface(name: &str) -> Self {
        Self {
            parent: Some(INTERFACE.into()),
            ..Self::root(name)
        }
    }

    /// There are objects only of its descendants.
    #[must_use]
    pub fn abstract_type(mut self) -> Self {
        self.is_abstract = true;
        self
    }

    /// Objects of the type, and of its descendants, implement the interface.
    #[must_use]
    pub fn implements(mut self, interface: &str) -> Self {
        self.interfaces.push(interface.into());
        self
    }

    /// Users may ask for the type by this name too, see
    /// [`canonical_name`](TypeRegistry::canonical_name).
    #[must_use]
    pub fn alias(mut self, alias: &str) -> Self {
        self.alias = Some(alias.into());
        self
    }

    /// Runs once a registry, when the class is first needed, on a copy of the parent's class.
    #[must_use]
    pub fn class_init(mut self, hook: impl Fn(&mut Class) + Send + Sync + 'static) -> Self {
        self.class_init = Some(Arc::new(hook));
        self
    }

    /// Runs for each object of the type or a descendant, after the parent's. A failure undoes what
    /// stands: the object is dropped, and the levels that have run are finalized.
    #[must_use]
    pub fn instance_init(
        mut self,
        hook: impl Fn(&Arc<Object>) -> Result<(), BoxedError> + Send + Sync + 'static,
    ) -> Self {
        self.instance_init = Some(Arc::new(hook));
        self
    }

    /// Runs when an object is dropped, before the parent's, after its children are gone.
    #[must_use]
    pub fn instance_finalize(mut self, hook: impl Fn(&Object) + Send + Sync + 'static) -> Self {
        self.finalize = Some(Arc::new(hook));
        self
    }
}

impl fmt::Debug for TypeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypeInfo")
            .field("name", &self.name)
            .field("parent", &self.parent)
            .field("is_abstract", &self.is_abstract)
            .field("interfaces", &self.interfaces)
            .finish_non_exhaustive()
    }
}

struct Entry {
    info: TypeInfo,
    class: OnceLock<Arc<Class>>,
}

/// The types that there are. Filled first, then [shared](Self::share) and never changed again.
pub struct TypeRegistry {
    types: BTreeMap<Arc<str>, Entry>,
    observer: Option<Arc<dyn Observer>>,
}

impl Default for TypeRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl TypeRegistry {
    /// A registry with the types `object`, `interface` and `container`; the last is an object with
    /// nothing but children.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Self {
            types: BTreeMap::new(),
            observer: None,
        };
        for info in [
            TypeInfo::root(OBJECT),
            TypeInfo::root(INTERFACE),
            TypeInfo::new("container", OBJECT),
        ] {
            registry.insert(info);
        }
        registry
    }

    fn insert(&mut self, info: TypeInfo) {
        self.types.insert(
            info.name.clone(),
            Entry {
                info,
                class: OnceLock::new(),
            },
        );
    }

    /// Adds a type. Its parent and interfaces are looked up when its class is first needed.
    ///
    /// # Errors
    /// [`Error::DuplicateType`].
    #[doc(alias = "type_register_static")]
    pub fn register(&mut self, info: TypeInfo) -> Result<(), Error> {
        for name in [Some(&info.name), info.alias.as_ref()]
            .into_iter()
            .flatten()
        {
            if self.types.contains_key(name) || self.by_alias(name).is_some() {
                return Err(Error::DuplicateType(name.to_string()));
            }
        }
        self.insert(info);
        Ok(())
    }

    /// Tells an observer of each step from here on.
    pub fn set_observer(&mut self, observer: Arc<dyn Observer>) {
        self.observer = Some(observer);
    }

    /// Ends the registering.
    #[must_use]
    pub fn share(self) -> Arc<Self> {
        Arc::new(self)
    }

    /// Names of all types, by name.
    pub fn type_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.types.keys()
    }

    /// The other name of a type, if it has one.
    #[must_use]
    pub fn alias_of(&self, name: &str) -> Option<&Arc<str>> {
        self.types.get(name)?.info.alias.as_ref()
    }

    /// The name of the type that a user means by `name`: the type's own name, or its alias.
    #[must_use]
    pub fn canonical_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.by_alias(name).unwrap_or(name)
    }

    fn by_alias(&self, alias: &str) -> Option<&str> {
        let mut infos = self.types.values().map(|entry| &entry.info);
        let found = infos.find(|info| info.alias.as_deref() == Some(alias))?;
        Some(&found.name)
    }

    /// The class of a type, initialized now if this is its first use, from the root to the type
    /// itself.
    ///
    /// # Errors
    /// [`Error::UnknownType`], [`Error::UnknownParent`], [`Error::ParentCycle`],
    /// [`Error::UnknownInterface`].
    #[doc(alias = "type_initialize")]
    pub fn class(&self, name: &str) -> Result<Arc<Class>, Error> {
        let mut lineage = vec![self.entry(name)?];
        while let Some((child, parent)) = lineage
            .last()
            .and_then(|entry| Some((entry, entry.info.parent.as_ref()?)))
        {
            if lineage.iter().any(|entry| entry.info.name == *parent) {
                return Err(Error::ParentCycle(parent.to_string()));
            }
            let entry = self.types.get(parent).ok_or_else(|| Error::UnknownParent {
                type_name: child.info.name.to_string(),
                parent: parent.to_string(),
            })?;
            lineage.push(entry);
        }
        for entry in &lineage {
            self.check_interfaces(&entry.info)?;
        }
        let mut class: Option<&Arc<Class>> = None;
        for entry in lineage.into_iter().rev() {
            let parent = class;
            class = Some(
                entry
                    .class
                    .get_or_init(|| self.initialize(&entry.info, parent)),
            );
        }
        class
            .cloned()
            .ok_or_else(|| Error::UnknownType(name.to_owned()))
    }

    fn entry(&self, name: &str) -> Result<&Entry, Error> {
        self.types
            .get(name)
            .ok_or_else(|| Error::UnknownType(name.to_owned()))
    }

    fn check_interfaces(&self, info: &TypeInfo) -> Result<(), Error> {
        let known = |interface: &Arc<str>| {
            let parent = self
                .types
                .get(interface)
                .and_then(|entry| entry.info.parent.as_deref());
            parent == Some(INTERFACE)
        };
        match info.interfaces.iter().find(|interface| !known(interface)) {
            None => Ok(()),
            Some(interface) => Err(Error::UnknownInterface {
                type_name: info.name.to_string(),
                interface: interface.to_string(),
            }),
        }
    }

    fn initialize(&self, info: &TypeInfo, parent: Option<&Arc<Class>>) -> Arc<Class> {
        let level = Level {
            name: info.name.clone(),
            instance_init: info.instance_init.clone(),
            finalize: info.finalize.clone(),
        };
        let parent = parent.map(Arc::as_ref);
        let mut class = Class::derive(
            parent,
            level,
            info.is_abstract,
            info.interfaces.iter().cloned(),
        );
        self.observe(Step::ClassInit, &info.name, &info.name);
        if let Some(hook) = &info.class_init {
            hook(&mut class);
        }
        Arc::new(class)
    }

    /// Tells the observer, if there is one, of a step.
    pub fn observe(&self, step: Step, level: &Arc<str>, type_name: &Arc<str>) {
        if let Some(observer) = &self.observer {
            let event = Event {
                step,
                level: level.clone(),
                type_name: type_name.clone(),
            };
            observer.observe(&event);
        }
    }

    /// Makes an object: `instance_init` of each level, parents first.
    ///
    /// # Errors
    /// Those of [`class`](Self::class), [`Error::Abstract`], and what an `instance_init` reports.
    #[doc(alias = "object_new")]
    pub fn new_object(self: &Arc<Self>, name: &str) -> Result<Arc<Object>, Error> {
        let class = self.class(name)?;
        if class.is_abstract() {
            return Err(Error::Abstract(name.to_owned()));
        }
        Object::initialize(self.clone(), class, false)
    }

    /// Makes the root of a tree: an object of the type `container` whose path is `/`.
    ///
    /// # Errors
    /// None but those of [`class`](Self::class), which do not happen to this type.
    pub fn new_root(self: &Arc<Self>) -> Result<Arc<Object>, Error> {
        Object::initialize(self.clone(), self.class("container")?, true)
    }
}

impl fmt::Debug for TypeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypeRegistry")
            .field("types", &self.types.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
