//! Frames that are as most small ones are.

use net_client::{Frame, IoVec, Received, Sender, Token};
use virtqueue::{QueueMemory, Segment};

use super::{ActiveTx, USUAL_HEADER};
use crate::header::MIN_FRAME;
use crate::lend::{FrameSlab, read_at};
use crate::statistics::{TxStatistics, count_bytes};

impl<M: QueueMemory> ActiveTx<M> {
    /// Sends frames for as long as each is in a chain of one or two buffers and [plain](lend_plain), and the peer is
    /// finished with it at once or keeps it: the chain is on no list unless the peer does. Taken of `left` are those that
    /// were offered. `true`: the peer has no room.
    #[inline(never)]
    pub(super) fn send_short(
        &mut self,
        sender: &Sender<'_>,
        left: &mut u32,
        statistics: &mut TxStatistics,
    ) -> bool {
        while *left > 0 {
            let Some(short) = self.flight.queue.peek() else {
                return false;
            };
            if short.is_writable() {
                return false;
            }
            let (head, segments) = (short.head(), short.segments());
            let Some(whole) = lend_plain(&mut self.slab, head, segments) else {
                return false;
            };
            *left -= 1;
            if self.layout.stats {
                statistics.csum_none += 1;
            }
            let pieces = segments.len();
            let received = sender.send(&Frame {
                token: Some(Token(u32::from(head))),
                iov: std::slice::from_ref(&whole),
                len: whole.len(),
            });
            self.unflushed = true;
            match received {
                Received::Taken => short.complete(0),
                Received::Lent => {
                    short.take(&mut self.chain);
                    self.flight.keep(&mut self.chain);
                }
                Received::Busy => {
                    short.take(&mut self.chain);
                    self.pending = true;
                    self.waiting = true;
                    statistics.busy += 1;
                    return true;
                }
            }
            statistics.frames += 1;
            // What the peer got, less the header that it got with it.
            count_bytes(&mut statistics.bytes, whole.len() - USUAL_HEADER);
            self.unfinished += pieces;
            if self.unfinished >= self.batch {
                // The driver makes more available meanwhile.
                self.finish(sender, statistics);
            }
        }
        false
    }
}

/// The checked header with the frame behind it, of what the device may read of the chain of `head`, where that is as most
/// small ones are: the two in one piece or in one each, nothing asked for by the header. Both sides have the usual one.
#[inline(always)]
pub(super) fn lend_plain(slab: &mut FrameSlab, head: u16, segments: &[Segment]) -> Option<IoVec> {
    let (frame, skip) = match segments {
        [one] => (one, USUAL_HEADER),
        [header, frame] if header.len() == USUAL_HEADER => (frame, 0),
        _ => return None,
    };
    let frame_len = frame.len().checked_sub(skip)?;
    // `flags`, `gso_type` and `hdr_len`: where these are 0, so is the header that the peer gets.
    if frame_len < MIN_FRAME || read_at(segments, 0)? != [0; 4] {
        return None;
    }
    slab.lend_plain::<USUAL_HEADER>(head, frame, skip)
}
