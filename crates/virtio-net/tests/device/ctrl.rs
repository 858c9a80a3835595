//! The control queue.

use std::sync::Arc;

use net_client::Offloads;
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use crate::filter::with_frames;
use crate::harness::{ANSWER, COMMAND, CTRL, ERR, Nic, OK, Peer};

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
        assert_eq!(nic.command_in(&offloads(set), &cuts), OK, "{cuts:?}");
        let expected = Offloads {
            csum: true,
            tso4: true,
            ..Default::default()
        };
        assert_eq!(nic.peer.state().offloads.last(), Some(&expected));
        assert_eq!(nic.calls[CTRL].count(), 1);
    }
}

/// Offloads beyond what was negotiated, and reserved bits.
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
        assert_eq!(nic.command_in(&offloads(bits), &[2]), expected, "{bits:?}");
    }
    nic.peer.state().refuses_offloads = true;
    assert_eq!(nic.command_in(&offloads(NetF::empty()), &[2]), ERR);
}

#[test]
fn offloads_that_one_backend_refuses_are_as_before_on_all() {
    let config = VirtioNetConfig {
        mq: true,
        ..Default::default()
    };
    let mut nic = Nic::idle_pairs(3, config, &|_| {}, NetF::all());
    nic.device.negotiate(nic.features).unwrap();
    nic.activate();
    let now = |nic: &Nic| -> Vec<_> {
        let last = |peer: &Arc<Peer>| peer.state().offloads.last().copied();
        nic.peers.iter().map(last).collect()
    };
    let before = now(&nic);
    nic.peers[2].state().refuses_offloads = true;
    let told = nic.peers[0].state().offloads.len();
    assert_eq!(nic.command(&offloads(NetF::GUEST_CSUM)), ERR);
    assert_eq!(nic.peers[0].state().offloads.len(), told + 2);
    assert_eq!(now(&nic), before);
}

/// Classes and commands that there are not: an error, and the queue goes on, which drivers rely on to find
/// out what a device knows.
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
        (vec![0, 6, 1], ERR),
        (vec![1, 2, 0, 0, 0, 0, 0, 0], ERR),
        (vec![2, 2, 1, 0], ERR),
        (vec![4, 0, 1, 0], ERR),
        (vec![4, 1, 1, 0], ERR),
        (vec![255, 255], ERR),
        (good, OK),
    ];
    for (bytes, expected) in table {
        assert_eq!(nic.command_in(&bytes, &[2]), expected, "{bytes:x?}");
    }
    assert!(nic.resets().is_empty());
    let statistics = nic.device.ctrl_statistics();
    assert_eq!((statistics.acknowledged, statistics.refused), (1, 13));
}

/// An answer that there is no room for.
#[test]
fn a_command_without_room_for_the_answer_is_not_done_and_comes_back() {
    let mut nic = Nic::new();
    let before = nic.peer.state().offloads.len();
    nic.memory
        .write_slice(&offloads(NetF::empty()), GuestAddress(COMMAND))
        .unwrap();
    let head = nic.drivers[CTRL].add(&[Buffer::readable(COMMAND, 10)]);
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL), [(u32::from(head), 0)]);
    assert_eq!(nic.peer.state().offloads.len(), before);
    assert_eq!(nic.device.ctrl_statistics().unanswered, 1);
    assert_eq!(nic.command_in(&offloads(NetF::empty()), &[2]), OK);
}

/// Data in the wrong direction: a command in a buffer for the device to write is none.
#[test]
fn a_chain_with_nothing_to_read_is_refused_and_nothing_is_written_but_the_answer() {
    let mut nic = Nic::new();
    let bytes = offloads(NetF::empty());
    nic.memory
        .write_slice(&bytes, GuestAddress(COMMAND))
        .unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    let before = nic.peer.state().offloads.len();
    let head = nic.drivers[CTRL].add(&[Buffer::writable(COMMAND, len)]);
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL), [(u32::from(head), 1)]);
    assert_eq!(nic.bytes(COMMAND, 3), [ERR, 0, bytes[2]]);
    assert_eq!(nic.peer.state().offloads.len(), before);
}

#[test]
fn a_command_of_a_feature_that_was_not_negotiated_is_refused() {
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::CTRL_GUEST_OFFLOADS);
    assert_eq!(nic.command_in(&offloads(NetF::GUEST_CSUM), &[2]), ERR);
}

#[test]
fn many_commands_at_once_are_all_answered() {
    let mut nic = Nic::new();
    for _ in 0..21 {
        nic.drivers[CTRL].add(&[
            Buffer::readable(COMMAND, 1),
            Buffer::readable(COMMAND, 1),
            Buffer::writable(ANSWER, 1),
        ]);
    }
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL).len(), 21);
    assert_eq!(nic.calls[CTRL].count(), 1);
}

/// `VIRTIO_NET_CTRL_MAC_TABLE_SET` of two tables that say how many addresses they have, and have as many as follow.
fn mac_table(unicast: (u32, usize), multicast: (u32, usize)) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    for ((says, has), first) in [(unicast, 2), (multicast, 3)] {
        bytes.extend(says.to_le_bytes());
        for i in 0..has {
            bytes.extend([first, 0, 0, 0, 0, u8::try_from(i).unwrap()]);
        }
    }
    bytes
}

#[test]
fn commands_that_set_filters_are_taken_in_whatever_pieces_they_come() {
    let commands: [Vec<u8>; 12] = [
        vec![0, 0, 0],
        vec![0, 1, 1],
        vec![0, 2, 1],
        vec![0, 3, 1],
        vec![0, 4, 1],
        vec![0, 5, 1],
        vec![0, 0, 255],
        mac_table((0, 0), (0, 0)),
        mac_table((2, 2), (3, 3)),
        vec![1, 1, 2, 0, 0, 0, 0, 9],
        vec![2, 0, 5, 0],
        vec![2, 1, 5, 0],
    ];
    let mut nic = Nic::new();
    for command in commands {
        for cuts in [vec![], vec![2], vec![1; 40], vec![1, 5], vec![3]] {
            assert_eq!(nic.command_in(&command, &cuts), OK, "{command:x?} {cuts:?}");
        }
    }
}

/// Data short, missing or longer than the command's.
#[test]
fn each_command_that_is_cut_or_has_more_than_its_data_is_refused() {
    let commands: [Vec<u8>; 12] = [
        vec![0, 0, 0],
        vec![0, 1, 1],
        vec![0, 2, 1],
        vec![0, 3, 1],
        vec![0, 4, 1],
        vec![0, 5, 1],
        mac_table((0, 0), (0, 0)),
        mac_table((2, 2), (3, 3)),
        vec![1, 1, 2, 0, 0, 0, 0, 9],
        vec![2, 0, 5, 0],
        vec![2, 1, 5, 0],
        offloads(NetF::empty()),
    ];
    let mut nic = Nic::new();
    for command in commands {
        for len in 0..command.len() {
            assert_eq!(
                nic.command(&command[..len]),
                ERR,
                "{command:x?} cut to {len}"
            );
        }
        let longer = [&command[..], &[0]].concat();
        assert_eq!(nic.command(&longer), ERR, "{longer:x?}");
    }
    assert_eq!(nic.device.ctrl_statistics().acknowledged, 0);
    assert!(nic.resets().is_empty());
}

/// Numbers of addresses that are more than there are, or whose length in bytes is more than a number has
/// room for: 0x2aaaaaab times 6 is 2 modulo 2^32.
#[test]
fn a_table_that_says_more_than_it_has_is_refused_and_the_old_one_stays() {
    let mut nic = Nic::new();
    for mode in [vec![0, 0, 0], mac_table((1, 1), (1, 1))] {
        assert_eq!(nic.command(&mode), OK);
    }
    let table = [
        mac_table((1, 0), (0, 0)),
        mac_table((2, 1), (0, 0)),
        mac_table((0, 0), (1, 0)),
        mac_table((0, 1), (0, 0)),
        mac_table((0x2aaa_aaab, 1), (0, 0)),
        mac_table((0, 0), (0x2aaa_aaab, 1)),
        mac_table((0x8000_0000, 1), (0, 0)),
        mac_table((u32::MAX, 64), (0, 0)),
        mac_table((65, 64), (0, 0)),
        mac_table((0, 0), (u32::MAX, 64)),
    ];
    for bytes in table {
        assert_eq!(nic.command(&bytes), ERR, "{:x?}", &bytes[..6]);
    }
    let mut nic = with_frames(nic);
    assert!(nic.gets([2, 0, 0, 0, 0, 0]));
    assert!(nic.gets([3, 0, 0, 0, 0, 0]));
    assert!(!nic.gets([2, 0, 0, 0, 0, 1]));
    assert!(!nic.gets([3, 0, 0, 0, 0, 1]));
}

#[test]
fn more_addresses_than_the_table_takes_let_their_whole_kind_pass() {
    // Entries of either kind, and whether an unlisted address of either kind passes, and the last listed one.
    let table = [
        (64, 0, false, false),
        (65, 0, true, false),
        (0, 64, false, false),
        (0, 65, false, true),
        (32, 32, false, false),
        (32, 33, false, true),
        (64, 1, false, true),
        // A table that has overflown leaves its room to the other.
        (65, 64, true, false),
        (65, 65, true, true),
        (200, 0, true, false),
    ];
    for (unicast, multicast, any_unicast, any_multicast) in table {
        let mut nic = Nic::new();
        assert_eq!(nic.command(&[0, 0, 0]), OK);
        let says = |count: usize| (u32::try_from(count).unwrap(), count);
        let bytes = mac_table(says(unicast), says(multicast));
        assert_eq!(nic.command(&bytes), OK, "{unicast}, {multicast}");
        let mut nic = with_frames(nic);
        let case = format!("{unicast} unicast, {multicast} multicast");
        assert_eq!(nic.gets([2, 0, 0, 0, 1, 0]), any_unicast, "{case}");
        assert_eq!(nic.gets([3, 0, 0, 0, 1, 0]), any_multicast, "{case}");
        for (count, first) in [(unicast, 2), (multicast, 3)] {
            for i in 0..count {
                let mac = [first, 0, 0, 0, 0, u8::try_from(i).unwrap()];
                assert!(nic.gets(mac), "{case}: {mac:x?}");
            }
        }
    }
}

/// VLAN ids that there are not.
#[test]
fn vlan_ids_from_4096_on_are_refused() {
    let mut nic = Nic::new();
    for (id, expected) in [
        (0_u16, OK),
        (1, OK),
        (4095, OK),
        (4096, ERR),
        (4097, ERR),
        (8192, ERR),
        (u16::MAX, ERR),
    ] {
        for command in 0..2 {
            let [low, high] = id.to_le_bytes();
            let bytes = [2, command, low, high];
            assert_eq!(nic.command(&bytes), expected, "{id}, {command}");
        }
    }
}

#[test]
fn each_command_needs_its_feature() {
    let table = [
        (vec![0, 0, 0], NetF::CTRL_RX),
        (vec![0, 1, 0], NetF::CTRL_RX),
        (vec![0, 2, 0], NetF::CTRL_RX_EXTRA),
        (vec![0, 3, 0], NetF::CTRL_RX_EXTRA),
        (vec![0, 4, 0], NetF::CTRL_RX_EXTRA),
        (vec![0, 5, 0], NetF::CTRL_RX_EXTRA),
        (mac_table((0, 0), (0, 0)), NetF::CTRL_RX),
        (vec![1, 1, 2, 0, 0, 0, 0, 9], NetF::CTRL_MAC_ADDR),
        (vec![2, 0, 1, 0], NetF::CTRL_VLAN),
        (vec![2, 1, 1, 0], NetF::CTRL_VLAN),
        (offloads(NetF::empty()), NetF::CTRL_GUEST_OFFLOADS),
    ];
    for (bytes, feature) in table {
        let mut nic = Nic::with(&|_| {}, NetF::all() - feature);
        assert_eq!(nic.command(&bytes), ERR, "{bytes:x?} without {feature:?}");
        let mut nic = Nic::new();
        assert_eq!(nic.command(&bytes), OK, "{bytes:x?}");
    }
}

#[test]
fn offloads_of_udp_can_be_set_where_the_backend_has_them() {
    let mut nic = Nic::with(
        &|peer| {
            peer.can.ufo = true;
            peer.can.uso4 = true;
            peer.can.uso6 = true;
        },
        NetF::all(),
    );
    let table = [
        NetF::GUEST_CSUM | NetF::GUEST_UFO,
        NetF::GUEST_CSUM | NetF::GUEST_USO4,
        NetF::GUEST_CSUM | NetF::GUEST_USO6,
    ];
    for (bits, (ufo, uso4, uso6)) in table.into_iter().zip([
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ]) {
        if crate::harness::legacy() && (uso4 || uso6) {
            assert_eq!(nic.command(&offloads(bits)), ERR, "{bits:?}");
            continue;
        }
        assert_eq!(nic.command(&offloads(bits)), OK, "{bits:?}");
        let expected = Offloads {
            csum: true,
            ufo,
            uso4,
            uso6,
            ..Default::default()
        };
        assert_eq!(nic.peer.state().offloads.last(), Some(&expected));
    }
}

#[test]
fn the_address_that_the_driver_sets_is_in_configuration_space_until_reset() {
    let mut nic = Nic::new();
    let mac = |nic: &Nic| {
        let mut mac = [0; 6];
        nic.device.read_config(0, &mut mac);
        mac
    };
    let own = mac(&nic);
    assert_eq!(nic.command(&[1, 1, 2, 0, 0, 0, 0, 9]), OK);
    assert_eq!(mac(&nic), [2, 0, 0, 0, 0, 9]);
    nic.device.reset();
    assert_eq!(mac(&nic), own);
}

/// Data that changes between the check and the use is checked as it is used: the table is read once, into the
/// device's own memory. Here it lies where the answer is written.
#[test]
fn a_table_that_the_answer_is_written_over_is_as_it_was_read() {
    let mut nic = Nic::new();
    assert_eq!(nic.command(&[0, 0, 0]), OK);
    let bytes = mac_table((1, 1), (0, 0));
    nic.memory
        .write_slice(&bytes, GuestAddress(COMMAND))
        .unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    // The answer goes over the address's first byte.
    let head = nic.drivers[CTRL].add(&[
        Buffer::readable(COMMAND, len),
        Buffer::writable(COMMAND + 6, 1),
    ]);
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL), [(u32::from(head), 1)]);
    assert_eq!(nic.bytes(COMMAND + 6, 1), [OK]);
    assert!(with_frames(nic).gets([2, 0, 0, 0, 0, 0]));
}
