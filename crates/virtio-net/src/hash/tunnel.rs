//! Packets in packets: whether one is in a tunnel whose inner packet hashes are made of (virtio 1.4, 5.1.9.4.4.2).

use super::flow::{Packet, TYPE_IPV4, TYPE_IPV6, UDP, be16};

/// A set of encapsulations.
#[doc(alias = "virtnet_hash_tunnel")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tunnels(u32);

impl Tunnels {
    /// GRE without key and sequence number, of version 4 outside or inside (RFC 2784).
    pub(super) const GRE_2784: Self = Self(1 << 0);
    /// GRE with a key or a sequence number (RFC 2890).
    pub(super) const GRE_2890: Self = Self(1 << 1);
    /// GRE of version 6 outside or inside (RFC 7676).
    pub(super) const GRE_7676: Self = Self(1 << 2);
    /// GRE in UDP, not encrypted (RFC 8086).
    pub(super) const GRE_UDP: Self = Self(1 << 3);
    /// RFC 7348
    pub(super) const VXLAN: Self = Self(1 << 4);
    /// draft-ietf-nvo3-vxlan-gpe-12
    pub(super) const VXLAN_GPE: Self = Self(1 << 5);
    /// RFC 8926
    pub(super) const GENEVE: Self = Self(1 << 6);
    /// Version 4 in version 4 (RFC 2003).
    pub(super) const IPIP: Self = Self(1 << 7);
    /// RFC 7637
    pub(super) const NVGRE: Self = Self(1 << 8);

    /// Those that there are.
    pub(crate) const ALL: Self = Self((1 << 9) - 1);
    /// No tunnel is looked into.
    pub(crate) const NONE: Self = Self(0);

    /// The set with these bits; `None` if there is one that is not known.
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        (bits & !Self::ALL.0 == 0).then_some(Self(bits))
    }

    /// As configuration space and commands have it.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }
}

/// What an IP packet that is no fragment carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carried<'a> {
    /// The packet is of version 6.
    pub(super) in_v6: bool,
    pub(super) protocol: u8,
    /// As much of it as there is.
    pub(super) bytes: &'a [u8],
}

const IPV4_IN_IP: u8 = 4;
const GRE: u8 = 47;
/// Of Ethernet in GRE and its like.
const TYPE_ETHERNET: u16 = 0x6558;

const PORT_GRE: u16 = 4754;
const PORT_VXLAN: u16 = 4789;
const PORT_VXLAN_GPE: u16 = 4790;
const PORT_GENEVE: u16 = 6081;

impl<'a> Carried<'a> {
    /// The packet inside, if this is one of `tunnels`.
    pub(super) fn inner(self, tunnels: Tunnels) -> Option<Packet<'a>> {
        match self.protocol {
            IPV4_IN_IP if !self.in_v6 && tunnels.has(Tunnels::IPIP) => Some(Packet::V4(self.bytes)),
            GRE => {
                let gre = Gre::parse(self.bytes)?;
                gre.is_of(self.in_v6, tunnels).then(|| gre.packet())?
            }
            UDP => {
                let (header, payload) = self.bytes.split_first_chunk::<8>()?;
                in_udp(be16(header, 2)?, payload, tunnels)
            }
            _ => None,
        }
    }
}

/// What is in a datagram to such a port.
fn in_udp(port: u16, payload: &[u8], tunnels: Tunnels) -> Option<Packet<'_>> {
    match port {
        PORT_GRE if tunnels.has(Tunnels::GRE_UDP) => Gre::parse(payload)?.packet(),
        PORT_VXLAN if tunnels.has(Tunnels::VXLAN) => {
            let (header, frame) = payload.split_first_chunk::<8>()?;
            // There is a network identifier, as there always is.
            (header[0] & 0x08 != 0).then_some(Packet::Ethernet(frame))
        }
        PORT_VXLAN_GPE if tunnels.has(Tunnels::VXLAN_GPE) => {
            let (header, packet) = payload.split_first_chunk::<8>()?;
            // Version 0, an identifier, and not for the tunnel's own ends.
            if header[0] & 0x39 != 0x08 {
                return None;
            }
            let says_what = header[0] & 0x04 != 0;
            match header[3] {
                _ if !says_what => Some(Packet::Ethernet(packet)),
                1 => Some(Packet::V4(packet)),
                2 => Some(Packet::V6(packet)),
                3 => Some(Packet::Ethernet(packet)),
                _ => None,
            }
        }
        PORT_GENEVE if tunnels.has(Tunnels::GENEVE) => {
            let (header, behind) = payload.split_first_chunk::<8>()?;
            // Version 0, and not for the tunnel's own ends.
            if header[0] & 0xc0 != 0 || header[1] & 0x80 != 0 {
                return None;
            }
            let options = usize::from(header[0] & 0x3f) * 4;
            Packet::of(be16(header, 2)?, behind.get(options..).unwrap_or_default())
        }
        _ => None,
    }
}

/// A GRE header of version 0, and what is behind it.
struct Gre<'a> {
    has_checksum: bool,
    has_key: bool,
    has_sequence: bool,
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Gre<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<4>()?;
        let flags = be16(header, 0)?;
        let [has_checksum, has_key, has_sequence] =
            [0x8000, 0x2000, 0x1000].map(|flag| flags & flag != 0);
        // Another version, or the source routes of RFC 1701, which receivers refuse.
        if flags & 0x4c07 != 0 {
            return None;
        }
        let fields = [has_checksum, has_key, has_sequence];
        let len = 4 * fields.iter().filter(|there| **there).count();
        Some(Self {
            has_checksum,
            has_key,
            has_sequence,
            kind: be16(header, 2)?,
            bytes: rest.get(len..).unwrap_or_default(),
        })
    }

    /// Whether it is one of `tunnels`, between addresses of version 4 or 6. One header may be of several documents.
    fn is_of(&self, in_v6: bool, tunnels: Tunnels) -> bool {
        let is_extended = self.has_key || self.has_sequence;
        let is_nvgre =
            self.has_key && !self.has_sequence && !self.has_checksum && self.kind == TYPE_ETHERNET;
        let of = [
            (
                Tunnels::GRE_2784,
                !is_extended && (!in_v6 || self.kind == TYPE_IPV4),
            ),
            (Tunnels::GRE_2890, is_extended),
            (Tunnels::GRE_7676, in_v6 || self.kind == TYPE_IPV6),
            (Tunnels::NVGRE, is_nvgre),
        ];
        of.into_iter().any(|(one, it_is)| it_is && tunnels.has(one))
    }

    fn packet(&self) -> Option<Packet<'a>> {
        Packet::of(self.kind, self.bytes)
    }
}

impl<'a> Packet<'a> {
    /// A packet in a tunnel that says which kind it is of.
    fn of(kind: u16, bytes: &'a [u8]) -> Option<Self> {
        match kind {
            TYPE_IPV4 => Some(Self::V4(bytes)),
            TYPE_IPV6 => Some(Self::V6(bytes)),
            TYPE_ETHERNET => Some(Self::Ethernet(bytes)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
