//! Whatever software writes into configuration space, in whatever order and width.

use proptest::prelude::*;
use vm_pci::registers::CONFIG_SIZE;
use vm_pci::{ConfigSpace, PciIdentity};

const NIC: PciIdentity = PciIdentity {
    vendor: 0x1af4,
    device: 0x1041,
    revision: 1,
    class: 0x02_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Where accesses go: often where the registers are, and over the end.
fn offset() -> impl Strategy<Value = u16> {
    prop_oneof![4 => 0..0x100_u16, 1 => 0xff8..0x1008_u16, 1 => any::<u16>()]
}

/// One byte, as a list of bits that are kept, written, and cleared by ones.
#[derive(Clone, Copy)]
struct Byte {
    value: u8,
    writable: u8,
    clearable: u8,
}

impl Byte {
    /// Bit by bit.
    fn write(&mut self, written: u8) {
        for bit in (0..8).map(|n| 1 << n) {
            let one = written & bit != 0;
            if self.clearable & bit != 0 {
                if one {
                    self.value &= !bit;
                }
            } else if self.writable & bit != 0 {
                self.value = self.value & !bit | if one { bit } else { 0 };
            }
        }
    }
}

/// All of configuration space, and what software may do to each byte of it.
fn model(config: &ConfigSpace, writable: &[(u16, u8)], clearable: &[(u16, u8)]) -> Vec<Byte> {
    (0..CONFIG_SIZE)
        .map(|at| {
            let mask = |masks: &[(u16, u8)], usual: u8| {
                let own = masks.iter().rev().find(|(offset, _)| *offset == at);
                own.map_or(usual, |(_, mask)| *mask)
            };
            // Command, cache line size, interrupt line; status.
            let usual = match at {
                0x04 => 0x47,
                0x05 => 0x05,
                0x0c | 0x3c => 0xff,
                _ => 0,
            };
            Byte {
                value: config.byte(at),
                writable: mask(writable, usual),
                clearable: mask(clearable, if at == 0x07 { 0xf9 } else { 0 }),
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn every_bit_does_what_its_masks_say_and_no_other_bit_moves(
        stored in prop::collection::vec((0x40..0x100_u16, any::<u8>()), 0..16),
        writable in prop::collection::vec((0x40..0x100_u16, any::<u8>()), 0..16),
        clearable in prop::collection::vec((0x40..0x100_u16, any::<u8>()), 0..16),
        writes in prop::collection::vec((offset(), prop::collection::vec(any::<u8>(), 0..9)), 0..24),
    ) {
        let mut config = ConfigSpace::new(&NIC);
        for (at, value) in stored {
            config.store(at, &[value]);
        }
        for (at, mask) in &writable {
            config.set_write_mask(*at, &[*mask]);
        }
        for (at, mask) in &clearable {
            config.set_clear_mask(*at, &[*mask]);
        }
        let mut bytes = model(&config, &writable, &clearable);
        for (offset, data) in writes {
            let before = config.command();
            let written = config.write(offset, &data);
            for (at, byte) in (usize::from(offset)..).zip(&data) {
                if let Some(there) = bytes.get_mut(at) {
                    there.write(*byte);
                }
            }
            prop_assert_eq!(written.old_command, before);
            prop_assert_eq!(written.command, config.command());
        }
        for (at, byte) in (0..).zip(&bytes) {
            prop_assert_eq!(config.byte(at), byte.value, "at {:#x}", at);
        }
    }

    #[test]
    fn capabilities_are_met_whole_and_last_added_first_however_many_there_are(
        bodies in prop::collection::vec((1..0xff_u8, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let mut config = ConfigSpace::new(&NIC);
        let mut added = Vec::new();
        for (id, body) in bodies {
            // Where there is no room, nothing changes.
            if let Ok(at) = config.add_capability(id, &body) {
                added.push((at, id, body));
            }
        }
        let mut at = config.byte(0x34);
        while let Some((place, id, body)) = added.pop() {
            prop_assert_eq!(at, place);
            prop_assert!(at.is_multiple_of(4) && at >= 0x40);
            prop_assert_eq!(config.byte(at.into()), id);
            let mut there = vec![0; body.len()];
            config.read(u16::from(at) + 2, &mut there);
            prop_assert_eq!(&there, &body);
            prop_assert!(usize::from(at) + 2 + body.len() <= 0x100);
            at = config.byte(u16::from(at) + 1);
        }
        prop_assert_eq!(at, 0);
    }
}
