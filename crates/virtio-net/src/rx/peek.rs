//! The start of a frame, for the filters to look at.

use net_client::{Frame, copy_from_iov};
use virtqueue::QueueMemory;

use crate::buffers::Chains;
use crate::filter::PEEK;
use crate::lend::Overflow;

/// The first bytes of a frame that is handed over, behind its header.
pub(super) fn peek_frame<'a>(
    frame: &Frame<'_>,
    host_header_len: usize,
    start: &'a mut [u8; PEEK],
) -> &'a [u8] {
    let there = frame.len.saturating_sub(host_header_len);
    let start = start.get_mut(..PEEK.min(there)).unwrap_or_default();
    let len = copy_from_iov(frame.iov, host_header_len, start);
    start.get(..len).unwrap_or_default()
}

/// Where a frame was read to.
pub(super) struct Place<'a, M: QueueMemory> {
    pub(super) chains: &'a Chains<M>,
    /// Guest bytes that it had, of those of `chains`.
    pub(super) room: usize,
    /// What it had behind them; looked at only where the frame is longer than `room`.
    pub(super) overflow: &'a mut Overflow,
    pub(super) header_len: usize,
}

impl<M: QueueMemory> Place<'_, M> {
    /// The first bytes of a frame of `guest_len` bytes, behind its header. The driver can change them
    /// meanwhile: what it then gets, or does not get, it could have asked for.
    pub(super) fn peek(self, guest_len: usize, start: &mut [u8; PEEK]) -> &[u8] {
        let there = guest_len.saturating_sub(self.header_len);
        let start = start.get_mut(..PEEK.min(there)).unwrap_or_default();
        let room = self.room.saturating_sub(self.header_len);
        let (in_guest, behind) = start.split_at_mut(start.len().min(room));
        self.chains.read_back(self.header_len, in_guest);
        if !behind.is_empty() {
            let skip = self.header_len.saturating_sub(self.room);
            let bytes = self.overflow.bytes(skip + behind.len());
            let bytes = bytes.get(skip..).unwrap_or_default();
            for (to, from) in behind.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
        start
    }
}
