//! The crate's two network drivers, each as something that sends and receives.
#![expect(
    unsafe_code,
    reason = "the raw driver takes buffers that the device fills later"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only what is marked as a test for one"
)]

use virtio_drivers::device::net::{TxBuffer, VirtIONet, VirtIONetRaw};
use virtio_drivers::transport::InterruptStatus;

use super::hal::GuestHal;
use super::support::wait_until;
use super::transport::MachineTransport;

/// Descriptors in each ring: few, so that a test goes round often.
pub(crate) const QUEUE_SIZE: usize = 16;

/// A started driver.
pub(crate) trait Nic {
    fn start(transport: MachineTransport) -> Self;
    fn mac(&self) -> [u8; 6];
    /// Returns when the device is done with `frame`.
    fn send(&mut self, frame: &[u8]);
    /// The next frame, if one is there.
    fn receive(&mut self) -> Option<Vec<u8>>;
    fn acknowledge_interrupt(&mut self) -> InterruptStatus;
    fn disable_interrupts(&mut self);
    fn enable_interrupts(&mut self);
}

/// `VirtIONet`, which keeps the receive queue filled itself.
pub(crate) struct Buffered(VirtIONet<GuestHal, MachineTransport, QUEUE_SIZE>);

impl Nic for Buffered {
    fn start(transport: MachineTransport) -> Self {
        Self(VirtIONet::new(transport, BUFFER_LEN).unwrap())
    }

    fn mac(&self) -> [u8; 6] {
        self.0.mac_address()
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.send(TxBuffer::from(frame)).unwrap();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        if !self.0.can_recv() {
            return None;
        }
        let buffer = self.0.receive().unwrap();
        let frame = buffer.packet().to_vec();
        assert_eq!(buffer.as_bytes()[10..12], [1, 0], "num_buffers");
        self.0.recycle_rx_buffer(buffer).unwrap();
        Some(frame)
    }

    fn acknowledge_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn disable_interrupts(&mut self) {
        self.0.disable_interrupts();
    }

    fn enable_interrupts(&mut self) {
        self.0.enable_interrupts();
    }
}

/// `VirtIONetRaw`, whose buffers are its user's.
pub(crate) struct Raw {
    // Before its buffers, of which the device must have none when they go.
    driver: VirtIONetRaw<GuestHal, MachineTransport, QUEUE_SIZE>,
    buffers: Vec<(u16, Vec<u8>)>,
}

impl Raw {
    fn lend(&mut self, mut buffer: Vec<u8>) {
        // SAFETY: nobody touches the buffer's bytes, which stay where they are when the vector
        // moves, until the device is done with it.
        let token = unsafe { self.driver.receive_begin(&mut buffer) };
        self.buffers.push((token.unwrap(), buffer));
    }
}

impl Nic for Raw {
    fn start(transport: MachineTransport) -> Self {
        let mut nic = Self {
            driver: VirtIONetRaw::new(transport).unwrap(),
            buffers: Vec::new(),
        };
        for _ in 0..QUEUE_SIZE {
            nic.lend(vec![0; BUFFER_LEN]);
        }
        nic
    }

    fn mac(&self) -> [u8; 6] {
        self.driver.mac_address()
    }

    fn send(&mut self, frame: &[u8]) {
        let mut buffer = vec![0xff; 64];
        let header = self.driver.fill_buffer_header(&mut buffer).unwrap();
        buffer.truncate(header);
        buffer.extend(frame);
        // SAFETY: nobody touches the buffer until the device is done with it.
        let token = unsafe { self.driver.transmit_begin(&buffer) }.unwrap();
        wait_until("the frame is sent", || {
            self.driver.poll_transmit().is_some()
        });
        assert_eq!(self.driver.poll_transmit(), Some(token));
        // SAFETY: it is the buffer that the token was given for.
        let written = unsafe { self.driver.transmit_complete(token, &buffer) };
        assert_eq!(written, Ok(0), "the device writes nothing on transmission");
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let token = self.driver.poll_receive()?;
        let mut buffers = self.buffers.iter();
        let index = buffers.position(|(lent, _)| *lent == token);
        let (_, mut buffer) = self.buffers.remove(index.expect("a buffer that was lent"));
        // SAFETY: it is the buffer that the token was given for.
        let lens = unsafe { self.driver.receive_complete(token, &mut buffer) };
        let (header, len) = lens.unwrap();
        assert_eq!(buffer[10..header], [1, 0], "num_buffers");
        assert!(
            buffer[header + len..].iter().all(|byte| *byte == 0xa5),
            "something is written past the frame"
        );
        let frame = buffer[header..header + len].to_vec();
        self.lend(buffer);
        Some(frame)
    }

    fn acknowledge_interrupt(&mut self) -> InterruptStatus {
        self.driver.ack_interrupt()
    }

    fn disable_interrupts(&mut self) {
        self.driver.disable_interrupts();
    }

    fn enable_interrupts(&mut self) {
        self.driver.enable_interrupts();
    }
}

const BUFFER_LEN: usize = 2048;
