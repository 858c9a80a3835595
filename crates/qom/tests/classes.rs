//! Types and classes: the order of the hooks, what a child's class starts with, and what cannot be
//! registered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qom::{BoxedError, Error, PropertyInfo, Recorder, TypeInfo, TypeRegistry};

#[derive(Clone, Default, Debug, PartialEq)]
struct Identity {
    vendor: u16,
    device: u16,
}

fn three_levels() -> Result<TypeRegistry, Error> {
    let mut registry = TypeRegistry::new();
    // Registered child first: the order of registration says nothing.
    registry.register(
        TypeInfo::new("leaf", "middle")
            .class_init(|class| class.part_mut::<Identity>().device = 0x1000),
    )?;
    registry.register(
        TypeInfo::new("middle", "base")
            .abstract_type()
            .class_init(|class| {
                class.part_mut::<Identity>().vendor = 0x1af4;
                class.part_mut::<Identity>().device = 1;
                class.add_properties(&[PropertyInfo::u16("size", 256)]);
            }),
    )?;
    registry.register(
        TypeInfo::new("base", "object")
            .abstract_type()
            .class_init(|class| {
                class.set_part(Identity {
                    vendor: 0xffff,
                    device: 0xffff,
                });
            }),
    )?;
    Ok(registry)
}

#[test]
fn a_class_starts_as_a_copy_of_its_parents_and_changes_only_itself() -> Result<(), Error> {
    let registry = three_levels()?.share();
    let leaf = registry.class("leaf")?;
    assert_eq!(
        leaf.part(),
        Some(&Identity {
            vendor: 0x1af4,
            device: 0x1000
        })
    );
    assert_eq!(
        registry.class("middle")?.part(),
        Some(&Identity {
            vendor: 0x1af4,
            device: 1
        })
    );
    let base = registry.class("base")?;
    assert_eq!(
        base.part(),
        Some(&Identity {
            vendor: 0xffff,
            device: 0xffff
        })
    );
    assert!(base.property("size").is_none());
    assert_eq!(
        leaf.property("size").map(|p| &*p.declared_by),
        Some("middle")
    );
    assert_eq!(
        leaf.ancestry().map(|name| &**name).collect::<Vec<_>>(),
        ["object", "base", "middle", "leaf"]
    );
    Ok(())
}

#[test]
fn classes_initialize_once_from_the_root_and_objects_parents_first() -> Result<(), Error> {
    let recorder = Arc::new(Recorder::default());
    let mut registry = three_levels()?;
    registry.set_observer(recorder.clone());
    let registry = registry.share();

    let first = registry.new_object("leaf")?;
    assert_eq!(
        recorder.take_lines(),
        [
            "class_init object",
            "class_init base",
            "class_init middle",
            "class_init leaf",
            "instance_init object of leaf",
            "instance_init base of leaf",
            "instance_init middle of leaf",
            "instance_init leaf",
        ]
    );
    let second = registry.new_object("leaf")?;
    assert_eq!(recorder.take_lines().len(), 4);
    drop((first, second));
    let lines = recorder.take_lines();
    assert_eq!(
        lines.get(..4).unwrap_or_default(),
        [
            "instance_finalize leaf",
            "instance_finalize middle of leaf",
            "instance_finalize base of leaf",
            "instance_finalize object of leaf",
        ]
    );
    Ok(())
}

#[test]
fn two_threads_that_need_a_class_initialize_it_once() -> Result<(), Error> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let mut registry = TypeRegistry::new();
    registry.register(TypeInfo::new("leaf", "object").class_init(|_| {
        RUNS.fetch_add(1, Ordering::Relaxed);
    }))?;
    let registry = registry.share();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(registry.new_object("leaf").is_ok()));
        }
    });
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
    Ok(())
}

#[test]
fn what_is_wrong_with_a_type_is_told_apart() -> Result<(), Error> {
    let mut registry = three_levels()?;
    registry.register(TypeInfo::new("orphan", "nobody"))?;
    registry.register(TypeInfo::new("orphans-child", "orphan"))?;
    registry.register(TypeInfo::new("egg", "hen"))?;
    registry.register(TypeInfo::new("hen", "egg"))?;
    registry.register(TypeInfo::new("narcissus", "narcissus"))?;
    registry.register(TypeInfo::new("liar", "object").implements("leaf"))?;
    let twice = registry.register(TypeInfo::new("leaf", "object"));
    assert_eq!(
        twice.map_err(|e| e.to_string()),
        Err("type 'leaf' is registered twice".to_owned())
    );
    let registry = registry.share();
    for (name, expected) in [
        ("nothing", "unknown type 'nothing'"),
        ("orphan", "type 'orphan' has the unknown parent 'nobody'"),
        (
            "orphans-child",
            "type 'orphan' has the unknown parent 'nobody'",
        ),
        ("egg", "type 'egg' is its own ancestor"),
        ("narcissus", "type 'narcissus' is its own ancestor"),
        (
            "liar",
            "type 'liar' implements 'leaf', which is no known interface",
        ),
        ("middle", "object type 'middle' is abstract"),
        ("object", "object type 'object' is abstract"),
    ] {
        let error = registry
            .new_object(name)
            .map(|_| ())
            .map_err(|e| e.to_string());
        assert_eq!(error, Err(expected.to_owned()));
    }
    Ok(())
}

#[test]
fn descendants_implement_the_interfaces_of_their_ancestors() -> Result<(), Error> {
    let mut registry = TypeRegistry::new();
    registry.register(TypeInfo::interface("pluggable"))?;
    registry.register(TypeInfo::new("base", "object").implements("pluggable"))?;
    registry.register(TypeInfo::new("leaf", "base"))?;
    let registry = registry.share();
    let leaf = registry.new_object("leaf")?;
    assert!(leaf.is_a("pluggable") && leaf.is_a("base") && leaf.is_a("object"));
    assert!(!registry.new_object("container")?.is_a("pluggable"));
    Ok(())
}

#[test]
fn a_failed_instance_init_finalizes_only_the_levels_that_ran() -> Result<(), Error> {
    let recorder = Arc::new(Recorder::default());
    let mut registry = TypeRegistry::new();
    registry.set_observer(recorder.clone());
    registry.register(TypeInfo::new("base", "object"))?;
    registry.register(
        TypeInfo::new("leaf", "base").instance_init(|_| Err(BoxedError::from("no luck"))),
    )?;
    let error = registry.share().new_object("leaf").map(|_| ());
    assert!(matches!(&error, Err(error @ Error::Hook(_)) if error.to_string() == "no luck"));
    let lines = recorder.take_lines();
    assert_eq!(
        lines.get(6..).unwrap_or_default(),
        [
            "instance_finalize base of leaf",
            "instance_finalize object of leaf",
        ]
    );
    Ok(())
}
