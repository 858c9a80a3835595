//! The tree: ownership, paths, and what is left when an owner is dropped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use qom::{Error, Object, PropertyError, TypeInfo, TypeRegistry};

fn containers(registry: &Arc<TypeRegistry>, names: &[&str]) -> Result<Vec<Arc<Object>>, Error> {
    let mut objects = vec![registry.new_root()?];
    for name in names {
        let object = registry.new_object("container")?;
        if let Some(owner) = objects.last() {
            owner.add_child(name, object.clone())?;
        }
        objects.push(object);
    }
    Ok(objects)
}

#[test]
fn paths_lead_from_the_root_and_back() -> Result<(), Error> {
    let registry = TypeRegistry::new().share();
    let objects = containers(&registry, &["machine", "peripheral", "net0"])?;
    let [root, machine, _, net0] = objects.as_slice() else {
        panic!("too few containers")
    };
    assert_eq!(root.path().as_deref(), Some("/"));
    assert_eq!(net0.path().as_deref(), Some("/machine/peripheral/net0"));
    for (from, path) in [
        (root, "/machine/peripheral/net0"),
        (net0, "/machine/peripheral/net0"),
        (net0, "//machine//peripheral/net0/"),
        (machine, "peripheral/net0"),
        (net0, ""),
    ] {
        assert!(
            from.resolve(path)
                .is_some_and(|found| Arc::ptr_eq(&found, net0)),
            "{path}"
        );
    }
    assert!(root.resolve("/machine/net0").is_none());
    assert!(
        net0.resolve("/")
            .is_some_and(|found| Arc::ptr_eq(&found, root))
    );
    net0.unparent();
    assert_eq!(net0.path(), None);
    assert_eq!(net0.name(), None);
    assert!(root.resolve("/machine/peripheral/net0").is_none());
    Ok(())
}

#[test]
fn a_child_has_one_owner_and_one_name() -> Result<(), Error> {
    let registry = TypeRegistry::new().share();
    let objects = containers(&registry, &["a", "b"])?;
    let [root, a, b] = objects.as_slice() else {
        panic!("too few containers")
    };
    let c = registry.new_object("container")?;
    assert!(matches!(
        root.add_child("a", c.clone()),
        Err(PropertyError::Duplicate { .. })
    ));
    assert!(matches!(
        root.add_child("b", b.clone()),
        Err(PropertyError::HasParent { .. })
    ));
    assert!(matches!(
        b.add_child("a", a.clone()),
        Err(PropertyError::HasParent { .. })
    ));
    assert!(matches!(
        b.add_child("root", root.clone()),
        Err(PropertyError::HasParent { .. })
    ));
    assert!(matches!(
        c.add_child("c", c.clone()),
        Err(PropertyError::HasParent { .. })
    ));
    // What was refused can still find an owner.
    root.add_child("c", c.clone())?;
    assert_eq!(c.path().as_deref(), Some("/c"));
    let names: Vec<_> = root
        .children()
        .into_iter()
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(names, ["a", "c"]);
    Ok(())
}

#[test]
fn dropping_the_owner_frees_the_tree_children_before_their_owner() -> Result<(), Error> {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Held(Arc<AtomicUsize>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let parts = Arc::new(AtomicUsize::new(0));
    let counted = parts.clone();
    let mut registry = TypeRegistry::new();
    registry.register(
        TypeInfo::new("node", "object")
            .instance_init(move |node| {
                ALIVE.fetch_add(1, Ordering::Relaxed);
                counted.fetch_add(1, Ordering::Relaxed);
                node.set_part(Held(counted.clone()));
                Ok(())
            })
            .instance_finalize(|node| {
                assert!(node.children().is_empty());
                ALIVE.fetch_sub(1, Ordering::Relaxed);
            }),
    )?;
    let registry = registry.share();
    let root = registry.new_root()?;
    let mut last: Weak<Object> = Weak::new();
    for name in ["a", "b"] {
        let (outer, inner) = (registry.new_object("node")?, registry.new_object("node")?);
        outer.add_child("inner", inner.clone())?;
        inner.add_link("up", "node")?;
        inner.set_link("up", Some(&outer))?;
        inner.add_alias("alias", &outer, "type")?;
        last = Arc::downgrade(&inner);
        root.add_child(name, outer)?;
    }
    assert_eq!(ALIVE.load(Ordering::Relaxed), 4);
    drop(root);
    assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
    assert_eq!(parts.load(Ordering::Relaxed), 0);
    assert!(last.upgrade().is_none());
    drop(registry);
    assert_eq!(Arc::strong_count(&parts), 1);
    Ok(())
}

#[test]
fn parts_are_found_by_type() -> Result<(), Error> {
    trait Speak: Send + Sync {
        fn speak(&self) -> &'static str;
    }
    struct Dog;
    impl Speak for Dog {
        fn speak(&self) -> &'static str {
            "woof"
        }
    }
    let object = TypeRegistry::new().share().new_object("container")?;
    object.set_part(7u8);
    object.set_part::<Arc<dyn Speak>>(Arc::new(Dog));
    assert_eq!(object.part::<u8>().as_deref(), Some(&7));
    assert_eq!(
        object.part::<Arc<dyn Speak>>().map(|part| part.speak()),
        Some("woof")
    );
    assert!(object.part::<u16>().is_none());
    object.set_part(8u8);
    assert_eq!(object.take_part::<u8>().as_deref(), Some(&8));
    assert!(object.part::<u8>().is_none());
    Ok(())
}
