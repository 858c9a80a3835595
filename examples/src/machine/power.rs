//! Ports that end or restart the machine: ACPI's fixed hardware, the keyboard controller, and the
//! exit port of the embedded guest.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use super::control::{Control, Event};
use super::layout::{I8042_COMMAND_PORT, PM_TIMER, PM1_CONTROL, PM1_EVENT, SLEEP_TYPE_S5};

/// ACPI's fixed hardware (ACPI 6.5, 4.8.3): PM1 status and enable, which never have an event, PM1
/// control, whose sleep type switches the machine off, and the 24-bit timer.
#[derive(Debug)]
pub(super) struct PmPorts {
    control: Arc<Control>,
    started: Instant,
    /// PM1 enable and control, as the guest wrote them. A leaf lock.
    registers: Mutex<PmRegisters>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PmRegisters {
    enable: u16,
    control: u16,
}

impl PmPorts {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            started: Instant::now(),
            registers: Mutex::default(),
        }
    }

    pub(super) fn reset(&self) {
        *self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = PmRegisters::default();
    }

    fn image(&self) -> [u8; 12] {
        let registers = *self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let ticks = self.started.elapsed().as_nanos() * PM_TIMER_HZ / 1_000_000_000;
        let mut image = [0; 12];
        let mut put = |at: u16, bytes: &[u8]| {
            let at = usize::from(at);
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(PM1_EVENT + 2, &registers.enable.to_le_bytes());
        // SCI_EN: the machine is in ACPI mode from the start, there is no other.
        put(PM1_CONTROL, &(registers.control | SCI_EN).to_le_bytes());
        put(PM_TIMER, &(ticks.to_le_bytes())[..3]);
        image
    }
}

impl DevicePio for PmPorts {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        read_image(&self.image(), offset, data);
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (at, &byte) in (offset..).zip(data) {
            let (register, shift) = match at {
                0x2 | 0x3 => (&mut registers.enable, (at & 1) * 8),
                0x4 | 0x5 => (&mut registers.control, (at & 1) * 8),
                // Status bits are cleared by writing them, and none is ever set.
                _ => continue,
            };
            *register = *register & !(0xff << shift) | u16::from(byte) << shift;
        }
        let writes_control = (offset..).zip(data).any(|(at, _)| at == PM1_CONTROL + 1);
        if writes_control && registers.control & SLP_EN != 0 {
            // SLP_EN is write-only (ACPI 6.5, 4.8.3.2.1).
            registers.control &= !SLP_EN;
            let sleep_type = registers.control >> SLP_TYP_SHIFT & 7;
            if sleep_type == u16::from(SLEEP_TYPE_S5) {
                self.control.report(Event::PowerOff);
            }
        }
    }
}

/// The keyboard controller, of which only the reset line is there.
pub(super) struct KeyboardController(Mutex<I8042Device<ResetTrigger>>);

impl KeyboardController {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self(Mutex::new(I8042Device::new(ResetTrigger(control))))
    }
}

impl DevicePio for KeyboardController {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = device.read(COMMAND_OFFSET);
        }
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&first) = data.first() {
            // The trigger cannot fail.
            let _ = device.write(COMMAND_OFFSET, first);
        }
    }
}

struct ResetTrigger(Arc<Control>);

impl Trigger for ResetTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.report(Event::Reset);
        Ok(())
    }
}

/// The port through which the embedded guest ends with a status.
#[derive(Debug)]
pub(super) struct ExitPort(pub(super) Arc<Control>);

impl DevicePio for ExitPort {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        if let Some(&status) = data.first() {
            self.0.report(Event::GuestExit(status));
        }
    }
}

/// Copies the part of a register image that an access covers; ones beyond its end.
pub(super) fn read_image(image: &[u8], offset: u16, data: &mut [u8]) {
    for (at, byte) in (usize::from(offset)..).zip(data) {
        *byte = image.get(at).copied().unwrap_or(0xff);
    }
}

const PM_TIMER_HZ: u128 = 3_579_545;
const SCI_EN: u16 = 1;
const SLP_TYP_SHIFT: u16 = 10;
const SLP_EN: u16 = 1 << 13;
/// Where `vm-superio` has the command register: relative to the data port.
const COMMAND_OFFSET: u8 = 4;
const _: () = assert!(I8042_COMMAND_PORT == 0x60 + COMMAND_OFFSET as u16);

#[cfg(test)]
mod tests {
    use super::*;

    fn pm() -> (PmPorts, Arc<Control>) {
        let control = Arc::new(Control::new().unwrap());
        (PmPorts::new(control.clone()), control)
    }

    #[test]
    fn only_the_s5_sleep_type_with_its_enable_bit_switches_off() {
        let s5 = u16::from(SLEEP_TYPE_S5) << SLP_TYP_SHIFT;
        let table = [
            (s5 | SLP_EN, Some(Event::PowerOff)),
            (s5, None),
            (SLP_EN, None),
            (3 << SLP_TYP_SHIFT | SLP_EN, None),
        ];
        for (value, expected) in table {
            let (pm, control) = pm();
            pm.pio_write(PioAddress(0), PM1_CONTROL, &value.to_le_bytes());
            assert_eq!(control.take(), expected, "{value:#x}");
        }
    }

    #[test]
    fn control_written_by_bytes_switches_off_at_the_high_byte() {
        let (pm, control) = pm();
        let value = u16::from(SLEEP_TYPE_S5) << SLP_TYP_SHIFT | SLP_EN;
        pm.pio_write(PioAddress(0), PM1_CONTROL, &value.to_le_bytes()[..1]);
        assert_eq!(control.take(), None);
        pm.pio_write(PioAddress(0), PM1_CONTROL + 1, &value.to_le_bytes()[1..]);
        assert_eq!(control.take(), Some(Event::PowerOff));
    }

    #[test]
    fn acpi_mode_is_on_and_the_timer_moves() {
        let (pm, _control) = pm();
        let mut control = [0; 2];
        pm.pio_read(PioAddress(0), PM1_CONTROL, &mut control);
        assert_eq!(u16::from_le_bytes(control) & SCI_EN, SCI_EN);
        let read = || {
            let mut ticks = [0; 4];
            pm.pio_read(PioAddress(0), PM_TIMER, &mut ticks);
            u32::from_le_bytes(ticks)
        };
        let first = read();
        while read() == first {}
        assert!(read() < 1 << 24);
    }

    #[test]
    fn the_reset_command_resets_and_no_other() {
        let control = Arc::new(Control::new().unwrap());
        let keyboard = KeyboardController::new(control.clone());
        keyboard.pio_write(PioAddress(0), 0, &[0xaa]);
        assert_eq!(control.take(), None);
        keyboard.pio_write(PioAddress(0), 0, &[0xfe]);
        assert_eq!(control.take(), Some(Event::Reset));
    }
}
