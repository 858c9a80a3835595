//! Commands of the control queue that answer with more than a bit, by a driver of this workspace through the registers of
//! a real card.

mod support;

use std::time::Instant;

use support::{DMA, Driver, Rig};
use virtio::net::{F, HashType};
use virtio_guest::net::{
    Coalescing, ControlStatistics, HashConfig, QueueStatistics, ReceiveChecksums,
    ReceiveStatistics, RssConfig, TransmitChecksums, TransmitStatistics,
};
use virtio_guest::{Interrupts, NetConfig};

const FEATURES: F = F::CTRL_VQ
    .union(F::DEVICE_STATS)
    .union(F::NOTF_COAL)
    .union(F::VQ_NOTF_COAL)
    .union(F::HASH_REPORT)
    .union(F::RSS);

fn driver(rig: &Rig, format: F) -> Driver {
    let config = NetConfig {
        interrupts: Interrupts::Polled,
        features: FEATURES | format,
        ..NetConfig::default()
    };
    let driver = rig.driver_like(0, DMA, &config);
    let missing = (FEATURES | format) - driver.net.features();
    assert!(missing.is_empty(), "{missing:?}");
    driver
}

/// For a command: waits until the device has answered, with a deadline that only ends a hung test.
fn patience() -> impl FnMut() -> bool {
    let deadline = Instant::now() + support::DEADLINE;
    move || {
        std::thread::yield_now();
        Instant::now() < deadline
    }
}

fn with_formats(test: impl Fn(&Rig, Driver)) {
    for format in [F::empty(), F::RING_PACKED] {
        let rig = Rig::with_loopback(",packed=on,rss=on,hash=on");
        let driver = driver(&rig, format);
        test(&rig, driver);
    }
}

#[test]
fn statistics_are_those_of_what_has_passed() {
    with_formats(|_, mut driver| {
        let net = &mut driver.net;
        let types = net.statistics_types(patience()).unwrap().unwrap();
        for number in [
            ReceiveStatistics::TYPE,
            ReceiveChecksums::TYPE,
            TransmitStatistics::TYPE,
            TransmitChecksums::TYPE,
            ControlStatistics::TYPE,
        ] {
            assert_ne!(types & (1 << number), 0, "{number}");
        }
        for round in 0..5 {
            let frame = [round; 60];
            driver.ask(&frame, |answer| answer == frame);
        }
        let net = &mut driver.net;
        let sent = net.queue_statistics::<TransmitStatistics>(1, patience());
        let sent = sent.unwrap().unwrap();
        assert_eq!((sent.packets, sent.bytes, sent.drops), (5, 300, 0));
        let received = net.queue_statistics::<ReceiveStatistics>(0, patience());
        let received = received.unwrap().unwrap();
        assert_eq!((received.packets, received.bytes), (5, 300));
        let control = net.queue_statistics::<ControlStatistics>(2, patience());
        let control = control.unwrap().unwrap();
        assert_eq!((control.commands, control.acknowledged), (4, 4));
        // Nothing is told of checksums without offloads of them; a receive queue sends nothing; there is no queue 9.
        let checksums = net.queue_statistics::<TransmitChecksums>(1, patience());
        assert_eq!(checksums, Ok(None));
        assert_eq!(
            net.queue_statistics::<TransmitStatistics>(0, patience()),
            Ok(None)
        );
        assert_eq!(
            net.queue_statistics::<ReceiveStatistics>(9, patience()),
            Ok(None)
        );
    });
}

#[test]
fn coalescing_is_read_as_it_was_set() {
    with_formats(|_, mut driver| {
        let net = &mut driver.net;
        let [rx, tx, one] = [(1, 2), (3, 4), (5, 6)].map(|(max_packets, max_usecs)| Coalescing {
            max_packets,
            max_usecs,
        });
        assert_eq!(
            net.queue_coalescing(0, patience()),
            Ok(Some(Coalescing::default()))
        );
        assert_eq!(net.set_receive_coalescing(rx, patience()), Ok(true));
        assert_eq!(net.set_transmit_coalescing(tx, patience()), Ok(true));
        assert_eq!(net.queue_coalescing(0, patience()), Ok(Some(rx)));
        assert_eq!(net.queue_coalescing(1, patience()), Ok(Some(tx)));
        assert_eq!(net.set_queue_coalescing(1, one, patience()), Ok(true));
        assert_eq!(net.queue_coalescing(1, patience()), Ok(Some(one)));
        // The control queue has none.
        assert_eq!(net.set_queue_coalescing(2, one, patience()), Ok(false));
        assert_eq!(net.queue_coalescing(2, patience()), Ok(None));
    });
}

#[test]
fn hashing_and_spreading_are_taken_or_refused() {
    with_formats(|_, mut driver| {
        let key = [7; 40];
        let hash = |types, key| HashConfig { types, key };
        let rss = |unclassified, table| RssConfig {
            hash: hash(HashType::IPV4, &key),
            unclassified,
            table,
            transmit_pairs: 1,
        };
        let net = &mut driver.net;
        assert_eq!(
            net.set_hash(&hash(HashType::TCPV4, &key), patience()),
            Ok(true)
        );
        assert_eq!(
            net.set_hash(&hash(HashType::TCPV4, &[]), patience()),
            Ok(false),
            "no key"
        );
        assert_eq!(
            net.set_hash(&hash(HashType::TCPV4, &[0; 41]), patience()),
            Ok(false)
        );
        assert_eq!(net.set_rss(&rss(0, &[0, 0]), patience()), Ok(true));
        assert_eq!(
            net.set_rss(&rss(0, &[0, 0, 0]), patience()),
            Ok(false),
            "no power of two"
        );
        assert_eq!(
            net.set_rss(&rss(1, &[0]), patience()),
            Ok(false),
            "there is no pair 1"
        );
        assert_eq!(net.set_rss(&rss(0, &[0, 1]), patience()), Ok(false));
        // Frames pass all the same.
        let frame = [3; 64];
        driver.ask(&frame, |answer| answer == frame);
    });
}
