//! A function's registers in a fresh function: what software finds there, and which messages still come.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::Arc;

use vm_pci::test_utils::RecordingMsiSink;
use vm_pci::{
    Attachment, BarIndex, BarKind, BarWindow, DevFn, Forwarding, FunctionState, IntxLine,
    MsiMessage, MsixLayout, PciFunction, PciIdentity, SavedFunction,
};
use vmstate::{Reader, Writer};

const COMMAND: u16 = 4;
const MEMORY_AND_MASTER: u8 = 6;
const ENABLE: u8 = 0x80;

fn bar() -> BarIndex {
    BarIndex::new(1).unwrap()
}

#[derive(Debug)]
struct Place;

impl Forwarding for Place {
    fn forwards(&self, _: &BarWindow) -> bool {
        true
    }

    fn windows_changed(&self, _: &dyn PciFunction) {}
}

impl IntxLine for Place {
    fn set_level(&self, _: bool) {}
}

/// A function of `vectors` vectors on its bus, its sink, and where its MSI-X capability is.
fn function(vectors: u16, device: u16) -> (FunctionState, Arc<RecordingMsiSink>, u16) {
    let identity = PciIdentity {
        device,
        ..PciIdentity::default()
    };
    let mut function = FunctionState::new(&identity);
    let memory = BarKind::Memory32 {
        prefetchable: false,
    };
    function.add_bar(bar(), memory, 0x1000).unwrap();
    let layout = MsixLayout {
        vectors,
        table_bar: bar(),
        table_offset: 0,
        pba_bar: bar(),
        pba_offset: 0x800,
    };
    let capability = function.add_msix(layout).unwrap();
    let sink = RecordingMsiSink::new();
    let at = Attachment {
        devfn: DevFn::new(3, 0).unwrap(),
        intx: Arc::new(Place),
        forwarding: Arc::new(Place),
    };
    function.connect(&at, sink.as_ref()).unwrap();
    (function, sink, capability.into())
}

fn write(function: &mut FunctionState, offset: u16, data: &[u8]) {
    let _ = function.config_write(offset, data);
}

fn program(function: &mut FunctionState, vector: u8, masked: bool) {
    let message = [0xfee0_0000_u32, 0, u32::from(vector) + 0x40, masked.into()];
    let bytes: Vec<u8> = message.into_iter().flat_map(u32::to_le_bytes).collect();
    assert!(function.msix_write(bar(), u64::from(vector) * 16, &bytes));
}

fn message(vector: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: vector + 0x40,
    }
}

/// One whose software has placed its BAR and set up three vectors, of which the last is masked and pending.
fn in_use() -> FunctionState {
    let (mut function, sink, capability) = function(3, 1);
    write(&mut function, 0x14, &0xc000_1000_u32.to_le_bytes());
    write(&mut function, COMMAND, &[MEMORY_AND_MASTER]);
    write(&mut function, capability + 3, &[ENABLE]);
    for (vector, masked) in [(0, false), (1, false), (2, true)] {
        program(&mut function, vector, masked);
    }
    let vectors = sink.vectors();
    vm_pci::MsiVector::event_fd(&*vectors[2]).write(1).unwrap();
    function
}

fn through_bytes(saved: &SavedFunction) -> SavedFunction {
    let mut writer = Writer::new();
    saved.write(&mut writer);
    let bytes = writer.into_bytes();
    let mut reader = Reader::new(&bytes).unwrap();
    let read = SavedFunction::read(&mut reader).unwrap();
    reader.finish().unwrap();
    read
}

#[test]
fn a_fresh_function_decodes_and_interrupts_as_the_saved_one() {
    let old = in_use();
    let saved = old.save();
    assert_eq!(through_bytes(&saved), saved);

    let (mut fresh, sink, capability) = function(3, 1);
    fresh.restore(&saved).unwrap();
    assert_eq!(fresh.windows(), old.windows());
    assert_eq!(fresh.windows()[0].base, 0xc000_1000);
    assert!(fresh.msix_enabled());
    let routes: Vec<_> = sink.vectors().iter().map(|v| v.routed()).collect();
    assert_eq!(routes, [Some(message(0)), Some(message(1)), None]);
    assert!(sink.deliver().is_empty(), "the pending one is masked");
    let mut pending = [0; 8];
    assert!(fresh.msix_read(bar(), 0x800, &mut pending));
    assert_eq!(pending, [4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fresh.save(), saved, "saved anew");

    assert!(fresh.msix_write(bar(), 2 * 16 + 12, &[0, 0, 0, 0]));
    assert_eq!(sink.deliver(), [message(2)], "lost");
    write(&mut fresh, capability + 3, &[0]);
    assert!(sink.vectors().iter().all(|v| v.routed().is_none()));
}

#[test]
fn another_function_refuses_and_is_as_it_was() {
    let saved = in_use().save();
    let without = SavedFunction {
        msix: None,
        ..saved.clone()
    };
    let mut unknown_vector = saved.clone();
    unknown_vector.msix.as_mut().unwrap().pending = vec![3];
    let table = [
        (
            3,
            2,
            &saved,
            "section 'pci', field 'config': the function is another: the byte at 0x2 is not the same",
        ),
        (
            2,
            1,
            &saved,
            "section 'pci', field 'msix.table': 3 vectors, and the function has 2",
        ),
        (
            3,
            1,
            &without,
            "section 'pci', field 'msix': not saved, and the function has it",
        ),
        (
            3,
            1,
            &unknown_vector,
            "section 'pci', field 'msix.pending': no vector 3: the function has 3",
        ),
    ];
    for (vectors, device, saved, expected) in table {
        let (mut fresh, sink, _) = function(vectors, device);
        let before = fresh.save();
        let error = fresh.restore(saved).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(fresh.save(), before, "{expected}");
        assert!(sink.deliver().is_empty(), "{expected}");
    }
}
