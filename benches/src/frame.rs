//! The frames that are measured.

use virtio::net::{F as NetF, HdrF, HdrGso};

/// Bytes of the header in front of each frame (virtio 1.4, 5.1.6).
pub const HEADER_LEN: usize = 12;

/// What makes the header longer, and is offered where the host's tap can carry it; no bench negotiates it.
pub(crate) const TUNNELS: NetF = NetF::HOST_UDP_TUNNEL_GSO
    .union(NetF::HOST_UDP_TUNNEL_GSO_CSUM)
    .union(NetF::GUEST_UDP_TUNNEL_GSO)
    .union(NetF::GUEST_UDP_TUNNEL_GSO_CSUM);

/// The NIC's address: what QEMU gives to the first NIC.
pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// How long a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// 64 bytes.
    Smallest,
    /// 1500 bytes.
    Full,
    /// 45 TCP segments of 1448 bytes, which leave Linux as one: 65226 bytes.
    Segmented,
}

impl FrameSize {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Smallest, Self::Full, Self::Segmented];

    /// As a part of a bench's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smallest => "64B",
            Self::Full => "1500B",
            Self::Segmented => "64KiB",
        }
    }

    /// Bytes in the frame, the header not counted.
    pub const fn frame_len(self) -> usize {
        match self {
            Self::Smallest => 64,
            Self::Full => 1500,
            Self::Segmented => PROTOCOL_LEN + 45 * SEGMENT_LEN as usize,
        }
    }

    /// Frames in a batch: as many as fit into queues of 256 entries, at most 64.
    pub const fn batch(self) -> u64 {
        match self {
            Self::Smallest | Self::Full => 64,
            Self::Segmented => 4,
        }
    }

    /// A frame to `destination` behind its header. Plain ones are of an ethertype for experiments.
    pub fn bytes(self, destination: [u8; 6]) -> Vec<u8> {
        let mut bytes = match self {
            Self::Smallest | Self::Full => vec![0; HEADER_LEN],
            Self::Segmented => segmentation_header(),
        };
        bytes.extend(destination);
        bytes.extend(SOURCE);
        match self {
            Self::Smallest | Self::Full => bytes.extend(EXPERIMENTAL),
            Self::Segmented => bytes.extend(tcp(self.frame_len() - ETHERNET_LEN)),
        }
        bytes.resize(HEADER_LEN + self.frame_len(), 0x5a);
        bytes
    }
}

/// Where a frame has room for a number of the bench's, behind the protocols' headers.
pub(crate) const fn number_offset(size: FrameSize) -> usize {
    match size {
        FrameSize::Smallest | FrameSize::Full => HEADER_LEN + ETHERNET_LEN,
        FrameSize::Segmented => HEADER_LEN + PROTOCOL_LEN,
    }
}

/// Ethernet, IPv4, and TCP with timestamps.
pub(crate) const PROTOCOL_LEN: usize = ETHERNET_LEN + IPV4_LEN + TCP_LEN;
const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const TCP_LEN: usize = 32;
const SEGMENT_LEN: u16 = 1448;

/// Nobody's.
pub(crate) const SOURCE: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// Local experimental ethertype 1 (IEEE 802).
pub(crate) const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

fn segmentation_header() -> Vec<u8> {
    let mut header = vec![HdrF::NEEDS_CSUM.bits(), HdrGso::Tcpv4 as u8];
    let checksum_start = 34_u16;
    // hdr_len, gso_size, csum_start, csum_offset, num_buffers
    for field in [66, SEGMENT_LEN, checksum_start, 16, 0] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// Ethertype and headers of a TCP packet of `len` bytes between two addresses for documentation.
fn tcp(len: usize) -> Vec<u8> {
    let [len_high, len_low] = u16::try_from(len).unwrap().to_be_bytes();
    let mut bytes = vec![0x08, 0x00];
    let mut ip = vec![0x45, 0, len_high, len_low, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    let mut sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(sum).unwrap();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes.extend(ip);
    // Ports 5001 to 5001, sequence and acknowledgement 1, 8 words of header, ACK, and no options but
    // padding. The checksum is left to whoever sends the segments.
    bytes.extend([0x13, 0x89, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1]);
    bytes.extend([0x80, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend([1; 12]);
    bytes
}
