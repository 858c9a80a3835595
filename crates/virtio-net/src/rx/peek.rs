//! The start of a frame, and whether the driver wants what begins so.

use net_client::{DropReason, Frame, Port, copy_from_iov};
use virtio::net::HdrGso;
use virtqueue::QueueMemory;

use crate::buffers::Chains;
use crate::filter::PEEK;
use crate::lend::{Overflow, read_at};
use crate::statistics::RxStatistics;

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
    #[inline]
    pub(super) fn peek(self, guest_len: usize, start: &mut [u8; PEEK]) -> &[u8] {
        let there = guest_len.saturating_sub(self.header_len);
        if there >= PEEK
            && self.room.saturating_sub(self.header_len) >= PEEK
            && let Some(first) = self.chains.front()
            && let Some(bytes) = read_at(first.writable(), self.header_len)
        {
            *start = bytes;
            return start;
        }
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

/// Why a frame is not for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its filters keep it out.
    Filtered,
    /// It is longer than the MTU that the driver has agreed to, and not to be segmented (virtio 1.4, 5.1.4.1).
    OverMtu,
}

impl Refused {
    pub(super) fn count(self, port: &Port, statistics: &mut RxStatistics) {
        let (counter, reason) = match self {
            Self::Filtered => (&mut statistics.dropped_filtered, DropReason::Filtered),
            Self::OverMtu => (&mut statistics.dropped_over_mtu, DropReason::TooLong),
        };
        *counter += 1;
        port.count_dropped_receiving(reason);
    }
}

/// Bytes of the tags in a frame that begins with `start`: they do not count towards its MTU.
pub(super) fn tags_len(start: &[u8]) -> usize {
    match start.get(12..14) {
        Some([0x81, 0x00]) => 4,
        // Of a service, around another.
        Some([0x88, 0xa8]) => 8,
        _ => 0,
    }
}

/// Whether a frame with this `gso_type` stands for several that are shorter.
pub(super) fn is_segmented([gso_type]: [u8; 1]) -> bool {
    gso_type & !u8::from(HdrGso::Ecn) != u8::from(HdrGso::None)
}
