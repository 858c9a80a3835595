//! The Toeplitz hash: of each bit that is set in the input, the 32 bits of the key that begin where it lies, put
//! together by exclusive or.

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 40;
/// Bytes of the longest input: two IPv6 addresses and two ports.
pub(crate) const INPUT: usize = 36;

/// A key, taken apart: what each value of each four bits of the input comes to.
pub(crate) struct Toeplitz(Box<[[u32; 16]; 2 * INPUT]>);

impl Toeplitz {
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        // The 32 bits of the key from bit `at` on.
        let window = |at: usize| {
            (0..32).fold(0_u32, |window, i| {
                let bit = at + i;
                let byte = key.get(bit / 8).copied().unwrap_or(0);
                window << 1 | u32::from(byte >> (7 - bit % 8) & 1)
            })
        };
        let mut table = Box::new([[0; 16]; 2 * INPUT]);
        for (nibble, values) in table.iter_mut().enumerate() {
            let windows = [0, 1, 2, 3].map(|bit| window(4 * nibble + bit));
            for (value, hash) in values.iter_mut().enumerate() {
                for (bit, window) in windows.into_iter().enumerate() {
                    if value >> (3 - bit) & 1 != 0 {
                        *hash ^= window;
                    }
                }
            }
        }
        Self(table)
    }

    /// The hash of at most [`INPUT`] bytes; what is longer does not count.
    pub(crate) fn hash(&self, input: &[u8]) -> u32 {
        let (pairs, _) = self.0.as_chunks::<2>();
        input
            .iter()
            .zip(pairs)
            .fold(0, |hash, (byte, [high, low])| {
                // Four bits are less than 16: no look past the end.
                hash ^ high[usize::from(byte >> 4)] ^ low[usize::from(byte & 15)]
            })
    }
}

impl std::fmt::Debug for Toeplitz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Toeplitz")
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// The key of Microsoft's "Verifying the RSS Hash Calculation".
    pub(crate) const KEY: [u8; KEY_LEN] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn the_published_values_for_ipv4_come_out() {
        // (destination, its port, source, its port, hash of the addresses, hash with ports)
        let table = [
            (
                "161.142.100.80",
                1766,
                "66.9.149.187",
                2794,
                0x323e_8fc2,
                0x51cc_c178,
            ),
            (
                "65.69.140.83",
                4739,
                "199.92.111.2",
                14230,
                0xd718_262a,
                0xc626_b0ea,
            ),
            (
                "12.22.207.184",
                38024,
                "24.19.198.95",
                12898,
                0xd2d0_a5de,
                0x5c2b_394a,
            ),
            (
                "209.142.163.6",
                2217,
                "38.27.205.30",
                48228,
                0x8298_9176,
                0xafc7_327f,
            ),
            (
                "202.188.127.2",
                1303,
                "153.39.163.191",
                44251,
                0x5d18_09c5,
                0x10e8_28a2,
            ),
        ];
        let toeplitz = Toeplitz::new(&KEY);
        for (to, to_port, from, from_port, addresses, all) in table {
            let mut input = Vec::new();
            for address in [from, to] {
                let address: Ipv4Addr = address.parse().unwrap();
                input.extend(address.octets());
            }
            assert_eq!(toeplitz.hash(&input), addresses, "{from} to {to}");
            for port in [from_port, to_port] {
                input.extend(u16::to_be_bytes(port));
            }
            assert_eq!(toeplitz.hash(&input), all, "{from} to {to}, with ports");
        }
    }

    #[test]
    fn the_published_values_for_ipv6_come_out() {
        let table = [
            (
                "3ffe:2501:200:3::1",
                1766,
                "3ffe:2501:200:1fff::7",
                2794,
                0x2cc1_8cd5,
                0x4020_7d3d,
            ),
            (
                "ff02::1",
                4739,
                "3ffe:501:8::260:97ff:fe40:efab",
                14230,
                0x0f0c_461c,
                0xdde5_1bbf,
            ),
            (
                "fe80::200:f8ff:fe21:67cf",
                38024,
                "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
                44251,
                0x4b61_e985,
                0x02d1_feef,
            ),
        ];
        let toeplitz = Toeplitz::new(&KEY);
        for (to, to_port, from, from_port, addresses, all) in table {
            let mut input = Vec::new();
            for address in [from, to] {
                let address: Ipv6Addr = address.parse().unwrap();
                input.extend(address.octets());
            }
            assert_eq!(toeplitz.hash(&input), addresses, "{from} to {to}");
            for port in [from_port, to_port] {
                input.extend(u16::to_be_bytes(port));
            }
            assert_eq!(toeplitz.hash(&input), all, "{from} to {to}, with ports");
        }
    }

    #[test]
    fn what_is_longer_than_any_input_does_not_count() {
        let toeplitz = Toeplitz::new(&KEY);
        assert_eq!(toeplitz.hash(&[0xff; 36]), toeplitz.hash(&[0xff; 100]));
        assert_eq!(toeplitz.hash(&[]), 0);
    }
}
