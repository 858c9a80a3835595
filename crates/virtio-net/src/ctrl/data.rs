//! The data of a command, taken byte after byte from the driver's buffers.

use virtqueue::{Chain, QueueMemory};

use crate::filter::{Mac, MacTable};

/// What is left of the readable part of a chain. Each byte is read once, so that what was checked is what
/// is used; in whatever pieces it lies.
pub(super) struct Data<'a, M: QueueMemory> {
    chain: &'a Chain<M>,
    offset: usize,
}

impl<'a, M: QueueMemory> Data<'a, M> {
    pub(super) fn new(chain: &'a Chain<M>) -> Self {
        Self { chain, offset: 0 }
    }

    /// The next `N` bytes. `None`, and nothing taken, if there are fewer.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        if self.left() < N || self.chain.read(self.offset, &mut bytes) < N {
            return None;
        }
        self.offset += N;
        Some(bytes)
    }

    /// The next `N` bytes, if they are all that is left.
    pub(super) fn take_all<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take().filter(|_| self.is_empty())
    }

    /// The next table of addresses: how many, then as many (`struct virtio_net_ctrl_mac`; virtio 1.4,
    /// 5.1.9.5.2). `None` if fewer are left than it says. More than `room` are not kept: the table has
    /// overflown then.
    pub(super) fn take_macs(&mut self, little_endian: bool, room: usize) -> Option<MacTable> {
        let count = self.take()?;
        let count = if little_endian {
            u32::from_le_bytes(count)
        } else {
            u32::from_ne_bytes(count)
        };
        let count = usize::try_from(count).ok()?;
        let len = count.checked_mul(size_of::<Mac>())?;
        if len > self.left() {
            return None;
        }
        if count > room {
            self.offset += len;
            return Some(MacTable::Overflown);
        }
        (0..count)
            .map(|_| self.take())
            .collect::<Option<_>>()
            .map(MacTable::These)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left() == 0
    }

    fn left(&self) -> usize {
        self.chain.readable_len().saturating_sub(self.offset)
    }
}
