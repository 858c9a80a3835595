//! What a driver has told a card, in a fresh card.
#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::Arc;

use iothread::{AioContext, EventLoop, VirtualClock};
use virtio::le32;
use virtio::net::HashType;
use virtio_bus::VirtioDevice;
use virtio_net::{SavedCoalescing, SavedNet, SavedSteering, VirtioNet, VirtioNetConfig};
use vm_memory::GuestMemoryMmap;

type Memory = Arc<GuestMemoryMmap<()>>;

fn card() -> Arc<dyn VirtioDevice<Memory>> {
    let context: Arc<dyn AioContext> = EventLoop::with_clock(VirtualClock::new()).unwrap();
    let card = VirtioNet::new(VirtioNetConfig::default(), Vec::new(), vec![context]).unwrap();
    card.pause();
    card
}

fn fresh() -> SavedNet {
    SavedNet::from_bytes(&card().save().unwrap()).unwrap()
}

/// One in which everything is otherwise than in a fresh card, as far as no feature is needed.
fn told() -> SavedNet {
    let mut saved = fresh();
    saved.filter.mac = [2, 3, 4, 5, 6, 7];
    saved.filter.modes = 0b10_1010;
    saved.filter.unicast = Some(vec![[2, 0, 0, 0, 0, 1]]);
    saved.filter.multicast = None;
    saved.hash_types = HashType::TCPV4 | HashType::UDP_EX;
    saved.hash_key = [7; 40];
    saved.steering = Some(SavedSteering {
        pairs: vec![0; 4],
        unclassified: 0,
    });
    let coalescing = |max_packets| SavedCoalescing {
        max_packets,
        max_usecs: 20,
    };
    saved.coalescing = [coalescing(3), coalescing(4)];
    saved
}

#[test]
fn a_fresh_card_has_all_that_the_driver_told_the_saved_one() {
    let card = card();
    let told = told();
    assert_ne!(told, fresh());
    card.restore(&told.to_bytes()).unwrap();
    assert_eq!(SavedNet::from_bytes(&card.save().unwrap()), Ok(told));
    card.reset();
    assert_eq!(SavedNet::from_bytes(&card.save().unwrap()), Ok(fresh()));
}

#[test]
fn what_a_card_cannot_do_it_refuses_by_name_and_stays_as_it_is() {
    type Change = fn(&mut SavedNet);
    let table: &[(Change, &str)] = &[
        (|it| it.pairs = 0, "pairs"),
        (|it| it.pairs = 2, "pairs"),
        (|it| it.config.push(0), "config"),
        (|it| it.offloads |= virtio::net::F::GUEST_TSO4, "offloads"),
        (
            |it| it.hash_types = HashType::from_bits_retain(le32::from_ne(1 << 20)),
            "hash_types",
        ),
        (
            |it| it.steering.as_mut().unwrap().pairs = vec![0; 3],
            "steering",
        ),
        (|it| it.steering.as_mut().unwrap().pairs.clear(), "steering"),
        (
            |it| it.steering.as_mut().unwrap().unclassified = 1,
            "steering",
        ),
        (|it| it.filter.modes = 0x40, "filter.modes"),
        (
            |it| it.filter.vlans = Some(Box::new([0; 64])),
            "filter.vlans",
        ),
    ];
    for (change, field) in table {
        let card = card();
        let mut saved = told();
        change(&mut saved);
        let error = card.restore(&saved.to_bytes()).unwrap_err().to_string();
        let start = format!("section 'virtio-net', field '{field}': ");
        assert!(error.starts_with(&start), "{error}");
        assert_eq!(SavedNet::from_bytes(&card.save().unwrap()), Ok(fresh()));
    }
}
