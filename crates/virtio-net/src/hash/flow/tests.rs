use super::*;

fn parse(frame: &[u8]) -> Option<Flow> {
    Flow::parse(frame, Tunnels::NONE)
}

/// An Ethernet header and what follows it.
fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

const ADDRESSES_V4: [u8; 8] = [10, 0, 0, 1, 10, 0, 0, 2];
const PORTS: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

fn v4(header_words: u8, fragment: [u8; 2], protocol: u8) -> Vec<u8> {
    let mut packet = vec![0; usize::from(header_words) * 4];
    packet[0] = 0x40 | header_words;
    packet[6..8].copy_from_slice(&fragment);
    packet[9] = protocol;
    packet[12..20].copy_from_slice(&ADDRESSES_V4);
    packet.extend(PORTS);
    ethernet(TYPE_IPV4, &packet)
}

fn addresses_v6() -> [u8; 32] {
    std::array::from_fn(|i| u8::try_from(i + 1).unwrap())
}

/// A packet with these extension headers, each without its first byte, and then `protocol`.
fn v6(extensions: &[(u8, &[u8])], protocol: u8) -> Vec<u8> {
    let kinds: Vec<u8> = (extensions.iter())
        .map(|(kind, _)| *kind)
        .chain([protocol])
        .collect();
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, kinds[0], 64];
    packet.extend(addresses_v6());
    for ((_, body), next) in extensions.iter().zip(&kinds[1..]) {
        packet.push(*next);
        packet.extend(*body);
    }
    packet.extend(PORTS);
    ethernet(TYPE_IPV6, &packet)
}

const HOME: [u8; 16] = [0xaa; 16];
const ROUTE: [u8; 16] = [0xbb; 16];
/// 8 bytes of padding: an extension header of 8 bytes.
const PADDING: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

/// Destination options: one byte of padding, three in an option, and the home address.
fn destination_options() -> Vec<u8> {
    [&[2, 0, 1, 1, 0, 0xc9, 16][..], &HOME].concat()
}

fn routing(kind: u8, left: u8) -> Vec<u8> {
    [&[2, kind, left, 0, 0, 0, 0][..], &ROUTE].concat()
}

fn reported(frame: &[u8], enabled: HashType) -> Option<(HashReport, Vec<u8>)> {
    let (report, input) = parse(frame)?.input(enabled)?;
    Some((report, input.bytes().to_vec()))
}

#[test]
fn packets_of_version_4_are_hashed_by_the_first_type_that_fits() {
    let (all, tcp, udp, ip) = (
        HashType::all(),
        HashType::TCPV4,
        HashType::UDPV4,
        HashType::IPV4,
    );
    let both = [&ADDRESSES_V4[..], &PORTS].concat();
    let with_ports = |report| Some((report, both.clone()));
    let without = Some((HashReport::Ipv4, ADDRESSES_V4.to_vec()));
    let table = [
        (v4(5, [0, 0], TCP), all, with_ports(HashReport::Tcpv4)),
        (v4(5, [0, 0], UDP), all, with_ports(HashReport::Udpv4)),
        (v4(5, [0, 0], 1), all, without.clone()),
        (v4(15, [0, 0], TCP), all, with_ports(HashReport::Tcpv4)),
        // May not be fragmented.
        (v4(5, [0x40, 0], TCP), all, with_ports(HashReport::Tcpv4)),
        // Fragments: the first, one between, the last.
        (v4(5, [0x20, 0], TCP), all, without.clone()),
        (v4(5, [0x20, 1], UDP), all, without.clone()),
        (v4(5, [0, 185], UDP), all, without.clone()),
        (v4(5, [0x20, 0], TCP), tcp, None),
        (v4(5, [0, 0], TCP), tcp, with_ports(HashReport::Tcpv4)),
        (v4(5, [0, 0], TCP), udp, None),
        (v4(5, [0, 0], TCP), udp | ip, without.clone()),
        (v4(5, [0, 0], UDP), tcp | ip, without.clone()),
        (v4(5, [0, 0], UDP), tcp, None),
        (v4(5, [0, 0], TCP), ip, without),
        (v4(5, [0, 0], TCP), HashType::TCPV6 | HashType::IPV6, None),
        // No header is as short.
        (
            v4(5, [0, 0], TCP)[..14]
                .iter()
                .copied()
                .chain([0x44; 20])
                .collect(),
            all,
            None,
        ),
        (ethernet(TYPE_IPV4, &[0x65; 40]), all, None),
    ];
    for (frame, enabled, expected) in table {
        assert_eq!(
            reported(&frame, enabled),
            expected,
            "{enabled:?}: {frame:x?}"
        );
    }
}

#[test]
fn packets_of_version_6_are_hashed_by_the_first_type_that_fits() {
    let plain = addresses_v6();
    let of =
        |source: &[u8], destination: &[u8], ports: &[u8]| [source, destination, ports].concat();
    let (from, to) = plain.split_at(16);
    let options = destination_options();
    let route = routing(2, 1);
    let all = HashType::all();
    let no_ex = HashType::TCPV6 | HashType::UDPV6 | HashType::IPV6;
    let both: &[(u8, &[u8])] = &[(DESTINATION, &options), (ROUTING, &route)];
    let table = [
        (v6(&[], TCP), all, HashReport::Tcpv6, of(from, to, &PORTS)),
        (v6(&[], UDP), all, HashReport::Udpv6, of(from, to, &PORTS)),
        (v6(&[], 58), all, HashReport::IPv6, of(from, to, &[])),
        (
            v6(&[], TCP),
            HashType::IPV6,
            HashReport::IPv6,
            of(from, to, &[]),
        ),
        (
            v6(both, TCP),
            all,
            HashReport::Tcpv6Ex,
            of(&HOME, &ROUTE, &PORTS),
        ),
        (
            v6(both, UDP),
            all,
            HashReport::Udpv6Ex,
            of(&HOME, &ROUTE, &PORTS),
        ),
        (
            v6(both, 58),
            all,
            HashReport::Ipv6Ex,
            of(&HOME, &ROUTE, &[]),
        ),
        (
            v6(both, TCP),
            no_ex,
            HashReport::Tcpv6,
            of(from, to, &PORTS),
        ),
        (v6(both, 58), no_ex, HashReport::IPv6, of(from, to, &[])),
        (
            v6(both, TCP),
            HashType::UDP_EX | HashType::IP_EX | no_ex,
            HashReport::Ipv6Ex,
            of(&HOME, &ROUTE, &[]),
        ),
        (
            v6(both, TCP),
            HashType::UDP_EX | HashType::TCPV6,
            HashReport::Tcpv6,
            of(from, to, &PORTS),
        ),
        (
            v6(&both[..1], TCP),
            all,
            HashReport::Tcpv6Ex,
            of(&HOME, to, &PORTS),
        ),
        (
            v6(&both[1..], TCP),
            all,
            HashReport::Tcpv6Ex,
            of(from, &ROUTE, &PORTS),
        ),
        (
            v6(&[(HOP_BY_HOP, &PADDING)], UDP),
            all,
            HashReport::Udpv6Ex,
            of(from, to, &PORTS),
        ),
        (
            v6(&[(MOBILITY, &PADDING)], UDP),
            all,
            HashReport::Udpv6Ex,
            of(from, to, &PORTS),
        ),
        // 4 bytes for each unit of length there.
        (
            v6(&[(AUTHENTICATION, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])], TCP),
            all,
            HashReport::Tcpv6Ex,
            of(from, to, &PORTS),
        ),
        // Another type of routing header, and one that has been followed to its end.
        (
            v6(&[(ROUTING, &routing(0, 1))], TCP),
            all,
            HashReport::Tcpv6Ex,
            of(from, to, &PORTS),
        ),
        (
            v6(&[(ROUTING, &routing(2, 0))], TCP),
            all,
            HashReport::Tcpv6Ex,
            of(from, to, &PORTS),
        ),
        // A fragment that is the whole, one that is not, a last one.
        (
            v6(&[(FRAGMENT, &[0, 0, 0, 1, 2, 3, 4])], TCP),
            all,
            HashReport::Tcpv6Ex,
            of(from, to, &PORTS),
        ),
        (
            v6(&[(FRAGMENT, &[0, 0, 1, 1, 2, 3, 4])], TCP),
            all,
            HashReport::Ipv6Ex,
            of(from, to, &[]),
        ),
        (
            v6(&[(FRAGMENT, &[0, 1, 0, 1, 2, 3, 4])], TCP),
            all,
            HashReport::Ipv6Ex,
            of(from, to, &[]),
        ),
    ];
    for (frame, enabled, report, input) in table {
        assert_eq!(
            reported(&frame, enabled),
            Some((report, input)),
            "{enabled:?}: {frame:x?}"
        );
    }
    assert_eq!(
        reported(&v6(&[], TCP), HashType::TCP_EX | HashType::UDPV6),
        None
    );
    assert_eq!(reported(&ethernet(TYPE_IPV6, &[0x40; 80]), all), None);
}

#[test]
fn packets_behind_tags_are_found_and_those_behind_more_than_two_are_not() {
    let tagged = |kind: u16, frame: &[u8]| {
        [&frame[..12], &kind.to_be_bytes(), &[0, 5], &frame[12..]].concat()
    };
    let plain = v4(5, [0, 0], TCP);
    let one = tagged(0x8100, &plain);
    let two = tagged(0x88a8, &one);
    let three = tagged(0x88a8, &two);
    let expected = parse(&plain);
    assert!(expected.is_some());
    assert_eq!(parse(&one), expected);
    assert_eq!(parse(&two), expected);
    assert_eq!(parse(&three), None);
    assert_eq!(parse(&tagged(0x9100, &plain)), None);
}

/// Frames cut anywhere, with every length that an extension header may claim, chains that never end and ones
/// that lead round: an answer, and no fault.
#[test]
fn whatever_a_frame_is_cut_to_or_claims_there_is_an_answer() {
    let options = destination_options();
    let route = routing(2, 1);
    let long = v6(
        &[
            (DESTINATION, &options),
            (ROUTING, &route),
            (FRAGMENT, &[0; 7]),
        ],
        UDP,
    );
    for frame in [v4(15, [0, 0], TCP), long] {
        let whole = parse(&frame);
        for len in 0..frame.len() {
            let flow = parse(&frame[..len]);
            if len < 14 + 20 {
                assert_eq!(flow, None, "{len}");
            }
            // Without its last bytes it has no ports.
            assert_ne!(flow, whole, "{len}");
        }
    }
    for next in [
        HOP_BY_HOP,
        ROUTING,
        FRAGMENT,
        AUTHENTICATION,
        DESTINATION,
        MOBILITY,
    ] {
        for len in 0..=u8::MAX {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
            packet.extend([0; 32]);
            // Each is followed by one of its own kind.
            for _ in 0..40 {
                packet.extend([next, len, len, len, 0xc9, 255, len, 0]);
            }
            let flow = parse(&ethernet(TYPE_IPV6, &packet));
            assert!(
                matches!(flow, Some(Flow::V6 { ports: None, .. })),
                "{next}, {len}"
            );
        }
    }
    for len in 0..=u8::MAX {
        // A home address option of another length than its own is none.
        let bad = [&[2, 0, 1, 1, 0, 0xc9, len][..], &HOME].concat();
        let frame = v6(&[(DESTINATION, &bad)], TCP);
        let has_home = matches!(
            parse(&frame),
            Some(Flow::V6 { extended: Some(extended), .. }) if extended[..16] == HOME
        );
        assert_eq!(has_home, len == 16, "{len}");
    }
}
