//! How much room the next frame is lent.

/// Frames of a full MTU of 1500 bytes or less, behind an Ethernet header with a VLAN tag.
const SMALL: usize = 1500 + 14 + 4;
/// So many small frames in a row, and the next is expected to be small.
const PATIENCE: u8 = 64;

/// What frames have been like lately.
///
/// A backend that segments for nobody may give 64 KiB at any time, for which a driver's small buffers are
/// some forty: describing them all for each frame costs more than a small frame does. So while frames are
/// small only as much is lent as a small one takes, with the overflow behind it for the rest of one that is
/// not; that one is copied from there, and those after it are lent all they may take.
#[derive(Debug)]
pub(super) struct Expected {
    small: usize,
    /// Small frames still to come before the next is expected to be small.
    patience: u8,
}

impl Expected {
    pub(super) fn new(header_len: usize) -> Self {
        Self {
            small: header_len + SMALL,
            patience: 0,
        }
    }

    /// Bytes to lend for a frame that has `longest` at most.
    #[inline]
    pub(super) fn room(&self, longest: usize) -> usize {
        if self.patience == 0 {
            longest.min(self.small)
        } else {
            longest
        }
    }

    /// A frame of `guest_len` bytes has come.
    #[inline]
    pub(super) fn learn(&mut self, guest_len: usize) {
        if guest_len > self.small {
            self.patience = PATIENCE;
        } else {
            self.patience = self.patience.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_frame_makes_large_ones_expected_until_many_small_ones_have_come() {
        let mut expected = Expected::new(12);
        assert_eq!(expected.room(65565), 1530);
        assert_eq!(expected.room(1000), 1000);
        expected.learn(1530);
        assert_eq!(expected.room(65565), 1530);
        expected.learn(1531);
        for _ in 0..PATIENCE {
            assert_eq!(expected.room(65565), 65565);
            expected.learn(64);
        }
        assert_eq!(expected.room(65565), 1530);
    }

    #[test]
    fn small_frames_between_large_ones_change_nothing() {
        let mut expected = Expected::new(12);
        for _ in 0..1000 {
            expected.learn(65000);
            for _ in 1..PATIENCE {
                expected.learn(64);
            }
            assert_eq!(expected.room(65565), 65565);
        }
    }
}
