//! What the start of a received frame says of the TCP flow that it is of.

use std::ops::Range;

use super::checksum::Sum;

const ETHERNET_HEADER: usize = 14;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
/// Of IEEE 802.1Q tags, and of the service tags around them.
const TYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Tags that are looked behind.
const MAX_TAGS: usize = 2;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const LONGEST_HEADER: usize = 60;
/// The bytes at a frame's start that are looked at: two tags, and the longest headers of IPv4 and of TCP.
pub(super) const PEEK: usize = ETHERNET_HEADER + 4 * MAX_TAGS + 2 * LONGEST_HEADER;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const FLAG_PUSH: u8 = 0x08;
const FLAG_ACK: u8 = 0x10;

/// What a flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) v6: bool,
    /// Source and destination; of IPv4 the first 8 bytes.
    addresses: [u8; 32],
    /// Source, then destination.
    ports: [u8; 4],
}

/// What a frame is to those that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Of no flow that anything is kept of.
    Other,
    /// Of a flow, or (a fragment, or behind headers that are not looked into) of any between the flow's addresses;
    /// and it stays as it is.
    Alone { flow: Flow, any_port: bool },
    /// A segment that may be put together with others of its flow.
    Segment(Segment),
}

/// A whole TCP segment with nothing unusual about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) flow: Flow,
    /// Where the TCP header is.
    pub(super) tcp: usize,
    /// Where the payload is.
    pub(super) payload: Range<usize>,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: [u8; 2],
    pub(super) push: bool,
}

impl Flow {
    fn new(v6: bool, addresses: &[u8], ports: [u8; 4]) -> Self {
        let mut all = [0; 32];
        for (to, from) in all.iter_mut().zip(addresses) {
            *to = *from;
        }
        Self {
            v6,
            addresses: all,
            ports,
        }
    }

    /// Whether a frame of `other`, or between its addresses, comes behind one of this flow.
    pub(super) fn is_before(&self, other: &Self, any_port: bool) -> bool {
        self.v6 == other.v6
            && self.addresses == other.addresses
            && (any_port || self.ports == other.ports)
    }
}

impl Look {
    /// Looks at the start of an Ethernet frame of `len` bytes.
    pub(super) fn at(start: &[u8], len: usize) -> Self {
        Self::parse(start, len).unwrap_or(Self::Other)
    }

    /// `None` where there is no IP packet whose header is whole.
    fn parse(start: &[u8], len: usize) -> Option<Self> {
        let mut ip = ETHERNET_HEADER;
        let mut kind = be16(start, ip - 2)?;
        let mut tags = 0;
        while TYPES_VLAN.contains(&kind) && tags < MAX_TAGS {
            kind = be16(start, ip + 2)?;
            ip += 4;
            tags += 1;
        }
        let mut look = match kind {
            TYPE_IPV4 => Self::parse_v4(start, ip, len)?,
            TYPE_IPV6 => Self::parse_v6(start, ip, len)?,
            _ => return None,
        };
        if tags > 0
            && let Self::Segment(Segment { flow, .. }) = look
        {
            // QEMU 7.2: a tagged frame stays as it is.
            let any_port = false;
            look = Self::Alone { flow, any_port };
        }
        Some(look)
    }

    fn parse_v4(start: &[u8], ip: usize, len: usize) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = start.get(ip..)?.first_chunk()?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || header_len < IPV4_HEADER || header[9] != TCP {
            return None;
        }
        let addresses = header.last_chunk::<8>()?;
        // Its offset, and that there are more.
        let is_fragment = be16(header, 6)? & 0x3fff != 0;
        let tcp = ip + header_len;
        let ports = start.get(tcp..).and_then(|tcp| tcp.first_chunk::<4>());
        let Some(ports) = ports.filter(|_| !is_fragment) else {
            return Some(Self::Alone {
                flow: Flow::new(false, addresses, [0; 4]),
                any_port: true,
            });
        };
        let flow = Flow::new(false, addresses, *ports);
        let is_plain = header_len == IPV4_HEADER && Sum::of(header).is_right();
        let end = ip + usize::from(be16(header, 2)?);
        let segment = if is_plain {
            Segment::parse(start, flow, tcp, end, len)
        } else {
            None
        };
        let any_port = false;
        Some(segment.map_or(Self::Alone { flow, any_port }, Self::Segment))
    }

    fn parse_v6(start: &[u8], ip: usize, len: usize) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = start.get(ip..)?.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let addresses = header.last_chunk::<32>()?;
        let any_port = match header[6] {
            TCP => false,
            UDP | ICMPV6 => return None,
            // Extension headers: what is behind them is not looked for.
            _ => true,
        };
        let tcp = ip + IPV6_HEADER;
        let ports = start.get(tcp..).and_then(|tcp| tcp.first_chunk::<4>());
        let Some(ports) = ports.filter(|_| !any_port) else {
            return Some(Self::Alone {
                flow: Flow::new(true, addresses, [0; 4]),
                any_port: true,
            });
        };
        let flow = Flow::new(true, addresses, *ports);
        let end = tcp + usize::from(be16(header, 4)?);
        let segment = Segment::parse(start, flow, tcp, end, len);
        Some(segment.map_or(Self::Alone { flow, any_port }, Self::Segment))
    }
}

impl Segment {
    /// A segment whose packet ends at `end` of a frame of `len` bytes. `None` if there is anything unusual about it.
    fn parse(start: &[u8], flow: Flow, tcp: usize, end: usize, len: usize) -> Option<Self> {
        let header: &[u8; TCP_HEADER] = start.get(tcp..)?.first_chunk()?;
        let header_len = usize::from(header[12] >> 4) * 4;
        let payload = tcp + header_len;
        let flags = header[13];
        // No other flag but PSH, nor any bit that is reserved.
        let is_plain = flags & !FLAG_PUSH == FLAG_ACK && header[12] & 0xf == 0;
        let is_whole = header_len >= TCP_HEADER && payload <= end && end <= len;
        // Options are compared.
        if !is_plain || !is_whole || payload > start.len() {
            return None;
        }
        Some(Self {
            flow,
            tcp,
            payload: payload..end,
            seq: be32(header, 4)?,
            ack: be32(header, 8)?,
            window: *header.get(14..)?.first_chunk()?,
            push: flags & FLAG_PUSH != 0,
        })
    }

    /// What the next segment begins with.
    pub(super) fn next_seq(&self) -> u32 {
        // Shorter than 2^16.
        self.seq
            .wrapping_add(u32::try_from(self.len()).unwrap_or(0))
    }

    /// Bytes of the payload.
    pub(super) fn len(&self) -> usize {
        self.payload.len()
    }

    /// Whether the segments whose frames begin with these headers differ in nothing that a large one could not say of
    /// both: all but lengths, identification, checksums, numbers, window and PSH.
    pub(super) fn is_like(&self, header: &[u8], other: &Self, other_header: &[u8]) -> bool {
        let same = |range: Range<usize>| {
            let (one, other) = (header.get(range.clone()), other_header.get(range));
            one.is_some() && one == other
        };
        let ip = ETHERNET_HEADER;
        let same_ip = if self.flow.v6 {
            // Class, label; next header, hop limit.
            same(0..ip + 4) && same(ip + 6..ip + 8)
        } else {
            // Type of service; DF, time to live, protocol.
            same(0..ip + 2) && same(ip + 6..ip + 10)
        };
        // Urgent pointer and options.
        let rest = self.tcp + 18..self.payload.start;
        same_ip && self.payload.start == other.payload.start && self.tcp == other.tcp && same(rest)
    }

    /// The sum over the pseudo header of a packet with this start and `len` bytes from the TCP header on.
    pub(super) fn pseudo_header(&self, start: &[u8], len: usize) -> Sum {
        let addresses = if self.flow.v6 { 32 } else { 8 };
        let addresses = start.get(self.tcp.saturating_sub(addresses)..self.tcp);
        // Below 2^16: a packet is no longer.
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        Sum::of(addresses.unwrap_or_default())
            .and(&len.to_be_bytes())
            .and(&[0, TCP])
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}
