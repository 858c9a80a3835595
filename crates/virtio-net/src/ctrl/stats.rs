//! `VIRTIO_NET_CTRL_STATS` (virtio 1.4, 5.1.9.5.11): what the device counts, as the driver may ask for it.

use virtio::net::F as NetF;
use virtqueue::{QueueIndex, QueueMemory};

use super::command::Commands;
use super::data::Data;
use crate::role::{Role, role};

/// The class.
pub(super) const CLASS: u8 = 8;

const QUERY: u8 = 0;
const GET: u8 = 1;

// Types, by the number in a reply; in a bitmap the bit of that number. Those of speed are not there: what exceeds
// a limit waits, and is not dropped.
const RX_BASIC: u8 = 0;
const RX_CSUM: u8 = 1;
const RX_GSO: u8 = 2;
const TX_BASIC: u8 = 16;
const TX_CSUM: u8 = 17;
const TX_GSO: u8 = 18;
const CVQ: u8 = 32;
const TYPES: [u8; 7] = [RX_BASIC, RX_CSUM, RX_GSO, TX_BASIC, TX_CSUM, TX_GSO, CVQ];

/// Queues, or one queue over and over, that may be asked for at once.
const MAX_ASKED: usize = 1024;

impl<M: QueueMemory> Commands<'_, M> {
    /// Does a command of the class, and says what it results in.
    pub(super) fn statistics(&self, command: u8, data: Data<'_, M>) -> Option<Vec<u8>> {
        self.negotiated(NetF::DEVICE_STATS)?;
        match command {
            QUERY if data.is_empty() => {
                let types = TYPES
                    .into_iter()
                    .fold(0_u64, |all, number| all | bit(number));
                Some(types.to_le_bytes().to_vec())
            }
            GET => self.get_statistics(data),
            _ => None,
        }
    }

    fn get_statistics(&self, mut data: Data<'_, M>) -> Option<Vec<u8>> {
        let mut replies = Vec::new();
        for _ in 0..MAX_ASKED {
            if data.is_empty() {
                return Some(replies);
            }
            let index = u16::from_le_bytes(data.take()?);
            let _reserved: [u8; 6] = data.take()?;
            let types = u64::from_le_bytes(data.take()?);
            let role = role(QueueIndex(index), self.features, self.pairs.len())?;
            let valid = TYPES
                .into_iter()
                .filter(|number| self.is_valid(role, *number));
            if types & !valid.clone().fold(0, |all, number| all | bit(number)) != 0 {
                return None;
            }
            for number in valid.filter(|number| types & bit(*number) != 0) {
                let counters = self.counters(role, number)?;
                let size = 8 + 8 * counters.len();
                replies.extend([number, 0]);
                replies.extend(index.to_le_bytes());
                replies.extend([0, 0]);
                replies.extend(u16::try_from(size).ok()?.to_le_bytes());
                replies.extend(counters.iter().flat_map(|counter| counter.to_le_bytes()));
            }
        }
        None
    }

    /// Whether a queue of this role has statistics of this type, for what was negotiated.
    fn is_valid(&self, role: Role, number: u8) -> bool {
        let segments = NetF::HOST_TSO4 | NetF::HOST_TSO6 | NetF::HOST_USO;
        match (role, number) {
            (Role::Rx(_), RX_BASIC) | (Role::Tx(_), TX_BASIC) | (Role::Ctrl, CVQ) => true,
            (Role::Rx(_), RX_CSUM) => self.features.contains(NetF::GUEST_CSUM),
            (Role::Rx(_), RX_GSO) => {
                (self.features).intersects(NetF::GUEST_TSO4 | NetF::GUEST_TSO6)
            }
            (Role::Tx(_), TX_CSUM) => self.features.contains(NetF::CSUM),
            (Role::Tx(_), TX_GSO) => self.features.intersects(segments),
            _ => false,
        }
    }

    /// The counters of a reply, in the order of its structure.
    fn counters(&self, role: Role, number: u8) -> Option<Vec<u64>> {
        Some(match role {
            Role::Rx(pair) => {
                let counted = self.pairs.get(pair)?.rx_statistics();
                match number {
                    RX_BASIC => vec![
                        counted.kicks,
                        counted.frames,
                        counted.bytes,
                        counted.notifications,
                        counted.dropped_in_all(),
                        counted.dropped_no_buffers,
                    ],
                    // Checksums are the backend's business: one that is bad is seen here only where segments are put
                    // together.
                    RX_CSUM => vec![
                        counted.csum_valid,
                        counted.csum_needed,
                        counted.csum_none,
                        counted.csum_bad,
                    ],
                    _ => vec![
                        counted.gso_frames,
                        counted.gso_bytes,
                        counted.rsc_frames,
                        counted.rsc_bytes,
                    ],
                }
            }
            Role::Tx(pair) => {
                let counted = self.pairs.get(pair)?.tx_statistics();
                match number {
                    TX_BASIC => vec![
                        counted.kicks,
                        counted.frames,
                        counted.bytes,
                        counted.notifications,
                        counted.dropped_in_all(),
                        counted.dropped_malformed(),
                    ],
                    TX_CSUM => vec![counted.csum_none, counted.csum_needed],
                    // The backend takes them as they are.
                    _ => vec![
                        counted.gso_frames,
                        counted.gso_bytes,
                        0,
                        0,
                        counted.gso_frames,
                        counted.gso_bytes,
                    ],
                }
            }
            Role::Ctrl => {
                let counted = self.counted;
                let commands = [counted.acknowledged, counted.refused, counted.unanswered];
                let before = commands.into_iter().fold(0, u64::wrapping_add);
                // The current one is among them.
                vec![before.wrapping_add(1), counted.acknowledged.wrapping_add(1)]
            }
        })
    }
}

fn bit(number: u8) -> u64 {
    1 << (number & 63)
}
