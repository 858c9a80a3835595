//! Frames that are as most are: of up to an MTU, in one buffer or behind their header in another.

use net_client::{Frame, IoVec, Received, Sender, Token};
use virtqueue::{QueueMemory, Segment};

use super::slab::FrameSlab;
use super::{ActiveTx, USUAL_HEADER};
use crate::header::{Header, MAX_HEADER, MIN_FRAME, TxRules};
use crate::lend::read_at;
use crate::pair::Layout;
use crate::statistics::{TxStatistics, count_bytes};

impl<M: QueueMemory> ActiveTx<M> {
    /// Sends frames for as long as each is in a chain of one or two buffers and can be [copied](lend_whole), and the peer is
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
            let slab = &mut self.flight.slab;
            let whole = lend_whole(slab, &self.rules, &self.layout, segments, statistics);
            let Some(whole) = whole else {
                return false;
            };
            *left -= 1;
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
                    self.flight.keep(&mut self.chain, Some(&whole));
                }
                Received::Busy => {
                    short.take(&mut self.chain);
                    self.flight.slab.keep_header(head);
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

/// The checked header with the frame behind it, of what the device may read of a chain, where that is as most are: the two in
/// one piece or in one each, and a copy to be had. Both sides have the usual header. `None`: it is not, or the frame is not to
/// be sent.
#[inline(always)]
pub(super) fn lend_whole(
    slab: &mut FrameSlab,
    rules: &TxRules,
    layout: &Layout,
    segments: &[Segment],
    statistics: &mut TxStatistics,
) -> Option<IoVec> {
    let (frame, skip) = match segments {
        [one] => (one, USUAL_HEADER),
        [header, frame] if header.len() == USUAL_HEADER => (frame, 0),
        _ => return None,
    };
    let frame_len = frame.len().checked_sub(skip)?;
    // `flags`, `gso_type` and `hdr_len`: where these are 0, so is the header that the peer gets.
    if read_at(segments, 0)? != [0; 4] {
        let header = check(rules, layout, segments, frame_len)?;
        let bytes = header.emit(layout.little_endian);
        let whole = slab.lend_usual(*bytes.first_chunk()?, frame, skip)?;
        if layout.stats {
            header.count(frame_len, statistics);
        }
        return Some(whole);
    } else if frame_len < MIN_FRAME {
        return None;
    }
    let whole = slab.lend_usual([0; USUAL_HEADER], frame, skip)?;
    if layout.stats {
        statistics.csum_none += 1;
    }
    Some(whole)
}

/// The header of a frame of so many bytes that asks for something, as the peer is told of it. The first piece has it whole.
#[inline(never)]
fn check(
    rules: &TxRules,
    layout: &Layout,
    segments: &[Segment],
    frame_len: usize,
) -> Option<Header> {
    let mut bytes = [0; MAX_HEADER];
    *bytes.first_chunk_mut()? = read_at::<USUAL_HEADER>(segments, 0)?;
    let header = Header::parse(&bytes, layout.little_endian);
    rules.check(&header, frame_len).ok()
}
