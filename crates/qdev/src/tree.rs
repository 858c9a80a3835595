//! The tree as a user sees it: `qom-list` and `qom-get`.

use std::fmt::Write;
use std::sync::Arc;

use qom::{Object, Value};

use crate::{Error, Machine};

/// One line of what `qom-list` prints; its `Display` is the line.
#[doc(alias = "ObjectPropertyInfo")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QomProperty {
    /// The name.
    pub name: String,
    /// Name of the type, such as `uint16`, `child<virtio-net-device>` or `link<bus>`.
    pub type_name: String,
}

impl std::fmt::Display for QomProperty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.type_name)
    }
}

impl Machine {
    /// The object at a path from the root, such as `/machine/peripheral/net0`, or at the only place where a
    /// path without a leading `/` leads: `net0/virtio-backend`.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`], [`Error::AmbiguousPath`].
    pub fn find(&self, path: &str) -> Result<Arc<Object>, Error> {
        let not_found = || Error::DeviceNotFound(path.to_owned());
        if path.starts_with('/') {
            return self.resolve(path).ok_or_else(not_found);
        }
        let mut found = self.root().resolve_partial(path);
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(not_found()),
            (Some(object), true) => Ok(object),
            (Some(_), false) => Err(Error::AmbiguousPath(path.to_owned())),
        }
    }

    /// All properties of the object at a path, by name; children and links are among them.
    ///
    /// # Errors
    /// Those of [`find`](Self::find).
    #[doc(alias = "qom-list")]
    pub fn qom_list(&self, path: &str) -> Result<Vec<QomProperty>, Error> {
        let properties = self.find(path)?.properties();
        let line = |property: qom::PropertyEntry| QomProperty {
            name: property.name,
            type_name: property.type_name,
        };
        Ok(properties.into_iter().map(line).collect())
    }

    /// The value of a property of the object at a path. A child or link reads as its path, and a property
    /// with no value as an empty text. [`Value::json`] is how QEMU prints it.
    ///
    /// # Errors
    /// Those of [`find`](Self::find), and [`qom::PropertyError::NotFound`].
    #[doc(alias = "qom-get")]
    pub fn qom_get(&self, path: &str, property: &str) -> Result<Value, Error> {
        let value = self.find(path)?.value(property)?;
        Ok(value.unwrap_or_else(|| Value::from("")))
    }

    /// The objects from a path downwards, each on a line of its own, with their types.
    ///
    /// # Errors
    /// Those of [`find`](Self::find).
    #[doc(alias = "info qom-tree")]
    pub fn qom_tree(&self, path: &str) -> Result<String, Error> {
        let object = self.find(path)?;
        let name = object.name().unwrap_or_else(|| "".into());
        let mut text = String::new();
        write_tree(&mut text, 0, &name, &object);
        Ok(text)
    }
}

fn write_tree(text: &mut String, depth: usize, name: &str, object: &Object) {
    // Writing to a `String` does not fail.
    let _ = writeln!(text, "{:depth$}/{name} ({})", "", object.type_name());
    let mut children = object.children();
    children.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, child) in children {
        write_tree(text, depth + 2, &name, &child);
    }
}
