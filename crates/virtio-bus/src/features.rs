//! Feature negotiation by 32-bit words of a 128-bit set.

use virtio::{F, le128};

/// Bits in one word of a feature register.
const WORD_BITS: u32 = 32;
/// Words in a feature set.
const WORDS: u32 = u128::BITS / WORD_BITS;

/// What a transport does to the features that a device offers.
#[derive(Clone, Copy, Debug)]
pub struct TransportFeatures {
    /// Those that the transport itself offers.
    pub adds: F,
    /// Those that the transport does not let through, whatever the device offers.
    pub withholds: F,
}

/// The feature registers: what is offered, what the driver chose, and the two selectors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    pub(crate) offered: F,
    pub(crate) chosen: F,
    pub(crate) device_select: u32,
    pub(crate) driver_select: u32,
}

impl Features {
    pub(crate) fn new(device: F, transport: &TransportFeatures) -> Self {
        Self {
            offered: (device | transport.adds) - transport.withholds,
            ..Self::default()
        }
    }

    /// Back to what a driver finds after a reset.
    pub(crate) fn reset(&mut self) {
        let Self {
            offered: _,
            chosen,
            device_select,
            driver_select,
        } = self;
        *chosen = F::empty();
        *device_select = 0;
        *driver_select = 0;
    }

    pub(crate) fn offered_word(&self) -> u32 {
        word(self.offered, self.device_select)
    }

    pub(crate) fn chosen_word(&self) -> u32 {
        word(self.chosen, self.driver_select)
    }

    /// Takes 32 bits of the driver's choice as they are; whether they were offered is asked at
    /// FEATURES_OK.
    pub(crate) fn choose_word(&mut self, value: u32) {
        if self.driver_select >= WORDS {
            return;
        }
        let shift = self.driver_select * WORD_BITS;
        let kept = self.chosen.bits().to_ne() & !(u128::from(u32::MAX) << shift);
        self.chosen = F::from_bits_retain(le128::from_ne(kept | u128::from(value) << shift));
    }
}

/// The word that `select` names; words past the last read 0 (virtio 1.4, 4.1.4.3.1).
fn word(features: F, select: u32) -> u32 {
    if select >= WORDS {
        return 0;
    }
    let shifted = features.bits().to_ne() >> (select * WORD_BITS);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the word is the low 32 bits"
    )]
    let word = shifted as u32;
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_select_value_shows_its_word_and_those_past_the_end_show_none() {
        let bits = 0x4444_4444_3333_3333_2222_2222_1111_1111_u128;
        let mut features = Features {
            offered: F::from_bits_retain(le128::from_ne(bits)),
            ..Features::default()
        };
        let table = [
            (0, 0x1111_1111),
            (1, 0x2222_2222),
            (2, 0x3333_3333),
            (3, 0x4444_4444),
            (4, 0),
            (0x8000_0000, 0),
            (u32::MAX, 0),
        ];
        for (select, expected) in table {
            features.device_select = select;
            assert_eq!(features.offered_word(), expected, "select {select:#x}");
        }
    }

    #[test]
    fn a_word_written_past_the_end_changes_nothing() {
        let mut features = Features::default();
        for select in [4, 5, 32, 0x0800_0000, u32::MAX] {
            features.driver_select = select;
            features.choose_word(u32::MAX);
            assert_eq!(features.chosen, F::empty(), "select {select:#x}");
        }
        for select in 0..WORDS {
            features.driver_select = select;
            features.choose_word(0x8000_0001 + select);
        }
        for select in 0..WORDS {
            features.driver_select = select;
            assert_eq!(features.chosen_word(), 0x8000_0001 + select);
        }
    }
}
