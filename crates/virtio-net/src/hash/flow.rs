//! Which packets belong together: what of a frame its hash is made of (virtio 1.4, 5.1.9.4.3).

use virtio::net::{HashReport, HashType};

use super::toeplitz::INPUT;
use super::tunnel::{Carried, Tunnels};

const ETHERNET_HEADER: usize = 14;
pub(super) const TYPE_IPV4: u16 = 0x0800;
pub(super) const TYPE_IPV6: u16 = 0x86dd;
/// Of IEEE 802.1Q tags, and of the service tags around them.
const TYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Tags that are looked behind.
const MAX_TAGS: usize = 2;

const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
// IPv6 extension headers, by the number in the header before them.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// What of a packet a hash may be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    V4 {
        /// Source, then destination.
        addresses: [u8; 8],
        ports: Option<Ports>,
    },
    V6 {
        /// Source, then destination.
        addresses: [u8; 32],
        ports: Option<Ports>,
        /// There are extension headers: the home address and that of the routing header of type 2, or, where they
        /// have none, the packet's own.
        extended: Option<[u8; 32]>,
    },
}

/// Of a packet that is not a fragment, with what stands at the start of its transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    tcp: bool,
    /// Source, then destination.
    bytes: [u8; 4],
}

/// What goes into the hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    bytes: [u8; INPUT],
    len: usize,
}

/// The start of a packet, by what it begins with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packet<'a> {
    Ethernet(&'a [u8]),
    V4(&'a [u8]),
    V6(&'a [u8]),
}

impl<'a> Packet<'a> {
    /// Its flow, and what it carries unless it is a fragment. `None` if it is no IP packet whose header is whole.
    fn parse(self) -> Option<(Flow, Option<Carried<'a>>)> {
        match self {
            Self::Ethernet(frame) => {
                let mut rest = frame.get(ETHERNET_HEADER..)?;
                let mut kind = be16(frame, ETHERNET_HEADER - 2)?;
                for _ in 0..MAX_TAGS {
                    if TYPES_VLAN.contains(&kind) {
                        kind = be16(rest, 2)?;
                        rest = rest.get(4..)?;
                    }
                }
                match kind {
                    TYPE_IPV4 => Flow::parse_v4(rest),
                    TYPE_IPV6 => Flow::parse_v6(rest),
                    _ => None,
                }
            }
            Self::V4(packet) => Flow::parse_v4(packet),
            Self::V6(packet) => Flow::parse_v6(packet),
        }
    }
}

impl Flow {
    /// Looks at the start of an Ethernet frame, and past what is around the packet inside where that is one of `tunnels`.
    /// `None` if it has no IP packet whose header is whole.
    pub(super) fn parse(frame: &[u8], tunnels: Tunnels) -> Option<Self> {
        let (outer, carried) = Packet::Ethernet(frame).parse()?;
        if tunnels == Tunnels::NONE {
            return Some(outer);
        }
        // One level, and no other (virtio 1.4, 5.1.9.4.4.1).
        match carried.and_then(|carried| carried.inner(tunnels)) {
            Some(inner) => inner.parse().map(|(flow, _)| flow),
            None => Some(outer),
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<(Self, Option<Carried<'_>>)> {
        let header = packet.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || header_len < header.len() {
            return None;
        }
        let addresses = *header.last_chunk::<8>()?;
        // More fragments, or not the first.
        let is_fragment = be16(header, 6)? & 0x3fff != 0;
        let carried = (!is_fragment).then(|| Carried {
            in_v6: false,
            protocol: header[9],
            bytes: packet.get(header_len..).unwrap_or_default(),
        });
        let ports = carried.and_then(Ports::parse);
        Some((Self::V4 { addresses, ports }, carried))
    }

    fn parse_v6(packet: &[u8]) -> Option<(Self, Option<Carried<'_>>)> {
        let (header, mut rest) = packet.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let addresses = *header.last_chunk::<32>()?;
        let mut home = None;
        let mut route = None;
        let mut next = header[6];
        let mut is_extended = false;
        let mut is_fragment = false;
        // Each turn takes 8 bytes at least, of a few hundred.
        loop {
            let len = match next {
                HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY => {
                    rest.get(1).map(|len| usize::from(*len) * 8 + 8)
                }
                AUTHENTICATION => rest.get(1).map(|len| usize::from(*len) * 4 + 8),
                FRAGMENT => Some(8),
                _ => break,
            };
            is_extended = true;
            let Some((extension, behind)) = len.and_then(|len| rest.split_at_checked(len)) else {
                // It ends before its end, or where nobody has looked.
                rest = &[];
                break;
            };
            match next {
                DESTINATION => home = home.or_else(|| home_address(extension)),
                ROUTING => route = route.or_else(|| home_route(extension)),
                // An offset, or more to come.
                FRAGMENT => is_fragment |= be16(extension, 2)? & !6 != 0,
                _ => {}
            }
            next = *extension.first()?;
            rest = behind;
        }
        let carried = (!is_fragment).then_some(Carried {
            in_v6: true,
            protocol: next,
            bytes: rest,
        });
        let ports = carried.and_then(Ports::parse);
        let extended = is_extended.then(|| {
            let mut extended = addresses;
            let (source, destination) = extended.split_at_mut(16);
            if let Some(home) = home {
                source.copy_from_slice(&home);
            }
            if let Some(route) = route {
                destination.copy_from_slice(&route);
            }
            extended
        });
        let flow = Self::V6 {
            addresses,
            ports,
            extended,
        };
        Some((flow, carried))
    }

    /// What the hash is made of, if hashes of the types in `enabled` are wanted. `None` if none of these is for such
    /// a packet.
    pub(super) fn input(&self, enabled: HashType) -> Option<(HashReport, Input)> {
        // (type, report, over ports of TCP, over ports of UDP), the first that fits.
        type Way = (HashType, HashReport, bool, bool);
        let pick = |ways: [Way; 3], addresses: &[u8], ports: Option<Ports>| {
            for (of_type, report, of_tcp, of_udp) in ways {
                if !enabled.contains(of_type) {
                    continue;
                }
                match ports {
                    Some(ports) if ports.tcp && of_tcp || !ports.tcp && of_udp => {
                        return Some((report, Input::new(addresses, &ports.bytes)));
                    }
                    _ if of_tcp || of_udp => {}
                    _ => return Some((report, Input::new(addresses, &[]))),
                }
            }
            None
        };
        match self {
            Self::V4 { addresses, ports } => {
                let ways = [
                    (HashType::TCPV4, HashReport::Tcpv4, true, false),
                    (HashType::UDPV4, HashReport::Udpv4, false, true),
                    (HashType::IPV4, HashReport::Ipv4, false, false),
                ];
                pick(ways, addresses, *ports)
            }
            Self::V6 {
                addresses,
                ports,
                extended,
            } => {
                let ways = [
                    (HashType::TCP_EX, HashReport::Tcpv6Ex, true, false),
                    (HashType::UDP_EX, HashReport::Udpv6Ex, false, true),
                    (HashType::IP_EX, HashReport::Ipv6Ex, false, false),
                ];
                let picked = extended.and_then(|addresses| pick(ways, &addresses, *ports));
                picked.or_else(|| {
                    let ways = [
                        (HashType::TCPV6, HashReport::Tcpv6, true, false),
                        (HashType::UDPV6, HashReport::Udpv6, false, true),
                        (HashType::IPV6, HashReport::IPv6, false, false),
                    ];
                    pick(ways, addresses, *ports)
                })
            }
        }
    }
}

impl Ports {
    fn parse(carried: Carried<'_>) -> Option<Self> {
        let tcp = match carried.protocol {
            TCP => true,
            UDP => false,
            _ => return None,
        };
        let bytes = *carried.bytes.first_chunk()?;
        Some(Self { tcp, bytes })
    }
}

impl Input {
    fn new(addresses: &[u8], ports: &[u8]) -> Self {
        let mut bytes = [0; INPUT];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(addresses.iter().chain(ports)) {
            *to = *from;
            len += 1;
        }
        Self { bytes, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The address of a home address option (RFC 6275, 6.3) among destination options.
fn home_address(extension: &[u8]) -> Option<[u8; 16]> {
    const PAD1: u8 = 0;
    const HOME_ADDRESS: u8 = 0xc9;
    let mut options = extension.get(2..)?;
    while let Some((kind, rest)) = options.split_first() {
        if *kind == PAD1 {
            options = rest;
            continue;
        }
        let (len, rest) = rest.split_first()?;
        let (data, rest) = rest.split_at_checked(usize::from(*len))?;
        if *kind == HOME_ADDRESS {
            return data.try_into().ok();
        }
        options = rest;
    }
    None
}

/// The address of a routing header of type 2 (RFC 6275, 6.4).
fn home_route(extension: &[u8]) -> Option<[u8; 16]> {
    match extension {
        [_, 2, 2, 1, _, _, _, _, address @ ..] => address.try_into().ok(),
        _ => None,
    }
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
