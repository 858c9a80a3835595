//! The control queue.

use net_client::Offloads;
use virtio::net::F as NetF;
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{CTRL, DATA, Nic};

const OK: u8 = 0;
const ERR: u8 = 1;
/// What an answer byte is before the device writes it.
const UNTOUCHED: u8 = 0xa5;
const ANSWER: u64 = DATA + 0x1000;

/// Sends a command in descriptors of the lengths `cuts` and one for the rest, and returns the answer.
fn command(nic: &mut Nic, bytes: &[u8], cuts: &[u32]) -> u8 {
    nic.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
    nic.memory
        .write_obj(UNTOUCHED, GuestAddress(ANSWER))
        .unwrap();
    let mut buffers = Vec::new();
    let mut start = 0;
    let end = u32::try_from(bytes.len()).unwrap();
    for cut in cuts.iter().copied().chain([u32::MAX]) {
        let len = cut.min(end - start);
        if len > 0 {
            buffers.push(Buffer::readable(DATA + u64::from(start), len));
        }
        start += len;
    }
    buffers.push(Buffer::writable(ANSWER, 1));
    let head = nic.drivers[CTRL].add(&buffers);
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL), [(u32::from(head), 1)], "{bytes:x?}");
    nic.bytes(ANSWER, 1)[0]
}

fn offloads(bits: NetF) -> Vec<u8> {
    let bits = u64::try_from(bits.bits().to_ne()).unwrap();
    let mut bytes = vec![5, 0];
    bytes.extend(bits.to_le_bytes());
    bytes
}

#[test]
fn offloads_are_set_in_the_backend_in_whatever_pieces_the_command_comes() {
    for cuts in [vec![], vec![2], vec![1; 9], vec![1, 5], vec![2, 8]] {
        let mut nic = Nic::new();
        let set = NetF::GUEST_CSUM | NetF::GUEST_TSO4;
        assert_eq!(command(&mut nic, &offloads(set), &cuts), OK, "{cuts:?}");
        let expected = Offloads {
            csum: true,
            tso4: true,
            ..Default::default()
        };
        assert_eq!(nic.peer.state().offloads.last(), Some(&expected));
        assert_eq!(nic.calls[CTRL].count(), 1);
    }
}

#[test]
fn only_offloads_that_were_negotiated_can_be_set() {
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::GUEST_TSO6);
    let table = [
        (NetF::empty(), OK),
        (NetF::GUEST_CSUM, OK),
        (NetF::GUEST_CSUM | NetF::GUEST_TSO4 | NetF::GUEST_ECN, OK),
        (NetF::GUEST_CSUM | NetF::GUEST_TSO6, ERR),
        (NetF::GUEST_UFO, ERR),
        (NetF::CSUM, ERR),
        (NetF::MAC, ERR),
        (NetF::SPEED_DUPLEX, ERR),
    ];
    for (bits, expected) in table {
        assert_eq!(
            command(&mut nic, &offloads(bits), &[2]),
            expected,
            "{bits:?}"
        );
    }
    nic.peer.state().refuses_offloads = true;
    assert_eq!(command(&mut nic, &offloads(NetF::empty()), &[2]), ERR);
}

#[test]
fn what_is_unknown_short_or_long_is_refused_and_the_queue_lives() {
    let mut nic = Nic::new();
    let good = offloads(NetF::GUEST_CSUM);
    let mut long = good.clone();
    long.push(0);
    let mut longer = good.clone();
    longer.resize(0x800, 0);
    let table: Vec<(Vec<u8>, u8)> = vec![
        (vec![], ERR),
        (vec![5], ERR),
        (vec![5, 0], ERR),
        (good[..9].to_vec(), ERR),
        (long, ERR),
        (longer, ERR),
        ([&[5, 1], &good[2..]].concat(), ERR),
        ([&[0, 0], &[1][..]].concat(), ERR),
        (vec![4, 0, 1, 0], ERR),
        (vec![6, 0], ERR),
        (vec![255, 255], ERR),
        (good, OK),
    ];
    for (bytes, expected) in table {
        assert_eq!(command(&mut nic, &bytes, &[2]), expected, "{bytes:x?}");
    }
    assert!(nic.resets().is_empty());
    let statistics = nic.device.ctrl_statistics();
    assert_eq!((statistics.acknowledged, statistics.refused), (1, 11));
}

#[test]
fn a_command_without_room_for_the_answer_is_not_done_and_comes_back() {
    let mut nic = Nic::new();
    let before = nic.peer.state().offloads.len();
    nic.memory
        .write_slice(&offloads(NetF::empty()), GuestAddress(DATA))
        .unwrap();
    let head = nic.drivers[CTRL].add(&[Buffer::readable(DATA, 10)]);
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL), [(u32::from(head), 0)]);
    assert_eq!(nic.peer.state().offloads.len(), before);
    assert_eq!(nic.device.ctrl_statistics().unanswered, 1);
    assert_eq!(command(&mut nic, &offloads(NetF::empty()), &[2]), OK);
}

#[test]
fn a_command_of_a_feature_that_was_not_negotiated_is_refused() {
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::CTRL_GUEST_OFFLOADS);
    assert_eq!(command(&mut nic, &offloads(NetF::GUEST_CSUM), &[2]), ERR);
}

#[test]
fn many_commands_at_once_are_all_answered() {
    let mut nic = Nic::new();
    for _ in 0..21 {
        nic.drivers[CTRL].add(&[
            Buffer::readable(DATA, 1),
            Buffer::readable(DATA, 1),
            Buffer::writable(ANSWER, 1),
        ]);
    }
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL).len(), 21);
    assert_eq!(nic.calls[CTRL].count(), 1);
}
