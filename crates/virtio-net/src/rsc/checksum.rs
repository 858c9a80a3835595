//! The Internet checksum (RFC 1071).

/// A ones' complement sum of 16-bit numbers, not folded yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum(u64);

impl Sum {
    /// Of bytes, the last of which, where their number is odd, has a zero behind it.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(0).and(bytes)
    }

    /// With those of more bytes. What was summed before had an even number of them.
    pub(super) fn and(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        // Packets are shorter than 2^16 bytes: far from an overflow.
        let sum = words.iter().fold(self.0, |sum, word| {
            sum.wrapping_add(u64::from(u32::from_be_bytes(*word)))
        });
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        Self(sum.wrapping_add(u64::from(u32::from_be_bytes(last))))
    }

    /// In 16 bits.
    pub(super) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // By the loop.
        u16::try_from(sum).unwrap_or(0)
    }

    /// Whether all of it, its checksum included, is as it was sent.
    pub(super) fn is_right(self) -> bool {
        self.folded() == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_16_bit_numbers_however_they_are_cut() {
        let bytes: Vec<u8> = (0..=255).chain(200..=255).collect();
        for len in 0..bytes.len() {
            let bytes = &bytes[..len];
            let plain = bytes.chunks(2).fold(0_u64, |sum, pair| {
                sum + u64::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u64::from(*low))
            });
            // A ones' complement sum, which has two zeros.
            let expected = u16::try_from(plain % 0xffff).unwrap_or(0);
            for cut in (0..=len).step_by(2) {
                let (one, other) = bytes.split_at(cut);
                let sum = Sum::of(one).and(other).folded();
                assert_eq!(sum % 0xffff, expected, "{len} bytes, cut at {cut}");
            }
        }
    }

    /// RFC 1071, 3
    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert!(!sum.is_right());
        assert!(sum.and(&(!0xddf2_u16).to_be_bytes()).is_right());
    }
}
