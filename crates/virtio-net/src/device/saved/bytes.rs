//! [`SavedNet`] as bytes.

use vmstate::{Error, Fields, Reader, Section, Writer};

use super::{
    SavedCoalescing, SavedCounters, SavedFilter, SavedLimit, SavedNet, SavedSteering,
    hash_types_from, offloads_from,
};
use crate::filter::{MAC_TABLE_ENTRIES, Mac};
use crate::hash::MAX_TABLE;

/// The first section.
pub(super) const SECTION: &str = "virtio-net";
/// That of the tunnels whose inner packets hashes are made of.
pub(super) const TUNNELS: &str = "virtio-net-hash-tunnels";
const VERSION: u16 = 1;
/// Pairs that a card has at most.
pub(super) const MAX_PAIRS: usize = 256;

impl SavedNet {
    /// As bytes, in the framing of [`vmstate`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self {
            config,
            link_up,
            announce_asked,
            filter,
            pairs,
            offloads,
            hash_types,
            hash_key,
            hash_tunnels,
            steering,
            coalescing,
            queue_coalescing,
            counters,
            limits,
        } = self;
        let mut writer = Writer::new();
        writer.section(SECTION, VERSION, |fields| {
            fields.bytes(config);
            fields.bool(*link_up);
            fields.bool(*announce_asked);
            filter.write(fields);
            fields.u16(*pairs);
            fields.u128(offloads.bits().to_ne());
            fields.u32(hash_types.bits().to_ne());
            fields.array(hash_key);
            fields.option(steering.as_ref(), |fields, steering| {
                fields.list(&steering.pairs, |fields, pair| fields.u16(*pair));
                fields.u16(steering.unclassified);
            });
            for coalescing in coalescing {
                coalescing.write(fields);
            }
            fields.list(queue_coalescing, |fields, both| {
                for one in both {
                    fields.option(one.as_ref(), |fields, one| one.write(fields));
                }
            });
        });
        // Where none is, what was written is as before there were any.
        if *hash_tunnels != 0 {
            writer.section(TUNNELS, VERSION, |fields| fields.u32(*hash_tunnels));
        }
        counters.write(&mut writer);
        SavedLimit::write(limits, &mut writer);
        writer.into_bytes()
    }

    /// From [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// When the bytes are neither what this version writes nor what one before it did.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let mut section = reader.section(SECTION, VERSION)?;
        let coalescing =
            |section: &mut Section<'_>| SavedCoalescing::read(section, "queue_coalescing");
        let mut hash_tunnels = 0;
        if reader.has(TUNNELS) {
            let mut section = reader.section(TUNNELS, VERSION)?;
            hash_tunnels = section.u32("tunnels")?;
            section.finish()?;
        }
        let saved = Self {
            hash_tunnels,
            config: section.bytes("config")?.to_vec(),
            link_up: section.bool("link_up")?,
            announce_asked: section.bool("announce_asked")?,
            filter: SavedFilter::read(&mut section)?,
            pairs: section.u16("pairs")?,
            offloads: offloads_from(section.u128("offloads")?),
            hash_types: hash_types_from(section.u32("hash_types")?),
            hash_key: section.array("hash_key")?,
            steering: section.option("steering", |section| {
                Ok(SavedSteering {
                    pairs: section
                        .list("steering", MAX_TABLE, |section| section.u16("steering"))?,
                    unclassified: section.u16("steering")?,
                })
            })?,
            coalescing: [
                SavedCoalescing::read(&mut section, "coalescing")?,
                SavedCoalescing::read(&mut section, "coalescing")?,
            ],
            queue_coalescing: section.list("queue_coalescing", MAX_PAIRS, |section| {
                Ok([
                    section.option("queue_coalescing", coalescing)?,
                    section.option("queue_coalescing", coalescing)?,
                ])
            })?,
            counters: SavedCounters::read(&mut reader)?,
            limits: SavedLimit::read(&mut reader)?,
        };
        section.finish()?;
        reader.finish()?;
        Ok(saved)
    }
}

impl SavedFilter {
    fn write(&self, fields: &mut Fields<'_>) {
        let Self {
            mac,
            modes,
            unicast,
            multicast,
            vlans,
        } = self;
        fields.array(mac);
        fields.u8(*modes);
        for table in [unicast, multicast] {
            fields.option(table.as_ref(), |fields, macs| {
                fields.list(macs, |fields, mac| fields.array(mac));
            });
        }
        fields.option(vlans.as_deref(), |fields, words| {
            for word in words {
                fields.u64(*word);
            }
        });
    }

    fn read(section: &mut Section<'_>) -> Result<Self, Error> {
        let macs = |section: &mut Section<'_>, field| {
            section.option(field, |section| {
                section.list(field, MAC_TABLE_ENTRIES, |section| {
                    section.array::<{ size_of::<Mac>() }>(field)
                })
            })
        };
        Ok(Self {
            mac: section.array("filter.mac")?,
            modes: section.u8("filter.modes")?,
            unicast: macs(section, "filter.unicast")?,
            multicast: macs(section, "filter.multicast")?,
            vlans: section.option("filter.vlans", |section| {
                let mut words = Box::new([0; 64]);
                for word in words.iter_mut() {
                    *word = section.u64("filter.vlans")?;
                }
                Ok(words)
            })?,
        })
    }
}

impl SavedCoalescing {
    fn write(&self, fields: &mut Fields<'_>) {
        let Self {
            max_packets,
            max_usecs,
        } = self;
        fields.u32(*max_packets);
        fields.u32(*max_usecs);
    }

    fn read(section: &mut Section<'_>, field: &str) -> Result<Self, Error> {
        Ok(Self {
            max_packets: section.u32(field)?,
            max_usecs: section.u32(field)?,
        })
    }
}
