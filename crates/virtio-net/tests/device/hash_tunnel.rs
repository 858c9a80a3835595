//! Hashes of the packets in tunnels (virtio 1.4, 5.1.9.4.4).

use net_client::Received;
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::VirtioNetConfig;

use crate::harness::{ERR, Nic, OK};
use crate::rss::{
    ALL_TYPES, HASH_HEADER, KEY, Rss, VECTORS, Vector, config, give, hash_config, hash_fields,
    nic_of, tcp,
};

/// UDP over version 4, the first report that fits the packet around.
const UDPV4: u16 = 3;
const TCPV4: u16 = 2;
const VXLAN: u32 = 1 << 4;
const GENEVE: u32 = 1 << 6;
const ALL: u32 = 0x1ff;

fn tunnel_config() -> VirtioNetConfig {
    VirtioNetConfig {
        hash_tunnel: true,
        ..config()
    }
}

fn nic() -> Nic {
    nic_of(tunnel_config(), &|_| {}, NetF::all())
}

fn set(tunnels: u32) -> Vec<u8> {
    [&[7, 0][..], &tunnels.to_le_bytes()].concat()
}

/// The frame of a vector in VXLAN, behind a header of `header` bytes; all frames between the same two hosts.
fn vxlan(vector: Vector, header: usize) -> Vec<u8> {
    let mut frame = tcp(vector, header);
    let inner = frame.split_off(header);
    frame.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 9, 8, 0]);
    frame.extend([0x45, 0, 0, 96, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0xc0, 1, 0x12, 0xb5, 0, 76, 0, 0]);
    frame.extend([8, 0, 0, 0, 0, 0, 7, 0]);
    frame.extend(inner);
    frame
}

/// Gives the driver a frame by either door, and returns the hash that it is told.
fn deliver(nic: &mut Nic, frame: Vec<u8>, copied: bool) -> (u32, u16) {
    let (_, at) = nic.add_rx(2000);
    nic.kick(0);
    if copied {
        assert_eq!(nic.peer.port.send_bytes(&frame), Received::Taken);
        nic.peer.port.flush(&mut |_| {});
    } else {
        let _ = nic.peer.give_frames([frame]);
    }
    assert_eq!(nic.used(0).len(), 1);
    let (value, report, padding) = hash_fields(nic, at);
    assert_eq!(padding, 0);
    (value, report)
}

#[test]
fn hashes_are_of_the_packet_inside_as_long_as_its_tunnel_is_enabled() {
    for copied in [false, true] {
        let mut nic = nic();
        assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
        let frame = |i: usize| vxlan(VECTORS[i], HASH_HEADER);
        // Disabled at first: all frames of the two hosts have one hash.
        let around = deliver(&mut nic, frame(0), copied);
        assert_eq!(around.1, UDPV4);
        assert_eq!(deliver(&mut nic, frame(1), copied), around);
        for tunnels in [VXLAN, ALL, VXLAN | GENEVE] {
            assert_eq!(nic.command(&set(tunnels)), OK);
            for (i, vector) in VECTORS.into_iter().enumerate() {
                let hash = deliver(&mut nic, frame(i), copied);
                assert_eq!(hash, (vector.2, TCPV4), "{tunnels:#x}, {vector:?}");
            }
            // What is in no tunnel has the hash that it had.
            let plain = deliver(&mut nic, tcp(VECTORS[2], HASH_HEADER), copied);
            assert_eq!(plain, (VECTORS[2].2, TCPV4));
        }
        for tunnels in [GENEVE, ALL - VXLAN, 0] {
            assert_eq!(nic.command(&set(VXLAN)), OK);
            assert_eq!(nic.command(&set(tunnels)), OK);
            assert_eq!(deliver(&mut nic, frame(0), copied), around);
        }
    }
}

#[test]
fn the_hash_of_the_packet_inside_leads_to_its_queue() {
    let mut nic = nic();
    assert_eq!(nic.command(&Rss::default().command()), OK);
    for queue in [0, 2, 4] {
        for _ in 0..20 {
            nic.add_rx_to(queue, 2000);
        }
        nic.kicks[queue].write(1).unwrap();
    }
    nic.turn();
    let frames: Vec<_> = VECTORS.map(|vector| vxlan(vector, HASH_HEADER)).into();
    let around = give(&mut nic, 0, &frames);
    assert_eq!(around.iter().filter(|count| **count > 0).count(), 1);
    assert_eq!(nic.command(&set(VXLAN)), OK);
    let inside = give(&mut nic, 0, &frames);
    let plain: Vec<_> = VECTORS.map(|vector| tcp(vector, HASH_HEADER)).into();
    assert_eq!(inside, give(&mut nic, 0, &plain));
    assert_ne!(inside, around);
}

#[test]
fn each_mistake_in_what_is_said_of_tunnels_is_refused_and_changes_nothing() {
    let mut nic = nic();
    assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
    assert_eq!(nic.command(&set(VXLAN)), OK);
    let good = set(0);
    let unknown = (9..32).map(|bit| set(1 << bit | GENEVE));
    let cut = (2..good.len()).map(|len| good[..len].to_vec());
    let long = [&good[..], &[0]].concat();
    let other = [&[7, 1][..], &good[2..]].concat();
    for command in unknown.chain(cut).chain([long, other]) {
        assert_eq!(nic.command(&command), ERR, "{command:x?}");
        let hash = deliver(&mut nic, vxlan(VECTORS[0], HASH_HEADER), false);
        assert_eq!(hash, (VECTORS[0].2, TCPV4), "{command:x?}");
    }
    // Hashes that are set anew leave the tunnels as they are.
    assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
    let hash = deliver(&mut nic, vxlan(VECTORS[1], HASH_HEADER), false);
    assert_eq!(hash, (VECTORS[1].2, TCPV4));
}

#[test]
fn the_feature_needs_hashes_and_the_command_the_feature() {
    let offered = |config| nic_of(config, &|_| {}, NetF::all()).features;
    let with = |rss, hash, hash_tunnel| VirtioNetConfig {
        rss,
        hash,
        hash_tunnel,
        ..config()
    };
    // (rss, hash, hash_tunnel, offered)
    let table = [
        (true, true, true, true),
        (true, false, true, true),
        (false, true, true, true),
        (false, false, true, false),
        (true, true, false, false),
    ];
    for (rss, hash, tunnel, expected) in table {
        let features = NetF::from(offered(with(rss, hash, tunnel)));
        let is_offered = features.contains(NetF::HASH_TUNNEL);
        assert_eq!(is_offered, expected, "{rss}, {hash}, {tunnel}");
    }
    let mut without = nic_of(tunnel_config(), &|_| {}, NetF::all() - NetF::HASH_TUNNEL);
    assert_eq!(without.command(&set(VXLAN)), ERR);
    assert_eq!(without.command(&set(0)), ERR);
}

#[test]
fn the_tunnels_that_are_known_are_read_behind_the_types_of_hashes() {
    let nic = nic();
    let mut read = [0xa5; 8];
    nic.device.read_config(20, &mut read);
    assert_eq!(read, [0xff, 1, 0, 0, 0xff, 1, 0, 0]);
    let without = nic_of(config(), &|_| {}, NetF::all());
    let mut read = [0xa5; 8];
    without.device.read_config(20, &mut read);
    assert_eq!(read, [0xff, 1, 0, 0, 0xa5, 0xa5, 0xa5, 0xa5]);
}

#[test]
fn a_reset_ends_what_was_said_of_tunnels_and_a_restored_card_goes_on_with_it() {
    let mut nic = nic();
    assert_eq!(nic.command(&hash_config(ALL_TYPES, &KEY)), OK);
    assert_eq!(nic.command(&set(VXLAN)), OK);
    nic.device.pause();
    let saved = nic.device.save().unwrap();
    let mut next = self::nic();
    next.device.pause();
    next.device.restore(&saved).unwrap();
    next.device.resume();
    let frame = || vxlan(VECTORS[0], HASH_HEADER);
    assert_eq!(deliver(&mut next, frame(), false), (VECTORS[0].2, TCPV4));
    next.restart();
    assert_eq!(next.command(&hash_config(ALL_TYPES, &KEY)), OK);
    assert_eq!(deliver(&mut next, frame(), false).1, UDPV4);
    // A card whose driver has not agreed to it takes none over.
    let wanted = NetF::all() - NetF::HASH_TUNNEL;
    let other = nic_of(tunnel_config(), &|_| {}, wanted);
    other.device.pause();
    let error = other.device.restore(&saved).unwrap_err().to_string();
    let expected = "section 'virtio-net-hash-tunnels', field 'tunnels': ";
    assert!(error.starts_with(expected), "{error}");
}
