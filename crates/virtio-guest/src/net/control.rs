//! The control queue: one command at a time.

use crate::{DmaMemory, DmaRegion, Error, Platform, VirtQueue};

/// The control queue and the memory for one command (virtio 1.4, 5.1.9.5).
#[derive(Debug)]
pub struct ControlQueue {
    queue: VirtQueue<{ Self::CAPACITY }>,
    /// Class and command, then data.
    command: DmaRegion,
    acknowledgement: DmaRegion,
    result: DmaRegion,
    busy: bool,
}

/// Where the device writes the result of a command that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResultAt {
    /// The command has none.
    Nowhere,
    /// Where a part of the data would be, in front of the answer.
    BeforeAnswer,
    /// Behind the answer.
    BehindAnswer,
}

/// How the device has answered a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// With OK.
    pub(super) acknowledged: bool,
    /// Bytes that it has written, the answer among them.
    written: u32,
}

impl ControlQueue {
    /// Entries: more than the three buffers of one command.
    pub const QUEUE_SIZE: u16 = 16;
    /// The most entries, where the device does not let a driver choose: a legacy one.
    pub const CAPACITY: usize = 64;
    /// The most data that a command can carry, in bytes.
    pub const MOST_DATA: u32 = 2048;
    /// The most that the device can answer with, in bytes.
    pub const MOST_RESULT: usize = 256;

    pub(super) fn new(
        queue: VirtQueue<{ Self::CAPACITY }>,
        memory: &mut DmaMemory,
    ) -> Result<Self, Error> {
        let command = memory.take(2 + Self::MOST_DATA, 2)?;
        let acknowledgement = memory.take(1, 1)?;
        #[expect(clippy::cast_possible_truncation, reason = "it is 256")]
        let result = memory.take(Self::MOST_RESULT as u32, 8)?;
        Ok(Self {
            queue,
            command,
            acknowledgement,
            result,
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
        self.start_for(platform, class, command, data, ResultAt::Nowhere, 0)
    }

    /// As [`start`](Self::start), of a command with a result of up to `room` bytes.
    pub(super) fn start_for<P: Platform>(
        &mut self,
        platform: &P,
        class: u8,
        command: u8,
        data: &[u8],
        result_at: ResultAt,
        room: usize,
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
        let result = DmaRegion {
            len: u32::try_from(room).map_or(self.result.len, |room| room.min(self.result.len)),
            ..self.result
        };
        let writable = match result_at {
            ResultAt::Nowhere => &[self.acknowledgement][..],
            ResultAt::BeforeAnswer => &[result, self.acknowledgement],
            ResultAt::BehindAnswer => &[self.acknowledgement, result],
        };
        self.queue.add(platform, readable, writable, 0)?;
        self.busy = true;
        Ok(())
    }

    /// Reads the result of a command that was answered so; returns how many bytes of `bytes` it has filled.
    pub(super) fn result<P: Platform>(
        &self,
        platform: &P,
        answer: Answer,
        bytes: &mut [u8],
    ) -> usize {
        let room = bytes.len().min(Self::MOST_RESULT);
        // The answer is one byte, on either side.
        let written = answer.written.saturating_sub(1);
        let len = usize::try_from(written).map_or(room, |written| written.min(room));
        if let Some(bytes) = bytes.get_mut(..len) {
            platform.memory_read(self.result.address, bytes);
        }
        len
    }

    /// Whether the device has answered, and if so, with OK.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`].
    pub fn poll<P: Platform>(&mut self, platform: &P) -> Result<Option<bool>, Error> {
        let answer = self.poll_answer(platform)?;
        Ok(answer.map(|answer| answer.acknowledged))
    }

    pub(super) fn poll_answer<P: Platform>(
        &mut self,
        platform: &P,
    ) -> Result<Option<Answer>, Error> {
        let Some(used) = self.queue.pop(platform)? else {
            return Ok(None);
        };
        self.busy = false;
        let mut acknowledgement = [0xff];
        platform.memory_read(self.acknowledgement.address, &mut acknowledgement);
        Ok(Some(Answer {
            acknowledged: acknowledgement == [ACK_OK],
            written: used.len,
        }))
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
