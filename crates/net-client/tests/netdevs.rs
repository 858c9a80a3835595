//! The netdev table, and what it says of option strings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iothread::{AioContext, EventLoop};
use net_client::{Loopback, NetClients, NetdevError, Port, Received, Recorder};

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

#[test]
fn a_dump_of_a_netdev_is_made_of_an_option_string_and_goes_with_it() {
    let (netdevs, _) = table();
    let netdev = netdevs.add("test,id=net0").unwrap();
    let nic = Recorder::new("nic");
    let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
    Port::connect(nic.port(), &netdev.ports()[0], &context).unwrap();
    let file = std::env::temp_dir().join(format!("dump-{}.pcap", std::process::id()));
    let ok = format!("filter-dump,id=f,netdev=net0,file={}", file.display());
    let cases = [
        (
            "filter-foo,id=f".to_owned(),
            "Parameter 'qom-type' does not accept value 'filter-foo'",
        ),
        (ok.replace("id=f,", ""), "Parameter 'id' is missing"),
        (
            ok.replace("netdev=net0,", ""),
            "Parameter 'netdev' is missing",
        ),
        (
            ok.replace("net0", "net1"),
            "Parameter 'netdev' expects a network backend id",
        ),
        (
            "filter-dump,id=f,netdev=net0".into(),
            "Parameter 'file' is missing",
        ),
        (
            "filter-dump,id=f,netdev=net0,file=/nonexistent/x".into(),
            "net dump: can't open /nonexistent/x: No such file or directory (os error 2)",
        ),
        (
            format!("{ok},maxlen=0"),
            "Property 'filter-dump.maxlen' doesn't take value '0'",
        ),
        (
            format!("{ok},maxlen=x"),
            "Parameter 'maxlen' expects a uint64 value",
        ),
        (
            format!("{ok},queue=foo"),
            "Parameter 'queue' does not accept value 'foo'",
        ),
        (
            format!("{ok},position=foo"),
            "Parameter 'position' expects 'head' or 'tail'",
        ),
        (
            format!("{ok},status=off"),
            "Parameter 'status' is not supported by this filter",
        ),
        (format!("{ok},foo=1"), "Invalid parameter 'foo'"),
    ];
    for (text, words) in cases {
        let error = netdevs.add_filter(&text).unwrap_err();
        assert_eq!(error.to_string(), words, "{text}");
        assert!(!file.exists(), "{text}");
    }
    // The netdev receives what the NIC sends; the loopback sends it back.
    for (queue, frames) in [("rx", 1), ("tx", 1), ("all", 2)] {
        let capture = netdevs
            .add_filter(&format!("{ok},queue={queue},maxlen=100"))
            .unwrap();
        let error = netdevs.add_filter(&ok).unwrap_err().to_string();
        assert_eq!(error, "Duplicate ID 'f' for object");
        assert_eq!(nic.port().send_bytes(b"frame"), Received::Taken);
        assert_eq!(capture.frames(), frames, "{queue}");
        assert_eq!(netdevs.filter("f").unwrap().frames(), frames);
        netdevs.remove_filter("f").unwrap();
        assert_eq!(nic.port().send_bytes(b"frame"), Received::Taken);
        assert_eq!(capture.frames(), frames, "{queue}");
    }
    let error = netdevs.remove_filter("f").unwrap_err().to_string();
    assert_eq!(error, "object 'f' not found");
    let capture = Arc::downgrade(&netdevs.add_filter(&ok).unwrap());
    netdevs.remove("net0").unwrap();
    assert!(capture.upgrade().is_none());
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_link_of_a_netdev_is_set_by_its_id() {
    let (netdevs, _) = table();
    let netdev = netdevs.add("test,id=net0").unwrap();
    let nic = Recorder::new("nic");
    let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
    Port::connect(nic.port(), &netdev.ports()[0], &context).unwrap();
    netdevs.set_link("net0", false).unwrap();
    netdevs.set_link("net0", true).unwrap();
    assert_eq!(nic.links(), [false, true]);
    let error = netdevs.set_link("net1", true).unwrap_err().to_string();
    assert_eq!(error, "Device 'net1' not found");
}
