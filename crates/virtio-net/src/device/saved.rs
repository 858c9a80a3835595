//! What a driver has told the card, read out as a whole and set as a whole.

mod bytes;
mod spent;

use virtio::net::{F as NetF, HashType};
use virtio::{le32, le128};
use virtqueue::QueueMemory;
use vmstate::Error;

use super::{OnResume, VirtioNet};
use crate::coalesce::Coalescing;
use crate::features::{features_of, settable_offloads};
use crate::filter::{Filter, MAC_TABLE_ENTRIES, Mac, MacTable, Modes, VlanTable};
use crate::hash::{KEY_LEN, MAX_TABLE, Table, Tunnels, supported_types};
use crate::pair::{set_guest_offloads, set_queue_pairs};
use crate::shared::{CoalescingByDirection, lock};

use bytes::SECTION;
pub use spent::{SavedCounters, SavedLimit};

/// What a driver has told a card beside features and queues: filters, offloads, pairs in use, hashes, and how
/// notifications are held back; and what the card has counted, and has let pass. What the VMM has chosen is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedNet {
    /// The configuration space but for address and status, which have to be the same in the card that is restored.
    pub config: Vec<u8>,
    /// The link was up.
    pub link_up: bool,
    /// The driver is asked to announce itself, and has not answered.
    pub announce_asked: bool,
    /// Which frames it wants.
    pub filter: SavedFilter,
    /// Pairs that it uses.
    pub pairs: u16,
    /// The features whose offloads it copes with now, `VIRTIO_NET_F_RSC_EXT` among them while segments are put together.
    pub offloads: NetF,
    /// Hashes that it wants.
    pub hash_types: HashType,
    /// Their key.
    pub hash_key: [u8; KEY_LEN],
    /// Tunnels of whose packets the hash is that of the packet inside, by the bits of their command.
    pub hash_tunnels: u32,
    /// Which pair they lead to, if they do.
    pub steering: Option<SavedSteering>,
    /// How notifications of receive and transmit queues are held back that begin.
    pub coalescing: [SavedCoalescing; 2],
    /// How those are of the receive and the transmit queue of each pair that are there.
    pub queue_coalescing: Vec<[Option<SavedCoalescing>; 2]>,
    /// What it has counted.
    pub counters: SavedCounters,
    /// How far the limits of reception and of transmission are used up.
    pub limits: [SavedLimit; 2],
}

/// Which frames a driver wants (virtio 1.4, 5.1.9.5.1 to 5.1.9.5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFilter {
    /// Its address.
    pub mac: [u8; 6],
    /// The modes that are on: bits 0 to 5 by the number of their command.
    pub modes: u8,
    /// Unicast addresses; `None`: any.
    pub unicast: Option<Vec<[u8; 6]>>,
    /// Multicast addresses; `None`: any.
    pub multicast: Option<Vec<[u8; 6]>>,
    /// A bit for each VLAN; `None`: tags do not matter.
    pub vlans: Option<Box<[u64; 64]>>,
}

/// Which pair a hash leads to (virtio 1.4, 5.1.9.5.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSteering {
    /// By the last bits of the hash.
    pub pairs: Vec<u16>,
    /// Where frames without one go.
    pub unclassified: u16,
}

/// How notifications of a queue are held back (virtio 1.4, 5.1.9.5.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedCoalescing {
    /// Frames after which the driver is notified.
    pub max_packets: u32,
    /// Microseconds after the first of them after which it is.
    pub max_usecs: u32,
}

impl<M: QueueMemory> VirtioNet<M> {
    /// What the driver has told the card, which is paused.
    pub(super) fn saved(&self) -> SavedNet {
        let _state = lock(&self.state);
        let hashing = self.shared.hashing.now();
        let (hash_types, hash_key) = hashing.settings();
        let CoalescingByDirection { rx, tx } = *lock(&self.shared.coalescing);
        let used = self.pairs.iter().filter(|pair| pair.is_enabled()).count();
        let offloads = self.pairs.first().map(|pair| pair.offloads());
        let rsc = if lock(&self.shared.families).is_none() {
            NetF::empty()
        } else {
            NetF::RSC_EXT
        };
        SavedNet {
            config: self.config_space.fixed().to_vec(),
            link_up: self.shared.status().contains(virtio::net::S::LINK_UP),
            announce_asked: self.shared.announcing().1,
            filter: SavedFilter::of(&self.shared.filter.now()),
            pairs: u16::try_from(used).unwrap_or(u16::MAX),
            offloads: features_of(&offloads.unwrap_or_default()) | rsc,
            hash_types,
            hash_key: *hash_key,
            hash_tunnels: hashing.tunnels().bits(),
            steering: hashing.steering().map(|table| SavedSteering {
                pairs: table.pairs.clone(),
                unclassified: table.unclassified,
            }),
            coalescing: [rx.into(), tx.into()],
            queue_coalescing: (self.pairs.iter())
                .map(|pair| [pair.rx_coalescing(), pair.tx_coalescing()])
                .map(|both| both.map(|one| one.map(Into::into)))
                .collect(),
            counters: self.saved_counters(),
            limits: self.saved_limits(),
        }
    }

    /// Sets what a driver has told another card that was made as this one, which is paused and has the features and
    /// the queues that that one had.
    pub(super) fn take_over(&self, saved: &SavedNet) -> Result<(), Error> {
        let mut state = lock(&self.state);
        let features = NetF::from(state.features);
        let filter = self.check(saved, features)?;
        let tunnels = self.check_tunnels(saved, features)?;
        self.check_spent(saved)?;
        let steering = saved.steering.as_ref().map(|table| Table {
            pairs: table.pairs.clone(),
            unclassified: table.unclassified,
        });
        let host = |field: &str, error: std::io::Error| {
            Error::refused(SECTION, field, format!("the backend refuses: {error}"))
        };
        set_guest_offloads(&self.shared, &self.pairs, saved.offloads)
            .map_err(|error| host("offloads", error))?;
        set_queue_pairs(&self.pairs, saved.pairs.into()).map_err(|error| host("pairs", error))?;
        self.shared.filter.change(|now| *now = filter);
        self.shared.change_hashing(|hashing| {
            hashing.set(saved.hash_types, &saved.hash_key);
            hashing.set_steering(steering);
            hashing.set_tunnels(tunnels);
        });
        let [rx, tx] = saved.coalescing.map(Into::into);
        *lock(&self.shared.coalescing) = CoalescingByDirection { rx, tx };
        for (pair, [rx, tx]) in self.pairs.iter().zip(&saved.queue_coalescing) {
            // Those that are not there begin with what was said of all.
            let _ = rx.and_then(|rx| pair.set_rx_coalescing(rx.into()));
            let _ = tx.and_then(|tx| pair.set_tx_coalescing(tx.into()));
        }
        self.take_over_spent(saved);
        self.shared.restore_asked(saved.announce_asked);
        let link_up = self.shared.status().contains(virtio::net::S::LINK_UP);
        state.on_resume = OnResume {
            announce: self.shared.announcing().0,
            link: link_up != saved.link_up,
        };
        Ok(())
    }

    /// Whether `saved` fits, so that nothing but the backend can refuse it; its filter.
    fn check(&self, saved: &SavedNet, features: NetF) -> Result<Filter, Error> {
        let refused = |field, reason: String| Err(Error::refused(SECTION, field, reason));
        let mine = self.config_space.fixed();
        if saved.config != mine {
            let same = mine.iter().zip(&saved.config).take_while(|(a, b)| a == b);
            let reason = format!(
                "the card is another: its configuration space is not the same at {}",
                same.count()
            );
            return refused("config", reason);
        }
        let known = self.pairs.len();
        if saved.pairs == 0 || usize::from(saved.pairs) > known {
            let reason = format!("{} of {known} are in use", saved.pairs);
            return refused("pairs", reason);
        }
        // Before features are final the backend is told of none.
        if !settable_offloads(features).contains(saved.offloads) {
            let more = saved.offloads - features;
            return refused("offloads", format!("{more:?} was not negotiated"));
        }
        let unknown = saved.hash_types - supported_types();
        if !unknown.is_empty() {
            return refused("hash_types", format!("no hash is {unknown:?}"));
        }
        if let Some(SavedSteering {
            pairs,
            unclassified,
        }) = &saved.steering
        {
            let len = pairs.len();
            if !len.is_power_of_two() || len > MAX_TABLE {
                return refused("steering", format!("no table has {len} entries"));
            }
            let last = pairs.iter().copied().fold(*unclassified, u16::max);
            if last >= saved.pairs {
                return refused("steering", format!("pair {last} is not in use"));
            }
        }
        if self
            .shared
            .source()
            .is_some_and(|it| it != saved.filter.mac)
        {
            let reason = "the card may have no address but its own".to_owned();
            return refused("filter.mac", reason);
        }
        saved.filter.to_filter(features)
    }
}

impl<M: QueueMemory> VirtioNet<M> {
    /// The tunnels that are looked into, if the driver may have asked for them.
    fn check_tunnels(&self, saved: &SavedNet, features: NetF) -> Result<Tunnels, Error> {
        let bits = saved.hash_tunnels;
        let refused = |reason| Error::refused(bytes::TUNNELS, "tunnels", reason);
        let unknown = || refused(format!("{bits:#x} has one that is not known"));
        let tunnels = Tunnels::from_bits(bits).ok_or_else(unknown)?;
        if tunnels != Tunnels::NONE && !features.contains(NetF::HASH_TUNNEL) {
            return Err(refused("the feature was not negotiated".to_owned()));
        }
        Ok(tunnels)
    }
}

impl SavedFilter {
    fn of(filter: &Filter) -> Self {
        let Filter {
            mac,
            modes,
            unicast,
            multicast,
            vlans,
        } = filter;
        let macs = |table: &MacTable| match table {
            MacTable::These(macs) => Some(macs.clone()),
            MacTable::Overflown => None,
        };
        Self {
            mac: *mac,
            modes: modes_to_bits(modes),
            unicast: macs(unicast),
            multicast: macs(multicast),
            vlans: vlans.as_ref().map(|vlans| Box::new(*vlans.words())),
        }
    }

    fn to_filter(&self, features: NetF) -> Result<Filter, Error> {
        let refused = |field, reason: &str| Err(Error::refused(SECTION, field, reason));
        let macs = |table: &Option<Vec<Mac>>| match table {
            Some(macs) => MacTable::These(macs.clone()),
            None => MacTable::Overflown,
        };
        let (unicast, multicast) = (macs(&self.unicast), macs(&self.multicast));
        if unicast.len() + multicast.len() > MAC_TABLE_ENTRIES {
            return refused("filter.unicast", "more addresses than a table takes");
        }
        if self.vlans.is_some() != features.contains(NetF::CTRL_VLAN) {
            return refused("filter.vlans", "the features say otherwise");
        }
        Ok(Filter {
            mac: self.mac,
            modes: match modes_from_bits(self.modes) {
                Some(modes) => modes,
                None => return refused("filter.modes", "a mode that is not known"),
            },
            unicast,
            multicast,
            vlans: (self.vlans.as_ref()).map(|words| VlanTable::from_words(**words)),
        })
    }
}

/// Bit 0 is `VIRTIO_NET_CTRL_RX_PROMISC`, and so on.
fn modes_to_bits(modes: &Modes) -> u8 {
    let Modes {
        promisc,
        allmulti,
        alluni,
        nomulti,
        nouni,
        nobcast,
    } = *modes;
    [promisc, allmulti, alluni, nomulti, nouni, nobcast]
        .into_iter()
        .rev()
        .fold(0, |bits, mode| bits << 1 | u8::from(mode))
}

fn modes_from_bits(bits: u8) -> Option<Modes> {
    let [promisc, allmulti, alluni, nomulti, nouni, nobcast] =
        [0, 1, 2, 3, 4, 5].map(|mode| bits >> mode & 1 != 0);
    let modes = Modes {
        promisc,
        allmulti,
        alluni,
        nomulti,
        nouni,
        nobcast,
    };
    (modes_to_bits(&modes) == bits).then_some(modes)
}

impl From<Coalescing> for SavedCoalescing {
    fn from(coalescing: Coalescing) -> Self {
        let Coalescing {
            max_packets,
            max_usecs,
        } = coalescing;
        Self {
            max_packets,
            max_usecs,
        }
    }
}

impl From<SavedCoalescing> for Coalescing {
    fn from(saved: SavedCoalescing) -> Self {
        let SavedCoalescing {
            max_packets,
            max_usecs,
        } = saved;
        Self {
            max_packets,
            max_usecs,
        }
    }
}

/// Numbers as the sets that they stand for.
fn offloads_from(bits: u128) -> NetF {
    NetF::from_bits_retain(le128::from_ne(bits))
}

fn hash_types_from(bits: u32) -> HashType {
    HashType::from_bits_retain(le32::from_ne(bits))
}
