//! Objects: how one is made, what its levels keep in it, and how it goes.
//!
//! Two locks: one around the state here, one around the parts. Neither is held while a hook or a drop runs.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::access::OwnProperty;
use crate::sync::lock;
use crate::{Class, Error, Step, TypeRegistry, Value};

type Part = Arc<dyn Any + Send + Sync>;

/// An object: its class, the parts that the levels of its class keep in it, its properties, and its
/// place in the tree.
///
/// An object owns its children; dropping the last reference to it frees them first.
pub struct Object {
    class: Arc<Class>,
    registry: Arc<TypeRegistry>,
    is_root: bool,
    /// How many levels have run their `instance_init`, and are finalized.
    initialized: AtomicUsize,
    pub(crate) state: Mutex<State>,
    parts: Mutex<HashMap<TypeId, Part>>,
}

/// What one of the object's locks guards.
#[derive(Default)]
pub(crate) struct State {
    /// Owner, and the name there.
    pub(crate) parent: Option<(Weak<Object>, Arc<str>)>,
    /// Values of the class's properties that were set.
    pub(crate) values: BTreeMap<&'static str, Value>,
    /// What properties of the class came to while the object is frozen.
    pub(crate) settled: BTreeMap<&'static str, Value>,
    /// Properties that the object has beyond its class's, in the order in which they were added.
    pub(crate) own: Vec<(Arc<str>, OwnProperty)>,
    pub(crate) frozen: Option<Frozen>,
}

/// The properties of the class are final.
pub(crate) struct Frozen {
    /// What the error calls the object.
    pub(crate) id: Option<String>,
}

impl Object {
    pub(crate) fn initialize(
        registry: Arc<TypeRegistry>,
        class: Arc<Class>,
        is_root: bool,
    ) -> Result<Arc<Self>, Error> {
        let object = Arc::new(Self {
            class: class.clone(),
            registry,
            is_root,
            initialized: AtomicUsize::new(0),
            state: Mutex::default(),
            parts: Mutex::default(),
        });
        for level in class.levels() {
            object
                .registry
                .observe(Step::InstanceInit, &level.name, class.name());
            if let Some(hook) = &level.instance_init {
                hook(&object).map_err(Error::Hook)?;
            }
            object.initialized.fetch_add(1, Ordering::Relaxed);
        }
        Ok(object)
    }

    /// The class.
    #[must_use]
    pub fn class(&self) -> &Arc<Class> {
        &self.class
    }

    /// Name of the type.
    #[must_use]
    pub fn type_name(&self) -> &Arc<str> {
        self.class.name()
    }

    /// Whether the object is of the type `name`, of a descendant, or implements the interface
    /// `name`.
    #[must_use]
    #[doc(alias = "object_dynamic_cast")]
    pub fn is_a(&self, name: &str) -> bool {
        self.class.is_a(name)
    }

    /// The registry that made the object, to make children by type name.
    #[must_use]
    pub fn registry(&self) -> &Arc<TypeRegistry> {
        &self.registry
    }

    pub(crate) fn is_root(&self) -> bool {
        self.is_root
    }

    /// Puts a part in, in place of one of the same type. A level's state is one, with locks of its
    /// own inside.
    pub fn set_part<T: Any + Send + Sync>(&self, part: T) -> Arc<T> {
        let part = Arc::new(part);
        self.share_part(part.clone());
        part
    }

    /// As [`set_part`](Self::set_part), of something that others hold too.
    pub fn share_part<T: Any + Send + Sync>(&self, part: Arc<T>) {
        let replaced = lock(&self.parts).insert(TypeId::of::<T>(), part);
        // Its drop may look at this object, so the lock is gone by now.
        drop(replaced);
    }

    /// The part of type `T`. A trait object is found as a part of type `Arc<dyn Trait>`.
    #[must_use]
    pub fn part<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        lock(&self.parts)
            .get(&TypeId::of::<T>())
            .cloned()?
            .downcast()
            .ok()
    }

    /// Takes the part of type `T` out.
    pub fn take_part<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        lock(&self.parts)
            .remove(&TypeId::of::<T>())?
            .downcast()
            .ok()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let own = std::mem::take(&mut lock(&self.state).own);
        for property in own.into_iter().rev() {
            drop(property);
        }
        let initialized = self.initialized.load(Ordering::Relaxed);
        for level in self.class.levels().iter().take(initialized).rev() {
            self.registry
                .observe(Step::InstanceFinalize, &level.name, self.class.name());
            if let Some(hook) = &level.finalize {
                hook(self);
            }
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("type", self.type_name())
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}
