//! `VIRTIO_NET_CTRL_NOTF_COAL` (virtio 1.4, 5.1.9.5.10).

use virtio::net::F as NetF;
use virtqueue::{QueueIndex, QueueMemory};

use super::command::Commands;
use super::data::Data;
use crate::coalesce::Coalescing;
use crate::pair::Pair;
use crate::role::{Role, role};
use crate::shared::lock;

/// The class.
pub(super) const CLASS: u8 = 6;
/// `VIRTIO_NET_CTRL_NOTF_COAL_VQ_GET`, the only command whose result is part of its data: the driver reads it
/// in front of the answer.
pub(super) const VQ_GET: u8 = 3;
/// Bytes of its result: `struct virtio_net_ctrl_coal`.
pub(super) const VQ_GET_RESULT: usize = 8;

const TX_SET: u8 = 0;
const RX_SET: u8 = 1;
const VQ_SET: u8 = 2;

impl<M: QueueMemory> Commands<'_, M> {
    /// Does a command of the class, and says what it results in.
    pub(super) fn notifications(&self, command: u8, mut data: Data<'_, M>) -> Option<Vec<u8>> {
        self.negotiated(match command {
            TX_SET | RX_SET => NetF::NOTF_COAL,
            _ => NetF::VQ_NOTF_COAL,
        })?;
        match command {
            TX_SET => {
                let coalescing = take_coalescing(&mut data)?;
                lock(&self.shared.coalescing).tx = coalescing;
                for pair in self.pairs {
                    // Those that do not run begin with it.
                    let _ = pair.set_tx_coalescing(coalescing);
                }
            }
            RX_SET => {
                let coalescing = take_coalescing(&mut data)?;
                lock(&self.shared.coalescing).rx = coalescing;
                for pair in self.pairs {
                    let _ = pair.set_rx_coalescing(coalescing);
                }
            }
            VQ_SET => {
                let (pair, is_rx) = self.take_queue(&mut data)?;
                let coalescing = take_coalescing(&mut data)?;
                if is_rx {
                    pair.set_rx_coalescing(coalescing)?;
                } else {
                    pair.set_tx_coalescing(coalescing)?;
                }
            }
            VQ_GET => {
                let (pair, is_rx) = self.take_queue(&mut data)?;
                if !data.is_empty() {
                    return None;
                }
                let Coalescing {
                    max_packets,
                    max_usecs,
                } = if is_rx {
                    pair.rx_coalescing()?
                } else {
                    pair.tx_coalescing()?
                };
                return Some([max_packets.to_le_bytes(), max_usecs.to_le_bytes()].concat());
            }
            _ => return None,
        }
        Some(Vec::new())
    }

    /// The queue that comes first in the data of a queue's own commands, and whether it is a receive queue. The
    /// reserved field behind it is ignored.
    fn take_queue(&self, data: &mut Data<'_, M>) -> Option<(&Pair<M>, bool)> {
        let index = QueueIndex(u16::from_le_bytes(data.take()?));
        let _: [u8; 2] = data.take()?;
        match role(index, self.features, self.pairs.len())? {
            Role::Rx(pair) => Some((self.pairs.get(pair)?, true)),
            Role::Tx(pair) => Some((self.pairs.get(pair)?, false)),
            Role::Ctrl => None,
        }
    }
}

/// `struct virtio_net_ctrl_coal` that is all that is left.
fn take_coalescing<M: QueueMemory>(data: &mut Data<'_, M>) -> Option<Coalescing> {
    let max_packets = u32::from_le_bytes(data.take()?);
    let max_usecs = u32::from_le_bytes(data.take_all()?);
    Some(Coalescing {
        max_packets,
        max_usecs,
    })
}
