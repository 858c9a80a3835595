use super::*;
use crate::hash::flow::Flow;

const TCP: u8 = 6;
const IPV6_IN_IP: u8 = 41;

fn v4(addresses: [u8; 8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet[0] = 0x45;
    packet[9] = protocol;
    packet.extend(addresses);
    packet.extend(payload);
    packet
}

fn v6(first: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
    packet.extend((0..32).map(|i| first + i));
    packet.extend(payload);
    packet
}

fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
    [&[2; 12][..], &kind.to_be_bytes(), packet].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [&[0xc0, 0x01, high, low, 0, 0, 0, 0][..], payload].concat()
}

/// A GRE header with the optional fields that `flags` say, and what is behind it.
fn gre(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let fields = (flags & 0xb000).count_ones() * 4;
    [
        &flags.to_be_bytes()[..],
        &kind.to_be_bytes(),
        &vec![0x45; usize::try_from(fields).unwrap()],
        payload,
    ]
    .concat()
}

const OUTER: [u8; 8] = [10, 0, 0, 1, 10, 0, 0, 2];
const INNER: [u8; 8] = [172, 16, 0, 1, 172, 16, 0, 2];

/// In a packet of version 4, or of version 6, in an Ethernet frame.
fn outer(in_v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if in_v6 {
        ethernet(TYPE_IPV6, &v6(1, protocol, payload))
    } else {
        ethernet(TYPE_IPV4, &v4(OUTER, protocol, payload))
    }
}

fn inner_v4() -> Vec<u8> {
    v4(INNER, TCP, &[0x11, 0x22, 0x33, 0x44])
}

fn inner_v6() -> Vec<u8> {
    v6(100, UDP, &[0x55, 0x66, 0x77, 0x88])
}

fn none() -> Tunnels {
    Tunnels::NONE
}

fn of(all: &[Tunnels]) -> Tunnels {
    Tunnels(all.iter().fold(0, |bits, one| bits | one.0))
}

/// A frame, the packet in its tunnel as a frame of its own, and what the tunnel is.
type Case = (&'static str, Vec<u8>, Vec<u8>, Tunnels);

/// A port, the header behind it, the packet, that as a frame of its own, and what the tunnel is.
type Datagram<'a> = (u16, &'a [u8], Vec<u8>, &'a [u8], Tunnels);

fn cases() -> Vec<Case> {
    let plain_v4 = ethernet(TYPE_IPV4, &inner_v4());
    let plain_v6 = ethernet(TYPE_IPV6, &inner_v6());
    let mut cases: Vec<Case> = Vec::new();
    // Of each header with its flags: what it is between addresses of version 4, and of version 6.
    use Tunnels as T;
    let headers: [(u16, u16, &[Tunnels], &[Tunnels]); 11] = [
        (0, TYPE_IPV4, &[T::GRE_2784], &[T::GRE_2784, T::GRE_7676]),
        (
            0x8000,
            TYPE_IPV4,
            &[T::GRE_2784],
            &[T::GRE_2784, T::GRE_7676],
        ),
        (0, TYPE_IPV6, &[T::GRE_2784, T::GRE_7676], &[T::GRE_7676]),
        (0, TYPE_ETHERNET, &[T::GRE_2784], &[T::GRE_7676]),
        (
            0x2000,
            TYPE_IPV4,
            &[T::GRE_2890],
            &[T::GRE_2890, T::GRE_7676],
        ),
        (
            0x1000,
            TYPE_IPV4,
            &[T::GRE_2890],
            &[T::GRE_2890, T::GRE_7676],
        ),
        (
            0xb000,
            TYPE_IPV6,
            &[T::GRE_2890, T::GRE_7676],
            &[T::GRE_2890, T::GRE_7676],
        ),
        (
            0x2000,
            TYPE_ETHERNET,
            &[T::GRE_2890, T::NVGRE],
            &[T::GRE_2890, T::GRE_7676, T::NVGRE],
        ),
        (
            0x3000,
            TYPE_ETHERNET,
            &[T::GRE_2890],
            &[T::GRE_2890, T::GRE_7676],
        ),
        (
            0xa000,
            TYPE_ETHERNET,
            &[T::GRE_2890],
            &[T::GRE_2890, T::GRE_7676],
        ),
        // Bits that a receiver ignores.
        (
            0x03f8,
            TYPE_IPV4,
            &[T::GRE_2784],
            &[T::GRE_2784, T::GRE_7676],
        ),
    ];
    let inside = |kind: u16| match kind {
        TYPE_IPV4 => (inner_v4(), plain_v4.clone()),
        TYPE_IPV6 => (inner_v6(), plain_v6.clone()),
        _ => (plain_v6.clone(), plain_v6.clone()),
    };
    for (flags, kind, in_v4, in_v6) in headers {
        let (packet, plain) = inside(kind);
        let header = gre(flags, kind, &packet);
        cases.push((
            "gre in 4",
            outer(false, GRE, &header),
            plain.clone(),
            of(in_v4),
        ));
        cases.push((
            "gre in 6",
            outer(true, GRE, &header),
            plain.clone(),
            of(in_v6),
        ));
        for in_v6 in [false, true] {
            let frame = outer(in_v6, UDP, &udp(4754, &header));
            cases.push(("gre in udp", frame, plain.clone(), T::GRE_UDP));
        }
    }
    let behind = |header: &[u8], packet: &[u8]| [header, packet].concat();
    let tagged = ethernet(0x8100, &[&[0, 5, 0x08, 0][..], &inner_v4()].concat());
    let datagrams: [Datagram<'_>; 11] = [
        (
            4789,
            &[8, 0, 0, 0, 1, 2, 3, 0],
            plain_v4.clone(),
            &plain_v4,
            T::VXLAN,
        ),
        (
            4789,
            &[8, 0, 0, 0, 1, 2, 3, 0],
            plain_v6.clone(),
            &plain_v6,
            T::VXLAN,
        ),
        (
            4789,
            &[8, 0, 0, 0, 1, 2, 3, 0],
            tagged.clone(),
            &plain_v4,
            T::VXLAN,
        ),
        (
            4790,
            &[0x0c, 0, 0, 1, 1, 2, 3, 0],
            inner_v4(),
            &plain_v4,
            T::VXLAN_GPE,
        ),
        (
            4790,
            &[0x0c, 0, 0, 2, 1, 2, 3, 0],
            inner_v6(),
            &plain_v6,
            T::VXLAN_GPE,
        ),
        (
            4790,
            &[0x0c, 0, 0, 3, 1, 2, 3, 0],
            plain_v6.clone(),
            &plain_v6,
            T::VXLAN_GPE,
        ),
        (
            4790,
            &[0x08, 0, 0, 1, 1, 2, 3, 0],
            plain_v4.clone(),
            &plain_v4,
            T::VXLAN_GPE,
        ),
        (
            6081,
            &[0, 0, 0x65, 0x58, 1, 2, 3, 0],
            plain_v4.clone(),
            &plain_v4,
            T::GENEVE,
        ),
        (
            6081,
            &[0, 0x40, 0x86, 0xdd, 1, 2, 3, 0],
            inner_v6(),
            &plain_v6,
            T::GENEVE,
        ),
        (
            6081,
            &[2, 0, 8, 0, 1, 2, 3, 0, 0x45, 0, 0, 1, 9, 9, 9, 9],
            inner_v4(),
            &plain_v4,
            T::GENEVE,
        ),
        (
            6081,
            &[0, 0, 8, 0, 1, 2, 3, 0],
            inner_v4(),
            &plain_v4,
            T::GENEVE,
        ),
    ];
    for (port, header, packet, plain, tunnel) in datagrams {
        for in_v6 in [false, true] {
            let frame = outer(in_v6, UDP, &udp(port, &behind(header, &packet)));
            cases.push(("udp", frame, plain.to_vec(), tunnel));
        }
    }
    let frame = outer(false, IPV4_IN_IP, &inner_v4());
    cases.push(("ipip", frame, plain_v4.clone(), T::IPIP));
    // What is none.
    let fragment = |mut frame: Vec<u8>| {
        frame[20] |= 0x20;
        frame
    };
    let nothing: [(&str, Vec<u8>); 20] = [
        ("4 in 6", outer(true, IPV4_IN_IP, &inner_v4())),
        ("6 in 4", outer(false, IPV6_IN_IP, &inner_v6())),
        (
            "source routes",
            outer(false, GRE, &gre(0x4000, TYPE_IPV4, &inner_v4())),
        ),
        (
            "strict routes",
            outer(false, GRE, &gre(0x0800, TYPE_IPV4, &inner_v4())),
        ),
        (
            "recursion",
            outer(false, GRE, &gre(0x0400, TYPE_IPV4, &inner_v4())),
        ),
        ("pptp", outer(false, GRE, &gre(0x2001, 0x880b, &inner_v4()))),
        (
            "version 2",
            outer(false, GRE, &gre(2, TYPE_IPV4, &inner_v4())),
        ),
        ("mpls", outer(false, GRE, &gre(0, 0x8847, &inner_v4()))),
        ("half a gre header", outer(false, GRE, &[0, 0, 8])),
        (
            "gre in fragments",
            fragment(outer(false, GRE, &gre(0, TYPE_IPV4, &inner_v4()))),
        ),
        (
            "ipip in fragments",
            fragment(outer(false, IPV4_IN_IP, &inner_v4())),
        ),
        (
            "no identifier",
            outer(false, UDP, &udp(4789, &behind(&[0; 8], &plain_v4))),
        ),
        (
            "half a vxlan header",
            outer(false, UDP, &udp(4789, &[8, 0, 0])),
        ),
        (
            "gpe of the ends",
            outer(
                false,
                UDP,
                &udp(4790, &behind(&[0x0d, 0, 0, 1, 0, 0, 0, 0], &inner_v4())),
            ),
        ),
        (
            "gpe version 1",
            outer(
                false,
                UDP,
                &udp(4790, &behind(&[0x1c, 0, 0, 1, 0, 0, 0, 0], &inner_v4())),
            ),
        ),
        (
            "nsh",
            outer(
                false,
                UDP,
                &udp(4790, &behind(&[0x0c, 0, 0, 4, 0, 0, 0, 0], &inner_v4())),
            ),
        ),
        (
            "geneve version 1",
            outer(
                false,
                UDP,
                &udp(6081, &behind(&[0x40, 0, 8, 0, 0, 0, 0, 0], &inner_v4())),
            ),
        ),
        (
            "geneve of the ends",
            outer(
                false,
                UDP,
                &udp(6081, &behind(&[0, 0x80, 8, 0, 0, 0, 0, 0], &inner_v4())),
            ),
        ),
        (
            "another port",
            outer(
                false,
                UDP,
                &udp(53, &behind(&[8, 0, 0, 0, 0, 0, 0, 0], &plain_v4)),
            ),
        ),
        (
            "dtls",
            outer(false, UDP, &udp(4755, &gre(0, TYPE_IPV4, &inner_v4()))),
        ),
    ];
    for (name, frame) in nothing {
        let plain = frame.clone();
        cases.push((name, frame, plain, none()));
    }
    cases
}

#[test]
fn hashes_are_of_the_packet_inside_where_the_tunnel_is_enabled_and_else_of_that_around_it() {
    for (name, frame, inner, tunnel) in cases() {
        let around = Flow::parse(&frame, none());
        let inside = Flow::parse(&inner, none());
        assert!(around.is_some() && inside.is_some(), "{name}");
        assert_eq!(around == inside, tunnel == none(), "{name}");
        for bit in 0..9 {
            let one = Tunnels(1 << bit);
            let expected = if tunnel.has(one) { &inside } else { &around };
            let flow = Flow::parse(&frame, one);
            assert_eq!(&flow, expected, "{name}: {frame:02x?} of {tunnel:?}, {bit}");
        }
        let all = Flow::parse(&frame, Tunnels::ALL);
        assert_eq!(all, inside, "{name}: {frame:02x?} of {tunnel:?}");
        let others = Tunnels(Tunnels::ALL.0 & !tunnel.0);
        assert_eq!(Flow::parse(&frame, others), around, "{name}: {frame:02x?}");
    }
}

#[test]
fn only_one_tunnel_is_looked_into() {
    let nested = outer(false, IPV4_IN_IP, &v4(INNER, IPV4_IN_IP, &inner_v4()));
    let once = ethernet(TYPE_IPV4, &v4(INNER, IPV4_IN_IP, &inner_v4()));
    let expected = Flow::parse(&once, none());
    assert_eq!(Flow::parse(&nested, Tunnels::ALL), expected);
}

/// There is none of the packet around it either (virtio 1.4, 5.1.9.4.4.1).
#[test]
fn an_enabled_tunnel_with_nothing_in_it_that_has_a_hash_has_none() {
    let arp = ethernet(0x0806, &[0; 28]);
    let frame = outer(
        false,
        UDP,
        &udp(4789, &[&[8, 0, 0, 0, 1, 2, 3, 0][..], &arp].concat()),
    );
    assert_eq!(Flow::parse(&frame, Tunnels::VXLAN), None);
    assert!(Flow::parse(&frame, Tunnels::GENEVE).is_some());
    // Options that are longer than what there is of them.
    let header = [0x3f, 0, 8, 0, 1, 2, 3, 0];
    let frame = outer(false, UDP, &udp(6081, &[&header[..], &inner_v4()].concat()));
    assert_eq!(Flow::parse(&frame, Tunnels::GENEVE), None);
}

#[test]
fn a_frame_that_ends_anywhere_is_taken_for_what_there_is() {
    for (_, frame, ..) in cases() {
        for len in 0..frame.len() {
            let _ = Flow::parse(&frame[..len], Tunnels::ALL);
        }
    }
}

#[test]
fn a_set_has_no_bits_but_those_that_are_known() {
    assert_eq!(Tunnels::from_bits(0x1ff), Some(Tunnels::ALL));
    assert_eq!(Tunnels::from_bits(0), Some(Tunnels::NONE));
    for bit in 9..32 {
        assert_eq!(Tunnels::from_bits(1 << bit), None, "{bit}");
    }
}
