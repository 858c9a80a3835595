//! The netdev table, and what it says of option strings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iothread::{AioContext, EventLoop};
use net_client::{Loopback, NetClients, NetdevError, Port, Recorder};

/// A table with the kind `test`, which takes `size` and fails to open at 13; and how many it opened.
fn table() -> (NetClients, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let netdevs = NetClients::new();
    let count = opened.clone();
    netdevs.register(
        "test",
        Box::new(move |options| {
            let size = options.take_u32("size")?;
            let count = count.clone();
            Ok(Box::new(move |id| {
                count.fetch_add(1, Ordering::Relaxed);
                if size == Some(13) {
                    return Err("could not open: bad luck".into());
                }
                Ok(Loopback::new(id))
            }))
        }),
    );
    (netdevs, opened)
}

#[test]
fn each_mistake_has_its_own_words() {
    let (netdevs, opened) = table();
    netdevs.add("test,id=net0,size=1").unwrap();
    let cases = [
        ("foo,id=x", "Parameter 'type' does not accept value 'foo'"),
        ("test", "Parameter 'id' is missing"),
        ("", "Parameter 'id' is missing"),
        ("id=a", "Parameter 'type' is missing"),
        ("test,id=net0", "Duplicate ID 'net0' for netdev"),
        ("test,id=a,foo=1", "Invalid parameter 'foo'"),
        (
            "test,id=a,size=x",
            "Parameter 'size' expects a uint64 value",
        ),
        (
            "test,id=_a",
            "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', starting with a \
             letter",
        ),
        ("test,id=a,size=13", "could not open: bad luck"),
    ];
    for (text, words) in cases {
        assert_eq!(
            netdevs.add(text).unwrap_err().to_string(),
            words,
            "{text:?}"
        );
    }
    // Only what was understood whole was opened, and what failed to open left its id free.
    assert_eq!(opened.load(Ordering::Relaxed), 2);
    assert_eq!(netdevs.ids(), ["net0"]);
    netdevs.add("test,id=a").unwrap();
    assert_eq!(netdevs.kinds(), ["test"]);
}

#[test]
fn a_netdev_in_use_is_removed_and_leaves_its_device_without_a_peer() {
    let (netdevs, _) = table();
    let netdev = netdevs.add("test,id=net0").unwrap();
    let nic = Recorder::new("nic");
    let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
    assert!(!netdev.is_in_use());
    Port::connect(nic.port(), &netdev.ports()[0], &context).unwrap();
    assert!(netdevs.find("net0").unwrap().is_in_use());

    netdevs.remove("net0").unwrap();
    assert!(nic.port().peer().is_none());
    let gone = Arc::downgrade(&netdev);
    drop(netdev);
    assert!(gone.upgrade().is_none());

    let error = netdevs.remove("net0").unwrap_err();
    assert!(matches!(error, NetdevError::NotFound(_)));
    assert_eq!(error.to_string(), "Device 'net0' not found");
    netdevs.add("test,id=net0").unwrap();
}
