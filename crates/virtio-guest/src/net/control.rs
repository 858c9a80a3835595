//! The control queue: one command at a time.

use crate::{DmaMemory, DmaRegion, Error, Platform, VirtQueue};

/// The control queue and the memory for one command (virtio 1.4, 5.1.9.5).
#[derive(Debug)]
pub struct ControlQueue {
    queue: VirtQueue<{ Self::CAPACITY }>,
    /// Class and command, then data.
    command: DmaRegion,
    acknowledgement: DmaRegion,
    busy: bool,
}

impl ControlQueue {
    /// Entries: more than the three buffers of one command.
    pub const QUEUE_SIZE: u16 = 16;
    /// The most entries, where the device does not let a driver choose: a legacy one.
    pub const CAPACITY: usize = 64;
    /// The most data that a command can carry, in bytes.
    pub const MOST_DATA: u32 = 2048;

    pub(super) fn new(
        queue: VirtQueue<{ Self::CAPACITY }>,
        memory: &mut DmaMemory,
    ) -> Result<Self, Error> {
        let command = memory.take(2 + Self::MOST_DATA, 2)?;
        let acknowledgement = memory.take(1, 1)?;
        Ok(Self {
            queue,
            command,
            acknowledgement,
            busy: false,
        })
    }

    /// Adds a command to the queue; the caller publishes.
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`] while one is with the device, [`Error::FrameTooLong`].
    pub fn start<P: Platform>(
        &mut self,
        platform: &P,
        class: u8,
        command: u8,
        data: &[u8],
    ) -> Result<(), Error> {
        if self.busy && self.poll(platform)?.is_none() {
            return Err(Error::QueueFull);
        }
        let too_long = Error::FrameTooLong(data.len());
        let len = u32::try_from(data.len()).map_err(|_| too_long)?;
        if len > Self::MOST_DATA {
            return Err(too_long);
        }
        let header = DmaRegion {
            address: self.command.address,
            len: 2,
        };
        let body = DmaRegion {
            address: self.command.address.wrapping_add(2),
            len,
        };
        platform.memory_write(header.address, &[class, command]);
        platform.memory_write(body.address, data);
        // Neither OK nor ERR, so that an answer that was not written shows.
        platform.memory_write(self.acknowledgement.address, &[0xff]);
        let readable = [header, body];
        let readable = if len == 0 { &readable[..1] } else { &readable };
        self.queue
            .add(platform, readable, &[self.acknowledgement], 0)?;
        self.busy = true;
        Ok(())
    }

    /// Whether the device has answered, and if so, with OK.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`].
    pub fn poll<P: Platform>(&mut self, platform: &P) -> Result<Option<bool>, Error> {
        if self.queue.pop(platform)?.is_none() {
            return Ok(None);
        }
        self.busy = false;
        let mut acknowledgement = [0xff];
        platform.memory_read(self.acknowledgement.address, &mut acknowledgement);
        Ok(Some(acknowledgement == [ACK_OK]))
    }

    /// The queue.
    #[must_use]
    pub const fn queue(&self) -> &VirtQueue<{ Self::CAPACITY }> {
        &self.queue
    }

    /// The queue, for a test to do with as it likes.
    pub const fn queue_mut(&mut self) -> &mut VirtQueue<{ Self::CAPACITY }> {
        &mut self.queue
    }
}

/// `VIRTIO_NET_OK` (virtio 1.4, 5.1.9.5).
const ACK_OK: u8 = 0;
