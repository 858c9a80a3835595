//! The tree: children, links and paths.
//!
//! An object owns its children. Links and parents are weak, so a tree goes with its root.

use std::sync::{Arc, Weak};

use crate::access::OwnProperty;
use crate::sync::lock;
use crate::{Object, PropertyError};

impl Object {
    /// Becomes the owner of `child`, under a name.
    ///
    /// # Errors
    /// [`PropertyError::Duplicate`] if the name is taken; [`PropertyError::HasParent`] if the child
    /// has an owner already or is an ancestor of this object.
    #[doc(alias = "object_property_add_child")]
    pub fn add_child(self: &Arc<Self>, name: &str, child: Arc<Self>) -> Result<(), PropertyError> {
        let has_parent = || PropertyError::HasParent {
            type_name: child.type_name().to_string(),
            name: name.to_owned(),
        };
        let mut ancestor = Some(self.clone());
        while let Some(object) = ancestor {
            if Arc::ptr_eq(&object, &child) {
                return Err(has_parent());
            }
            ancestor = object.parent();
        }
        {
            let mut state = lock(&child.state);
            if state
                .parent
                .as_ref()
                .is_some_and(|(parent, _)| parent.strong_count() > 0)
            {
                drop(state);
                return Err(has_parent());
            }
            state.parent = Some((Arc::downgrade(self), name.into()));
        }
        let added = self.add_own(name, OwnProperty::Child(child.clone()));
        if added.is_err() {
            lock(&child.state).parent = None;
        }
        added
    }

    /// Gives a child up; its caller is the last owner left.
    pub fn remove_child(&self, name: &str) -> Option<Arc<Self>> {
        let child = {
            let mut state = lock(&self.state);
            let is_child = |(own, property): &(Arc<str>, OwnProperty)| {
                &**own == name && matches!(property, OwnProperty::Child(_))
            };
            let at = state.own.iter().position(is_child)?;
            match state.own.remove(at) {
                (_, OwnProperty::Child(child)) => child,
                _ => return None,
            }
        };
        lock(&child.state).parent = None;
        Some(child)
    }

    /// Leaves its owner, if it has one.
    #[doc(alias = "object_unparent")]
    pub fn unparent(&self) {
        let parent = lock(&self.state).parent.clone();
        if let Some((parent, name)) = parent
            && let Some(parent) = parent.upgrade()
        {
            parent.remove_child(&name);
        }
    }

    /// The child of this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<Arc<Self>> {
        if let Some(OwnProperty::Child(child)) = self.own_property(name) {
            Some(child)
        } else {
            None
        }
    }

    /// All children with their names, in the order in which they were added.
    #[must_use]
    pub fn children(&self) -> Vec<(Arc<str>, Arc<Self>)> {
        let child = |(name, property): &(Arc<str>, OwnProperty)| {
            if let OwnProperty::Child(child) = property {
                Some((name.clone(), child.clone()))
            } else {
                None
            }
        };
        lock(&self.state).own.iter().filter_map(child).collect()
    }

    /// The owner.
    #[must_use]
    pub fn parent(&self) -> Option<Arc<Self>> {
        let parent = lock(&self.state)
            .parent
            .as_ref()
            .map(|(parent, _)| parent.clone());
        parent.and_then(|parent| parent.upgrade())
    }

    /// The name under which the owner has it.
    #[must_use]
    pub fn name(&self) -> Option<Arc<str>> {
        lock(&self.state)
            .parent
            .as_ref()
            .map(|(_, name)| name.clone())
    }

    /// The path from the root, such as `/machine/peripheral/net0`; `None` outside of a tree.
    #[must_use]
    #[doc(alias = "object_get_canonical_path")]
    pub fn path(&self) -> Option<String> {
        if self.is_root() {
            return Some("/".to_owned());
        }
        let mut names = vec![self.name()?];
        let mut object = self.parent()?;
        while !object.is_root() {
            names.push(object.name()?);
            object = object.parent()?;
        }
        Some(
            names
                .iter()
                .rev()
                .fold(String::new(), |path, name| format!("{path}/{name}")),
        )
    }

    /// The object at a path, through children and links: from the root of this object's tree if the
    /// path starts with `/`, else from this object.
    #[must_use]
    #[doc(alias = "object_resolve_path")]
    pub fn resolve(self: &Arc<Self>, path: &str) -> Option<Arc<Self>> {
        let mut object = self.clone();
        if path.starts_with('/') {
            while let Some(parent) = object.parent() {
                object = parent;
            }
        }
        for name in path.split('/').filter(|name| !name.is_empty()) {
            object = match object.own_property(name)? {
                OwnProperty::Child(child) => child,
                OwnProperty::Link { target, .. } => target.upgrade()?,
                OwnProperty::Alias { .. } | OwnProperty::Computed { .. } => return None,
            };
        }
        Some(object)
    }

    /// The objects of the tree below this one, itself included, at which a relative path ends that may begin
    /// anywhere: `net0/virtio-backend`. Only children count.
    #[must_use]
    #[doc(alias = "object_resolve_path_type")]
    pub fn resolve_partial(self: &Arc<Self>, path: &str) -> Vec<Arc<Self>> {
        let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
        let mut found = Vec::new();
        let mut ahead = vec![self.clone()];
        while let Some(object) = ahead.pop() {
            ahead.extend(object.children().into_iter().map(|(_, child)| child));
            let end = (names.iter()).try_fold(object, |object, name| object.child(name));
            found.extend(end.filter(|_| !names.is_empty()));
        }
        found
    }

    /// Adds a link, which points nowhere yet, to an object of a type.
    ///
    /// # Errors
    /// [`PropertyError::Duplicate`].
    pub fn add_link(&self, name: &str, target_type: &str) -> Result<(), PropertyError> {
        let link = OwnProperty::Link {
            target_type: target_type.into(),
            target: Weak::new(),
        };
        self.add_own(name, link)
    }

    /// Removes a link, whatever it points at. Says whether there was one of this name.
    pub fn remove_link(&self, name: &str) -> bool {
        let mut state = lock(&self.state);
        let is_link = |(own, property): &(Arc<str>, OwnProperty)| {
            &**own == name && matches!(property, OwnProperty::Link { .. })
        };
        let at = state.own.iter().position(is_link);
        at.map(|at| state.own.remove(at)).is_some()
    }

    /// Points a link at an object, which it does not own, or nowhere.
    ///
    /// # Errors
    /// [`PropertyError::NotFound`] if there is no link of this name, [`PropertyError::BadValue`] if
    /// the object is of another type.
    pub fn set_link(&self, name: &str, target: Option<&Arc<Self>>) -> Result<(), PropertyError> {
        let new_target = target.map_or_else(Weak::new, Arc::downgrade);
        let mut state = lock(&self.state);
        for (own, property) in &mut state.own {
            let OwnProperty::Link {
                target_type,
                target: old,
            } = property
            else {
                continue;
            };
            if &**own != name {
                continue;
            }
            return match target {
                Some(object) if !object.is_a(target_type) => Err(PropertyError::BadValue {
                    type_name: self.type_name().to_string(),
                    name: name.to_owned(),
                    value: object.type_name().to_string(),
                }),
                _ => {
                    *old = new_target;
                    Ok(())
                }
            };
        }
        Err(PropertyError::NotFound {
            type_name: self.type_name().to_string(),
            name: name.to_owned(),
        })
    }

    /// The object that a link points at.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<Arc<Self>> {
        if let Some(OwnProperty::Link { target, .. }) = self.own_property(name) {
            target.upgrade()
        } else {
            None
        }
    }
}
