//! Properties: kinds, defaults, errors and their words, aliases, links and computed ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qom::{
    CustomKind, Error, Kind, Object, OnOffAuto, PropertyError, PropertyInfo, TypeInfo,
    TypeRegistry, Value,
};

const SLOT: CustomKind = CustomKind {
    type_name: "int32",
    parse: |text| {
        u8::from_str_radix(text, 16)
            .ok()
            .map(|slot| Value::from(u32::from(slot) * 8))
    },
    accepts: |value| matches!(value, Value::Int(slot) if (-1..256).contains(slot)),
};

const MODEL: &[PropertyInfo] = &[
    PropertyInfo::bool("mq", false).describe("on/off"),
    PropertyInfo::u8("tiny", 1),
    PropertyInfo::u16("rx_queue_size", 256),
    PropertyInfo::u32("vectors", u32::MAX),
    PropertyInfo::u64("large", u64::MAX),
    PropertyInfo::i32("speed", -1),
    PropertyInfo::size("memory", 4096),
    PropertyInfo::on_off_auto("legacy").describe("on/off/auto"),
    PropertyInfo::str("netdev"),
    PropertyInfo::str("label").settable_when_frozen(),
    PropertyInfo::u32("limit", 0).changeable(|model| {
        if let (Some(applied), Ok(limit)) = (model.part::<Applied>(), model.get::<u32>("limit")) {
            applied.0.store(limit, Ordering::Relaxed);
        }
    }),
    PropertyInfo::custom("addr", &SLOT).describe("slot"),
    PropertyInfo::bool("future", false).check(|value| match value {
        Value::Bool(true) => Err("is not supported".to_owned()),
        _ => Ok(()),
    }),
];

/// What the model made of `limit`.
struct Applied(AtomicU32);

fn registry() -> Result<Arc<TypeRegistry>, Error> {
    let mut registry = TypeRegistry::new();
    registry.register(
        TypeInfo::new("model", "object")
            .class_init(|class| class.add_properties(MODEL))
            .instance_init(|model| {
                Ok(model.add_computed("sum", Kind::U32, |_| Some(Value::from(3_u32)))?)
            }),
    )?;
    registry.register(
        TypeInfo::new("proxy", "object")
            .class_init(|class| class.add_properties(&[PropertyInfo::u32("vectors", 3)]))
            .instance_init(|proxy| {
                let model = proxy.registry().new_object("model")?;
                proxy.add_child("backend", model.clone())?;
                proxy.add_aliases(&model)?;
                Ok(())
            }),
    )?;
    Ok(registry.share())
}

fn model() -> Result<Arc<Object>, Error> {
    registry()?.new_object("model")
}

#[test]
fn a_property_that_was_not_set_has_its_default() -> Result<(), Error> {
    let model = model()?;
    assert!(!model.get::<bool>("mq")?);
    assert_eq!(model.get::<u8>("tiny")?, 1);
    assert_eq!(model.get::<u16>("rx_queue_size")?, 256);
    assert_eq!(model.get::<u32>("vectors")?, u32::MAX);
    assert_eq!(model.get::<u64>("large")?, u64::MAX);
    assert_eq!(model.get::<i32>("speed")?, -1);
    assert_eq!(model.get::<u64>("memory")?, 4096);
    assert_eq!(model.get::<OnOffAuto>("legacy")?, OnOffAuto::Auto);
    assert_eq!(model.get::<Option<String>>("netdev")?, None);
    assert_eq!(model.get::<Option<i32>>("addr")?, None);
    assert!(!model.was_set("mq"));
    model.set("mq", false)?;
    assert!(model.was_set("mq"));
    Ok(())
}

#[test]
fn a_property_reads_as_it_was_set() -> Result<(), Error> {
    let model = model()?;
    model.set("mq", true)?;
    model.set("rx_queue_size", 1024u32)?;
    model.set("legacy", OnOffAuto::Off)?;
    model.set("netdev", "tap0")?;
    model.set("addr", "1f")?;
    assert!(model.get::<bool>("mq")?);
    assert_eq!(model.get::<u16>("rx_queue_size")?, 1024);
    assert_eq!(model.get::<OnOffAuto>("legacy")?, OnOffAuto::Off);
    model.set("legacy", "on")?;
    assert_eq!(model.get::<OnOffAuto>("legacy")?, OnOffAuto::On);
    assert_eq!(model.get::<String>("netdev")?, "tap0");
    assert_eq!(model.get::<i32>("addr")?, 0xf8);
    model.set("addr", -1)?;
    assert_eq!(model.get::<i32>("addr")?, -1);
    assert_eq!(model.get::<String>("type")?, "model");
    Ok(())
}

#[test]
fn each_refusal_has_its_own_words() -> Result<(), Error> {
    let model = model()?;
    let cases: Vec<(Result<(), PropertyError>, &str)> = vec![
        (model.set("foo", 1u8), "Property 'model.foo' not found"),
        (
            model.get::<u8>("foo").map(|_| ()),
            "Property 'model.foo' not found",
        ),
        (
            model.set("type", "x"),
            "Property 'model.type' is not writable",
        ),
        (
            model.set("mq", 1u8),
            "Invalid parameter type for 'mq', expected: boolean",
        ),
        (
            model.set("vectors", "x"),
            "Invalid parameter type for 'vectors', expected: integer",
        ),
        (
            model.set("netdev", 1u8),
            "Invalid parameter type for 'netdev', expected: string",
        ),
        (
            model.set("legacy", true),
            "Invalid parameter type for 'legacy', expected: string",
        ),
        (
            model.set("legacy", "x"),
            "Parameter 'legacy' does not accept value 'x'",
        ),
        (
            model.set("tiny", 256u32),
            "Parameter 'tiny' expects uint8_t",
        ),
        (
            model.set("rx_queue_size", 65536u32),
            "Parameter 'rx_queue_size' expects uint16_t",
        ),
        (
            model.set("rx_queue_size", -5),
            "Parameter 'rx_queue_size' expects uint16_t",
        ),
        (
            model.set("vectors", 1u64 << 32),
            "Parameter 'vectors' expects uint32_t",
        ),
        (model.set("large", -1), "Parameter 'large' expects uint64_t"),
        (
            model.set("speed", u32::MAX),
            "Parameter 'speed' expects int32_t",
        ),
        (model.set("memory", -1), "Parameter 'memory' expects size"),
        (
            model.set("addr", "zz"),
            "Property 'model.addr' doesn't take value 'zz'",
        ),
        (
            model.set("addr", 256u32),
            "Property 'model.addr' doesn't take value '256'",
        ),
        (
            model.set("future", true),
            "Property 'model.future' is not supported",
        ),
        (
            model.get::<String>("netdev").map(|_| ()),
            "Property 'model.netdev' is not set",
        ),
        (
            model.add_link("mq", "x"),
            "attempt to add duplicate property 'mq' to object (type 'model')",
        ),
    ];
    for (result, expected) in cases {
        assert_eq!(
            result.map_err(|error| error.to_string()),
            Err(expected.to_owned())
        );
    }
    assert!(!model.get::<bool>("future")?);
    Ok(())
}

#[test]
fn a_frozen_object_refuses_as_too_late_whatever_the_value() -> Result<(), Error> {
    let model = model()?;
    model.freeze(Some("net0"));
    for value in [Value::from(1u8), Value::from("x")] {
        let error = model
            .set("vectors", value)
            .map_err(|error| error.to_string());
        let words = "Attempt to set property 'vectors' on device 'net0' (type 'model') \
                     after it was realized";
        assert_eq!(error, Err(words.to_owned()));
    }
    model.freeze(None);
    let error = model.set("mq", true).map_err(|error| error.to_string());
    let words = "Attempt to set property 'mq' on anonymous device (type 'model') \
                 after it was realized";
    assert_eq!(error, Err(words.to_owned()));
    model.set("label", "still")?;
    assert!(matches!(
        model.set("foo", 1u8),
        Err(PropertyError::NotFound { .. })
    ));
    model.thaw();
    model.set("mq", true)?;
    Ok(())
}

#[test]
fn an_alias_is_the_childs_property_and_errors_name_the_child() -> Result<(), Error> {
    let proxy = registry()?.new_object("proxy")?;
    let model = proxy
        .child("backend")
        .ok_or(Error::UnknownType("backend".to_owned()))?;
    proxy.set("mq", true)?;
    assert!(model.get::<bool>("mq")? && proxy.get::<bool>("mq")?);
    assert!(proxy.was_set("mq") && model.was_set("mq"));
    let error = proxy.set("addr", "zz").map_err(|error| error.to_string());
    assert_eq!(
        error,
        Err("Property 'model.addr' doesn't take value 'zz'".to_owned())
    );
    // The proxy's own property is not covered by the alias.
    proxy.set("vectors", 7u8)?;
    assert_eq!(model.get::<u32>("vectors")?, u32::MAX);
    // The child is frozen on its own.
    model.freeze(None);
    assert!(matches!(
        proxy.set("mq", false),
        Err(PropertyError::TooLate { .. })
    ));
    proxy.set("vectors", 8u8)?;
    // Without its child the alias stands for nothing.
    drop(proxy.remove_child("backend"));
    drop(model);
    assert!(matches!(
        proxy.set("mq", false),
        Err(PropertyError::NotFound { .. })
    ));
    assert!(proxy.properties().iter().all(|entry| entry.name != "mq"));
    Ok(())
}

#[test]
fn a_list_of_properties_has_those_of_class_object_and_alias() -> Result<(), Error> {
    let proxy = registry()?.new_object("proxy")?;
    let entries = proxy.properties();
    let find = |name: &str| entries.iter().find(|entry| entry.name == name);
    let types: Vec<_> = [
        "backend",
        "legacy",
        "rx_queue_size",
        "type",
        "vectors",
        "addr",
        "memory",
    ]
    .map(|name| find(name).map_or("", |entry| entry.type_name.as_str()))
    .into();
    assert_eq!(
        types,
        [
            "child<model>",
            "OnOffAuto",
            "uint16",
            "string",
            "uint32",
            "int32",
            "size"
        ]
    );
    let mq = find("mq").map(|entry| (entry.description, entry.default.clone(), entry.is_settable));
    assert_eq!(mq, Some(("on/off", Some(Value::Bool(false)), true)));
    let child = find("backend").map(|entry| (entry.is_child, entry.is_settable));
    assert_eq!(child, Some((true, false)));
    assert_eq!(
        find("vectors").and_then(|entry| entry.default.clone()),
        Some(Value::Int(3))
    );
    assert!(entries.is_sorted_by(|a, b| a.name < b.name));
    Ok(())
}

#[test]
fn children_and_links_read_as_paths_and_are_not_set_as_values() -> Result<(), Error> {
    let registry = registry()?;
    let root = registry.new_root()?;
    let proxy = registry.new_object("proxy")?;
    let other = registry.new_object("model")?;
    root.add_child("net0", proxy.clone())?;
    root.add_child("other", other.clone())?;
    proxy.add_link("peer", "model")?;
    assert_eq!(proxy.get::<String>("backend")?, "/net0/backend");
    assert_eq!(proxy.get::<String>("peer")?, "");
    proxy.set_link("peer", Some(&other))?;
    assert_eq!(proxy.get::<String>("peer")?, "/other");
    assert!(
        proxy
            .resolve("peer")
            .is_some_and(|object| Arc::ptr_eq(&object, &other))
    );
    for name in ["backend", "peer"] {
        let error = proxy.set(name, "x").map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err(format!("Property 'proxy.{name}' is not writable"))
        );
    }
    assert!(matches!(
        proxy.set_link("peer", Some(&root)),
        Err(PropertyError::BadValue { .. })
    ));
    assert!(matches!(
        proxy.set_link("backend", None),
        Err(PropertyError::NotFound { .. })
    ));
    // A link owns nothing.
    root.remove_child("other");
    drop(other);
    assert!(proxy.link("peer").is_none());
    Ok(())
}

#[test]
fn a_computed_property_calls_its_hooks_with_values_of_its_kind() -> Result<(), Error> {
    let model = model()?;
    model.add_computed("twice", Kind::U32, |model| {
        model
            .get::<u16>("rx_queue_size")
            .ok()
            .map(|size| Value::from(u32::from(size) * 2))
    })?;
    model.add_computed_settable(
        "half",
        Kind::U16,
        |_| None,
        |model, value| model.set("rx_queue_size", value),
    )?;
    model.set("half", 512u32)?;
    assert_eq!(model.get::<u32>("twice")?, 1024);
    assert!(matches!(
        model.set("twice", 1u8),
        Err(PropertyError::NotWritable { .. })
    ));
    assert!(matches!(
        model.set("half", 65536u32),
        Err(PropertyError::Expects { .. })
    ));
    Ok(())
}

#[test]
fn what_a_target_computes_is_read_through_its_aliases() -> Result<(), Error> {
    let proxy = registry()?.new_object("proxy")?;
    assert_eq!(proxy.get::<u32>("sum")?, 3);
    assert!(matches!(
        proxy.set("sum", 1_u8),
        Err(PropertyError::NotWritable { .. })
    ));
    Ok(())
}

#[test]
fn a_change_is_told_once_the_object_is_frozen() -> Result<(), Error> {
    let proxy = registry()?.new_object("proxy")?;
    let model = proxy.child("backend").unwrap();
    model.set_part(Applied(AtomicU32::new(0)));
    let applied = || model.part::<Applied>().unwrap().0.load(Ordering::Relaxed);
    proxy.set("limit", 5_u8)?;
    assert_eq!(applied(), 0);
    model.freeze(None);
    proxy.set("limit", 7_u8)?;
    assert_eq!(applied(), 7);
    // Refused values change nothing.
    assert!(proxy.set("limit", -1).is_err());
    assert_eq!((applied(), model.get::<u32>("limit")?), (7, 7));
    model.thaw();
    proxy.set("limit", 8_u8)?;
    assert_eq!(applied(), 7);
    Ok(())
}

#[test]
fn no_alias_leads_back_to_itself() -> Result<(), Error> {
    let registry = registry()?;
    let [one, other, child] = ["container"; 3].map(|name| registry.new_object(name));
    let (one, other) = (one?, other?);
    one.add_child("x", child?)?;
    other.add_alias("y", &one, "x")?;
    one.remove_child("x");

    // Read, `x` would ask `y`, which would ask `x`.
    let refused = one.add_alias("x", &other, "y").map_err(|e| e.to_string());
    assert_eq!(refused, Err("Property 'container.y' not found".to_owned()));
    assert!(one.value("x").is_err());
    assert!(other.value("y").is_err());
    Ok(())
}
