//! A driver for virtio-net.

mod commands;
mod control;
mod header;
mod receive;
mod statistics;
mod transmit;

pub use commands::{Coalescing, HashConfig, RssConfig};
pub use control::ControlQueue;
pub use header::{Header, header_len};
pub use receive::{ReceiveQueue, Received};
pub use statistics::{
    ControlStatistics, QueueStatistics, ReceiveChecksums, ReceiveStatistics, TransmitChecksums,
    TransmitStatistics,
};
pub use transmit::TransmitQueue;

/// Features of a network device, and of any.
pub use virtio::net::F;

use virtio::DeviceStatus;
use virtio::net::S;

use self::control::ResultAt;
use crate::pci::{InterruptStatus, NO_VECTOR};
use crate::{DmaMemory, Error, MsixMessage, Platform, VirtQueue, VirtioPciTransport};

/// How the device is to tell the driver that it did something.
#[derive(Clone, Copy, Debug, Default)]
pub enum Interrupts<'a> {
    /// Not at all: the driver looks often enough.
    #[default]
    Polled,
    /// By its interrupt line.
    Line,
    /// By messages. The first is for changes of the configuration, the following for the queues
    /// in order; queues for which there are none left share the last.
    Messages(&'a [MsixMessage]),
}

/// What a [`NetDriver`] is to be like.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig<'a> {
    /// Features to take if the device offers them; `VIRTIO_F_VERSION_1` is always taken.
    pub features: F,
    /// Entries in each queue, at most: a device with fewer gets its way, and a legacy one with any number.
    pub queue_size: u16,
    /// Bytes in each receive buffer, header included. Without `VIRTIO_NET_F_MRG_RXBUF` it must
    /// hold the longest frame that the device may deliver: 1526 bytes, or 65562 with receive
    /// segmentation offloads (virtio 1.4, 5.1.9.3.1).
    pub receive_buffer_len: u32,
    /// Bytes in each transmit buffer, header included.
    pub transmit_buffer_len: u32,
    /// Put the header into a buffer of its own rather than just before the frame.
    pub separate_header: bool,
    /// Entries of an indirect table, if those are negotiated; 0 never uses one.
    pub indirect: u16,
    /// How the device signals.
    pub interrupts: Interrupts<'a>,
}

impl Default for NetConfig<'_> {
    /// What an unhurried driver does: no offloads, 64 entries, buffers for frames of 1514 bytes,
    /// polled.
    fn default() -> Self {
        Self {
            features: F::MAC | F::STATUS | F::MTU | F::EVENT_IDX | F::INDIRECT_DESC | F::CTRL_VQ,
            queue_size: 64,
            receive_buffer_len: 1536,
            transmit_buffer_len: 1536,
            separate_header: false,
            indirect: 4,
            interrupts: Interrupts::Polled,
        }
    }
}

/// Drives a virtio-net device with one pair of queues of at most `N` entries, and its control
/// queue.
///
/// Nothing in here waits: the owner calls [`poll_receive`](Self::poll_receive) when an interrupt
/// came or time passed. Before it sleeps it calls [`prepare_sleep`](Self::prepare_sleep), which
/// says if something arrived meanwhile; and [`wake`](Self::wake) afterwards.
#[derive(Debug)]
pub struct NetDriver<P, const N: usize> {
    transport: VirtioPciTransport<P>,
    features: F,
    mac: [u8; 6],
    receive: ReceiveQueue<N>,
    transmit: TransmitQueue<N>,
    control: Option<ControlQueue>,
    messages: bool,
}

impl<P: Platform, const N: usize> NetDriver<P, N> {
    /// Resets the device and brings it up (virtio 1.4, 3.1.1 and 5.1.5): features, queues,
    /// interrupts, then `DRIVER_OK`; the receive queue is full when this returns.
    ///
    /// Rings and buffers are taken from `memory`. Without `VIRTIO_NET_F_MAC` the address is
    /// 52:54:00:12:34:56.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from working; the device is left with `FAILED` set.
    pub fn new(
        mut transport: VirtioPciTransport<P>,
        mut memory: DmaMemory,
        config: &NetConfig<'_>,
    ) -> Result<Self, Error> {
        transport.reset()?;
        transport.add_status(DeviceStatus::ACKNOWLEDGE);
        transport.add_status(DeviceStatus::DRIVER);
        let parts = match Self::set_up(&mut transport, &mut memory, config) {
            Ok(parts) => parts,
            Err(error) => {
                transport.add_status(DeviceStatus::FAILED);
                return Err(error);
            }
        };
        let (features, receive, transmit, control) = parts;
        let mut mac = DEFAULT_MAC;
        if features.contains(F::MAC) {
            transport.read_config(CONFIG_MAC, &mut mac);
        }
        transport.add_status(DeviceStatus::DRIVER_OK);
        let messages = matches!(config.interrupts, Interrupts::Messages(_));
        let mut driver = Self {
            transport,
            features,
            mac,
            receive,
            transmit,
            control,
            messages,
        };
        driver.receive.refill(driver.transport.platform())?;
        driver.flush_receive();
        Ok(driver)
    }

    fn set_up(
        transport: &mut VirtioPciTransport<P>,
        memory: &mut DmaMemory,
        config: &NetConfig<'_>,
    ) -> Result<(F, ReceiveQueue<N>, TransmitQueue<N>, Option<ControlQueue>), Error> {
        let features = transport.negotiate(config.features)?;
        match config.interrupts {
            Interrupts::Messages(messages) => {
                transport.enable_msix(messages)?;
                transport.set_config_vector(vector_for(messages, 0))?;
            }
            Interrupts::Line => transport.use_interrupt_line(),
            Interrupts::Polled => transport.disable_interrupts(),
        }

        let receive = queue(transport, memory, config, features, 0, config.queue_size)?;
        let receive = ReceiveQueue::new(receive, memory, features, config.receive_buffer_len)?;
        let transmit = queue(transport, memory, config, features, 1, config.queue_size)?;
        let transmit = TransmitQueue::new(
            transmit,
            memory,
            features,
            config.transmit_buffer_len,
            config.separate_header,
        )?;
        let mut control = None;
        if features.contains(F::CTRL_VQ) {
            // Without multiqueue it follows the first pair; with it, the last (5.1.2).
            let index = if features.contains(F::MQ) || features.contains(F::RSS) {
                let mut pairs = [0; 2];
                transport.read_config(CONFIG_MAX_PAIRS, &mut pairs);
                u16::from_le_bytes(pairs).saturating_mul(2)
            } else {
                2
            };
            let size = ControlQueue::QUEUE_SIZE;
            let queue = queue(transport, memory, config, features, index, size)?;
            control = Some(ControlQueue::new(queue, memory)?);
        }
        Ok((features, receive, transmit, control))
    }

    /// Sends one frame without asking for any offload. It is copied; the caller may reuse it at
    /// once.
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`] while all buffers are in flight, [`Error::FrameTooLong`],
    /// [`Error::BrokenRing`].
    pub fn transmit(&mut self, frame: &[u8]) -> Result<(), Error> {
        self.transmit_with(&Header::default(), frame)
    }

    /// Sends one frame with a header of the caller's.
    ///
    /// # Errors
    ///
    /// As [`transmit`](Self::transmit).
    pub fn transmit_with(&mut self, header: &Header, frame: &[u8]) -> Result<(), Error> {
        self.queue_transmit(header, frame)?;
        self.flush_transmit();
        Ok(())
    }

    /// Puts a frame into the queue without telling the device: the next
    /// [`flush_transmit`](Self::flush_transmit) does, for a whole batch.
    ///
    /// # Errors
    ///
    /// As [`transmit`](Self::transmit).
    pub fn queue_transmit(&mut self, header: &Header, frame: &[u8]) -> Result<(), Error> {
        self.transmit.send(self.transport.platform(), header, frame)
    }

    /// Makes queued frames available, and notifies the device if it wants to know.
    pub fn flush_transmit(&mut self) {
        if self.transmit.queue_mut().publish(self.transport.platform()) {
            self.transport.kick(self.transmit.queue());
        }
    }

    /// Frees the buffers of frames that the device has sent; returns how many.
    /// [`transmit`](Self::transmit) does so by itself.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`].
    pub fn reap_transmit(&mut self) -> Result<u16, Error> {
        self.transmit.reap(self.transport.platform())
    }

    /// Takes one frame, if one has arrived, and copies it into `frame`. Its buffers go back to
    /// the device with the next [`flush_receive`](Self::flush_receive).
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`].
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<Received>, Error> {
        self.receive.receive(self.transport.platform(), frame)
    }

    /// Gives emptied buffers back, and notifies the device if it wants to know.
    pub fn flush_receive(&mut self) {
        if self.receive.queue_mut().publish(self.transport.platform()) {
            self.transport.kick(self.receive.queue());
        }
    }

    /// Hands every frame that has arrived to `each`, by way of `buffer`, and gives the buffers
    /// back; returns how many there were. A frame longer than `buffer` is cut to it.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`], after the frames before it.
    pub fn poll_receive(
        &mut self,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<u32, Error> {
        let mut frames = 0;
        // At most a queue's worth, so that a device that is faster does not hold its driver here.
        while frames < u32::from(self.receive.queue().layout().size) {
            match self.receive(buffer) {
                Ok(Some(received)) => {
                    let len = received.len.min(buffer.len());
                    each(buffer.get(..len).unwrap_or_default());
                    frames += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    self.flush_receive();
                    return Err(error);
                }
            }
        }
        self.flush_receive();
        Ok(frames)
    }

    /// Asks for interrupts, before the owner goes to sleep. Returns true if frames or completions
    /// are there already: then it must look again instead.
    pub fn prepare_sleep(&mut self) -> bool {
        let platform = self.transport.platform();
        let received = self.receive.queue_mut().enable_interrupts(platform);
        // Completions of what was sent need no interrupt unless somebody waits for room.
        let sent = self.transmit.is_full() && self.transmit.queue_mut().enable_interrupts(platform);
        received || sent
    }

    /// Asks for no interrupts while the owner is awake and polls.
    pub fn wake(&mut self) {
        let platform = self.transport.platform();
        self.receive.queue_mut().disable_interrupts(platform);
        self.transmit.queue_mut().disable_interrupts(platform);
    }

    /// What an interrupt was for. By line this reads, and so acknowledges, the device's ISR
    /// status; a message is acknowledged by arriving, and the receiver knows its vector better
    /// than this, so both may be meant.
    pub fn handle_interrupt(&mut self) -> InterruptStatus {
        if self.messages {
            InterruptStatus {
                queue: true,
                config: true,
            }
        } else {
            self.transport.interrupt_status()
        }
    }

    /// Runs one control command and returns whether the device acknowledged it with OK.
    ///
    /// `wait` is called between looks at the queue, and returns false to give up; a test lets the
    /// device work in it.
    ///
    /// # Errors
    ///
    /// [`Error::NotNegotiated`] without `VIRTIO_NET_F_CTRL_VQ`; [`Error::FrameTooLong`] for too
    /// much data; [`Error::ControlTimeout`] when `wait` gives up: the command stays with the
    /// device, and others are refused with [`Error::QueueFull`] until its answer is there.
    pub fn control(
        &mut self,
        class: u8,
        command: u8,
        data: &[u8],
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        let nowhere = ResultAt::Nowhere;
        let answer = self.control_for(class, command, data, nowhere, &mut [], wait)?;
        Ok(answer.is_some())
    }

    /// As [`control`](Self::control), of a command with a result, which is read into `result`: returns how long it is,
    /// or `None` where the device did not acknowledge the command.
    fn control_for(
        &mut self,
        class: u8,
        command: u8,
        data: &[u8],
        result_at: ResultAt,
        result: &mut [u8],
        mut wait: impl FnMut() -> bool,
    ) -> Result<Option<usize>, Error> {
        let control = self.control.as_mut().ok_or(Error::NotNegotiated)?;
        let platform = self.transport.platform();
        control.start_for(platform, class, command, data, result_at, result.len())?;
        if control.queue_mut().publish(platform) {
            self.transport.kick(control.queue());
        }
        loop {
            if let Some(answer) = control.poll_answer(platform)? {
                let acknowledged = answer.acknowledged;
                return Ok(acknowledged.then(|| control.result(platform, answer, result)));
            }
            if !wait() {
                return Err(Error::ControlTimeout);
            }
        }
    }

    /// Changes which receive offloads the device may use; bits are those of the features
    /// (virtio 1.4, 5.1.9.5.6). `wait` as for [`control`](Self::control).
    ///
    /// # Errors
    ///
    /// [`Error::NotNegotiated`] without `VIRTIO_NET_F_CTRL_GUEST_OFFLOADS`, and those of
    /// [`control`](Self::control).
    #[doc(alias = "VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET")]
    pub fn set_guest_offloads(
        &mut self,
        offloads: F,
        wait: impl FnMut() -> bool,
    ) -> Result<bool, Error> {
        if !self.features.contains(F::CTRL_GUEST_OFFLOADS) {
            return Err(Error::NotNegotiated);
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the command carries 64 bits"
        )]
        let bits = offloads.bits().to_ne() as u64;
        let class = virtio::net::Ctrl::GuestOffloads.into();
        let command = virtio::net::ctrl::GuestOffloads::Set.into();
        self.control(class, command, &bits.to_le_bytes(), wait)
    }

    /// Whether the link is up; always so for a device without `VIRTIO_NET_F_STATUS`.
    pub fn is_link_up(&self) -> bool {
        if !self.features.contains(F::STATUS) {
            return true;
        }
        let mut status = [0; 2];
        self.transport.read_config(CONFIG_STATUS, &mut status);
        u16::from_le_bytes(status) & S::LINK_UP.bits().to_ne() != 0
    }

    /// The largest packet, without its Ethernet header, if the device says one.
    pub fn mtu(&self) -> Option<u16> {
        self.features.contains(F::MTU).then(|| {
            let mut mtu = [0; 2];
            self.transport.read_config(CONFIG_MTU, &mut mtu);
            u16::from_le_bytes(mtu)
        })
    }

    /// Whether the device gave up and waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.transport
            .status()
            .contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }

    /// The station's address.
    pub const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// What was negotiated.
    pub const fn features(&self) -> F {
        self.features
    }

    /// Resets the device, so that the memory is the caller's again, and gives the transport back
    /// for a new start.
    ///
    /// # Errors
    ///
    /// [`Error::ResetTimeout`].
    pub fn shut_down(mut self) -> Result<VirtioPciTransport<P>, Error> {
        self.transport.reset()?;
        Ok(self.transport)
    }

    /// The transport under the driver.
    pub const fn transport(&self) -> &VirtioPciTransport<P> {
        &self.transport
    }

    /// The transport under the driver, for a test to pull the rug.
    pub const fn transport_mut(&mut self) -> &mut VirtioPciTransport<P> {
        &mut self.transport
    }

    /// The receive queue.
    pub const fn receive_queue(&mut self) -> &mut ReceiveQueue<N> {
        &mut self.receive
    }

    /// The transmit queue.
    pub const fn transmit_queue(&mut self) -> &mut TransmitQueue<N> {
        &mut self.transmit
    }

    /// The control queue, if there is one.
    pub const fn control_queue(&mut self) -> Option<&mut ControlQueue> {
        self.control.as_mut()
    }
}

/// Lays out queue `index` with at most `most` entries, gives it its vector, and enables it.
fn queue<P: Platform, const N: usize>(
    transport: &mut VirtioPciTransport<P>,
    memory: &mut DmaMemory,
    config: &NetConfig<'_>,
    features: F,
    index: u16,
    most: u16,
) -> Result<VirtQueue<N>, Error> {
    let device = transport.max_queue_size(index);
    if device == 0 {
        return Err(Error::NoQueue(index));
    }
    let size = if transport.is_legacy() {
        device
    } else {
        // Split rings want a power of two, whatever the device says is the most.
        most.min(1 << device.ilog2())
    };
    let platform = transport.platform();
    let mut queue = VirtQueue::new(
        platform,
        memory,
        index,
        size,
        features.into(),
        config.indirect,
    )?;
    if let Interrupts::Messages(messages) = config.interrupts {
        let vector = vector_for(messages, usize::from(index) + 1);
        transport.set_queue_vector(index, vector)?;
    }
    if !matches!(config.interrupts, Interrupts::Polled) {
        queue.enable_interrupts(transport.platform());
    } else {
        queue.disable_interrupts(transport.platform());
    }
    transport.enable_queue(&mut queue)?;
    Ok(queue)
}

/// The vector for the configuration (`wanted` 0) or a queue (its index plus 1).
fn vector_for(messages: &[MsixMessage], wanted: usize) -> u16 {
    let last = messages.len().checked_sub(1);
    last.and_then(|last| u16::try_from(wanted.min(last)).ok())
        .unwrap_or(NO_VECTOR)
}

/// What a driver without an address from its device calls itself: QEMU's default.
const DEFAULT_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

// Offsets in the device configuration (virtio 1.4, 5.1.4).
const CONFIG_MAC: u32 = 0;
const CONFIG_STATUS: u32 = 6;
const CONFIG_MAX_PAIRS: u32 = 8;
const CONFIG_MTU: u32 = 10;

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "short frames")]
mod tests;
