//! Which received frames the driver wants: the filters that it sets on the control queue (virtio 1.4,
//! 5.1.9.5.1 to 5.1.9.5.3).
//!
//! The control queue changes the one [`FilterCell`] of a device; each receive queue looks through a
//! [`FilterView`] of its own.

use crate::watched::{View, Watched};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// The bytes at a frame's start that decide: two addresses, a type, and behind a tag's type its value.
pub(crate) const PEEK: usize = 16;
/// Addresses in the filter table, unicast and multicast together. [QEMU: MAC_TABLE_ENTRIES]
pub(crate) const MAC_TABLE_ENTRIES: usize = 64;
/// VLAN ids there are.
pub(crate) const VLANS: u16 = 4096;

const BROADCAST: Mac = [0xff; 6];
/// The type of a frame with an IEEE 802.1Q tag.
const TYPE_VLAN: [u8; 2] = [0x81, 0x00];

/// The filters of one device.
#[doc(alias = "receive_filter")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The driver's own address.
    pub(crate) mac: Mac,
    pub(crate) modes: Modes,
    pub(crate) unicast: MacTable,
    pub(crate) multicast: MacTable,
    /// `None`: tags do not matter.
    pub(crate) vlans: Option<VlanTable>,
}

/// What the commands of the class `VIRTIO_NET_CTRL_RX` switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) promisc: bool,
    pub(crate) allmulti: bool,
    pub(crate) alluni: bool,
    pub(crate) nomulti: bool,
    pub(crate) nouni: bool,
    pub(crate) nobcast: bool,
}

/// Addresses of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MacTable {
    These(Vec<Mac>),
    /// There were more than the table takes: any address of the kind is as good as in it.
    Overflown,
}

/// A bit for each VLAN id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VlanTable([u64; VLANS as usize / 64]);

impl Filter {
    /// The filters of a device whose driver has said nothing yet: every frame passes, as QEMU has it, so
    /// that a driver that knows no filters gets what is on the link. Once promiscuous mode is off, tagged frames
    /// pass that are in a table that is empty at first, if `vlans` are filtered.
    pub(crate) fn new(mac: Mac, vlans: bool) -> Self {
        Self {
            mac,
            modes: Modes {
                promisc: true,
                allmulti: false,
                alluni: false,
                nomulti: false,
                nouni: false,
                nobcast: false,
            },
            unicast: MacTable::default(),
            multicast: MacTable::default(),
            vlans: vlans.then(VlanTable::default),
        }
    }

    /// Whether no frame need be looked at.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.modes.promisc
    }

    /// Whether a frame passes that begins with `start`: its first [`PEEK`] bytes, or all of it where it is
    /// shorter. What is too short for its destination or its tag passes in promiscuous mode only.
    pub(crate) fn passes(&self, start: &[u8]) -> bool {
        if self.modes.promisc {
            return true;
        }
        let Some((destination, rest)) = start.split_first_chunk::<6>() else {
            return false;
        };
        // Behind the source address.
        let Some((kind, tag)) = rest.get(6..).and_then(|rest| rest.split_first_chunk::<2>()) else {
            return false;
        };
        if *kind == TYPE_VLAN
            && let Some(vlans) = &self.vlans
        {
            let Some((tag, _)) = tag.split_first_chunk::<2>() else {
                return false;
            };
            if !vlans.contains(u16::from_be_bytes(*tag) % VLANS) {
                return false;
            }
        }
        self.takes(destination)
    }

    /// Whether frames for `destination` are wanted.
    fn takes(&self, destination: &Mac) -> bool {
        let modes = &self.modes;
        let [first, ..] = destination;
        if *destination == BROADCAST {
            !modes.nobcast
        } else if first & 1 != 0 {
            !modes.nomulti && (modes.allmulti || self.multicast.contains(destination))
        } else {
            !modes.nouni
                && (modes.alluni || *destination == self.mac || self.unicast.contains(destination))
        }
    }
}

impl MacTable {
    fn contains(&self, mac: &Mac) -> bool {
        match self {
            Self::These(macs) => macs.contains(mac),
            Self::Overflown => true,
        }
    }

    /// Entries that it takes up.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::These(macs) => macs.len(),
            Self::Overflown => 0,
        }
    }
}

impl Default for MacTable {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl VlanTable {
    /// Puts `id` in or takes it out; `false` for one that is no VLAN id.
    pub(crate) fn set(&mut self, id: u16, in_it: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(id / 64)) else {
            return false;
        };
        let bit = 1 << (id % 64);
        if in_it {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        true
    }

    fn contains(&self, id: u16) -> bool {
        let word = self.0.get(usize::from(id / 64));
        word.is_some_and(|word| word >> (id % 64) & 1 != 0)
    }
}

impl VlanTable {
    /// Its bits, by rising id.
    pub(crate) fn words(&self) -> &[u64; VLANS as usize / 64] {
        &self.0
    }

    /// From its bits.
    pub(crate) fn from_words(words: [u64; VLANS as usize / 64]) -> Self {
        Self(words)
    }
}

impl Default for VlanTable {
    fn default() -> Self {
        Self([0; VLANS as usize / 64])
    }
}

/// The filters of a device, as they are now.
pub(crate) type FilterCell = Watched<Filter>;

/// A receive queue's look at the filters.
pub(crate) type FilterView = View<Filter>;

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const OTHER: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x57];
    const LISTED: Mac = [2, 0, 0, 0, 0, 1];
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];
    const LISTED_GROUP: Mac = [1, 0, 0x5e, 0, 0, 0xfb];

    /// Promiscuous mode off, one address of each kind in the tables.
    fn filter(change: impl FnOnce(&mut Filter)) -> Filter {
        let mut filter = Filter::new(OWN, false);
        filter.modes.promisc = false;
        filter.unicast = MacTable::These(vec![LISTED]);
        filter.multicast = MacTable::These(vec![LISTED_GROUP]);
        change(&mut filter);
        filter
    }

    fn start(destination: Mac, rest: &[u8]) -> Vec<u8> {
        [&destination[..], &OTHER, rest].concat()
    }

    #[test]
    fn each_mode_takes_the_destinations_that_it_names() {
        let all = [OWN, OTHER, LISTED, BROADCAST, GROUP, LISTED_GROUP];
        type Change = fn(&mut Filter);
        let table: [(&str, Change, &[Mac]); 13] = [
            ("none", |_| {}, &[OWN, LISTED, BROADCAST, LISTED_GROUP]),
            ("promisc", |f| f.modes.promisc = true, &all),
            (
                "promisc in spite of the rest",
                |f| {
                    f.modes = Modes {
                        promisc: true,
                        allmulti: false,
                        alluni: false,
                        nomulti: true,
                        nouni: true,
                        nobcast: true,
                    };
                },
                &all,
            ),
            (
                "allmulti",
                |f| f.modes.allmulti = true,
                &[OWN, LISTED, BROADCAST, GROUP, LISTED_GROUP],
            ),
            (
                "alluni",
                |f| f.modes.alluni = true,
                &[OWN, OTHER, LISTED, BROADCAST, LISTED_GROUP],
            ),
            (
                "nomulti",
                |f| f.modes.nomulti = true,
                &[OWN, LISTED, BROADCAST],
            ),
            (
                "nomulti in spite of allmulti",
                |f| {
                    f.modes.allmulti = true;
                    f.modes.nomulti = true;
                },
                &[OWN, LISTED, BROADCAST],
            ),
            (
                "nouni",
                |f| f.modes.nouni = true,
                &[BROADCAST, LISTED_GROUP],
            ),
            (
                "nouni in spite of alluni",
                |f| {
                    f.modes.alluni = true;
                    f.modes.nouni = true;
                },
                &[BROADCAST, LISTED_GROUP],
            ),
            (
                "nobcast in spite of allmulti",
                |f| {
                    f.modes.allmulti = true;
                    f.modes.nobcast = true;
                },
                &[OWN, LISTED, GROUP, LISTED_GROUP],
            ),
            (
                "unicast overflow",
                |f| f.unicast = MacTable::Overflown,
                &[OWN, OTHER, LISTED, BROADCAST, LISTED_GROUP],
            ),
            (
                "multicast overflow",
                |f| f.multicast = MacTable::Overflown,
                &[OWN, LISTED, BROADCAST, GROUP, LISTED_GROUP],
            ),
            (
                "another address",
                |f| f.mac = OTHER,
                &[OTHER, LISTED, BROADCAST, LISTED_GROUP],
            ),
        ];
        for (name, change, taken) in table {
            let filter = filter(change);
            for destination in all {
                assert_eq!(
                    filter.passes(&start(destination, &[8, 0, 0, 0])),
                    taken.contains(&destination),
                    "{name}: {destination:x?}"
                );
            }
        }
    }

    #[test]
    fn tags_are_looked_up_only_where_vlans_are_filtered() {
        let with = |ids: &[u16]| {
            filter(|filter| {
                let mut table = VlanTable::default();
                for id in ids {
                    assert!(table.set(*id, true));
                }
                filter.vlans = Some(table);
            })
        };
        let table: [(Filter, &[u8], bool); 14] = [
            (filter(|_| {}), &[0x81, 0, 0, 5], true),
            (with(&[]), &[8, 0, 0, 5], true),
            (with(&[]), &[0x81, 0, 0, 5], false),
            (with(&[]), &[0x81, 0, 0, 0], false),
            (with(&[0]), &[0x81, 0, 0, 0], true),
            (with(&[5]), &[0x81, 0, 0, 5], true),
            (with(&[5]), &[0x81, 0, 0, 6], false),
            (with(&[5]), &[0x81, 0, 1, 5], false),
            // Priority and drop eligibility are no part of the id.
            (with(&[5]), &[0x81, 0, 0xf0, 5], true),
            (with(&[4095]), &[0x81, 0, 0x0f, 0xff], true),
            (with(&[4095]), &[0x81, 0, 0xff, 0xff], true),
            (with(&[4095]), &[0x81, 0, 0x0f, 0xfe], false),
            (with(&[64]), &[0x81, 0, 0, 0], false),
            (with(&[]), &[0x81, 1, 0, 5], true),
        ];
        for (filter, rest, expected) in table {
            assert_eq!(filter.passes(&start(OWN, rest)), expected, "{rest:x?}");
            assert!(!filter.passes(&start(OTHER, rest)), "{rest:x?}");
        }
    }

    /// Frames too short for the fields that filters look at: of 0 to 13 bytes, and tagged ones of 14 and 15.
    #[test]
    fn a_frame_cut_before_what_decides_passes_in_promiscuous_mode_only() {
        let tagged = start(OWN, &[0x81, 0, 0, 5]);
        let plain = start(OWN, &[8, 0, 0, 5]);
        let strict = filter(|filter| {
            let mut table = VlanTable::default();
            table.set(5, true);
            filter.vlans = Some(table);
        });
        let loose = filter(|_| {});
        let open = Filter::new(OWN, true);
        for len in 0..=PEEK {
            let table = [
                (&strict, &tagged, len >= 16),
                (&strict, &plain, len >= 14),
                (&loose, &tagged, len >= 14),
                (&loose, &plain, len >= 14),
                (&open, &tagged, true),
                (&open, &plain, true),
            ];
            for (i, (filter, frame, expected)) in table.into_iter().enumerate() {
                assert_eq!(filter.passes(&frame[..len]), expected, "{i}: {len} bytes");
            }
        }
    }

    #[test]
    fn a_vlan_id_past_the_end_is_refused_and_changes_nothing() {
        let mut table = VlanTable::default();
        for id in [4096, 4097, 8192, u16::MAX] {
            assert!(!table.set(id, true), "{id}");
            assert!(!table.set(id, false), "{id}");
        }
        assert_eq!(table, VlanTable::default());
        for id in 0..VLANS {
            assert!(table.set(id, true));
        }
        assert!(table.set(7, false));
        for id in 0..VLANS {
            assert_eq!(table.contains(id), id != 7, "{id}");
        }
    }
}
