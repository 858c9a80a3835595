//! What a NIC is made with, and its configuration space (virtio 1.4, 5.1.4).

use std::str::FromStr;

use virtio::net::{F as NetF, S};

use crate::filter::Mac;
use crate::hash::{KEY_LEN, MAX_TABLE, Tunnels, supported_types};
use crate::{RateLimit, VirtioNetError};

/// How a NIC is made. Each field is the property of QEMU's `virtio-net-pci` of the same name, with `_`
/// for `-`; the defaults are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioNetConfig {
    /// MAC address. The default is QEMU's first, 52:54:00:12:34:56; giving each NIC of a machine its
    /// own is up to whoever makes several.
    pub mac: [u8; 6],
    /// The largest MTU that the driver should use, 68 to 65535 bytes, or 0 to say nothing
    /// (`VIRTIO_NET_F_MTU`).
    pub host_mtu: u16,
    /// Entries of a receive queue: a power of two, 256 to 32768.
    pub rx_queue_size: u16,
    /// Entries of a transmit queue: a power of two, 256 to 32768.
    pub tx_queue_size: u16,
    /// The link's speed in Mb/s as the driver is told it, at most 2^31 - 1; `None` for one that is unknown.
    pub speed: Option<u32>,
    /// The link's duplex mode as the driver is told it; `None` for one that is unknown.
    pub duplex: Option<Duplex>,
    /// All queue pairs of the backend are offered, not the first alone.
    pub mq: bool,
    /// The driver may say by the hash of its flow which queue a received frame goes to.
    pub rss: bool,
    /// The driver is told the hash of each frame that it receives.
    pub hash: bool,
    /// The driver may have hashes of tunnels' packets made of the packet inside; with `rss` or `hash`. No property of
    /// QEMU's.
    pub hash_tunnel: bool,
    /// When what the driver makes available for transmission is taken.
    pub tx: TxMitigation,
    /// With [`TxMitigation::Timer`], how long after the driver's kick, in nanoseconds.
    pub x_txtimer: u32,
    /// Frames that are transmitted in one turn, before others on the same context have theirs.
    pub x_txburst: u32,
    /// The driver may leave checksums of frames that it sends to the host.
    pub csum: bool,
    /// The driver takes frames with partial checksums.
    pub guest_csum: bool,
    /// Drivers from before virtio 1.0 are told in one feature of all large frames that they may send.
    pub gso: bool,
    /// The driver may send large TCP over IPv4 frames.
    pub host_tso4: bool,
    /// The driver may send large TCP over IPv6 frames.
    pub host_tso6: bool,
    /// The driver may send large TCP frames with ECN.
    pub host_ecn: bool,
    /// The driver may send large UDP frames, to be fragmented.
    pub host_ufo: bool,
    /// The driver may send large UDP frames, to be segmented.
    pub host_uso: bool,
    /// The driver takes large TCP over IPv4 frames.
    pub guest_tso4: bool,
    /// The driver takes large TCP over IPv6 frames.
    pub guest_tso6: bool,
    /// The driver takes large TCP frames with ECN.
    pub guest_ecn: bool,
    /// The driver takes large UDP frames.
    pub guest_ufo: bool,
    /// TCP segments are put together before the driver gets them, where the backend has not done so; it is told how many
    /// ([`FlushReason`](crate::FlushReason) says when it gets them).
    pub guest_rsc_ext: bool,
    /// For how long they are kept for that at most, in nanoseconds.
    pub rsc_interval: u32,
    /// The driver takes large segmented UDP over IPv4 frames.
    pub guest_uso4: bool,
    /// The driver takes large segmented UDP over IPv6 frames.
    pub guest_uso6: bool,
    /// The driver may send large frames inside UDP tunnels.
    pub host_tunnel: bool,
    /// It may leave the tunnel's checksum to the host.
    pub host_tunnel_csum: bool,
    /// The driver takes large frames inside UDP tunnels.
    pub guest_tunnel: bool,
    /// It takes them with a partial checksum of the tunnel's.
    pub guest_tunnel_csum: bool,
    /// A frame may be spread over several receive buffers.
    pub mrg_rxbuf: bool,
    /// Configuration space has the link's state.
    pub status: bool,
    /// There is a control queue.
    pub ctrl_vq: bool,
    /// The control queue is the front end's of a vhost-user connection: the device has none, of what needs one
    /// it offers several pairs only, and
    /// [`set_queue_enabled`](virtio_bus::VirtioDevice::set_queue_enabled) says which of them are in use. No
    /// property of QEMU's.
    pub ctrl_by_front_end: bool,
    /// The driver may say which frames it wants, by address.
    pub ctrl_rx: bool,
    /// The driver may say which frames it wants, by more modes.
    pub ctrl_rx_extra: bool,
    /// The driver may say which VLANs' frames it wants.
    pub ctrl_vlan: bool,
    /// The driver may change the NIC's address.
    pub ctrl_mac_addr: bool,
    /// The driver may have its notifications held back, by number and time.
    pub notf_coal: bool,
    /// It may have so by queue.
    pub vq_notf_coal: bool,
    /// The driver may ask for what the device counts.
    pub device_stats: bool,
    /// The driver may say how long headers of large frames are, exactly.
    pub guest_hdrlen: bool,
    /// Frames that the driver sends have the NIC's own address as their source, or are dropped; and the driver may not
    /// change that address.
    pub anti_spoof: bool,
    /// How fast frames are given to the driver.
    pub rx_limit: RateLimit,
    /// How fast frames are taken from the driver.
    pub tx_limit: RateLimit,
    /// The driver may pair the NIC with another of the same address that it prefers.
    pub failover: bool,
    /// The driver may be asked to announce itself on the link ([`announce_self`](crate::VirtioNet::announce_self)).
    pub guest_announce: bool,
    /// The driver may change the `guest_*` offloads while it runs.
    pub ctrl_guest_offloads: bool,
    /// Descriptors may refer to indirect tables.
    pub indirect_desc: bool,
    /// Notifications are suppressed by event indices.
    pub event_idx: bool,
    /// The driver may reset one queue, if the transport can.
    pub queue_reset: bool,
    /// Rings may be packed.
    pub packed: bool,
    /// The device uses buffers in the order in which they were made available.
    pub in_order: bool,
}

/// A link's duplex mode (virtio 1.4, 5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplex {
    /// One direction at a time.
    Half = 0,
    /// Both directions at once.
    Full = 1,
}

impl FromStr for Duplex {
    type Err = VirtioNetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "half" => Ok(Self::Half),
            "full" => Ok(Self::Full),
            _ => Err(VirtioNetError::Duplex(text.to_owned())),
        }
    }
}

/// When what the driver makes available for transmission is taken: QEMU's `tx`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxMitigation {
    /// At the driver's kick.
    #[default]
    Bh,
    /// Some time after its kick ([`x_txtimer`](VirtioNetConfig::x_txtimer)), so that one turn is for more frames. A
    /// driver that kicks once more meanwhile is not kept waiting any longer.
    Timer,
}

impl FromStr for TxMitigation {
    type Err = VirtioNetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "bh" => Ok(Self::Bh),
            "timer" => Ok(Self::Timer),
            _ => Err(VirtioNetError::Tx(text.to_owned())),
        }
    }
}

impl Default for VirtioNetConfig {
    fn default() -> Self {
        Self {
            mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            host_mtu: 0,
            rx_queue_size: 256,
            tx_queue_size: 256,
            speed: None,
            duplex: None,
            mq: false,
            rss: false,
            hash: false,
            hash_tunnel: false,
            tx: TxMitigation::Bh,
            x_txtimer: 150_000,
            x_txburst: 256,
            csum: true,
            guest_csum: true,
            gso: true,
            host_tso4: true,
            host_tso6: true,
            host_ecn: true,
            host_ufo: true,
            host_uso: true,
            guest_tso4: true,
            guest_tso6: true,
            guest_ecn: true,
            guest_ufo: true,
            guest_rsc_ext: false,
            rsc_interval: 300_000,
            guest_uso4: true,
            guest_uso6: true,
            host_tunnel: true,
            host_tunnel_csum: true,
            guest_tunnel: true,
            guest_tunnel_csum: true,
            mrg_rxbuf: true,
            status: true,
            ctrl_vq: true,
            ctrl_by_front_end: false,
            ctrl_rx: true,
            ctrl_rx_extra: true,
            ctrl_vlan: true,
            ctrl_mac_addr: true,
            notf_coal: true,
            vq_notf_coal: true,
            device_stats: true,
            guest_hdrlen: true,
            anti_spoof: false,
            rx_limit: RateLimit::default(),
            tx_limit: RateLimit::default(),
            failover: false,
            guest_announce: true,
            ctrl_guest_offloads: true,
            indirect_desc: true,
            event_idx: true,
            queue_reset: true,
            packed: false,
            in_order: false,
        }
    }
}

/// Where each field of the configuration space begins (virtio 1.4, 5.1.4).
mod field {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
    pub(super) const SPEED: usize = 12;
    pub(super) const DUPLEX: usize = 16;
    pub(super) const RSS_MAX_KEY_SIZE: usize = 17;
    pub(super) const RSS_MAX_TABLE_LENGTH: usize = 18;
    pub(super) const SUPPORTED_HASH_TYPES: usize = 20;
    pub(super) const SUPPORTED_TUNNEL_TYPES: usize = 24;
    pub(super) const END: usize = 28;
}

/// `speed` and `duplex` where they are unknown (virtio 1.4, 5.1.4).
const UNKNOWN_SPEED: u32 = 0xffff_ffff;
const UNKNOWN_DUPLEX: u8 = 0xff;

const MAX_KEY_SIZE: u8 = 40;
const _: () = assert!(MAX_KEY_SIZE as usize == KEY_LEN);
const MAX_TABLE_LENGTH: u16 = 128;
const _: () = assert!(MAX_TABLE_LENGTH as usize == MAX_TABLE);

/// The configuration space, but for what changes: as long as the offered features need it.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; field::END],
    len: usize,
}

impl ConfigSpace {
    pub(crate) fn new(config: &VirtioNetConfig, offered: NetF, pairs: u16) -> Self {
        let mut bytes = [0; field::END];
        if offered.intersects(NetF::MQ | NetF::RSS) {
            bytes[field::MAX_VIRTQUEUE_PAIRS..field::MTU].copy_from_slice(&pairs.to_le_bytes());
        }
        bytes[field::MTU..field::SPEED].copy_from_slice(&config.host_mtu.to_le_bytes());
        let speed = config.speed.unwrap_or(UNKNOWN_SPEED);
        bytes[field::SPEED..field::DUPLEX].copy_from_slice(&speed.to_le_bytes());
        bytes[field::DUPLEX] = config.duplex.map_or(UNKNOWN_DUPLEX, |duplex| duplex as u8);
        if offered.intersects(NetF::RSS | NetF::HASH_REPORT) {
            bytes[field::RSS_MAX_KEY_SIZE] = MAX_KEY_SIZE;
            let types = supported_types().bits().to_ne().to_le_bytes();
            bytes[field::SUPPORTED_HASH_TYPES..field::SUPPORTED_TUNNEL_TYPES]
                .copy_from_slice(&types);
        }
        if offered.contains(NetF::RSS) {
            bytes[field::RSS_MAX_TABLE_LENGTH..field::SUPPORTED_HASH_TYPES]
                .copy_from_slice(&MAX_TABLE_LENGTH.to_le_bytes());
        }
        if offered.contains(NetF::HASH_TUNNEL) {
            let tunnels = Tunnels::ALL.bits().to_le_bytes();
            bytes[field::SUPPORTED_TUNNEL_TYPES..field::END].copy_from_slice(&tunnels);
        }
        let len = if offered.contains(NetF::HASH_TUNNEL) {
            field::END
        } else if offered.intersects(NetF::RSS | NetF::HASH_REPORT) {
            field::SUPPORTED_TUNNEL_TYPES
        } else if offered.contains(NetF::SPEED_DUPLEX) {
            field::RSS_MAX_KEY_SIZE
        } else if offered.contains(NetF::MTU) {
            field::SPEED
        } else if offered.contains(NetF::MQ) {
            field::MTU
        } else if offered.contains(NetF::STATUS) {
            field::MAX_VIRTQUEUE_PAIRS
        } else {
            field::STATUS
        };
        Self { bytes, len }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All of it that does not change: the address and the status are 0.
    pub(crate) fn fixed(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Copies what lies at `offset` of a NIC that has this address and status; beyond the end `data` stays as it is.
    pub(crate) fn read(&self, mac: Mac, status: S, offset: usize, data: &mut [u8]) {
        let mut bytes = self.bytes;
        bytes[field::MAC..field::STATUS].copy_from_slice(&mac);
        bytes[field::STATUS..field::MAX_VIRTQUEUE_PAIRS]
            .copy_from_slice(&status.bits().to_ne().to_le_bytes());
        let there = bytes[..self.len].get(offset..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(there) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_space_is_as_long_as_its_features() {
        let table = [
            (NetF::MAC, 6),
            (NetF::MAC | NetF::STATUS, 8),
            (NetF::MAC | NetF::STATUS | NetF::MQ, 10),
            (NetF::MAC | NetF::MTU, 12),
            (NetF::MAC | NetF::SPEED_DUPLEX, 17),
            (NetF::MAC | NetF::RSS, 24),
            (NetF::MAC | NetF::HASH_REPORT, 24),
            (NetF::RSS | NetF::HASH_REPORT | NetF::HASH_TUNNEL, 28),
        ];
        for (offered, len) in table {
            let space = ConfigSpace::new(&VirtioNetConfig::default(), offered, 1);
            assert_eq!(space.len(), len, "{offered:?}");
        }
    }

    const MAC: Mac = [0x52, 0x54, 0x00, 0x12, 0x34, 0x99];

    #[test]
    fn fields_read_at_every_offset_and_width() {
        let config = VirtioNetConfig {
            host_mtu: 0x1234,
            speed: Some(0x0123_4567),
            duplex: Some(Duplex::Full),
            ..Default::default()
        };
        let offered = NetF::MAC | NetF::STATUS | NetF::MTU | NetF::MQ | NetF::SPEED_DUPLEX;
        let space = ConfigSpace::new(&config, offered, 0x0102);
        let whole = [
            0x52, 0x54, 0x00, 0x12, 0x34, 0x99, 1, 0, 2, 1, 0x34, 0x12, 0x67, 0x45, 0x23, 1, 1,
            0xa5, 0xa5,
        ];
        for offset in 0..whole.len() {
            for len in 0..=whole.len() - offset {
                let mut data = vec![0xa5; len];
                space.read(MAC, S::LINK_UP, offset, &mut data);
                assert_eq!(data, whole[offset..offset + len], "{offset}+{len}");
            }
        }
        let mut far = [0xa5];
        space.read(MAC, S::LINK_UP, usize::MAX, &mut far);
        assert_eq!(far, [0xa5]);
    }

    /// virtio 1.4, 5.1.4.1
    #[test]
    fn hash_fields_are_there_with_the_features_that_need_them() {
        let table = [
            (NetF::SPEED_DUPLEX, [0xa5; 7], [0, 0]),
            (NetF::HASH_REPORT, [40, 0, 0, 0xff, 1, 0, 0], [0, 0]),
            (NetF::RSS, [40, 128, 0, 0xff, 1, 0, 0], [3, 0]),
            (
                NetF::RSS | NetF::HASH_REPORT,
                [40, 128, 0, 0xff, 1, 0, 0],
                [3, 0],
            ),
        ];
        for (offered, fields, pairs) in table {
            let space = ConfigSpace::new(&VirtioNetConfig::default(), offered, 3);
            let mut data = [0xa5; 7];
            space.read(MAC, S::LINK_UP, 17, &mut data);
            assert_eq!(data, fields, "{offered:?}");
            let mut data = [0xa5; 2];
            space.read(MAC, S::LINK_UP, 8, &mut data);
            assert_eq!(data, pairs, "{offered:?}");
        }
    }

    #[test]
    fn speed_and_duplex_say_so_where_they_are_unknown() {
        let table = [
            (None, Some(Duplex::Half), [0xff, 0xff, 0xff, 0xff, 0]),
            (Some(10_000), None, [0x10, 0x27, 0, 0, 0xff]),
            (Some(0), Some(Duplex::Full), [0, 0, 0, 0, 1]),
        ];
        for (speed, duplex, expected) in table {
            let config = VirtioNetConfig {
                speed,
                duplex,
                ..Default::default()
            };
            let space = ConfigSpace::new(&config, NetF::SPEED_DUPLEX, 1);
            let mut data = [0xa5; 5];
            space.read(MAC, S::LINK_UP, 12, &mut data);
            assert_eq!(data, expected, "{speed:?}, {duplex:?}");
        }
    }

    #[test]
    fn status_is_read_as_it_is() {
        let space = ConfigSpace::new(&VirtioNetConfig::default(), NetF::STATUS, 1);
        let table = [
            (S::LINK_UP, [1, 0]),
            (S::empty(), [0, 0]),
            (S::LINK_UP | S::ANNOUNCE, [3, 0]),
        ];
        for (status, expected) in table {
            let mut data = [0xa5; 2];
            space.read(MAC, status, 6, &mut data);
            assert_eq!(data, expected, "{status:?}");
        }
    }
}
