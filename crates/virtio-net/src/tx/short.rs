//! Frames in short chains: of up to an MTU, in one buffer or behind their header in another.

use net_client::{Frame, IoVec, Received, Sender, Token};
use virtqueue::{QueueMemory, Segment};

use super::slab::FrameSlab;
use super::{ActiveTx, USUAL_HEADER};
use crate::header::{MAX_HEADER, MIN_FRAME, TxRules};
use crate::lend::read_at;
use crate::statistics::{TxStatistics, count_bytes};

impl<M: QueueMemory> ActiveTx<M> {
    /// Sends frames for as long as each is in a chain of one or two buffers and can be [copied](lend), and the peer is
    /// finished with it at once or keeps it: the chain is on no list unless the peer does. Taken of `left` are those
    /// that were offered. `true`: the peer has no room.
    #[inline(never)]
    pub(super) fn send_short(
        &mut self,
        sender: &Sender<'_>,
        left: &mut u32,
        statistics: &mut TxStatistics,
    ) -> bool {
        let little_endian = self.layout.little_endian;
        while *left > 0 {
            let Some(short) = self.flight.queue.peek() else {
                return false;
            };
            if short.is_writable() {
                return false;
            }
            let (head, segments) = (short.head(), short.segments());
            let slab = &mut self.flight.slab;
            let Some(lent) = lend(slab, &self.rules, little_endian, segments) else {
                return false;
            };
            *left -= 1;
            let pieces = segments.len();
            let received = sender.send(&Frame {
                token: Some(Token(u32::from(head))),
                iov: std::slice::from_ref(&lent.frame),
                len: lent.frame.len(),
            });
            self.unflushed = true;
            if received == Received::Busy {
                short.take(&mut self.chain);
                self.flight.slab.keep_header(head);
                self.pending = true;
                self.waiting = true;
                statistics.busy += 1;
                return true;
            }
            // What the peer got, less the header that it got with it.
            let frame_len = lent.frame.len() - USUAL_HEADER;
            statistics.frames += 1;
            count_bytes(&mut statistics.bytes, frame_len);
            if self.layout.stats {
                if lent.asks {
                    self.flight.slab.keep_header(head);
                    let header = self.flight.slab.header(head, little_endian);
                    header.count(frame_len, statistics);
                } else {
                    statistics.csum_none += 1;
                }
            }
            if received == Received::Lent {
                short.take(&mut self.chain);
                self.flight.keep(&mut self.chain, Some(&lent.frame));
            } else {
                short.complete(0);
            }
            self.unfinished += pieces;
            if self.unfinished >= self.batch {
                // The driver makes more available meanwhile.
                self.finish(sender, statistics);
            }
        }
        false
    }
}

/// A frame behind its header, copied.
pub(super) struct Lent {
    pub(super) frame: IoVec,
    /// The header asks for something.
    asks: bool,
}

/// Copies the checked header with the frame behind it, of what the device may read of a chain, where the two are in one
/// piece or in one each, and a copy is to be had. Both sides have the usual header. `None`: it is not so, or the frame
/// is not to be sent.
#[inline(always)]
pub(super) fn lend(
    slab: &mut FrameSlab,
    rules: &TxRules,
    little_endian: bool,
    segments: &[Segment],
) -> Option<Lent> {
    let (frame, skip) = match segments {
        [one] => (one, USUAL_HEADER),
        [header, frame] if header.len() == USUAL_HEADER => (frame, 0),
        _ => return None,
    };
    let frame_len = frame.len().checked_sub(skip)?;
    if !slab.takes(USUAL_HEADER + frame_len) {
        return None;
    }
    let there: [u8; USUAL_HEADER] = read_at(segments, 0)?;
    // `flags`, `gso_type` and `hdr_len`: where these are 0, so is the header that the peer gets.
    let asks = there.first_chunk() != Some(&[0; 4]);
    let header = if asks {
        check(rules, little_endian, &there, frame_len)?
    } else if frame_len < MIN_FRAME {
        return None;
    } else {
        [0; USUAL_HEADER]
    };
    Some(Lent {
        frame: slab.copy_usual(header, frame, skip)?,
        asks,
    })
}

/// What the peer is told of a frame of so many bytes whose header asks for something. `None`: the frame is not to be
/// sent.
#[inline(never)]
fn check(
    rules: &TxRules,
    little_endian: bool,
    header: &[u8; USUAL_HEADER],
    frame_len: usize,
) -> Option<[u8; USUAL_HEADER]> {
    let mut bytes = [0; MAX_HEADER];
    *bytes.first_chunk_mut()? = *header;
    let clean = rules.clean(&bytes, little_endian, frame_len).ok()?;
    clean.first_chunk().copied()
}
