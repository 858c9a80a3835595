//! MSI-X through a function's configuration space and BAR, with a sink that records.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::Arc;

use vm_pci::test_utils::{RecordingFunction, RecordingIrqLines, RecordingMsiSink};
use vm_pci::{
    BarIndex, BarKind, DevFn, Error, FunctionState, MsiMessage, MsixLayout, PciFunction, PciHost,
    PciHostConfig, PciIdentity,
};

const BUS_MASTER: u8 = 0x04;
const ENABLE: u16 = 0x8000;
const FUNCTION_MASK: u16 = 0x4000;
const PBA: u64 = 0x800;

struct Machine {
    host: PciHost,
    function: Arc<RecordingFunction>,
    sink: Arc<RecordingMsiSink>,
    capability: u16,
}

fn layout(vectors: u16) -> MsixLayout {
    MsixLayout {
        vectors,
        table_bar: bar(),
        table_offset: 0,
        pba_bar: bar(),
        pba_offset: u32::try_from(PBA).unwrap(),
    }
}

fn bar() -> BarIndex {
    BarIndex::new(1).unwrap()
}

fn state(vectors: u16) -> (FunctionState, u16) {
    let mut state = FunctionState::new(&PciIdentity::default());
    let memory = BarKind::Memory32 {
        prefetchable: false,
    };
    state.add_bar(bar(), memory, 0x1000).unwrap();
    let capability = state.add_msix(layout(vectors)).unwrap();
    (state, capability.into())
}

impl Machine {
    fn new(vectors: u16) -> Self {
        let (state, capability) = state(vectors);
        let sink = RecordingMsiSink::new();
        let function = RecordingFunction::new(state, sink.clone());
        let lines = RecordingIrqLines::new();
        let host = PciHost::new(PciHostConfig::default(), lines).unwrap();
        host.bus().attach(devfn(), function.clone()).unwrap();
        let machine = Self {
            host,
            function,
            sink,
            capability,
        };
        machine.command(BUS_MASTER);
        machine
    }

    fn command(&self, command: u8) {
        self.host.config_write(0, devfn(), 4, &[command]);
    }

    fn control(&self, control: u16) {
        let register = self.capability + 2;
        self.host
            .config_write(0, devfn(), register, &control.to_le_bytes());
    }

    fn program(&self, vector: u16, message: MsiMessage) {
        let entry = u64::from(vector) * 16;
        self.write(entry, &message.address.to_le_bytes());
        self.write(entry + 8, &message.data.to_le_bytes());
    }

    fn mask(&self, vector: u16, masked: bool) {
        let control = u32::from(masked).to_le_bytes();
        self.write(u64::from(vector) * 16 + 12, &control);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(bar(), offset, data);
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        self.function.bar_read(bar(), offset, &mut data);
        data
    }

    fn pending(&self) -> u64 {
        u64::from_le_bytes(self.read(PBA, 8).try_into().unwrap())
    }

    fn signal(&self, vector: u16) {
        let vector = self.function.with(|state| state.vector(vector)).unwrap();
        vector.event_fd().write(1).unwrap();
    }
}

fn devfn() -> DevFn {
    DevFn::new(3, 0).unwrap()
}

fn message(number: u16) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000 + u64::from(number) * 0x1000,
        data: 0x4020 + u32::from(number),
    }
}

#[test]
fn the_capability_says_size_and_places() {
    let machine = Machine::new(3);
    let mut body = [0; 12];
    machine
        .host
        .config_read(0, devfn(), machine.capability, &mut body);
    assert_eq!(body, [0x11, 0, 2, 0, 1, 0, 0, 0, 1, 8, 0, 0]);
    machine.control(0xffff);
    machine
        .host
        .config_read(0, devfn(), machine.capability, &mut body);
    assert_eq!(body[2..4], [2, 0xc0]);
}

#[test]
fn a_layout_that_cannot_be_is_refused() {
    for vectors in [0, 2049, u16::MAX] {
        let refused = FunctionState::new(&PciIdentity::default()).add_msix(layout(vectors));
        assert!(matches!(refused, Err(Error::VectorCount(_))), "{vectors}");
    }
    let with = |table_offset, pba_offset, vectors| MsixLayout {
        table_offset,
        pba_offset,
        ..layout(vectors)
    };
    for (layout, good) in [
        (with(0, 0x800, 128), true),
        (with(0, 0x800, 129), false),
        (with(4, 0x800, 1), false),
        (with(0, 0x804, 1), false),
        (with(0x10, 0x08, 64), true),
        (with(0x10, 0x08, 65), false),
        (with(0xff0, 0, 1), true),
        (with(0xff8, 0, 1), false),
        (with(0, 0xff8, 1), true),
        (with(0, 0x1000, 1), false),
    ] {
        let mut state = FunctionState::new(&PciIdentity::default());
        assert!(state.add_msix(layout).is_err(), "no BAR: {layout:?}");
        let memory = BarKind::Memory32 {
            prefetchable: false,
        };
        state.add_bar(bar(), memory, 0x1000).unwrap();
        assert_eq!(state.add_msix(layout).is_ok(), good, "{layout:?}");
        assert!(state.add_msix(layout).is_err(), "twice: {layout:?}");
    }
}

#[test]
fn an_unmasked_vector_sends_its_message_once_per_signal() {
    let machine = Machine::new(2);
    machine.program(1, message(1));
    machine.mask(1, false);
    machine.control(ENABLE);
    assert_eq!(machine.sink.deliver(), []);
    machine.signal(1);
    assert_eq!(machine.pending(), 0);
    assert_eq!(machine.sink.deliver(), [message(1)]);
    assert_eq!(machine.sink.deliver(), []);
    let routes: Vec<_> = machine.sink.vectors().iter().map(|v| v.routes()).collect();
    assert_eq!(routes, [vec![], vec![Some(message(1))]]);
}

#[test]
fn a_signal_under_any_mask_is_pending_and_delivered_once_when_it_is_lifted() {
    type Step = fn(&Machine);
    let cases: [(&str, Step, Step); 4] = [
        ("vector mask", |m| m.mask(0, true), |m| m.mask(0, false)),
        (
            "function mask",
            |m| m.control(ENABLE | FUNCTION_MASK),
            |m| m.control(ENABLE),
        ),
        ("MSI-X off", |m| m.control(0), |m| m.control(ENABLE)),
        ("bus master", |m| m.command(0), |m| m.command(BUS_MASTER)),
    ];
    for (name, close, open) in cases {
        let machine = Machine::new(1);
        machine.program(0, message(0));
        machine.mask(0, false);
        machine.control(ENABLE);
        close(&machine);
        machine.signal(0);
        machine.signal(0);
        assert_eq!(machine.sink.deliver(), [], "{name}");
        assert_eq!(machine.pending(), 1, "{name}");
        assert_eq!(machine.pending(), 1, "{name}: reading takes nothing");
        open(&machine);
        assert_eq!(machine.pending(), 0, "{name}");
        assert_eq!(machine.sink.deliver(), [message(0)], "{name}");
        assert_eq!(machine.sink.deliver(), [], "{name}");
    }
}

#[test]
fn lifting_one_of_two_masks_delivers_nothing() {
    let machine = Machine::new(1);
    machine.program(0, message(0));
    machine.control(ENABLE | FUNCTION_MASK);
    machine.signal(0);
    machine.mask(0, false);
    assert_eq!(machine.sink.deliver(), []);
    machine.mask(0, true);
    machine.control(ENABLE);
    assert_eq!((machine.sink.deliver(), machine.pending()), (vec![], 1));
    machine.mask(0, false);
    assert_eq!(machine.sink.deliver(), [message(0)]);
}

#[test]
fn a_message_changed_while_masked_is_the_one_that_is_sent() {
    let machine = Machine::new(1);
    machine.program(0, message(0));
    machine.mask(0, false);
    machine.control(ENABLE);
    machine.mask(0, true);
    machine.signal(0);
    machine.program(0, message(5));
    machine.mask(0, false);
    assert_eq!(machine.sink.deliver(), [message(5)]);
    let routes = machine.sink.vectors()[0].routes();
    assert_eq!(routes, [Some(message(0)), None, Some(message(5))]);
}

#[test]
fn a_refused_route_leaves_the_vector_pending_until_a_later_one_is_granted() {
    let machine = Machine::new(1);
    machine.sink.vectors()[0].refuse_routes(true);
    machine.program(0, message(0));
    machine.control(ENABLE);
    machine.mask(0, false);
    machine.signal(0);
    assert_eq!((machine.sink.deliver(), machine.pending()), (vec![], 1));
    machine.sink.vectors()[0].refuse_routes(false);
    machine.mask(0, false);
    assert_eq!(machine.sink.deliver(), [message(0)]);
}

#[test]
fn table_reads_of_every_width_and_alignment_show_the_bytes() {
    let machine = Machine::new(3);
    let mut expected = vec![0; 0x1000];
    for vector in 0..3u16 {
        let entry = usize::from(vector) * 16;
        machine.program(vector, message(vector));
        expected[entry..entry + 8].copy_from_slice(&message(vector).address.to_le_bytes());
        expected[entry + 8..entry + 12].copy_from_slice(&message(vector).data.to_le_bytes());
        expected[entry + 12] = 1;
    }
    machine.signal(1);
    expected[0x800] = 2;
    for start in (0..64usize).chain(0x7f0..0x820) {
        for len in 1..=16usize {
            let end = start + len;
            let touched = start < 48 || start < 0x808 && end > 0x800;
            if touched {
                let read = machine.read(start as u64, len);
                assert_eq!(read, expected[start..end], "{len} at {start:#x}");
            }
        }
    }
}

#[test]
fn table_writes_of_every_width_and_alignment_merge_their_bytes() {
    for start in 0..48usize {
        for len in 1..=16usize {
            let machine = Machine::new(3);
            let mut expected = machine.read(0, 48);
            machine.write(start as u64, &vec![0xff; len]);
            for at in (start..start + len).filter(|at| *at < 48) {
                expected[at] |= match at % 16 {
                    0 => 0xfc,
                    12 => 0x01,
                    13..=15 => 0,
                    _ => 0xff,
                };
            }
            assert_eq!(machine.read(0, 48), expected, "{len} at {start}");
        }
    }
}

#[test]
fn one_wide_write_takes_effect_once_on_each_entry() {
    let machine = Machine::new(2);
    machine.control(ENABLE);
    let mut table = Vec::new();
    for vector in 0..2 {
        table.extend(message(vector).address.to_le_bytes());
        table.extend(message(vector).data.to_le_bytes());
        table.extend([0; 4]);
    }
    machine.write(0, &table);
    for (vector, made) in (0..).zip(machine.sink.vectors()) {
        assert_eq!(made.routes(), [Some(message(vector))]);
    }
}

#[test]
fn pending_bits_are_read_only_in_every_width() {
    let machine = Machine::new(70);
    machine.signal(69);
    for len in 1..=8usize {
        for start in PBA..PBA + 16 {
            machine.write(start, &vec![0xff; len]);
            machine.write(start, &vec![0; len]);
        }
    }
    assert_eq!(machine.read(PBA, 16)[..8], [0; 8]);
    assert_eq!(machine.read(PBA + 8, 8), [0x20, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(machine.read(PBA + 7, 2), [0, 0x20]);
    assert!(machine.sink.vectors().iter().all(|v| v.routes().is_empty()));
}

#[test]
fn accesses_outside_of_both_structures_are_the_owners() {
    let machine = Machine::new(1);
    assert_eq!(machine.read(0x100, 4), [0, 1, 2, 3]);
    machine.write(0x100, &[1]);
    assert_eq!(machine.function.take_accesses().len(), 2);
    let other = BarIndex::new(2).unwrap();
    machine.function.bar_write(other, 0, &[1]);
    assert_eq!(machine.function.take_accesses().len(), 1);
    // An access that ends past any address is none of ours either.
    machine.write(u64::MAX, &[1, 2, 3, 4]);
    assert_eq!(machine.function.take_accesses().len(), 1);
}

#[test]
fn reset_masks_unroutes_and_forgets_what_is_pending() {
    let machine = Machine::new(2);
    for vector in 0..2 {
        machine.program(vector, message(vector));
    }
    machine.mask(0, false);
    machine.control(ENABLE);
    machine.signal(1);
    machine.host.reset();
    assert_eq!(machine.sink.vectors()[0].routed(), None);
    assert_eq!(machine.pending(), 0);
    assert_eq!(
        machine.read(0, 16),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    );
    assert!(!machine.function.with(|state| state.msix_enabled()));
    machine.command(BUS_MASTER);
    machine.program(0, message(0));
    machine.mask(0, false);
    machine.control(ENABLE);
    assert_eq!(machine.sink.deliver(), []);
    machine.signal(0);
    assert_eq!(machine.sink.deliver(), [message(0)]);
}

#[test]
fn vectors_are_the_requesters_and_go_when_it_leaves_its_bus() {
    let machine = Machine::new(2);
    machine.program(0, message(0));
    machine.mask(0, false);
    machine.control(ENABLE);
    let vectors = machine.sink.vectors();
    assert!(vectors.iter().all(|v| v.requester() == devfn()));
    drop(vectors);
    assert_eq!(machine.sink.held(), 2);
    machine.host.bus().detach(devfn()).unwrap();
    assert_eq!(machine.sink.held(), 0);
    assert_eq!(machine.sink.vectors()[0].routed(), None);
    assert!(machine.function.with(|state| state.vector(0)).is_none());
}

#[test]
fn a_vector_that_the_machine_refuses_keeps_the_function_off_the_bus() {
    let (state, _) = state(3);
    let sink = RecordingMsiSink::with_limit(2);
    let function = RecordingFunction::new(state, sink.clone());
    let lines = RecordingIrqLines::new();
    let host = PciHost::new(PciHostConfig::default(), lines).unwrap();
    let refused = host.bus().attach(devfn(), function);
    assert!(matches!(refused, Err(Error::Vector { vector: 2, .. })));
    assert!(host.bus().function(devfn()).is_none());
    assert_eq!(sink.held(), 0);
    // The place is free again.
    let (state, _) = self::state(3);
    let function = RecordingFunction::new(state, RecordingMsiSink::new());
    host.bus().attach(devfn(), function).unwrap();
}
