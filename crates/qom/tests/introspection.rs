//! What is not built, what properties come to, other names of types, and finding objects.

use std::sync::Arc;

use qom::{Error, PropertyError, PropertyInfo, TypeInfo, TypeRegistry, Unbuilt, Value};

const MODEL: &[PropertyInfo] = &[
    PropertyInfo::bool("announce", true).unbuilt(Unbuilt::Only(&Value::Bool(false))),
    PropertyInfo::bool("pcie", true).unbuilt(Unbuilt::Only(&Value::Bool(true))),
    PropertyInfo::i32("index", 7).unbuilt(Unbuilt::Only(&Value::Int(-1))),
    PropertyInfo::str("romfile").unbuilt(Unbuilt::NoValue),
    PropertyInfo::u16("size", 256).our_own(),
];

fn registry() -> Result<Arc<TypeRegistry>, Error> {
    let mut registry = TypeRegistry::new();
    registry.register(
        TypeInfo::new("model", "object")
            .alias("nick")
            .class_init(|class| class.add_properties(MODEL)),
    )?;
    Ok(registry.share())
}

#[test]
fn what_is_not_built_stands_still_whatever_its_default() -> Result<(), Error> {
    let model = registry()?.new_object("model")?;
    // (property, what it reads, a value, why it is refused)
    let refused = |reason: &'static str| Err(format!("Property 'model.{reason}"));
    let table = [
        (
            "announce",
            Some(Value::Bool(false)),
            Value::Bool(false),
            Ok(()),
        ),
        (
            "announce",
            Some(Value::Bool(false)),
            Value::Bool(true),
            refused("announce' is not supported with any value but 'off'"),
        ),
        ("pcie", Some(Value::Bool(true)), Value::Bool(true), Ok(())),
        (
            "pcie",
            Some(Value::Bool(true)),
            Value::Bool(false),
            refused("pcie' is not supported with any value but 'on'"),
        ),
        (
            "index",
            Some(Value::Int(-1)),
            Value::Int(7),
            refused("index' is not supported with any value but '-1'"),
        ),
        ("romfile", None, Value::from(""), Ok(())),
        (
            "romfile",
            None,
            Value::from("x"),
            refused("romfile' is not supported"),
        ),
    ];
    for (name, reads, value, expected) in table {
        assert_eq!(model.value(name)?, reads, "{name}");
        let set = model.set(name, value.clone());
        assert_eq!(
            set.map_err(|error| error.to_string()),
            expected,
            "{name} = {value}"
        );
        assert_eq!(model.value(name)?, reads, "{name} after {value}");
    }
    // Help goes by the default.
    let entries = model.properties();
    let announce = entries.iter().find(|entry| entry.name == "announce");
    assert_eq!(
        announce.and_then(|entry| entry.default.clone()),
        Some(Value::Bool(true))
    );
    Ok(())
}

#[test]
fn what_a_property_came_to_reads_so_until_the_object_is_thawed() -> Result<(), Error> {
    let model = registry()?.new_object("model")?;
    let settled = model.settle("size", 512u16);
    assert!(
        matches!(settled, Err(PropertyError::NotWritable { .. })),
        "{settled:?}"
    );
    model.set("size", 128u16)?;
    model.freeze(None);
    model.settle("size", 512u16)?;
    assert_eq!(model.get::<u16>("size")?, 512);
    assert!(matches!(
        model.settle("size", true),
        Err(PropertyError::WrongType { .. })
    ));
    assert!(matches!(
        model.settle("nosuch", 1u16),
        Err(PropertyError::NotFound { .. })
    ));
    model.thaw();
    assert_eq!(model.get::<u16>("size")?, 128);
    Ok(())
}

#[test]
fn a_type_is_found_by_its_alias_which_is_no_name_of_another() -> Result<(), Error> {
    let registry = registry()?;
    assert_eq!(registry.canonical_name("nick"), "model");
    assert_eq!(registry.canonical_name("model"), "model");
    assert_eq!(registry.canonical_name("other"), "other");
    assert_eq!(registry.alias_of("model").map(AsRef::as_ref), Some("nick"));
    assert!(matches!(registry.class("nick"), Err(Error::UnknownType(_))));

    for (name, alias) in [("nick", "n"), ("x", "nick"), ("x", "object")] {
        let mut registry = TypeRegistry::new();
        registry.register(TypeInfo::new("model", "object").alias("nick"))?;
        let added = registry.register(TypeInfo::new(name, "object").alias(alias));
        assert!(
            matches!(added, Err(Error::DuplicateType(_))),
            "{name}, {alias}"
        );
    }
    Ok(())
}

#[test]
fn a_path_that_begins_anywhere_leads_to_each_of_its_ends() -> Result<(), Error> {
    let registry = registry()?;
    let root = registry.new_root()?;
    for (owner, name) in [
        ("/", "a"),
        ("/a", "x"),
        ("/", "b"),
        ("/b", "x"),
        ("/b/x", "y"),
    ] {
        let child = registry.new_object("container")?;
        root.resolve(owner)
            .ok_or(Error::UnknownType(owner.into()))?
            .add_child(name, child)?;
    }
    root.add_link("l", "container")?;
    root.set_link("l", root.child("a").as_ref())?;
    for (path, expected) in [
        ("a", &["/a"][..]),
        ("x", &["/a/x", "/b/x"]),
        ("b/x", &["/b/x"]),
        ("x/y", &["/b/x/y"]),
        ("l/x", &[]),
        ("z", &[]),
        ("", &[]),
    ] {
        let mut found: Vec<_> = root
            .resolve_partial(path)
            .iter()
            .filter_map(|o| o.path())
            .collect();
        found.sort();
        assert_eq!(found, expected, "{path:?}");
    }
    assert!(!root.remove_link("a"), "a child is no link");
    assert!(root.remove_link("l") && !root.remove_link("l"));
    Ok(())
}

#[test]
fn values_print_as_json() {
    for (value, expected) in [
        (Value::Bool(true), "true"),
        (Value::Int(-1), "-1"),
        (Value::Choice("auto"), "\"auto\""),
        (
            Value::from("a\"b\\c\nd\u{1}é"),
            "\"a\\\"b\\\\c\\nd\\u0001é\"",
        ),
    ] {
        assert_eq!(value.json().to_string(), expected);
    }
}
