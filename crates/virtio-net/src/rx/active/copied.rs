//! The door of frames that are handed over, and copied.

use net_client::{DropReason, Frame, Port, Received, copy_from_iov};
use virtqueue::{QueueError, QueueMemory};

use super::{ActiveRx, BUDGET};
use crate::filter::PEEK;
use crate::header::GSO_TYPE;
use crate::lend::copy_frame;
use crate::pair::Layout;
use crate::rsc::SAID;
use crate::rx::peek::{Refused, is_segmented, peek_frame, tags_len};
use crate::statistics::RxStatistics;

impl<M: QueueMemory> ActiveRx<M> {
    /// Takes a frame. Where there are not buffers enough the peer keeps it, but not for ever.
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
        if let Err(refused) = self.passes(frame, guest_len) {
            refused.count(port, statistics);
            return Ok(Received::Taken);
        }
        if self.segments.is_some() {
            return self.coalesce(frame, guest_len, port, statistics);
        }
        self.copy_in(frame, guest_len, None, port, statistics)
    }

    /// Copies a frame into buffers, with another start of its header perhaps.
    pub(super) fn copy_in(
        &mut self,
        frame: &Frame<'_>,
        guest_len: usize,
        said: Option<[u8; SAID]>,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Received, QueueError> {
        if let Some(received) = self.make_room(guest_len, port, statistics)? {
            return Ok(received);
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
        for chain in self.buffers.ready.iter() {
            let left = frame.len - skip;
            if left == 0 {
                break;
            }
            skip += copy_frame(chain.writable(), offset, frame.iov, skip, left);
            offset = offset.saturating_sub(chain.writable_len());
        }
        if let Some(said) = said {
            self.buffers.ready.write(0, &said);
        }
        // A frame that says it is longer than its memory: `skip` is what there was.
        self.deliver_ready(header_len - host_header_len + skip, statistics);
        Ok(Received::Taken)
    }

    /// Has buffers ready for a frame. If there are not enough: what becomes of it.
    pub(super) fn make_room(
        &mut self,
        guest_len: usize,
        port: &Port,
        statistics: &mut RxStatistics,
    ) -> Result<Option<Received>, QueueError> {
        let mut fits = false;
        for _ in 0..BUDGET {
            self.deliver_held(statistics)?;
            if self.held.is_none() {
                self.buffers.gather(guest_len, statistics)?;
                fits = self.buffers.fits(guest_len);
                if fits {
                    break;
                }
                if !self.buffers.ready.is_empty() && (self.buffers.is_all() || self.overdue) {
                    self.drop_frame(port, statistics);
                    return Ok(Some(Received::Taken));
                }
            }
            if !self.look_again(statistics)? {
                if !self.buffers.ready.is_empty() {
                    self.begin_patience();
                }
                return Ok(Some(Received::Busy));
            }
        }
        if fits {
            return Ok(None);
        }
        self.try_later();
        Ok(Some(Received::Busy))
    }

    /// Whether the driver wants a frame that is handed over.
    fn passes(&mut self, frame: &Frame<'_>, guest_len: usize) -> Result<(), Refused> {
        let filter = self.filter.look();
        let over = guest_len > self.layout.longest;
        if filter.is_open() && !over {
            return Ok(());
        }
        let mut start = [0; PEEK];
        let start = peek_frame(frame, self.layout.host_header_len, &mut start);
        if !filter.passes(start) {
            return Err(Refused::Filtered);
        }
        let mut gso_type = [0];
        if self.layout.host_header_len > 0 && self.layout.allowed.has_segments() {
            copy_from_iov(frame.iov, GSO_TYPE, &mut gso_type);
        }
        if over
            && guest_len.saturating_sub(tags_len(start)) > self.layout.longest
            && !is_segmented(gso_type)
        {
            return Err(Refused::OverMtu);
        }
        Ok(())
    }
}
