//! The door of frames that are handed over, and copied.

use net_client::{DropReason, Frame, Port, Received};
use virtqueue::{QueueError, QueueMemory};

use super::{ActiveRx, BUDGET, count_filtered};
use crate::filter::PEEK;
use crate::lend::copy_frame;
use crate::pair::Layout;
use crate::rx::peek::peek_frame;
use crate::statistics::RxStatistics;

impl<M: QueueMemory> ActiveRx<M> {
    /// Copies a frame into buffers. Where there are not enough the peer keeps it, but not for ever.
    pub(in crate::rx) fn receive(
        &mut self,
        frame: &Frame<'_>,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Received, QueueError> {
        let Some(guest_len) = self.buffers.guest_len(frame.len) else {
            statistics.dropped_malformed += 1;
            port.count_dropped_receiving(DropReason::Malformed);
            return Ok(Received::Taken);
        };
        if !self.passes(frame) {
            count_filtered(port, statistics);
            return Ok(Received::Taken);
        }
        let mut fits = false;
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.buffers.gather(guest_len, statistics)?;
                fits = self.buffers.fits(guest_len);
                if fits {
                    break;
                }
                if !self.buffers.ready.list.is_empty() && (self.buffers.is_all() || self.overdue) {
                    self.drop_frame(port, statistics);
                    return Ok(Received::Taken);
                }
            }
            if !self.look_again(statistics)? {
                if !self.buffers.ready.list.is_empty() {
                    self.begin_patience();
                }
                return Ok(Received::Busy);
            }
        }
        if !fits {
            self.try_later();
            return Ok(Received::Busy);
        }
        let Layout {
            header_len,
            host_header_len,
            ..
        } = self.layout;
        let mut skip = 0;
        // The frame's own header comes first, at the start of the first chain; where it has none, what
        // comes first lies behind the room for one.
        let mut offset = header_len - host_header_len;
        for chain in &self.buffers.ready.list {
            let left = frame.len - skip;
            if left == 0 {
                break;
            }
            skip += copy_frame(chain.writable(), offset, frame.iov, skip, left);
            offset = offset.saturating_sub(chain.writable_len());
        }
        // A frame that says it is longer than its memory: `skip` is what there was.
        self.deliver_ready(header_len - host_header_len + skip, statistics);
        Ok(Received::Taken)
    }

    /// Whether the filters let a frame pass that is handed over.
    fn passes(&mut self, frame: &Frame<'_>) -> bool {
        let filter = self.filter.look();
        let mut start = [0; PEEK];
        filter.is_open()
            || filter.passes(peek_frame(frame, self.layout.host_header_len, &mut start))
    }
}
