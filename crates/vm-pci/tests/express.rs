//! A function in PCI Express form: what it says, function-level reset, D3hot.
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]

use std::sync::Arc;

use vm_pci::test_utils::{RecordingFunction, RecordingIrqLines, RecordingMsiSink};
use vm_pci::{
    BarIndex, BarKind, DevFn, Express, FunctionState, IntxPin, MsixLayout, PciHost, PciHostConfig,
    PciIdentity,
};

const AT: u8 = 3;
const CONTROL: u16 = 0x48;
const POWER: u16 = 0x80;

struct Rig {
    host: PciHost,
    function: Arc<RecordingFunction>,
    sink: Arc<RecordingMsiSink>,
    lines: Arc<RecordingIrqLines>,
}

impl Rig {
    fn new(express: Express) -> Self {
        let identity = PciIdentity {
            vendor: 0x1234,
            device: 1,
            ..PciIdentity::default()
        };
        let mut state = FunctionState::new(&identity);
        state.add_express(&express).unwrap();
        state.set_interrupt_pin(Some(IntxPin::A));
        let memory = BarKind::Memory32 {
            prefetchable: false,
        };
        let bar = BarIndex::new(0).unwrap();
        state.add_bar(bar, memory, 0x1000).unwrap();
        let layout = MsixLayout {
            vectors: 1,
            table_bar: bar,
            table_offset: 0,
            pba_bar: bar,
            pba_offset: 0x800,
        };
        state.add_msix(layout).unwrap();
        let sink = RecordingMsiSink::new();
        let lines = RecordingIrqLines::new();
        let function = RecordingFunction::new(state, sink.clone());
        let host = PciHost::new(PciHostConfig::default(), lines.clone()).unwrap();
        let devfn = DevFn::new(AT, 0).unwrap();
        host.bus().attach(devfn, function.clone()).unwrap();
        host.assign_resources().unwrap();
        Self {
            host,
            function,
            sink,
            lines,
        }
    }

    fn read(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        let at = u64::from(AT) << 15 | u64::from(offset);
        self.host.ecam_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let at = u64::from(AT) << 15 | u64::from(offset);
        self.host.ecam_write(at, data);
    }

    fn command(&self, value: u16) {
        self.write(4, &value.to_le_bytes());
    }

    fn is_decoded(&self) -> bool {
        let base = self.host.config().mmio32.base;
        self.host.mmio_read(base, &mut [0; 4])
    }
}

#[test]
fn registers_read_and_are_written_as_qemus_behind_a_root_port() {
    let rig = Rig::new(Express::default());
    // (offset, after power-on, after ones were written to all but reset and power state)
    let table = [
        (0x40, 0x0002_0010, 0x0002_0010),
        (0x44, 0x1000_8000, 0x1000_8000),
        (0x48, 0, 0x0f),
        (0x4c, 0x411, 0x411),
        (0x50, 0x11_0000, 0x11_00c0),
        (0x54, 0, 0),
        (0x64, 0x30_0000, 0x30_0000),
        (0x68, 0, 0x8000),
        (0x7c, 0x0003_4001, 0x0003_4001),
        (0x80, 8, 8),
        (0x100, 0, 0),
    ];
    for (offset, before, after) in table {
        assert_eq!(rig.read(offset), before, "{offset:#x}");
        match offset {
            0x48 => rig.write(offset, &[0xff, 0x7f, 0xff, 0xff]),
            0x80 => rig.write(offset, &[0xfc, 0xff, 0xff, 0xff]),
            _ => rig.write(offset, &[0xff; 4]),
        }
        assert_eq!(rig.read(offset), after, "{offset:#x}");
    }
    let integrated = Rig::new(Express {
        is_integrated: true,
        function_level_reset: false,
        ..Express::default()
    });
    assert_eq!(integrated.read(0x40) >> 16, 0x92);
    assert_eq!(integrated.read(0x44), 0x8000);
    assert_eq!(integrated.read(0x4c), 0, "no link");
}

#[test]
fn extended_capabilities_are_there_when_asked_for() {
    let rig = Rig::new(Express {
        advanced_error_reporting: true,
        address_translation: true,
        ..Express::default()
    });
    // (offset, after power-on, after ones were written)
    let table = [
        (0x100, 0x1482_0001, 0x1482_0001),
        (0x104, 0, 0),
        (0x108, 0, 0x03ff_f030),
        (0x10c, 0x0046_2030, 0x03ff_f030),
        (0x110, 0, 0),
        (0x114, 0xe000, 0xf1c1),
        (0x118, 0xa0, 0x1e0),
        (0x11c, 0, 0),
        (0x148, 0x0001_000f, 0x0001_000f),
        (0x14c, 0x20, 0x801f_0020),
    ];
    for (offset, before, after) in table {
        assert_eq!(rig.read(offset), before, "{offset:#x}");
        rig.write(offset, &[0xff; 4]);
        assert_eq!(rig.read(offset), after, "{offset:#x}");
    }
    let off = Rig::new(Express {
        address_translation: true,
        page_aligned: false,
        ..Express::default()
    });
    assert_eq!((off.read(0x100), off.read(0x104)), (0x0001_000f, 0));
}

#[test]
fn a_function_level_reset_is_asked_for_by_its_bit_and_by_no_other() {
    // (offset, bytes written, whether it is asked for)
    let table: [(u16, &[u8], bool); 7] = [
        (CONTROL + 1, &[0x80], true),
        (CONTROL, &[0, 0x80], true),
        (CONTROL, &[0, 0x80, 0, 0], true),
        (CONTROL, &[0xff, 0x7f], false),
        (CONTROL, &[0x80], false),
        (CONTROL + 2, &[0xff, 0xff], false),
        (CONTROL + 4, &[0xff; 4], false),
    ];
    for function_level_reset in [false, true] {
        for (offset, data, expected) in table {
            let rig = Rig::new(Express {
                function_level_reset,
                ..Express::default()
            });
            let change = rig.function.with(|state| state.config_write(offset, data));
            let expected = expected && function_level_reset;
            assert_eq!(change.function_reset, expected, "{offset:#x} {data:x?}");
            assert_eq!(rig.read(CONTROL) & 0x8000, 0, "it reads 0");
        }
    }
}

#[test]
fn in_d3hot_nothing_is_decoded_and_nothing_interrupts_until_d0() {
    let rig = Rig::new(Express::default());
    rig.command(7);
    assert!(rig.is_decoded());
    rig.function.with(|state| state.intx().update(|| true));
    assert_eq!(rig.lines.changes().len(), 1);
    rig.write(POWER, &[3]);
    assert_eq!(rig.read(POWER), 0xb);
    assert!(!rig.is_decoded());
    assert!(
        !rig.lines.changes().last().unwrap().1,
        "the pin is released"
    );
    rig.write(POWER, &[0]);
    assert!(rig.is_decoded(), "nothing is lost over D3hot");
    assert_eq!(rig.read(4) & 7, 7);
    assert!(rig.lines.changes().last().unwrap().1);

    let base = rig.host.config().mmio32.base;
    rig.host.mmio_write(base, &0xfee0_0000_u64.to_le_bytes());
    rig.host.mmio_write(base + 8, &7_u64.to_le_bytes());
    let msix = u16::try_from(rig.read(0x34) & 0xff).unwrap();
    rig.write(msix + 2, &[0, 0x80]);
    rig.write(POWER, &[3]);
    let vector = rig.function.with(|state| state.vector(0)).unwrap();
    vector.event_fd().write(1).unwrap();
    assert!(rig.sink.deliver().is_empty(), "no message from D3hot");
    rig.write(POWER, &[0]);
    assert_eq!(rig.sink.deliver().len(), 1, "it was pending");
}

#[test]
fn states_that_there_are_not_leave_the_function_as_it_is() {
    let rig = Rig::new(Express::default());
    for (before, written) in [(0, 1), (0, 2), (3, 1), (3, 2)] {
        rig.write(POWER, &[before]);
        rig.write(POWER, &[written]);
        assert_eq!(rig.read(POWER) & 3, u32::from(before), "D{written}");
    }
    let fixed = Rig::new(Express {
        power_states: false,
        ..Express::default()
    });
    fixed.write(POWER, &[3]);
    assert_eq!(fixed.read(POWER) & 3, 0);
}

#[test]
fn a_reset_brings_a_function_back_from_d3hot() {
    let rig = Rig::new(Express::default());
    rig.write(POWER, &[3]);
    rig.host.reset();
    assert_eq!(rig.read(POWER) & 3, 0);
    rig.host.assign_resources().unwrap();
    assert!(rig.is_decoded());
}
