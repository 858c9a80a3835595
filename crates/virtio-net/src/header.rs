//! The header in front of each frame (virtio 1.4, 5.1.6; `struct virtio_net_hdr`).

use virtio::net::{F as NetF, HdrF, HdrGso};

use crate::rsc::Families;
use crate::statistics::{TxStatistics, count_bytes};

/// The longest header there is: the one with a hash and a tunnel.
pub(crate) const MAX_HEADER: usize = 24;
/// Where `flags` is.
pub(crate) const FLAGS: usize = 0;
/// Where `gso_type` is.
pub(crate) const GSO_TYPE: usize = 1;
/// Where `gso_size` is.
pub(crate) const GSO_SIZE: usize = 4;
/// Where `num_buffers` is, in headers that have it.
pub(crate) const NUM_BUFFERS: usize = 10;
/// Where `hash_value` is, in headers that have it, with `hash_report` and padding behind it.
pub(crate) const HASH: usize = 12;
/// Where `outer_th_offset` is, in headers that have it, with `inner_nh_offset` behind it.
pub(crate) const TUNNEL: usize = 20;

/// An Ethernet header: what a frame has at least.
pub(crate) const MIN_FRAME: usize = 14;
/// The largest IP packet behind an Ethernet header with two VLAN tags: what a frame has at most, segmentation
/// offload or not.
const MAX_FRAME: usize = 65535 + 14 + 8;

/// Why a frame that the driver sends is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The chain is shorter than the header.
    Short,
    /// The chain has device-writable buffers.
    Writable,
    /// The frame is shorter than an Ethernet header.
    Runt,
    /// The frame is longer than any frame can be, or in more pieces than one call can take.
    Giant,
    /// `NEEDS_CSUM` without `VIRTIO_NET_F_CSUM`.
    ChecksumNotNegotiated,
    /// `csum_start` and `csum_offset` do not point into the frame.
    ChecksumOffset,
    /// A `gso_type` that is unknown.
    GsoType,
    /// A `gso_type` whose feature was not negotiated.
    GsoNotNegotiated,
    /// `GSO_ECN` without TCP segmentation.
    EcnWithoutTso,
    /// Segmentation without `NEEDS_CSUM`.
    GsoWithoutChecksum,
    /// `gso_size` is 0 or not smaller than the frame.
    GsoSize,
    /// What is said of a tunnel does not fit the frame, or itself.
    Tunnel,
    /// The frame's source is not the NIC's address, and no other may be ([`anti_spoof`]).
    ///
    /// [`anti_spoof`]: crate::VirtioNetConfig::anti_spoof
    Source,
}

impl HeaderFault {
    /// All faults, in the order in which they are shown.
    pub const ALL: [Self; 13] = [
        Self::Short,
        Self::Writable,
        Self::Runt,
        Self::Giant,
        Self::ChecksumNotNegotiated,
        Self::ChecksumOffset,
        Self::GsoType,
        Self::GsoNotNegotiated,
        Self::EcnWithoutTso,
        Self::GsoWithoutChecksum,
        Self::GsoSize,
        Self::Tunnel,
        Self::Source,
    ];
}

/// A header as it was read, with `num_buffers` left aside: it means nothing on the way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    pub(crate) hdr_len: u16,
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
    pub(crate) outer_th_offset: u16,
    pub(crate) inner_nh_offset: u16,
}

impl Header {
    /// Takes a header apart; its fields are little-endian with `VIRTIO_F_VERSION_1`, else the guest's.
    pub(crate) fn parse(bytes: &[u8; MAX_HEADER], little_endian: bool) -> Self {
        let [
            flags,
            gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            ..,
            t0,
            t1,
            n0,
            n1,
        ] = *bytes;
        let u16_of = |b| {
            if little_endian {
                u16::from_le_bytes(b)
            } else {
                u16::from_ne_bytes(b)
            }
        };
        Self {
            flags,
            gso_type,
            hdr_len: u16_of([h0, h1]),
            gso_size: u16_of([g0, g1]),
            csum_start: u16_of([s0, s1]),
            csum_offset: u16_of([o0, o1]),
            outer_th_offset: u16_of([t0, t1]),
            inner_nh_offset: u16_of([n0, n1]),
        }
    }

    /// Counts a frame by what it asks for.
    pub(crate) fn count(&self, frame_len: usize, statistics: &mut TxStatistics) {
        if self.flags & NEEDS_CSUM != 0 {
            statistics.csum_needed += 1;
        } else {
            statistics.csum_none += 1;
        }
        if self.gso_type != GSO_NONE {
            statistics.gso_frames += 1;
            count_bytes(&mut statistics.gso_bytes, frame_len);
        }
    }

    /// Puts a header together, `num_buffers` and the hash 0.
    pub(crate) fn emit(&self, little_endian: bool) -> [u8; MAX_HEADER] {
        let bytes_of = |n: u16| {
            if little_endian {
                n.to_le_bytes()
            } else {
                n.to_ne_bytes()
            }
        };
        let [h0, h1] = bytes_of(self.hdr_len);
        let [g0, g1] = bytes_of(self.gso_size);
        let [s0, s1] = bytes_of(self.csum_start);
        let [o0, o1] = bytes_of(self.csum_offset);
        let (flags, gso_type) = (self.flags, self.gso_type);
        let mut bytes = [0; MAX_HEADER];
        let base = [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1];
        let [t0, t1] = bytes_of(self.outer_th_offset);
        let [n0, n1] = bytes_of(self.inner_nh_offset);
        for (to, from) in bytes.iter_mut().zip(base) {
            *to = from;
        }
        if let Some(tunnel) = bytes.last_chunk_mut() {
            *tunnel = [t0, t1, n0, n1];
        }
        bytes
    }
}

/// What headers of received frames may say to the driver (virtio 1.4, 5.1.9.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) flags: u8,
    /// A bit for each type.
    types: u8,
    /// They may be inside tunnels.
    tunnel: bool,
}

impl Allowed {
    pub(crate) fn new(features: NetF) -> Self {
        let mut flags = 0;
        if features.contains(NetF::GUEST_CSUM) {
            flags |= NEEDS_CSUM | DATA_VALID;
        }
        if features.contains(NetF::GUEST_UDP_TUNNEL_GSO_CSUM) {
            flags |= TUNNEL_CSUM;
        }
        if !Families::of(features).is_none() {
            flags |= RSC_INFO;
        }
        let types = [
            (NetF::GUEST_TSO4, HdrGso::Tcpv4),
            (NetF::GUEST_TSO6, HdrGso::Tcpv6),
            (NetF::GUEST_UFO, HdrGso::Udp),
            (NetF::GUEST_USO4 | NetF::GUEST_USO6, HdrGso::UdpL4),
        ];
        let types = (types.into_iter())
            .filter(|(needs, _)| features.intersects(*needs))
            .fold(1 << GSO_NONE, |types, (_, kind)| {
                types | 1 << u8::from(kind)
            });
        Self {
            flags,
            types,
            tunnel: features.contains(NetF::GUEST_UDP_TUNNEL_GSO),
        }
    }

    /// Whether a frame may be of this type.
    pub(crate) fn has(self, gso_type: u8) -> bool {
        let tunnel = gso_type & GSO_TUNNEL;
        if tunnel != 0 && (!self.tunnel || tunnel == GSO_TUNNEL) {
            return false;
        }
        match gso_type & !(GSO_ECN | GSO_TUNNEL) {
            // ECN, or a tunnel, and nothing to segment.
            GSO_NONE => gso_type == GSO_NONE,
            kind @ 1..8 => self.types >> kind & 1 != 0,
            _ => false,
        }
    }

    /// The flags and the type that the driver is told of a frame of which the peer says these. A large frame has its
    /// checksum to be made and the size of its segments, and says nothing of checksums in tunnels being right
    /// (virtio 1.4, 5.1.9.4.1); one that has not is not told as large.
    pub(crate) fn told(self, flags: u8, gso_type: u8, gso_size: impl FnOnce() -> u16) -> (u8, u8) {
        let mut told = flags & self.flags;
        if gso_type == GSO_NONE {
            return (told, GSO_NONE);
        }
        if !self.has(gso_type) || told & NEEDS_CSUM == 0 || gso_size() == 0 {
            return (told, GSO_NONE);
        }
        if gso_type & GSO_TUNNEL != 0 {
            told &= !DATA_VALID;
        }
        (told, gso_type)
    }

    /// Whether the driver is told of a frame that it is in a tunnel, by the first bytes of what the peer says.
    pub(crate) fn is_tunnel(self, start: [u8; 6]) -> bool {
        let [flags, gso_type, _, _, s0, s1] = start;
        let (_, told) = self.told(flags, gso_type, || u16::from_ne_bytes([s0, s1]));
        told & GSO_TUNNEL != 0
    }

    /// Whether any frame may stand for several.
    pub(crate) fn has_segments(self) -> bool {
        self.types != 1 << GSO_NONE
    }
}

/// What the driver may ask for in the headers of frames that it sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TxRules {
    features: NetF,
}

impl TxRules {
    pub(crate) fn new(features: NetF) -> Self {
        Self { features }
    }

    /// [Checks](Self::check) a header as it was read; returns it as the backend gets it.
    pub(crate) fn clean(
        &self,
        bytes: &[u8; MAX_HEADER],
        little_endian: bool,
        frame_len: usize,
    ) -> Result<[u8; MAX_HEADER], HeaderFault> {
        let header = Header::parse(bytes, little_endian);
        Ok(self.check(&header, frame_len)?.emit(little_endian))
    }

    /// Checks a header against the `frame_len` bytes behind it (virtio 1.4, 5.1.9.2.1), and returns what the
    /// backend is told: flags that a driver does not set are cleared, `hdr_len`, a mere hint, is
    /// not past the frame, and fields that do not count are 0.
    pub(crate) fn check(&self, header: &Header, frame_len: usize) -> Result<Header, HeaderFault> {
        if frame_len < MIN_FRAME {
            return Err(HeaderFault::Runt);
        }
        if frame_len > MAX_FRAME {
            return Err(HeaderFault::Giant);
        }
        let needs_csum = header.flags & NEEDS_CSUM != 0;
        let mut clean = Header::default();
        if needs_csum {
            if !self.features.contains(NetF::CSUM) {
                return Err(HeaderFault::ChecksumNotNegotiated);
            }
            // Three numbers of 16 bits: no overflow.
            let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
            if end > frame_len {
                return Err(HeaderFault::ChecksumOffset);
            }
            clean.flags = NEEDS_CSUM;
            clean.csum_start = header.csum_start;
            clean.csum_offset = header.csum_offset;
        }
        let kind = header.gso_type & !(GSO_ECN | GSO_TUNNEL);
        let ecn = header.gso_type & GSO_ECN != 0;
        let is_tunnel = header.gso_type & GSO_TUNNEL != 0;
        if is_tunnel {
            self.check_tunnel(header, kind)?;
            clean.outer_th_offset = header.outer_th_offset;
            clean.inner_nh_offset = header.inner_nh_offset;
        }
        if self.features.contains(NetF::HOST_UDP_TUNNEL_GSO_CSUM) && header.flags & TUNNEL_CSUM != 0
        {
            if !is_tunnel {
                return Err(HeaderFault::Tunnel);
            }
            clean.flags |= TUNNEL_CSUM;
        }
        if kind == GSO_NONE {
            if ecn {
                return Err(HeaderFault::EcnWithoutTso);
            }
        } else {
            self.check_gso(kind, ecn)?;
            if !needs_csum {
                return Err(HeaderFault::GsoWithoutChecksum);
            }
            if header.gso_size == 0 || usize::from(header.gso_size) >= frame_len {
                return Err(HeaderFault::GsoSize);
            }
            clean.gso_type = header.gso_type;
            clean.gso_size = header.gso_size;
        }
        let longest = u16::try_from(frame_len).unwrap_or(u16::MAX);
        clean.hdr_len = header.hdr_len.min(longest);
        Ok(clean)
    }

    /// Checks what a header says of the tunnel around a large frame (virtio 1.4, 5.1.9.2.2).
    fn check_tunnel(&self, header: &Header, kind: u8) -> Result<(), HeaderFault> {
        if !self.features.contains(NetF::HOST_UDP_TUNNEL_GSO) {
            return Err(HeaderFault::GsoNotNegotiated);
        }
        let inner_header = match header.gso_type & GSO_TUNNEL {
            GSO_TUNNEL_IPV4 => IPV4_HEADER,
            GSO_TUNNEL_IPV6 => IPV6_HEADER,
            // Both.
            _ => return Err(HeaderFault::Tunnel),
        };
        let is_whole = header.flags & (NEEDS_CSUM | DATA_VALID) == NEEDS_CSUM
            && kind != GSO_NONE
            && kind != u8::from(HdrGso::Udp);
        // In order, each with room for the headers before it. Numbers of 16 bits: no overflow. That the last is in the
        // frame is seen to with the checksum.
        let outer = usize::from(header.outer_th_offset);
        let inner = usize::from(header.inner_nh_offset);
        let fits = outer >= MIN_FRAME + IPV4_HEADER
            && inner >= outer + UDP_HEADER
            && usize::from(header.csum_start) >= inner + inner_header;
        if is_whole && fits {
            Ok(())
        } else {
            Err(HeaderFault::Tunnel)
        }
    }

    fn check_gso(&self, kind: u8, ecn: bool) -> Result<(), HeaderFault> {
        let (feature, tcp) = match HdrGso::try_from(kind) {
            Ok(HdrGso::Tcpv4) => (NetF::HOST_TSO4, true),
            Ok(HdrGso::Tcpv6) => (NetF::HOST_TSO6, true),
            Ok(HdrGso::Udp) => (NetF::HOST_UFO, false),
            Ok(HdrGso::UdpL4) => (NetF::HOST_USO, false),
            _ => return Err(HeaderFault::GsoType),
        };
        if ecn && !tcp {
            return Err(HeaderFault::EcnWithoutTso);
        }
        if !self.features.contains(feature) || ecn && !self.features.contains(NetF::HOST_ECN) {
            return Err(HeaderFault::GsoNotNegotiated);
        }
        Ok(())
    }
}

const NEEDS_CSUM: u8 = HdrF::NEEDS_CSUM.bits();
const DATA_VALID: u8 = HdrF::DATA_VALID.bits();
const RSC_INFO: u8 = HdrF::RSC_INFO.bits();
const TUNNEL_CSUM: u8 = HdrF::UDP_TUNNEL_CSUM.bits();
const GSO_TUNNEL_IPV4: u8 = HdrGso::UdpTunnelIpv4 as u8;
const GSO_TUNNEL_IPV6: u8 = HdrGso::UdpTunnelIpv6 as u8;
const GSO_TUNNEL: u8 = GSO_TUNNEL_IPV4 | GSO_TUNNEL_IPV6;

/// Headers are no shorter than these.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

pub(crate) const GSO_NONE: u8 = HdrGso::None as u8;
const GSO_ECN: u8 = HdrGso::Ecn as u8;

#[cfg(test)]
mod tests {
    use super::*;

    const TCPV4: u8 = HdrGso::Tcpv4 as u8;

    fn rules() -> TxRules {
        TxRules::new(NetF::CSUM | NetF::HOST_TSO4 | NetF::HOST_ECN)
    }

    fn header(flags: u8, gso_type: u8, gso_size: u16, csum_start: u16, csum_offset: u16) -> Header {
        Header {
            flags,
            gso_type,
            hdr_len: 54,
            gso_size,
            csum_start,
            csum_offset,
            ..Default::default()
        }
    }

    #[test]
    fn a_type_of_no_segments_is_told_as_none() {
        let features = NetF::GUEST_CSUM | NetF::GUEST_TSO4 | NetF::GUEST_ECN;
        let allowed = Allowed::new(features | NetF::GUEST_UDP_TUNNEL_GSO);
        for nonsense in [GSO_ECN, GSO_TUNNEL_IPV4, GSO_ECN | GSO_TUNNEL_IPV6] {
            assert!(!allowed.has(nonsense), "{nonsense:#x}");
            assert_eq!(allowed.told(1, nonsense, || 1448), (1, GSO_NONE));
        }
        assert_eq!(
            allowed.told(1, TCPV4 | GSO_ECN, || 1448),
            (1, TCPV4 | GSO_ECN)
        );
    }

    #[test]
    fn what_is_told_of_a_frame_in_a_tunnel_is_not_that_its_checksum_is_right() {
        let features = NetF::GUEST_CSUM | NetF::GUEST_TSO4 | NetF::GUEST_UDP_TUNNEL_GSO;
        let allowed = Allowed::new(features);
        let in_tunnel = TCPV4 | GSO_TUNNEL_IPV4;
        assert_eq!(allowed.told(3, in_tunnel, || 1448), (1, in_tunnel));
        assert_eq!(allowed.told(3, TCPV4, || 1448), (3, TCPV4));
        // In none, as it is not told as large.
        assert_eq!(allowed.told(3, in_tunnel, || 0), (3, GSO_NONE));
    }

    #[test]
    fn each_fault_is_found_and_what_is_right_passes() {
        use HeaderFault::*;
        let table = [
            (header(0, 0, 0, 0, 0), 1514, Ok(())),
            (header(0, 0, 0, 0, 0), 14, Ok(())),
            (header(0, 0, 0, 0, 0), 13, Err(Runt)),
            (header(0, 0, 0, 0, 0), 0, Err(Runt)),
            (header(0, 0, 0, 0, 0), 65557, Ok(())),
            (header(0, 0, 0, 0, 0), 65558, Err(Giant)),
            (header(0, 0, 0, 0, 0), usize::MAX, Err(Giant)),
            (header(1, 0, 0, 34, 16), 52, Ok(())),
            (header(1, 0, 0, 34, 16), 51, Err(ChecksumOffset)),
            (header(1, 0, 0, 34, 0xffff), 1514, Err(ChecksumOffset)),
            (header(1, 0, 0, 0xffff, 0xffff), 65557, Err(ChecksumOffset)),
            (header(0, 0, 0, 0xffff, 0xffff), 60, Ok(())),
            (header(1, 1, 1448, 34, 16), 9000, Ok(())),
            (header(1, 0x81, 1448, 34, 16), 9000, Ok(())),
            (header(0, 1, 1448, 34, 16), 9000, Err(GsoWithoutChecksum)),
            (header(1, 1, 0, 34, 16), 9000, Err(GsoSize)),
            (header(1, 1, 9000, 34, 16), 9000, Err(GsoSize)),
            (header(1, 1, 0xffff, 34, 16), 9000, Err(GsoSize)),
            (header(1, 2, 1448, 34, 16), 9000, Err(GsoType)),
            (header(1, 0x7f, 1448, 34, 16), 9000, Err(GsoNotNegotiated)),
            (header(1, 0x1f, 1448, 34, 16), 9000, Err(GsoType)),
            (header(1, 0x21, 1448, 34, 16), 9000, Err(GsoNotNegotiated)),
            (header(1, 3, 1448, 34, 16), 9000, Err(GsoNotNegotiated)),
            (header(1, 4, 1448, 34, 16), 9000, Err(GsoNotNegotiated)),
            (header(1, 5, 1448, 34, 16), 9000, Err(GsoNotNegotiated)),
            (header(1, 0x80, 1448, 34, 16), 9000, Err(EcnWithoutTso)),
            (header(1, 0x83, 1448, 34, 16), 9000, Err(EcnWithoutTso)),
        ];
        for (header, len, expected) in table {
            assert_eq!(
                rules().check(&header, len).map(|_| ()),
                expected,
                "{header:?} before {len} bytes"
            );
        }
    }

    #[test]
    fn nothing_passes_that_was_not_negotiated() {
        let table = [
            (
                NetF::empty(),
                header(1, 0, 0, 34, 16),
                HeaderFault::ChecksumNotNegotiated,
            ),
            (
                NetF::CSUM,
                header(1, TCPV4, 1448, 34, 16),
                HeaderFault::GsoNotNegotiated,
            ),
            (
                NetF::CSUM | NetF::HOST_TSO4,
                header(1, TCPV4 | GSO_ECN, 1448, 34, 16),
                HeaderFault::GsoNotNegotiated,
            ),
        ];
        for (features, header, fault) in table {
            assert_eq!(
                TxRules::new(features).check(&header, 9000),
                Err(fault),
                "{features:?}"
            );
        }
    }

    /// virtio 1.4, 5.1.9.2.2
    #[test]
    fn a_tunnel_that_does_not_fit_its_frame_or_itself_is_refused() {
        use HeaderFault::*;
        let features = NetF::CSUM
            | NetF::HOST_TSO4
            | NetF::HOST_TSO6
            | NetF::HOST_USO
            | NetF::HOST_UFO
            | NetF::HOST_UDP_TUNNEL_GSO;
        let with_csum = features | NetF::HOST_UDP_TUNNEL_GSO_CSUM;
        // Ethernet, IPv4, UDP, VXLAN, Ethernet, IPv4, TCP.
        let good = Header {
            outer_th_offset: 34,
            inner_nh_offset: 64,
            ..header(1, 0x21, 1400, 84, 16)
        };
        let ipv6 = Header {
            gso_type: 0x44,
            csum_start: 104,
            ..good
        };
        let table: [(NetF, Header, Result<(), HeaderFault>); 21] = [
            (features, good, Ok(())),
            (features, ipv6, Ok(())),
            (
                features,
                Header {
                    gso_type: 0x25,
                    ..good
                },
                Ok(()),
            ),
            (
                features,
                Header {
                    gso_type: 0x23,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    gso_type: 0x61,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    gso_type: 0x20,
                    ..good
                },
                Err(Tunnel),
            ),
            (features, Header { flags: 0, ..good }, Err(Tunnel)),
            (features, Header { flags: 3, ..good }, Err(Tunnel)),
            (
                features,
                Header {
                    outer_th_offset: 33,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    outer_th_offset: 0xffff,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    inner_nh_offset: 41,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    inner_nh_offset: 65,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    inner_nh_offset: 0xffff,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    csum_start: 83,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    csum_start: 103,
                    ..ipv6
                },
                Err(Tunnel),
            ),
            (
                features,
                Header {
                    csum_start: 8999,
                    ..good
                },
                Err(ChecksumOffset),
            ),
            // A flag that is not known is not looked at.
            (features, Header { flags: 9, ..good }, Ok(())),
            (with_csum, Header { flags: 9, ..good }, Ok(())),
            (
                with_csum,
                Header {
                    flags: 9,
                    gso_type: 1,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                with_csum,
                Header {
                    flags: 8,
                    gso_type: 0,
                    ..good
                },
                Err(Tunnel),
            ),
            (
                features - NetF::HOST_UDP_TUNNEL_GSO,
                good,
                Err(GsoNotNegotiated),
            ),
        ];
        for (features, header, expected) in table {
            let checked = TxRules::new(features).check(&header, 9000);
            assert_eq!(checked.map(|_| ()), expected, "{header:?}");
            if let Ok(clean) = checked {
                let csum = features.contains(NetF::HOST_UDP_TUNNEL_GSO_CSUM);
                let flags = if csum { header.flags } else { 1 };
                assert_eq!(clean, Header { flags, ..header });
            }
        }
    }

    #[test]
    fn the_backend_is_told_only_what_counts() {
        let dirty = Header {
            flags: 0xfe,
            gso_type: 0,
            hdr_len: 0xffff,
            gso_size: 7,
            csum_start: 8,
            csum_offset: 9,
            outer_th_offset: 10,
            inner_nh_offset: 11,
        };
        let clean = Header {
            hdr_len: 100,
            ..Default::default()
        };
        assert_eq!(rules().check(&dirty, 100), Ok(clean));
    }

    #[test]
    fn a_header_taken_apart_and_put_together_is_the_same() {
        let mut bytes = [0; MAX_HEADER];
        bytes[..10].copy_from_slice(&[1, 0x81, 54, 0, 0xa8, 5, 34, 0, 16, 1]);
        bytes[20..].copy_from_slice(&[34, 0, 50, 1]);
        let header = Header::parse(&bytes, true);
        assert_eq!(header.gso_size, 1448);
        assert_eq!(header.csum_offset, 272);
        assert_eq!((header.outer_th_offset, header.inner_nh_offset), (34, 306));
        assert_eq!(header.emit(true), bytes);
        assert_eq!(Header::parse(&bytes, false).emit(false), bytes);
    }
}
