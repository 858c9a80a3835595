//! The machine's first serial port.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A 16550A that writes to any `Write` and is typed at with [`type_in`](Self::type_in).
pub struct SerialPort {
    /// Held across the write of one byte.
    uart: Mutex<Uart>,
    irq: Arc<EventFd>,
    room: Arc<EventFd>,
}

type Uart = Serial<EdgeIrq, Arc<RoomEvent>, Box<dyn Write + Send>>;

impl SerialPort {
    /// Writes what the guest sends to `output`.
    ///
    /// # Errors
    /// When there are no descriptors to be had.
    pub fn new(output: Box<dyn Write + Send>) -> io::Result<Self> {
        let irq = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let room = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let uart = Serial::with_events(
            EdgeIrq(irq.clone()),
            Arc::new(RoomEvent(room.clone())),
            output,
        );
        Ok(Self {
            uart: Mutex::new(uart),
            irq,
            room,
        })
    }

    /// Signalled once for each interrupt; the line is an edge.
    pub fn irq(&self) -> &EventFd {
        &self.irq
    }

    /// Signalled when the guest has read everything that was typed.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// Puts as many bytes as there is room for into the receive FIFO and says how many.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        // A full FIFO is no error here, and the trigger fails only when the counter is full.
        self.uart().enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Back to power-on: no interrupts enabled, and what was typed but not read is forgotten.
    pub(super) fn reset(&self) {
        let mut uart = self.uart();
        for (register, value) in [
            (LINE_CONTROL, 0),
            (INTERRUPT_ENABLE, 0),
            (MODEM_CONTROL, OUT2),
        ] {
            // Registers without a side effect outside of the port.
            let _ = uart.write(register, value);
        }
        while uart.read(LINE_STATUS) & DATA_READY != 0 {
            uart.read(DATA);
        }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl DevicePio for SerialPort {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut uart = self.uart();
        for (at, byte) in (offset..).zip(data) {
            *byte = u8::try_from(at).map_or(0xff, |at| uart.read(at));
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut uart = self.uart();
        for (at, &byte) in (offset..).zip(data) {
            if let Ok(at) = u8::try_from(at) {
                // Output that cannot be written is lost, as on a cable that nobody listens to.
                let _ = uart.write(at, byte);
            }
        }
    }
}

struct EdgeIrq(Arc<EventFd>);

impl Trigger for EdgeIrq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct RoomEvent(Arc<EventFd>);

impl SerialEvents for RoomEvent {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1;
const OUT2: u8 = 1 << 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_guest_sends_comes_out_and_what_is_typed_goes_in() {
        let output = Output::default();
        let port = SerialPort::new(Box::new(output.clone())).unwrap();
        for byte in b"hello" {
            port.pio_write(PioAddress(0), 0, &[*byte]);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");

        // Interrupts for received data.
        port.pio_write(PioAddress(0), 1, &[1]);
        let _ = port.irq().read();
        let typed = [b'x'; 100];
        let taken = port.type_in(&typed);
        assert!(taken > 0 && taken < typed.len());
        assert!(port.irq().read().is_ok());
        assert_eq!(port.type_in(&typed), 0, "the FIFO is full");
        assert!(port.room().read().is_err());
        for _ in 0..taken {
            let mut byte = [0];
            port.pio_read(PioAddress(0), 0, &mut byte);
            assert_eq!(byte, *b"x");
        }
        assert!(port.room().read().is_ok());
    }
}
