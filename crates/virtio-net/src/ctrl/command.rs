//! The commands of the control queue (virtio 1.4, 5.1.9.5).

use std::sync::Arc;

use virtio::net::{Ctrl as Class, F as NetF, HashType, ctrl};
use virtqueue::{Chain, QueueMemory};

use super::data::Data;
use super::{notifications, stats};
use crate::features::settable_offloads;
use crate::filter::MAC_TABLE_ENTRIES;
use crate::hash::{KEY_LEN, MAX_TABLE, Table, Tunnels, supported_types};
use crate::pair::{Pair, little_endian, set_guest_offloads, set_queue_pairs};
use crate::shared::Shared;
use crate::statistics::CtrlStatistics;

/// What commands work on.
pub(super) struct Commands<'a, M: QueueMemory> {
    pub(super) shared: &'a Shared,
    pub(super) pairs: &'a [Arc<Pair<M>>],
    /// What was negotiated.
    pub(super) features: NetF,
    /// What the queue has counted, before this command.
    pub(super) counted: CtrlStatistics,
}

/// How a command went.
pub(super) struct Answer {
    /// Where in the writable part the answer goes.
    pub(super) ack_at: usize,
    /// What it results in, if it was done: behind the answer, or all in front of it.
    pub(super) result: Option<Vec<u8>>,
}

impl<M: QueueMemory> Commands<'_, M> {
    /// Does the command in `chain`, if all is right with it; if not, nothing has changed.
    #[doc(alias = "virtio_net_handle_ctrl_iov")]
    pub(super) fn execute(&self, chain: &Chain<M>) -> Answer {
        let mut data = Data::new(chain);
        let mut answer = Answer {
            ack_at: 0,
            result: None,
        };
        let Some([class, command]) = data.take() else {
            return answer;
        };
        if (class, command) == (notifications::CLASS, notifications::VQ_GET) {
            if chain.writable_len() <= notifications::VQ_GET_RESULT {
                // There is no room for both.
                return answer;
            }
            answer.ack_at = notifications::VQ_GET_RESULT;
        }
        answer.result = match class {
            notifications::CLASS => self.notifications(command, data),
            stats::CLASS => self.statistics(command, data),
            HASH_TUNNEL if command == HASH_TUNNEL_SET => {
                self.hash_tunnel(data).map(|()| Vec::new())
            }
            _ => self.set(class, command, data).map(|()| Vec::new()),
        };
        answer
    }

    /// A command that results in nothing but an answer.
    fn set(&self, class: u8, command: u8, data: Data<'_, M>) -> Option<()> {
        match Class::try_from(class).ok()? {
            Class::Rx => self.rx(ctrl::Rx::try_from(command).ok()?, data),
            Class::Mac => self.mac(ctrl::Mac::try_from(command).ok()?, data),
            Class::Vlan => self.vlan(ctrl::Vlan::try_from(command).ok()?, data),
            Class::Announce => self.announce(ctrl::Announce::try_from(command).ok()?, &data),
            Class::Mq => match ctrl::Mq::try_from(command).ok()? {
                ctrl::Mq::VqPairsSet => self.queue_pairs(data),
                ctrl::Mq::RssConfig => self.rss(data),
                ctrl::Mq::HashConfig => self.hash(data),
                _ => None,
            },
            Class::GuestOffloads => {
                self.guest_offloads(ctrl::GuestOffloads::try_from(command).ok()?, data)
            }
            _ => None,
        }
    }

    /// `VIRTIO_NET_CTRL_RX` (virtio 1.4, 5.1.9.5.1). QEMU 7.2: whatever is not 0 switches on.
    #[doc(alias = "virtio_net_handle_rx_mode")]
    fn rx(&self, command: ctrl::Rx, mut data: Data<'_, M>) -> Option<()> {
        use ctrl::Rx::{Allmulti, Promisc};
        self.negotiated(match command {
            Promisc | Allmulti => NetF::CTRL_RX,
            _ => NetF::CTRL_RX_EXTRA,
        })?;
        let [on] = data.take_all()?;
        self.shared.filter.change(|filter| {
            let modes = &mut filter.modes;
            let mode = match command {
                Promisc => &mut modes.promisc,
                Allmulti => &mut modes.allmulti,
                ctrl::Rx::Alluni => &mut modes.alluni,
                ctrl::Rx::Nomulti => &mut modes.nomulti,
                ctrl::Rx::Nouni => &mut modes.nouni,
                ctrl::Rx::Nobcast => &mut modes.nobcast,
                _ => return None,
            };
            *mode = on != 0;
            Some(())
        })
    }

    /// `VIRTIO_NET_CTRL_MAC` (virtio 1.4, 5.1.9.5.2)
    #[doc(alias = "virtio_net_handle_mac")]
    fn mac(&self, command: ctrl::Mac, mut data: Data<'_, M>) -> Option<()> {
        match command {
            ctrl::Mac::AddrSet => {
                self.negotiated(NetF::CTRL_MAC_ADDR)?;
                let mac = data.take_all()?;
                // Frames of another would be dropped.
                if self.shared.source().is_some_and(|source| source != mac) {
                    return None;
                }
                self.shared.filter.change(|filter| filter.mac = mac);
                Some(())
            }
            ctrl::Mac::TableSet => {
                self.negotiated(NetF::CTRL_RX)?;
                let little_endian = little_endian(self.features);
                let unicast = data.take_macs(little_endian, MAC_TABLE_ENTRIES)?;
                let room = MAC_TABLE_ENTRIES - unicast.len();
                let multicast = data.take_macs(little_endian, room)?;
                if !data.is_empty() {
                    return None;
                }
                self.shared.filter.change(|filter| {
                    filter.unicast = unicast;
                    filter.multicast = multicast;
                });
                Some(())
            }
            _ => None,
        }
    }

    /// `VIRTIO_NET_CTRL_VLAN` (virtio 1.4, 5.1.9.5.3)
    #[doc(alias = "virtio_net_handle_vlan_table")]
    fn vlan(&self, command: ctrl::Vlan, mut data: Data<'_, M>) -> Option<()> {
        let wanted = match command {
            ctrl::Vlan::Add => true,
            ctrl::Vlan::Del => false,
            _ => return None,
        };
        self.negotiated(NetF::CTRL_VLAN)?;
        let id = self.take_u16(&mut data)?;
        self.shared.filter.change(|filter| {
            let table = filter.vlans.as_mut()?;
            table.set(id, wanted).then_some(())
        })
    }

    /// `VIRTIO_NET_CTRL_ANNOUNCE` (virtio 1.4, 5.1.9.5.4)
    #[doc(alias = "virtio_net_handle_announce")]
    fn announce(&self, command: ctrl::Announce, data: &Data<'_, M>) -> Option<()> {
        if command != ctrl::Announce::Ack || !data.is_empty() {
            return None;
        }
        self.negotiated(NetF::GUEST_ANNOUNCE)?;
        self.shared.announced();
        Some(())
    }

    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET` (virtio 1.4, 5.1.9.5.6)
    #[doc(alias = "virtio_net_handle_mq")]
    fn queue_pairs(&self, mut data: Data<'_, M>) -> Option<()> {
        self.negotiated(NetF::MQ)?;
        let count = usize::from(self.take_u16(&mut data)?);
        if count == 0 || count > self.pairs.len() {
            return None;
        }
        self.use_pairs(count)?;
        // What was said last counts: frames are steered by flow again.
        self.shared
            .change_hashing(|hashing| hashing.set_steering(None));
        Some(())
    }

    fn use_pairs(&self, count: usize) -> Option<()> {
        set_queue_pairs(self.pairs, count)
            .inspect_err(|error| tracing::debug!(%error, count, "backend refuses queues"))
            .ok()
    }

    /// `VIRTIO_NET_CTRL_MQ_RSS_CONFIG` (virtio 1.4, 5.1.9.5.7). The pairs in use are as many as may transmit, and as
    /// many as frames are steered to.
    #[doc(alias = "virtio_net_handle_rss")]
    fn rss(&self, mut data: Data<'_, M>) -> Option<()> {
        self.negotiated(NetF::RSS)?;
        let types = take_hash_types(&mut data)?;
        let len = usize::from(u16::from_le_bytes(data.take()?)) + 1;
        if !len.is_power_of_two() || len > MAX_TABLE {
            return None;
        }
        let pair = |data: &mut Data<'_, M>| {
            let pair = u16::from_le_bytes(data.take()?);
            (usize::from(pair) < self.pairs.len()).then_some(pair)
        };
        let unclassified = pair(&mut data)?;
        let pairs: Vec<u16> = (0..len).map(|_| pair(&mut data)).collect::<Option<_>>()?;
        let transmitting = usize::from(u16::from_le_bytes(data.take()?));
        if transmitting == 0 || transmitting > self.pairs.len() {
            return None;
        }
        let key = take_key(&mut data, types)?;
        let last = pairs.iter().copied().fold(unclassified, u16::max);
        self.use_pairs(transmitting.max(usize::from(last) + 1))?;
        // With one pair there is nowhere else to go.
        let table = (self.pairs.len() > 1).then_some(Table {
            pairs,
            unclassified,
        });
        self.shared.change_hashing(|hashing| {
            hashing.set(types, &key);
            hashing.set_steering(table);
        });
        Some(())
    }

    /// `VIRTIO_NET_CTRL_MQ_HASH_CONFIG` (virtio 1.4, 5.1.9.5.6.4)
    fn hash(&self, mut data: Data<'_, M>) -> Option<()> {
        self.negotiated(NetF::HASH_REPORT)?;
        let types = take_hash_types(&mut data)?;
        let [0, 0, 0, 0, 0, 0, 0, 0] = data.take()? else {
            return None;
        };
        let key = take_key(&mut data, types)?;
        self.shared.change_hashing(|hashing| {
            hashing.set(types, &key);
            hashing.set_steering(None);
        });
        Some(())
    }

    /// `VIRTIO_NET_CTRL_HASH_TUNNEL_SET` (virtio 1.4, 5.1.9.4.4)
    fn hash_tunnel(&self, mut data: Data<'_, M>) -> Option<()> {
        self.negotiated(NetF::HASH_TUNNEL)?;
        let tunnels = Tunnels::from_bits(u32::from_le_bytes(data.take_all()?))?;
        self.shared
            .change_hashing(|hashing| hashing.set_tunnels(tunnels));
        Some(())
    }

    /// `VIRTIO_NET_CTRL_GUEST_OFFLOADS` (virtio 1.4, 5.1.9.5.9)
    #[doc(alias = "virtio_net_handle_offloads")]
    fn guest_offloads(&self, command: ctrl::GuestOffloads, mut data: Data<'_, M>) -> Option<()> {
        if command != ctrl::GuestOffloads::Set {
            return None;
        }
        self.negotiated(NetF::CTRL_GUEST_OFFLOADS)?;
        let bytes = data.take_all()?;
        let bits = if little_endian(self.features) {
            u64::from_le_bytes(bytes)
        } else {
            u64::from_ne_bytes(bytes)
        };
        // Here the bits of tunnels are others: those of the features are past 64.
        let mut wanted = NetF::from_bits_retain(virtio::le128::from(u128::from(
            bits & !(TUNNEL | TUNNEL_CSUM),
        )));
        for (bit, feature) in [
            (TUNNEL, NetF::GUEST_UDP_TUNNEL_GSO),
            (TUNNEL_CSUM, NetF::GUEST_UDP_TUNNEL_GSO_CSUM),
        ] {
            if bits & bit != 0 {
                wanted |= feature;
            }
        }
        if !settable_offloads(self.features).contains(wanted) {
            return None;
        }
        set_guest_offloads(self.shared, self.pairs, wanted)
            .inspect_err(|error| tracing::debug!(%error, ?wanted, "backend refuses offloads"))
            .ok()
    }

    pub(super) fn negotiated(&self, feature: NetF) -> Option<()> {
        self.features.contains(feature).then_some(())
    }

    /// A number of 16 bits that is all that is left.
    fn take_u16(&self, data: &mut Data<'_, M>) -> Option<u16> {
        let bytes = data.take_all()?;
        Some(if little_endian(self.features) {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_ne_bytes(bytes)
        })
    }
}

/// `VIRTIO_NET_CTRL_HASH_TUNNEL`, and its one command.
const HASH_TUNNEL: u8 = 7;
const HASH_TUNNEL_SET: u8 = 0;

/// Bits of `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` (virtio 1.4, 5.1.9.5.9.1).
const TUNNEL: u64 = 1 << 46;
const TUNNEL_CSUM: u64 = 1 << 47;

/// A key with its length in front of it, that is all that is left; one that is shorter than a key may be has zeroes
/// behind it. Hashes need one.
fn take_key<M: QueueMemory>(data: &mut Data<'_, M>, types: HashType) -> Option<[u8; KEY_LEN]> {
    let [len] = data.take()?;
    if len == 0 && !types.is_empty() {
        return None;
    }
    let mut key = [0; KEY_LEN];
    for byte in key.get_mut(..usize::from(len))? {
        [*byte] = data.take()?;
    }
    data.is_empty().then_some(key)
}

fn take_hash_types<M: QueueMemory>(data: &mut Data<'_, M>) -> Option<HashType> {
    let bits = virtio::le32::from_ne(u32::from_le_bytes(data.take()?));
    let types = HashType::from_bits_retain(bits);
    supported_types().contains(types).then_some(types)
}
