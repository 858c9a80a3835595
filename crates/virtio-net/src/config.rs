//! What a NIC is made with, and its configuration space (virtio 1.4, 5.1.4).

use virtio::net::{F as NetF, S};

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
    /// Entries of a receive queue: a power of two, 256 to 1024.
    pub rx_queue_size: u16,
    /// Entries of a transmit queue: a power of two, 256 to 1024.
    pub tx_queue_size: u16,
    /// Frames that are transmitted in one turn, before others on the same context have theirs.
    pub x_txburst: u32,
    /// The driver may leave checksums of frames that it sends to the host.
    pub csum: bool,
    /// The driver takes frames with partial checksums.
    pub guest_csum: bool,
    /// The driver may send large TCP over IPv4 frames.
    pub host_tso4: bool,
    /// The driver may send large TCP over IPv6 frames.
    pub host_tso6: bool,
    /// The driver may send large TCP frames with ECN.
    pub host_ecn: bool,
    /// The driver takes large TCP over IPv4 frames.
    pub guest_tso4: bool,
    /// The driver takes large TCP over IPv6 frames.
    pub guest_tso6: bool,
    /// The driver takes large TCP frames with ECN.
    pub guest_ecn: bool,
    /// A frame may be spread over several receive buffers.
    pub mrg_rxbuf: bool,
    /// Configuration space has the link's state.
    pub status: bool,
    /// There is a control queue.
    pub ctrl_vq: bool,
    /// The driver may change the `guest_*` offloads while it runs.
    pub ctrl_guest_offloads: bool,
    /// Descriptors may refer to indirect tables.
    pub indirect_desc: bool,
    /// Notifications are suppressed by event indices.
    pub event_idx: bool,
    /// The driver may reset one queue, if the transport can.
    pub queue_reset: bool,
}

impl Default for VirtioNetConfig {
    fn default() -> Self {
        Self {
            mac: [0x52, 0x54, 0x00, 0x12, 0x34, 0x56],
            host_mtu: 0,
            rx_queue_size: 256,
            tx_queue_size: 256,
            x_txburst: 256,
            csum: true,
            guest_csum: true,
            host_tso4: true,
            host_tso6: true,
            host_ecn: true,
            guest_tso4: true,
            guest_tso6: true,
            guest_ecn: true,
            mrg_rxbuf: true,
            status: true,
            ctrl_vq: true,
            ctrl_guest_offloads: true,
            indirect_desc: true,
            event_idx: true,
            queue_reset: true,
        }
    }
}

/// Where each field of the configuration space begins (virtio 1.4, 5.1.4).
mod field {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
    pub(super) const END: usize = 12;
}

/// The configuration space: as long as the offered features need it.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; field::END],
    len: usize,
}

impl ConfigSpace {
    pub(crate) fn new(config: &VirtioNetConfig, offered: NetF, pairs: u16) -> Self {
        let mut bytes = [0; field::END];
        bytes[field::MAC..field::STATUS].copy_from_slice(&config.mac);
        if offered.contains(NetF::MQ) {
            bytes[field::MAX_VIRTQUEUE_PAIRS..field::MTU].copy_from_slice(&pairs.to_le_bytes());
        }
        bytes[field::MTU..field::END].copy_from_slice(&config.host_mtu.to_le_bytes());
        let len = if offered.contains(NetF::MTU) {
            field::END
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

    /// Copies what lies at `offset`; beyond the end `data` stays as it is.
    pub(crate) fn read(&self, link_up: bool, offset: usize, data: &mut [u8]) {
        let mut bytes = self.bytes;
        let status = if link_up { S::LINK_UP } else { S::empty() };
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
        ];
        for (offered, len) in table {
            let space = ConfigSpace::new(&VirtioNetConfig::default(), offered, 1);
            assert_eq!(space.len(), len, "{offered:?}");
        }
    }

    #[test]
    fn fields_read_at_every_offset_and_width() {
        let config = VirtioNetConfig {
            host_mtu: 0x1234,
            ..Default::default()
        };
        let space = ConfigSpace::new(&config, NetF::MAC | NetF::STATUS | NetF::MTU, 1);
        let whole = [
            0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 1, 0, 0, 0, 0x34, 0x12, 0xa5, 0xa5,
        ];
        for offset in 0..whole.len() {
            for len in 0..=whole.len() - offset {
                let mut data = vec![0xa5; len];
                space.read(true, offset, &mut data);
                assert_eq!(data, whole[offset..offset + len], "{offset}+{len}");
            }
        }
        let mut far = [0xa5];
        space.read(true, usize::MAX, &mut far);
        assert_eq!(far, [0xa5]);
    }

    #[test]
    fn status_follows_the_link() {
        let space = ConfigSpace::new(&VirtioNetConfig::default(), NetF::STATUS, 1);
        for (up, expected) in [(true, [1, 0]), (false, [0, 0])] {
            let mut data = [0xa5; 2];
            space.read(up, 6, &mut data);
            assert_eq!(data, expected, "{up}");
        }
    }
}
