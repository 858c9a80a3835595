//! Interrupt pins: sharing, rotation, and what suppresses them.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::{Arc, Mutex};

use vm_pci::test_utils::{RecordingFunction, RecordingIrqLines, RecordingMsiSink};
use vm_pci::{
    Attachment, BarIndex, BarKind, BarWindow, ConfigEffect, DevFn, Error, FunctionState, Intx,
    IntxLine, IntxPin, MsixLayout, PciFunction, PciHost, PciHostConfig, PciIdentity,
};

struct Machine {
    host: PciHost,
    lines: Arc<RecordingIrqLines>,
}

impl Machine {
    fn new() -> Self {
        let lines = RecordingIrqLines::new();
        let host = PciHost::new(PciHostConfig::default(), lines.clone()).unwrap();
        Self { host, lines }
    }

    fn attach(&self, device: u8, pin: IntxPin) -> Arc<Intx> {
        let mut state = FunctionState::new(&PciIdentity::default());
        state.set_interrupt_pin(Some(pin));
        let bar = BarIndex::new(0).unwrap();
        let memory = BarKind::Memory32 {
            prefetchable: false,
        };
        state.add_bar(bar, memory, 0x1000).unwrap();
        let layout = MsixLayout {
            vectors: 1,
            table_bar: bar,
            table_offset: 0,
            pba_bar: bar,
            pba_offset: 0x800,
        };
        assert_eq!(state.add_msix(layout).unwrap(), 0x40);
        let intx = state.intx();
        let function = RecordingFunction::new(state, RecordingMsiSink::new());
        self.host.bus().attach(at(device), function).unwrap();
        intx
    }

    fn status(&self, device: u8) -> u8 {
        let mut status = [0; 4];
        self.host.config_read(0, at(device), 4, &mut status);
        status[2]
    }
}

fn at(device: u8) -> DevFn {
    DevFn::new(device, 0).unwrap()
}

#[test]
fn pins_are_rotated_by_device_number() {
    let pins = [IntxPin::A, IntxPin::B, IntxPin::C, IntxPin::D];
    for device in 1..32 {
        for pin in pins {
            let machine = Machine::new();
            machine.attach(device, pin).update(|| true);
            let expected = 16 + u32::from((device + pin.register() - 1) % 4);
            let changes = machine.lines.changes();
            assert_eq!(changes, [(expected, true)], "{device} {pin:?}");
        }
    }
}

#[test]
fn a_shared_line_is_asserted_while_any_function_asserts_it() {
    let machine = Machine::new();
    let a = machine.attach(1, IntxPin::A);
    let b = machine.attach(5, IntxPin::A);
    for (intx, level, expected) in [
        (&a, true, true),
        (&b, true, true),
        (&a, true, true),
        (&a, false, true),
        (&a, false, true),
        (&b, false, false),
        (&b, true, true),
        (&b, false, false),
    ] {
        intx.update(|| level);
        assert_eq!(machine.lines.level(17), expected);
    }
    let expected = [(17, true), (17, false), (17, true), (17, false)];
    assert_eq!(machine.lines.changes(), expected);
}

#[test]
fn disabling_releases_the_line_and_keeps_the_status_bit() {
    let machine = Machine::new();
    let intx = machine.attach(1, IntxPin::A);
    assert_eq!(machine.status(1) & 0x08, 0);
    intx.update(|| true);
    assert_eq!(machine.status(1) & 0x08, 0x08);
    machine.host.config_write(0, at(1), 4, &[0, 0x04]);
    assert!(!machine.lines.level(17));
    assert_eq!(machine.status(1) & 0x08, 0x08);
    machine.host.config_write(0, at(1), 4, &[0, 0]);
    assert!(machine.lines.level(17));
    intx.update(|| false);
    assert_eq!(machine.status(1) & 0x08, 0);
    assert!(!machine.lines.level(17));
}

#[test]
fn the_pin_is_silent_while_msix_is_on() {
    let machine = Machine::new();
    let intx = machine.attach(1, IntxPin::A);
    intx.update(|| true);
    machine.host.config_write(0, at(1), 0x42, &[0, 0x80]);
    assert!(!machine.lines.level(17));
    intx.update(|| true);
    assert!(!machine.lines.level(17));
    machine.host.config_write(0, at(1), 0x42, &[0, 0]);
    assert!(machine.lines.level(17));
}

#[test]
fn reset_and_leaving_the_bus_release_the_line() {
    let machine = Machine::new();
    let intx = machine.attach(1, IntxPin::A);
    intx.update(|| true);
    machine.host.reset();
    assert!(!machine.lines.level(17) && !intx.pending());
    intx.update(|| true);
    assert!(machine.lines.level(17));
    machine.host.bus().detach(at(1)).unwrap();
    assert!(!machine.lines.level(17));
    intx.update(|| true);
    assert!(!machine.lines.level(17));
}

/// A function that drives its line by hand and does not let go of it.
#[derive(Debug, Default)]
struct Clinging {
    line: Mutex<Option<Arc<dyn IntxLine>>>,
}

impl PciFunction for Clinging {
    fn attached(&self, attachment: Attachment) -> Result<(), Error> {
        *self.line.lock().unwrap() = Some(attachment.intx);
        Ok(())
    }

    fn detached(&self) {}

    fn config_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&self, _: u16, _: &[u8]) -> ConfigEffect {
        ConfigEffect::default()
    }

    fn windows(&self) -> Vec<BarWindow> {
        Vec::new()
    }

    fn bar_read(&self, _: BarIndex, _: u64, _: &mut [u8]) {}

    fn bar_write(&self, _: BarIndex, _: u64, _: &[u8]) {}

    fn reset(&self) {}
}

#[test]
fn a_line_kept_after_leaving_the_bus_is_dead() {
    let machine = Machine::new();
    let function = Arc::new(Clinging::default());
    machine.host.bus().attach(at(1), function.clone()).unwrap();
    let line = function.line.lock().unwrap().take().unwrap();
    line.set_level(true);
    assert!(machine.lines.level(17));
    machine.host.bus().detach(at(1)).unwrap();
    assert!(!machine.lines.level(17));
    line.set_level(true);
    assert!(!machine.lines.level(17));
}

#[test]
fn a_line_that_is_dropped_while_asserted_is_released() {
    let machine = Machine::new();
    let function = Arc::new(Clinging::default());
    machine.host.bus().attach(at(1), function.clone()).unwrap();
    let line = function.line.lock().unwrap().take().unwrap();
    line.set_level(true);
    drop((line, machine.host));
    assert!(!machine.lines.level(17));
}
