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
use vmstate::Writer;

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

/// `bytes` with other sections `name`: of this version, with these bytes.
fn with_section(name: &str, version: u16, body: &[u8]) -> Vec<u8> {
    let bytes = without(&fresh().to_bytes(), name);
    let mut writer = Writer::new();
    writer.section(name, version, |fields| {
        body.iter().for_each(|byte| fields.u8(*byte));
    });
    let added = writer.into_bytes();
    [&bytes[..], &added[Writer::new().into_bytes().len()..]].concat()
}

/// A saved state without the section `name`: as a version wrote it that did not know that.
fn without(bytes: &[u8], name: &str) -> Vec<u8> {
    let mark = [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
    let at = (bytes.windows(mark.len()))
        .position(|window| window == mark)
        .unwrap();
    let body = at + mark.len() + 2;
    let len = u32::from_le_bytes(bytes[body..body + 4].try_into().unwrap());
    let end = body + 4 + usize::try_from(len).unwrap();
    [&bytes[..at], &bytes[end..]].concat()
}

#[test]
fn what_was_counted_goes_on_in_the_fresh_card_and_through_its_resets() {
    let mut saved = fresh();
    let (rx, tx) = &mut saved.counters.pairs[0];
    rx.kicks = 1;
    rx.frames = 2;
    rx.bytes = u64::MAX;
    rx.dropped_filtered = 3;
    rx.rsc_dup_acks = 4;
    tx.frames = 5;
    tx.csum_needed = 6;
    saved.counters.ctrl.refused = 7;
    let card = card();
    card.restore(&saved.to_bytes()).unwrap();
    let again = SavedNet::from_bytes(&card.save().unwrap());
    assert_eq!(again.as_ref(), Ok(&saved));
    card.reset();
    assert_eq!(SavedNet::from_bytes(&card.save().unwrap()), again);
}

#[test]
fn a_state_from_before_counters_and_limits_were_saved_is_taken() {
    let mut bytes = told().to_bytes();
    let mut expected = told();
    expected.counters.pairs.clear();
    for name in ["virtio-net-counters", "virtio-net-limits"] {
        bytes = without(&bytes, name);
        assert_eq!(SavedNet::from_bytes(&bytes), Ok(expected.clone()));
    }
    card().restore(&bytes).unwrap();
    // One counter each, of a version that had no other.
    let counters = [1, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let saved = SavedNet::from_bytes(&with_section("virtio-net-counters", 1, &counters)).unwrap();
    assert_eq!(saved.counters.pairs[0].0.kicks, 9);
    let mut expected = fresh();
    expected.counters.pairs[0].0.kicks = 9;
    assert_eq!(saved, expected);
}

#[test]
fn counters_and_limits_that_are_not_known_are_refused_by_name() {
    let many = [&[1, 0, 0xff, 0][..], &[0; 8 * 255]].concat();
    // (section, version, bytes, message)
    let table: [(&str, u16, &[u8], &str); 6] = [
        (
            "virtio-net-counters",
            2,
            &[],
            "section 'virtio-net-counters' has version 2",
        ),
        (
            "virtio-net-limits",
            2,
            &[],
            "section 'virtio-net-limits' has version 2",
        ),
        (
            "virtio-net-counters",
            1,
            &[],
            "section 'virtio-net-counters' ends within field 'pairs'",
        ),
        (
            "virtio-net-limits",
            1,
            &[0; 31],
            "section 'virtio-net-limits' ends within field 'tx'",
        ),
        (
            "virtio-net-limits",
            1,
            &[0; 33],
            "section 'virtio-net-limits' is 1 bytes too long",
        ),
        (
            "virtio-net-counters",
            1,
            &many,
            "section 'virtio-net-counters', field 'rx'",
        ),
    ];
    for (name, version, body, expected) in table {
        let bytes = with_section(name, version, body);
        let error = card().restore(&bytes).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let mut saved = fresh();
    saved.counters.pairs.push(Default::default());
    let error = card().restore(&saved.to_bytes()).unwrap_err().to_string();
    let expected = "section 'virtio-net-counters', field 'pairs': ";
    assert!(error.starts_with(expected), "{error}");
}
