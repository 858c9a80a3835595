//! Frames that are as most are.

use net_client::{Drained, FrameSource, Port, Read};
use virtqueue::{QueueError, QueueMemory, Segment};

use super::ActiveRx;
use crate::buffers::{complete_in_place, count_header};
use crate::filter::{FilterView, PEEK};
use crate::lend::{lend_on, read_at};
use crate::statistics::{RxStatistics, count_bytes};

impl<M: QueueMemory> ActiveRx<M> {
    /// Reads frames for as long as each goes into a chain of one or two buffers, which then never is on a list. `None`:
    /// the next does not, and is for the loop that can do all. Taken of `left` are those that were read.
    #[inline(never)]
    pub(super) fn receive_short(
        &mut self,
        source: &mut dyn FrameSource,
        longest: usize,
        left: &mut usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Option<Drained>, QueueError> {
        let header_len = self.layout.header_len;
        while *left > 0 {
            let want = self.expected.room(longest);
            if want == longest && self.batch.allowed && source.batch() > 1 {
                return Ok(None);
            }
            if self.buffers.is_batch(statistics) {
                // The driver fills its buffers again meanwhile.
                self.finish(statistics);
            }
            let Some(short) = self.buffers.queue.peek() else {
                return Ok(None);
            };
            let least = if self.mergeable { want } else { header_len };
            let room = short.len();
            let overflow = longest.saturating_sub(room);
            if !short.is_writable() || room < least || (overflow > 0 && self.reads.overflow_lent) {
                return Ok(None);
            }
            *left -= 1;
            self.iov.clear();
            for segment in short.segments() {
                lend_on(&mut self.iov, segment);
            }
            if overflow > 0 {
                self.iov.push(self.overflow.lend(overflow));
            }
            let token = self.reads.next_token();
            match source.read(token, &self.iov) {
                Read::Frame(len)
                    if len <= room.min(self.layout.longest)
                        && is_wanted(&mut self.filter, short.segments(), header_len, len)
                        && let Some(said) = complete_in_place(&self.layout, short.segments()) =>
                {
                    short.mark_written(len);
                    // Two buffers at most, whose lengths have 32 bits.
                    short.complete(u32::try_from(len).unwrap_or(u32::MAX));
                    self.expected.learn(len);
                    self.end_patience();
                    let frame_len = len - header_len;
                    if self.layout.stats {
                        count_header(said, frame_len, statistics);
                    }
                    statistics.frames += 1;
                    count_bytes(&mut statistics.bytes, frame_len);
                    statistics.buffers += 1;
                }
                Read::Frame(len) => {
                    short.take(self.buffers.ready.next());
                    self.buffers.ready.keep_next();
                    self.take_frame(len, room, overflow, port, statistics)?;
                    return Ok(None);
                }
                Read::Pending => {
                    let ready = &mut self.buffers.ready;
                    short.take(ready.next());
                    ready.keep_next();
                    self.reads.start(token, ready, room, overflow > 0);
                }
                Read::Empty | Read::Failed => return Ok(Some(Drained::Empty)),
            }
        }
        Ok(None)
    }
}

/// Whether the driver wants the frame in the first `len` bytes of `segments`, as far as can be told at once; no frame without
/// a whole header is wanted.
#[inline(always)]
fn is_wanted(filter: &mut FilterView, segments: &[Segment], header_len: usize, len: usize) -> bool {
    let filter = filter.look();
    if filter.is_open() {
        return len >= header_len;
    }
    if len < header_len + PEEK {
        return false;
    }
    // Behind the header, wherever that ends.
    let start = match segments {
        [header, frame @ ..] if header.len() == header_len => read_at(frame, 0),
        _ => read_at(segments, header_len),
    };
    start.is_some_and(|start: [u8; PEEK]| filter.passes(&start))
}
