//! BARs on the host: where they decode, and what is assigned to them.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::Arc;
use std::thread;

use vm_pci::registers::{BAR_0, COMMAND, INTERRUPT_LINE};
use vm_pci::test_utils::{BarAccess, RecordingFunction, RecordingIrqLines, RecordingMsiSink};
use vm_pci::{
    Aperture, BarIndex, BarKind, DevFn, Error, FunctionState, IntxPin, PciFunction, PciHost,
    PciHostConfig, PciIdentity,
};

const M32: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const M64: BarKind = BarKind::Memory64 { prefetchable: true };
const M64_PLAIN: BarKind = BarKind::Memory64 {
    prefetchable: false,
};
const IO: BarKind = BarKind::Io;

fn host() -> PciHost {
    host_with(PciHostConfig::default())
}

fn host_with(config: PciHostConfig) -> PciHost {
    PciHost::new(config, RecordingIrqLines::new()).unwrap()
}

fn at(device: u8) -> DevFn {
    DevFn::new(device, 0).unwrap()
}

fn attach(host: &PciHost, device: u8, bars: &[(u8, BarKind, u64)]) -> Arc<RecordingFunction> {
    let mut state = FunctionState::new(&PciIdentity::default());
    state.set_interrupt_pin(Some(IntxPin::A));
    for (index, kind, size) in bars {
        let bar = BarIndex::new(*index).unwrap();
        state.add_bar(bar, *kind, *size).unwrap();
    }
    let function = RecordingFunction::new(state, RecordingMsiSink::new());
    host.bus().attach(at(device), function.clone()).unwrap();
    function
}

fn set_bar(host: &PciHost, device: u8, index: u16, address: u64, wide: bool) {
    let len = if wide { 8 } else { 4 };
    let bytes = address.to_le_bytes();
    host.config_write(0, at(device), BAR_0 + 4 * index, &bytes[..len]);
}

fn decode(host: &PciHost, device: u8, command: u8) {
    host.config_write(0, at(device), COMMAND, &[command]);
}

fn dword(host: &PciHost, device: u8, offset: u16) -> u32 {
    let mut data = [0; 4];
    host.config_read(0, at(device), offset, &mut data);
    u32::from_le_bytes(data)
}

fn read(host: &PciHost, address: u64, len: usize) -> Option<Vec<u8>> {
    let mut data = vec![0xaa; len];
    let decoded = host.mmio_read(address, &mut data);
    assert!(decoded || data.iter().all(|byte| *byte == 0xff));
    decoded.then_some(data)
}

#[test]
fn a_bar_decodes_where_it_is_while_it_is_switched_on() {
    let host = host();
    let function = attach(&host, 1, &[(0, M32, 0x1000), (2, IO, 32), (4, M64, 0x4000)]);
    set_bar(&host, 1, 0, 0xc000_0000, false);
    set_bar(&host, 1, 2, 0xc100, false);
    set_bar(&host, 1, 4, 0x40_0000_4000, true);
    let seen = |command| {
        decode(&host, 1, command);
        let mut port = [0; 4];
        let io = host.port_read(0xc104, &mut port);
        assert_eq!(port, if io { [4, 5, 6, 7] } else { [0xff; 4] });
        let low = read(&host, 0xc000_0fff, 1).is_some();
        let high = read(&host, 0x40_0000_4000, 8).is_some();
        (low, io, high)
    };
    assert_eq!(seen(0), (false, false, false));
    assert_eq!(seen(1), (false, true, false));
    assert_eq!(seen(2), (true, false, true));
    assert_eq!(seen(3), (true, true, true));
    function.take_accesses();
    set_bar(&host, 1, 0, 0xc123_4000, false);
    assert_eq!(read(&host, 0xc000_0000, 4), None);
    assert_eq!(
        read(&host, 0xc123_4010, 4),
        Some(vec![0x10, 0x11, 0x12, 0x13])
    );
    assert!(host.mmio_write(0xc123_4002, &[9]));
    assert!(host.port_write(0xc11f, &[8]));
    let expected = [
        BarAccess::Read(0, 0x10, 4),
        BarAccess::Write(0, 2, vec![9]),
        BarAccess::Write(2, 0x1f, vec![8]),
    ];
    assert_eq!(function.take_accesses(), expected);
}

#[test]
fn a_64_bit_bar_is_nowhere_harmful_between_its_two_halves() {
    let host = host();
    attach(&host, 1, &[(4, M64, 0x4000)]);
    decode(&host, 1, 2);
    set_bar(&host, 1, 4, 0x40_0000_4000, true);
    // Moving it dword by dword: the low half first puts it below 4 GiB for a while.
    set_bar(&host, 1, 4, 0xc000_0000, false);
    assert_eq!(read(&host, 0x40_0000_4000, 1), None);
    assert!(read(&host, 0x40_c000_0000, 1).is_some());
    set_bar(&host, 1, 5, 0, false);
    assert!(read(&host, 0xc000_0000, 1).is_some());
    set_bar(&host, 1, 5, 0xffff_ffff, false);
    assert_eq!(read(&host, 0xc000_0000, 1), None);
    assert_eq!(read(&host, 0xffff_ffff_c000_0000, 8), None);
}

#[test]
fn nothing_outside_of_the_apertures_is_decoded() {
    let host = host();
    attach(
        &host,
        1,
        &[(0, M32, 0x1000), (1, IO, 32), (2, M32, 1 << 30)],
    );
    decode(&host, 1, 3);
    for address in [0x1000, 0xbfff_f000, 0xe000_0000, 0xfee0_0000, 0xffff_e000] {
        set_bar(&host, 1, 0, address, false);
        set_bar(&host, 1, 2, address, false);
        let ecam = (0xe000_0000..0xf000_0000).contains(&address);
        assert_eq!(read(&host, address, 4).is_some(), ecam, "{address:#x}");
        assert_eq!(read(&host, 0xc000_0000, 4), None);
    }
    for port in [0x20, 0xcf8, 0xce0, 0xbfe0] {
        set_bar(&host, 1, 1, port, false);
        let port = u16::try_from(port).unwrap();
        assert!(!host.port_read(port, &mut [0]), "{port:#x}");
    }
}

#[test]
fn an_access_over_the_end_of_a_bar_is_cut_and_goes_on_in_the_next() {
    let host = host();
    let a = attach(&host, 1, &[(0, M32, 16)]);
    let b = attach(&host, 2, &[(3, M32, 16)]);
    set_bar(&host, 1, 0, 0xc000_0010, false);
    set_bar(&host, 2, 3, 0xc000_0020, false);
    decode(&host, 1, 2);
    decode(&host, 2, 2);
    for len in 1..=40usize {
        for start in 0..64u64 {
            let data: Vec<_> = (start..)
                .take(len)
                .map(|at| match at {
                    0x10..0x20 => at.to_le_bytes()[0] - 0x10,
                    0x20..0x30 => at.to_le_bytes()[0] - 0x20,
                    _ => 0xff,
                })
                .collect();
            let decoded = data.iter().any(|byte| *byte != 0xff);
            let expected = decoded.then_some(data);
            assert_eq!(read(&host, 0xc000_0000 + start, len), expected);
        }
    }
    a.take_accesses();
    b.take_accesses();
    assert!(host.mmio_write(0xc000_001e, &[1, 2, 3, 4]));
    assert!(host.mmio_write(0xc000_002f, &[5, 6]));
    assert!(!host.mmio_write(0xc000_0030, &[7]));
    assert_eq!(a.take_accesses(), [BarAccess::Write(0, 14, vec![1, 2])]);
    let expected = [
        BarAccess::Write(3, 0, vec![3, 4]),
        BarAccess::Write(3, 15, vec![5]),
    ];
    assert_eq!(b.take_accesses(), expected);
    assert_eq!(read(&host, u64::MAX - 1, 8), None);
}

#[test]
fn of_windows_on_top_of_each_other_the_smaller_wins_then_the_lower_place() {
    let host = host();
    let large = attach(&host, 1, &[(0, M32, 0x4000)]);
    let small = attach(&host, 3, &[(0, M32, 0x1000), (1, M32, 0x1000)]);
    let twin = attach(&host, 2, &[(5, M32, 0x1000)]);
    set_bar(&host, 1, 0, 0xc000_0000, false);
    for (device, bar, page) in [(3, 0, 1), (3, 1, 3), (2, 5, 3)] {
        set_bar(&host, device, bar, 0xc000_0000 + page * 0x1000, false);
    }
    for device in 1..=3 {
        decode(&host, device, 2);
    }
    assert!(read(&host, 0xc000_0fff, 0x2002).is_some());
    let expected = [
        BarAccess::Read(0, 0xfff, 1),
        BarAccess::Read(0, 0x2000, 0x1000),
    ];
    assert_eq!(large.take_accesses(), expected);
    assert_eq!(small.take_accesses(), [BarAccess::Read(0, 0, 0x1000)]);
    assert_eq!(twin.take_accesses(), [BarAccess::Read(5, 0, 1)]);
    decode(&host, 2, 0);
    assert!(read(&host, 0xc000_3000, 4).is_some());
    assert_eq!(small.take_accesses(), [BarAccess::Read(1, 0, 4)]);
    decode(&host, 3, 0);
    assert!(read(&host, 0xc000_3000, 4).is_some());
    assert_eq!(large.take_accesses(), [BarAccess::Read(0, 0x3000, 4)]);
}

#[test]
fn a_function_that_left_or_was_reset_decodes_nothing() {
    let host = host();
    let function = attach(&host, 1, &[(0, M32, 0x1000)]);
    set_bar(&host, 1, 0, 0xc000_0000, false);
    decode(&host, 1, 2);
    assert!(read(&host, 0xc000_0000, 4).is_some());
    host.reset();
    assert_eq!(read(&host, 0xc000_0000, 4), None);
    assert_eq!(dword(&host, 1, BAR_0), 0);
    host.assign_resources().unwrap();
    assert!(read(&host, 0xc000_0000, 4).is_some());
    host.bus().detach(at(1)).unwrap();
    assert_eq!(read(&host, 0xc000_0000, 4), None);
    // It comes back with what it decoded.
    host.bus().attach(at(9), function).unwrap();
    assert!(read(&host, 0xc000_0000, 4).is_some());
}

#[test]
fn each_bar_gets_a_place_of_its_kind_and_the_function_its_line() {
    let host = host();
    attach(&host, 1, &[(0, IO, 32), (1, M32, 0x1000), (4, M64, 0x4000)]);
    attach(
        &host,
        2,
        &[(0, M64_PLAIN, 0x8000), (2, M64, 1 << 33), (5, IO, 0x100)],
    );
    attach(&host, 3, &[]);
    host.assign_resources().unwrap();
    for (device, offset, expected) in [
        (1, BAR_0, 0xc101),
        (1, BAR_0 + 4, 0xc000_8000),
        (1, BAR_0 + 8, 0),
        (1, BAR_0 + 16, 0x0000_000c),
        (1, BAR_0 + 20, 0x42),
        (2, BAR_0, 0xc000_0004),
        (2, BAR_0 + 4, 0),
        (2, BAR_0 + 8, 0x0000_000c),
        (2, BAR_0 + 12, 0x40),
        (2, BAR_0 + 20, 0xc001),
    ] {
        assert_eq!(
            dword(&host, device, offset),
            expected,
            "{device} {offset:#x}"
        );
    }
    for (device, command, line) in [(1, 3, 17), (2, 3, 18), (3, 0, 19)] {
        assert_eq!(dword(&host, device, COMMAND) & 0xffff, command, "{device}");
        assert_eq!(
            dword(&host, device, INTERRUPT_LINE) & 0xff,
            line,
            "{device}"
        );
    }
    assert!(read(&host, 0x42_0000_0000, 4).is_some());
    // A second time, with everything decoding, gives the same.
    host.assign_resources().unwrap();
    assert_eq!(dword(&host, 1, BAR_0), 0xc101);
}

#[test]
fn memory_goes_to_the_other_side_of_4_gib_only_when_its_own_is_full() {
    let small = Aperture::new(0xc000_0000, 0x1000);
    let cases = [
        (M64, Aperture::new(0, 0), Some(0xc000_0000)),
        (M64, Aperture::new(1 << 40, 0x1000), Some(1 << 40)),
        (M64, Aperture::new(1 << 40, 0x800), Some(0xc000_0000)),
        (M64_PLAIN, Aperture::new(1 << 40, 0x1000), Some(0xc000_0000)),
        (M32, Aperture::new(1 << 40, 0x1000), Some(0xc000_0000)),
    ];
    for (kind, mmio64, expected) in cases {
        let host = host_with(PciHostConfig {
            mmio32: small,
            mmio64,
            ..PciHostConfig::default()
        });
        let function = attach(&host, 1, &[(0, kind, 0x1000)]);
        host.assign_resources().unwrap();
        let base = function.windows().first().map(|window| window.base);
        assert_eq!(base, expected, "{kind:?} {mmio64:x?}");
    }
}

#[test]
fn no_bar_is_placed_where_it_looks_as_if_it_were_being_sized() {
    for (base, placed) in [(0xffff_0000, false), (0xfffe_0000, true)] {
        let host = host_with(PciHostConfig {
            ecam: Aperture::new(0, 0),
            mmio32: Aperture::new(base, (1 << 32) - base),
            ..PciHostConfig::default()
        });
        let function = attach(&host, 1, &[(0, M32, 0x1_0000)]);
        assert_eq!(host.assign_resources().is_ok(), placed, "{base:#x}");
        assert_eq!(function.windows().is_empty(), !placed, "{base:#x}");
    }
}

#[test]
fn a_machine_without_room_decodes_nothing_and_names_the_bar() {
    let host = host();
    attach(&host, 1, &[(0, IO, 32)]);
    attach(&host, 2, &[(1, M32, 1 << 30)]);
    let refused = host.assign_resources();
    match refused {
        Err(Error::NoRoom { devfn, bar, size }) => {
            assert_eq!((devfn, bar.get(), size), (at(2), 1, 1 << 30));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(dword(&host, 1, COMMAND) & 0xffff, 0);
    assert_eq!(dword(&host, 1, BAR_0), 1);
    assert_eq!(dword(&host, 2, BAR_0 + 4), 0);
}

#[test]
fn the_map_follows_the_last_of_concurrent_moves() {
    let host = Arc::new(host());
    let function = attach(&host, 1, &[(0, M32, 0x1000), (1, M32, 0x1000)]);
    decode(&host, 1, 2);
    for _ in 0..100 {
        let movers = [0u16, 1].map(|bar| {
            let host = host.clone();
            thread::spawn(move || {
                for page in 1..20 {
                    let base = 0xc000_0000 + u64::from(bar) * 0x10_0000;
                    set_bar(&host, 1, bar, base + page * 0x1000, false);
                    let _ = read(&host, base + page * 0x1000, 4);
                }
            })
        });
        for mover in movers {
            mover.join().unwrap();
        }
        for window in function.windows() {
            assert!(read(&host, window.base, 4).is_some(), "{window:x?}");
            assert!(read(&host, window.base - 1, 1).is_none(), "{window:x?}");
        }
    }
}
