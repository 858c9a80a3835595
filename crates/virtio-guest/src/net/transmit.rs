//! The transmit queue and its buffers.

use virtio::net::F;

use super::header::{self, Header, header_len};
use crate::{DmaMemory, DmaRegion, Error, Platform, VirtQueue};

/// A transmit queue with one buffer for each of its entries, into which frames are copied.
#[derive(Debug)]
pub struct TransmitQueue<const N: usize> {
    queue: VirtQueue<N>,
    buffers: DmaRegion,
    buffer_len: u32,
    header_len: u32,
    separate_header: bool,
    /// Buffers that are not in flight, as a stack: the first `free` of these.
    tokens: [u16; N],
    free: u16,
}

impl<const N: usize> TransmitQueue<N> {
    pub(super) fn new(
        queue: VirtQueue<N>,
        memory: &mut DmaMemory,
        features: F,
        buffer_len: u32,
        separate_header: bool,
    ) -> Result<Self, Error> {
        let header_len = header_len(features);
        let buffer_len = buffer_len.max(header_len + 1);
        let free = queue.layout().size;
        let len = u32::from(free)
            .checked_mul(buffer_len)
            .ok_or(Error::OutOfMemory { len: u32::MAX })?;
        let buffers = memory.take(len, 16)?;
        let mut tokens = [0; N];
        for (slot, token) in tokens.iter_mut().zip(0..) {
            *slot = token;
        }
        Ok(Self {
            queue,
            buffers,
            buffer_len,
            header_len,
            separate_header,
            tokens,
            free,
        })
    }

    /// Copies a frame into a buffer and adds it to the queue; see
    /// [`NetDriver::queue_transmit`](super::NetDriver::queue_transmit).
    pub(super) fn send<P: Platform>(
        &mut self,
        platform: &P,
        header: &Header,
        frame: &[u8],
    ) -> Result<(), Error> {
        let too_long = Error::FrameTooLong(frame.len());
        let len = u32::try_from(frame.len()).map_err(|_| too_long)?;
        if len > self.buffer_len - self.header_len {
            return Err(too_long);
        }
        self.reap(platform)?;
        let slot = self.free.checked_sub(1).ok_or(Error::QueueFull)?;
        let token = self
            .tokens
            .get(usize::from(slot))
            .copied()
            .ok_or(Error::QueueFull)?;
        let buffer = self
            .buffers
            .piece(token, self.buffer_len)
            .ok_or(Error::QueueFull)?;

        let bytes = header::to_bytes(header);
        let header = DmaRegion {
            address: buffer.address,
            len: self.header_len,
        };
        let body = DmaRegion {
            address: buffer.address.wrapping_add(self.header_len.into()),
            len,
        };
        platform.memory_write(header.address, &bytes[..self.header_len as usize]);
        platform.memory_write(body.address, frame);
        if self.separate_header && len != 0 {
            self.queue.add(platform, &[header, body], &[], token)?;
        } else {
            let whole = DmaRegion {
                len: self.header_len + len,
                ..header
            };
            self.queue.add(platform, &[whole], &[], token)?;
        }
        self.free = slot;
        Ok(())
    }

    /// Takes back the buffers of frames that were sent; see
    /// [`NetDriver::reap_transmit`](super::NetDriver::reap_transmit).
    pub(super) fn reap<P: Platform>(&mut self, platform: &P) -> Result<u16, Error> {
        let mut reaped = 0;
        while let Some(used) = self.queue.pop(platform)? {
            // Each token is on the stack or in flight, so there is room for this one.
            if let Some(slot) = self.tokens.get_mut(usize::from(self.free)) {
                *slot = used.token;
                self.free += 1;
                reaped += 1;
            }
        }
        Ok(reaped)
    }

    /// Whether the next frame has to wait for a completion.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        let needed = if self.separate_header { 2 } else { 1 };
        self.free == 0 || self.queue.free() < needed
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
}
