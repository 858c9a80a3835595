//! Properties of an object: reading, setting, listing, and those that one object has beyond its class's.
//!
//! A value is made and judged before the lock is taken, and getters and setters run without it: they may
//! use the object that they belong to.

use std::sync::{Arc, Weak};

use crate::object::Frozen;
use crate::sync::lock;
use crate::{Kind, Object, PropertyError, PropertyInfo, PropertyType, Unbuilt, Value};

type Getter = Arc<dyn Fn(&Object) -> Option<Value> + Send + Sync>;
type Setter = Arc<dyn Fn(&Object, Value) -> Result<(), PropertyError> + Send + Sync>;

/// A property that one object has beyond its class's.
#[derive(Clone)]
pub(crate) enum OwnProperty {
    Child(Arc<Object>),
    Link {
        target_type: Arc<str>,
        target: Weak<Object>,
    },
    Alias {
        target: Weak<Object>,
        name: Arc<str>,
    },
    Computed {
        kind: Kind,
        get: Getter,
        set: Option<Setter>,
    },
}

/// One line of an object's list of properties.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PropertyEntry {
    /// The name.
    pub name: String,
    /// Name of the type, such as `uint16` or `child<virtio-net-device>`.
    pub type_name: String,
    /// What help prints; may be empty.
    pub description: &'static str,
    /// The value that help prints: that of an object on which it was not set.
    pub default: Option<Value>,
    /// Can be set, as far as its kind goes.
    pub is_settable: bool,
    /// It is a child.
    pub is_child: bool,
    /// What it switches is not built.
    pub unbuilt: Option<Unbuilt>,
    /// QEMU has no property of this name on such an object.
    pub is_our_own: bool,
}

impl Object {
    /// Sets a property.
    ///
    /// # Errors
    /// [`PropertyError::NotFound`]; [`PropertyError::NotWritable`] of children, links and computed
    /// properties without a setter; [`PropertyError::TooLate`] when [frozen](Self::freeze); those
    /// of [`Kind::admit`]; [`PropertyError::Refused`] by the property's own check.
    pub fn set(&self, name: &str, value: impl Into<Value>) -> Result<(), PropertyError> {
        let value = value.into();
        self.set_with(name, |_, _, _| Ok(value))
    }

    /// As [`set`](Self::set), with a value that is made once the property's kind is known: `make`
    /// gets the kind and the names of the type and of the property that is really set, which are
    /// others if `name` is an alias. Reading text is done so.
    ///
    /// # Errors
    /// Those of [`set`](Self::set), and what `make` reports.
    pub fn set_with(
        &self,
        name: &str,
        make: impl FnOnce(&Kind, &str, &str) -> Result<Value, PropertyError>,
    ) -> Result<(), PropertyError> {
        if let Some(own) = self.own_property(name) {
            return match own {
                OwnProperty::Alias {
                    target,
                    name: target_name,
                } => {
                    let target = target.upgrade().ok_or_else(|| self.not_found(name))?;
                    // Boxed, so that the recursion through aliases ends in one type.
                    let make: BoxedMake<'_> = Box::new(make);
                    target.set_with(&target_name, make)
                }
                OwnProperty::Computed {
                    kind,
                    set: Some(set),
                    ..
                } => {
                    let value = make(&kind, self.type_name(), name)?;
                    set(self, kind.admit(value, self.type_name(), name)?)
                }
                OwnProperty::Computed { .. } | OwnProperty::Child(_) | OwnProperty::Link { .. } => {
                    Err(self.not_writable(name))
                }
            };
        }
        let class = self.class().clone();
        let Some(property) = class.property(name) else {
            let error = if name == "type" {
                Self::not_writable
            } else {
                Self::not_found
            };
            return Err(error(self, name));
        };
        let info = &property.info;
        self.check_thawed(info)?;
        let value = make(&info.kind, self.type_name(), name)?;
        let value = info.kind.admit(value, self.type_name(), name)?;
        info.judge(&value)
            .map_err(|reason| PropertyError::Refused {
                type_name: self.type_name().to_string(),
                name: name.to_owned(),
                reason,
            })?;
        let mut state = lock(&self.state);
        Self::thawed(state.frozen.as_ref(), info, self.type_name())?;
        // What is not built stands still: the value says what is so anyway.
        if info.unbuilt.is_none() {
            state.values.insert(info.name, value);
        }
        let is_frozen = state.frozen.is_some();
        drop(state);
        if let Some(changed) = info.changed.filter(|_| is_frozen) {
            changed(self);
        }
        Ok(())
    }

    /// Reads a property as the type `T`; `Option<T>` of one that may have no value. A child or link
    /// reads as its path.
    ///
    /// # Errors
    /// [`PropertyError::NotFound`], [`PropertyError::Unset`], [`PropertyError::WrongType`].
    pub fn get<T: PropertyType>(&self, name: &str) -> Result<T, PropertyError> {
        let value = self.value(name)?;
        T::from_value(value.as_ref()).ok_or_else(|| match value {
            None => PropertyError::Unset {
                type_name: self.type_name().to_string(),
                name: name.to_owned(),
            },
            Some(_) => PropertyError::WrongType {
                name: name.to_owned(),
                expected: std::any::type_name::<T>(),
            },
        })
    }

    /// The value of a property, its default if it was not set; `None` if it has none.
    ///
    /// # Errors
    /// [`PropertyError::NotFound`].
    pub fn value(&self, name: &str) -> Result<Option<Value>, PropertyError> {
        let path = |object: &Arc<Self>| Some(Value::from(object.path().unwrap_or_default()));
        match self.own_property(name) {
            Some(OwnProperty::Alias {
                target,
                name: target_name,
            }) => target
                .upgrade()
                .ok_or_else(|| self.not_found(name))?
                .value(&target_name),
            Some(OwnProperty::Computed { get, .. }) => Ok(get(self)),
            Some(OwnProperty::Child(child)) => Ok(path(&child)),
            Some(OwnProperty::Link { target, .. }) => Ok(target
                .upgrade()
                .as_ref()
                .map_or_else(|| Some(Value::from("")), path)),
            None => match self.class().property(name) {
                Some(property) => {
                    let state = lock(&self.state);
                    let found = state.settled.get(name).or_else(|| state.values.get(name));
                    Ok(found.or_else(|| property.info.initial()).cloned())
                }
                None if name == "type" => Ok(Some(Value::from(&**self.type_name()))),
                None => Err(self.not_found(name)),
            },
        }
    }

    /// Whether a property of the class was set, to whatever value.
    #[must_use]
    pub fn was_set(&self, name: &str) -> bool {
        match self.own_property(name) {
            Some(OwnProperty::Alias { target, name }) => {
                target.upgrade().is_some_and(|target| target.was_set(&name))
            }
            _ => lock(&self.state).values.contains_key(name),
        }
    }

    /// All properties, by name: those of the class, those that only this object has, and `type`.
    #[must_use]
    pub fn properties(&self) -> Vec<PropertyEntry> {
        let mut entries: Vec<_> = self.class().properties().map(|p| entry(&p.info)).collect();
        entries.push(plain_entry("type", "string"));
        let own = lock(&self.state).own.clone();
        entries.extend(
            own.iter()
                .filter_map(|(name, property)| own_entry(name, property)),
        );
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// Makes the properties of the class final: setting one is [`PropertyError::TooLate`] from here
    /// on, in whose words `id` names the object. What realizes a device does this;
    /// [`thaw`](Self::thaw) undoes it.
    pub fn freeze(&self, id: Option<&str>) {
        lock(&self.state).frozen = Some(Frozen {
            id: id.map(str::to_owned),
        });
    }

    /// Makes the properties of the class settable again, and forgets what they [came to](Self::settle).
    pub fn thaw(&self) {
        let mut state = lock(&self.state);
        state.frozen = None;
        state.settled.clear();
    }

    /// Says what a property of a frozen object came to, such as the address that a device got which was
    /// given none: it reads so until the object is thawed. For what realizes a device.
    ///
    /// # Errors
    /// [`PropertyError::NotFound`] if the class has no such property, those of [`Kind::admit`], and
    /// [`PropertyError::NotWritable`] if the object is not frozen.
    pub fn settle(&self, name: &str, value: impl Into<Value>) -> Result<(), PropertyError> {
        let property = self.class().property(name);
        let info = &property.ok_or_else(|| self.not_found(name))?.info;
        let value = info.kind.admit(value.into(), self.type_name(), name)?;
        let mut state = lock(&self.state);
        if state.frozen.is_none() {
            drop(state);
            return Err(self.not_writable(name));
        }
        state.settled.insert(info.name, value);
        Ok(())
    }

    /// Adds a property that stands for one of another object, usually a child; errors name that
    /// one.
    ///
    /// # Errors
    /// [`PropertyError::Duplicate`], and [`PropertyError::NotFound`] if the target has no such
    /// property.
    pub fn add_alias(
        &self,
        name: &str,
        target: &Arc<Self>,
        target_name: &str,
    ) -> Result<(), PropertyError> {
        if !target.leads_to_a_property(target_name) {
            return Err(target.not_found(target_name));
        }
        let alias = OwnProperty::Alias {
            target: Arc::downgrade(target),
            name: target_name.into(),
        };
        self.add_own(name, alias)
    }

    /// Adds an alias under the same name for each property of the target's class and each that the target
    /// computes, except where this object has one of that name already.
    ///
    /// # Errors
    /// None is known; the signature is that of [`add_alias`](Self::add_alias).
    #[doc(alias = "qdev_alias_all_properties")]
    pub fn add_aliases(&self, target: &Arc<Self>) -> Result<(), PropertyError> {
        for property in target.class().properties() {
            if !self.has_property(property.info.name) {
                self.add_alias(property.info.name, target, property.info.name)?;
            }
        }
        let own = lock(&target.state).own.clone();
        for (name, property) in &own {
            if matches!(property, OwnProperty::Computed { .. }) && !self.has_property(name) {
                self.add_alias(name, target, name)?;
            }
        }
        Ok(())
    }

    /// Adds a property whose value is computed whenever it is read. The getter is called with no
    /// lock held.
    ///
    /// # Errors
    /// [`PropertyError::Duplicate`].
    pub fn add_computed(
        &self,
        name: &str,
        kind: Kind,
        get: impl Fn(&Self) -> Option<Value> + Send + Sync + 'static,
    ) -> Result<(), PropertyError> {
        self.add_own(
            name,
            OwnProperty::Computed {
                kind,
                get: Arc::new(get),
                set: None,
            },
        )
    }

    /// As [`add_computed`](Self::add_computed), with a setter, which gets values of the right kind
    /// and is called with no lock held, also while the object is [frozen](Self::freeze).
    ///
    /// # Errors
    /// [`PropertyError::Duplicate`].
    pub fn add_computed_settable(
        &self,
        name: &str,
        kind: Kind,
        get: impl Fn(&Self) -> Option<Value> + Send + Sync + 'static,
        set: impl Fn(&Self, Value) -> Result<(), PropertyError> + Send + Sync + 'static,
    ) -> Result<(), PropertyError> {
        let set: Option<Setter> = Some(Arc::new(set));
        self.add_own(
            name,
            OwnProperty::Computed {
                kind,
                get: Arc::new(get),
                set,
            },
        )
    }

    /// Whether there is a property of this name.
    #[must_use]
    pub fn has_property(&self, name: &str) -> bool {
        name == "type" || self.class().property(name).is_some() || self.own_property(name).is_some()
    }

    /// Whether there is a property of this name, and if that is an alias, one at its end. So no alias is made
    /// that leads back to itself, by way of one whose end was removed.
    fn leads_to_a_property(&self, name: &str) -> bool {
        match self.own_property(name) {
            Some(OwnProperty::Alias { target, name }) => target
                .upgrade()
                .is_some_and(|target| target.leads_to_a_property(&name)),
            _ => self.has_property(name),
        }
    }

    pub(crate) fn add_own(&self, name: &str, property: OwnProperty) -> Result<(), PropertyError> {
        let in_class = name == "type" || self.class().property(name).is_some();
        let mut state = lock(&self.state);
        if in_class || state.own.iter().any(|(own, _)| &**own == name) {
            drop(state);
            return Err(PropertyError::Duplicate {
                type_name: self.type_name().to_string(),
                name: name.to_owned(),
            });
        }
        state.own.push((name.into(), property));
        Ok(())
    }

    pub(crate) fn own_property(&self, name: &str) -> Option<OwnProperty> {
        let state = lock(&self.state);
        state
            .own
            .iter()
            .find(|(own, _)| &**own == name)
            .map(|(_, property)| property.clone())
    }

    fn check_thawed(&self, info: &PropertyInfo) -> Result<(), PropertyError> {
        Self::thawed(lock(&self.state).frozen.as_ref(), info, self.type_name())
    }

    fn thawed(
        frozen: Option<&Frozen>,
        info: &PropertyInfo,
        type_name: &str,
    ) -> Result<(), PropertyError> {
        match frozen {
            Some(Frozen { id }) if !info.settable_when_frozen => Err(PropertyError::TooLate {
                type_name: type_name.to_owned(),
                name: info.name.to_owned(),
                id: id.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn not_found(&self, name: &str) -> PropertyError {
        PropertyError::NotFound {
            type_name: self.type_name().to_string(),
            name: name.to_owned(),
        }
    }

    pub(crate) fn not_writable(&self, name: &str) -> PropertyError {
        let type_name = self.type_name().to_string();
        PropertyError::NotWritable {
            type_name,
            name: name.to_owned(),
        }
    }
}

type BoxedMake<'a> = Box<dyn FnOnce(&Kind, &str, &str) -> Result<Value, PropertyError> + 'a>;

fn entry(info: &PropertyInfo) -> PropertyEntry {
    PropertyEntry {
        name: info.name.to_owned(),
        type_name: info.kind.type_name().to_owned(),
        description: info.description,
        default: info.default.clone(),
        is_settable: true,
        is_child: false,
        unbuilt: info.unbuilt,
        is_our_own: info.is_our_own,
    }
}

fn plain_entry(name: &str, type_name: impl Into<String>) -> PropertyEntry {
    PropertyEntry {
        name: name.to_owned(),
        type_name: type_name.into(),
        description: "",
        default: None,
        is_settable: false,
        is_child: false,
        unbuilt: None,
        is_our_own: false,
    }
}

/// `None` of an alias whose target is gone.
fn own_entry(name: &str, property: &OwnProperty) -> Option<PropertyEntry> {
    Some(match property {
        OwnProperty::Child(child) => PropertyEntry {
            is_child: true,
            ..plain_entry(name, format!("child<{}>", child.type_name()))
        },
        OwnProperty::Link { target_type, .. } => plain_entry(name, format!("link<{target_type}>")),
        OwnProperty::Computed { kind, set, .. } => PropertyEntry {
            is_settable: set.is_some(),
            ..plain_entry(name, kind.type_name())
        },
        OwnProperty::Alias {
            target,
            name: target_name,
        } => {
            let target = target.upgrade()?;
            let found = match target.class().property(target_name) {
                Some(property) => entry(&property.info),
                None if &**target_name == "type" => plain_entry(name, "string"),
                None => own_entry(target_name, &target.own_property(target_name)?)?,
            };
            PropertyEntry {
                name: name.to_owned(),
                ..found
            }
        }
    })
}
