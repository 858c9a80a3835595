//! The header before every frame.

use virtio::le16;
use virtio::net::{F, Hdr, HdrF};

/// The twelve bytes that every modern header begins with (virtio 1.4, 5.1.6).
#[doc(alias = "virtio_net_hdr")]
pub type Header = Hdr;

/// How long the header is with these features: 12 bytes, or 20, 24 or 32 with fields for hashes,
/// tunnels and outer headers. Without `VIRTIO_F_VERSION_1` it is 12 bytes only with
/// `VIRTIO_NET_F_MRG_RXBUF`, else 10.
#[must_use]
pub fn header_len(features: F) -> u32 {
    let tunnels = F::HOST_UDP_TUNNEL_GSO | F::GUEST_UDP_TUNNEL_GSO;
    if features.contains(F::OUT_NET_HEADER) {
        32
    } else if features.intersects(tunnels) {
        24
    } else if features.contains(F::HASH_REPORT) {
        20
    } else if features.intersects(F::VERSION_1 | F::MRG_RXBUF) {
        BASE_LEN
    } else {
        BASE_LEN - 2
    }
}

/// Bytes in the part that is always there.
pub(super) const BASE_LEN: u32 = 12;
const _: () = assert!(size_of::<Hdr>() == BASE_LEN as usize);
/// Bytes in the longest header.
pub(super) const LONGEST: usize = 32;

/// The longest header's bytes, zeros past the base.
pub(super) fn to_bytes(header: &Header) -> [u8; LONGEST] {
    let mut bytes = [0; LONGEST];
    bytes[0] = header.flags.bits();
    bytes[1] = header.gso_type;
    let fields = [
        header.hdr_len,
        header.gso_size,
        header.csum_start,
        header.csum_offset,
        header.num_buffers,
    ];
    for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
        place.copy_from_slice(&field.to_ne().to_le_bytes());
    }
    bytes
}

/// The base part from its bytes.
pub(super) fn from_bytes(bytes: [u8; BASE_LEN as usize]) -> Header {
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = bytes;
    let field = |bytes| le16::from_ne(u16::from_le_bytes(bytes));
    Header {
        flags: HdrF::from_bits_retain(flags),
        gso_type,
        hdr_len: field([h0, h1]),
        gso_size: field([g0, g1]),
        csum_start: field([s0, s1]),
        csum_offset: field([o0, o1]),
        num_buffers: field([n0, n1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_and_its_bytes_are_each_other() {
        let bytes = [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0, 2, 0];
        let header = from_bytes(bytes);
        assert!(header.flags.contains(HdrF::NEEDS_CSUM));
        assert_eq!(header.gso_size.to_ne(), 0x5b4);
        assert_eq!(to_bytes(&header)[..12], bytes);
    }

    #[test]
    fn the_length_follows_the_features() {
        let cases = [
            (F::VERSION_1, 12),
            (F::VERSION_1 | F::MRG_RXBUF, 12),
            (F::HASH_REPORT, 20),
            (F::HOST_UDP_TUNNEL_GSO, 24),
            (F::HASH_REPORT | F::OUT_NET_HEADER, 32),
        ];
        for (features, expected) in cases {
            assert_eq!(header_len(features), expected, "{features:?}");
        }
    }
}
