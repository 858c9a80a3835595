//! Errors, of types and of properties; those of properties in QEMU's words, which users search for.

/// An error of a hook, of whatever type.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Why a type cannot be registered, or an object cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No type of this name is registered.
    #[error("unknown type '{0}'")]
    UnknownType(String),
    /// A type of this name is registered already.
    #[error("type '{0}' is registered twice")]
    DuplicateType(String),
    /// A type's parent is not registered.
    #[error("type '{type_name}' has the unknown parent '{parent}'")]
    UnknownParent {
        /// The type.
        type_name: String,
        /// Its parent.
        parent: String,
    },
    /// A type implements an interface that is not registered, or that is no interface.
    #[error("type '{type_name}' implements '{interface}', which is no known interface")]
    UnknownInterface {
        /// The type.
        type_name: String,
        /// The interface.
        interface: String,
    },
    /// A type is its own ancestor.
    #[error("type '{0}' is its own ancestor")]
    ParentCycle(String),
    /// An abstract type has no objects.
    #[error("object type '{0}' is abstract")]
    Abstract(String),
    /// A property, child or link.
    #[error(transparent)]
    Property(#[from] PropertyError),
    /// What an `instance_init` reported.
    #[error(transparent)]
    Hook(BoxedError),
}

/// Why a property cannot be added, read or set; worded as QEMU words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PropertyError {
    /// There is no property of this name.
    #[error("Property '{type_name}.{name}' not found")]
    NotFound {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
    },
    /// The property cannot be set.
    #[error("Property '{type_name}.{name}' is not writable")]
    NotWritable {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
    },
    /// The device was realized, so its properties are final.
    #[error("Attempt to set property '{name}' on {} (type '{type_name}') after it was realized",
        .id.as_ref().map_or_else(|| "anonymous device".to_owned(), |id| format!("device '{id}'")))]
    TooLate {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
        /// Id of the device, if it has one.
        id: Option<String>,
    },
    /// The value has another type than the property.
    #[error("Invalid parameter type for '{name}', expected: {expected}")]
    WrongType {
        /// Name of the property.
        name: String,
        /// Type of the property.
        expected: &'static str,
    },
    /// The value is out of range, or its text is none of this type.
    #[error("Parameter '{name}' expects {expected}")]
    Expects {
        /// Name of the property.
        name: String,
        /// What it takes, such as `uint16_t`.
        expected: &'static str,
    },
    /// The value is not one of the words that the property takes.
    #[error("Parameter '{name}' does not accept value '{value}'")]
    NotAChoice {
        /// Name of the property.
        name: String,
        /// The value.
        value: String,
    },
    /// The value is not in the property's own notation.
    #[error("Property '{type_name}.{name}' doesn't take value '{value}'")]
    BadValue {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
        /// The value.
        value: String,
    },
    /// The value names something that does not exist.
    #[error("Property '{type_name}.{name}' can't find value '{value}'")]
    NoSuchThing {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
        /// The value.
        value: String,
    },
    /// The value names something that has another user.
    #[error("Property '{type_name}.{name}' can't take value '{value}', it's in use")]
    InUse {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
        /// The value.
        value: String,
    },
    /// The property's check refuses the value.
    #[error("Property '{type_name}.{name}' {reason}")]
    Refused {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
        /// Why, as the end of a sentence.
        reason: String,
    },
    /// The property has no value.
    #[error("Property '{type_name}.{name}' is not set")]
    Unset {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
    },
    /// The object has a property of this name already.
    #[error("attempt to add duplicate property '{name}' to object (type '{type_name}')")]
    Duplicate {
        /// Type of the object.
        type_name: String,
        /// Name of the property.
        name: String,
    },
    /// A child has an owner already, or would own itself.
    #[error("child '{name}' (type '{type_name}') has an owner already")]
    HasParent {
        /// Type of the child.
        type_name: String,
        /// Name under which it was to be added.
        name: String,
    },
}
