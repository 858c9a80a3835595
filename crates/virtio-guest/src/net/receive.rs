//! The receive queue and its buffers.

use virtio::net::F;

use super::header::{self, BASE_LEN, Header, header_len};
use crate::{DmaMemory, DmaRegion, Error, Platform, VirtQueue};

/// A frame that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The header that came before it.
    pub header: Header,
    /// How long the frame is. If that is more than the caller's buffer, the rest is lost.
    pub len: usize,
}

/// A receive queue with one buffer for each of its entries.
#[derive(Debug)]
pub struct ReceiveQueue<const N: usize> {
    queue: VirtQueue<N>,
    buffers: DmaRegion,
    buffer_len: u32,
    header_len: u32,
    mergeable: bool,
    dropped: u64,
}

impl<const N: usize> ReceiveQueue<N> {
    pub(super) fn new(
        queue: VirtQueue<N>,
        memory: &mut DmaMemory,
        features: F,
        buffer_len: u32,
    ) -> Result<Self, Error> {
        let header_len = header_len(features);
        let buffer_len = buffer_len.max(header_len + 1);
        let len = u32::from(queue.layout().size)
            .checked_mul(buffer_len)
            .ok_or(Error::OutOfMemory { len: u32::MAX })?;
        let buffers = memory.take(len, 16)?;
        let mergeable = features.contains(F::MRG_RXBUF);
        Ok(Self {
            queue,
            buffers,
            buffer_len,
            header_len,
            mergeable,
            dropped: 0,
        })
    }

    /// Gives the device every buffer; for the start.
    pub(super) fn refill<P: Platform>(&mut self, platform: &P) -> Result<(), Error> {
        for token in 0..self.queue.layout().size {
            self.give(platform, token)?;
        }
        Ok(())
    }

    /// Takes one frame; see [`NetDriver::receive`](super::NetDriver::receive).
    ///
    /// A frame that the device put together wrongly (shorter than its header, `num_buffers` 0, or
    /// buffers missing) is dropped and counted, and the next one is looked at.
    pub(super) fn receive<P: Platform>(
        &mut self,
        platform: &P,
        frame: &mut [u8],
    ) -> Result<Option<Received>, Error> {
        while let Some(first) = self.queue.pop(platform)? {
            let start = self.buffer(first.token)?;
            let in_first = first.len.min(self.buffer_len);
            let mut bytes = [0; BASE_LEN as usize];
            platform.memory_read(start.address, &mut bytes);
            let header = header::from_bytes(bytes);
            let mut good = in_first >= self.header_len;
            let after_header = DmaRegion {
                address: start.address.wrapping_add(self.header_len.into()),
                len: in_first.saturating_sub(self.header_len),
            };
            let mut len = copy(platform, after_header, frame, 0);
            self.give(platform, first.token)?;

            // The count is part of the header, so without a whole header there is none.
            if self.mergeable && good {
                let more = header.num_buffers.to_ne().checked_sub(1);
                good = more.is_some();
                for _ in 0..more.unwrap_or(0) {
                    let Some(next) = self.queue.pop(platform)? else {
                        good = false;
                        break;
                    };
                    let mut part = self.buffer(next.token)?;
                    part.len = next.len.min(self.buffer_len);
                    len = copy(platform, part, frame, len);
                    self.give(platform, next.token)?;
                }
            }
            if good {
                return Ok(Some(Received { header, len }));
            }
            self.dropped += 1;
        }
        Ok(None)
    }

    /// How many frames were dropped since the device had put them together wrongly.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The queue.
    #[must_use]
    pub const fn queue(&self) -> &VirtQueue<N> {
        &self.queue
    }

    /// The queue, for a test to do with as it likes.
    pub const fn queue_mut(&mut self) -> &mut VirtQueue<N> {
        &mut self.queue
    }

    /// Puts a buffer back into the queue; the device gets it with the next publication.
    fn give<P: Platform>(&mut self, platform: &P, token: u16) -> Result<(), Error> {
        let buffer = self.buffer(token)?;
        self.queue.add(platform, &[], &[buffer], token)
    }

    fn buffer(&self, token: u16) -> Result<DmaRegion, Error> {
        let broken = Error::BrokenRing(self.queue.layout().index);
        self.buffers.piece(token, self.buffer_len).ok_or(broken)
    }
}

/// Copies a part of a frame to its place, as far as the caller's buffer reaches, and returns where
/// the next part goes.
fn copy<P: Platform>(platform: &P, part: DmaRegion, frame: &mut [u8], at: usize) -> usize {
    let len = part.len as usize;
    let end = at.saturating_add(len);
    let reach = end.min(frame.len());
    if let Some(place) = frame.get_mut(at..reach) {
        platform.memory_read(part.address, place);
    }
    end
}
