//! A driver that nobody here wrote: the `virtio-drivers` crate finds the NIC in configuration space,
//! starts it and exchanges frames, through the machine's own ports, BARs and memory, with no KVM.

mod hal;
mod nic;
#[path = "../support/mod.rs"]
mod support;
mod transport;

use examples::machine::layout::PCI_FIRST_GSI;
use virtio_drivers::transport::InterruptStatus;
use virtio_drivers::transport::pci::bus::{BarInfo, DeviceFunction, MemoryBarType, PciRoot};

use hal::GuestPages;
use nic::{Buffered, Nic, QUEUE_SIZE, Raw};
use support::{
    Rig, answered_by, arp_request, echo_request, in_own_network, is_echo_reply, wait_until,
};
use transport::{ConfigPorts, MachineTransport};

fn start<N: Nic>(rig: &Rig) -> N {
    GuestPages::provide(rig.machine.memory());
    N::start(MachineTransport::find(&rig.machine))
}

/// The next frame that `is_wanted`.
fn wait_for(nic: &mut impl Nic, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut wanted = None;
    wait_until("a frame", || {
        wanted = nic.receive().filter(|frame| is_wanted(frame));
        wanted.is_some()
    });
    wanted.unwrap_or_default()
}

/// A frame to anybody, of `len` bytes that tell it from others.
fn frame(len: usize, number: u8) -> Vec<u8> {
    let mut frame = vec![0xff; len];
    frame[6..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    for (byte, pattern) in frame[14..].iter_mut().zip((0..251).cycle()) {
        *byte = pattern ^ number;
    }
    frame
}

#[test]
fn its_walk_through_configuration_space_finds_the_bars_of_a_transitional_device() {
    let rig = Rig::with_loopback(",addr=7");
    let mut root = PciRoot::new(ConfigPorts(rig.machine.clone()));
    let function = DeviceFunction {
        bus: 0,
        device: 7,
        function: 0,
    };
    let (_, info) = root
        .enumerate_bus(0)
        .find(|(found, _)| *found == function)
        .unwrap();
    assert_eq!((info.vendor_id, info.device_id), (0x1af4, 0x1000));
    let bars = root.bars(function).unwrap();
    let is_there = bars.each_ref().map(Option::is_some);
    assert_eq!(is_there, [true, true, false, false, true, false]);
    let msix = bars[1].as_ref().unwrap();
    assert!(
        matches!(
            msix,
            BarInfo::Memory {
                address_type: MemoryBarType::Width32,
                prefetchable: false,
                size: 4096,
                ..
            }
        ),
        "{msix}"
    );
    let registers = bars[4].as_ref().unwrap();
    assert!(
        matches!(
            registers,
            BarInfo::Memory {
                address_type: MemoryBarType::Width64,
                prefetchable: true,
                size: 0x4000,
                ..
            }
        ),
        "{registers}"
    );
}

fn ping_the_host<N: Nic>() {
    let rig = Rig::with_nic(",mac=52:54:00:ab:cd:ef");
    let mut nic: N = start(&rig);
    let mac = nic.mac();
    assert_eq!(mac, [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
    nic.send(&arp_request(mac));
    let answer = wait_for(&mut nic, |frame| answered_by(frame).is_some());
    let host = answered_by(&answer).unwrap_or_default();
    for sequence in 1..=100 {
        nic.send(&echo_request(mac, host, sequence));
        wait_for(&mut nic, |frame| is_echo_reply(frame, sequence));
    }
}

#[test]
fn its_raw_driver_pings_the_host() {
    in_own_network("its_raw_driver_pings_the_host", ping_the_host::<Raw>);
}

#[test]
fn its_driver_with_buffers_pings_the_host() {
    in_own_network(
        "its_driver_with_buffers_pings_the_host",
        ping_the_host::<Buffered>,
    );
}

/// What a device offers decides what the driver takes: chains or indirect tables, event indices or
/// flags.
const PROPERTIES: [&str; 5] = [
    "",
    ",event_idx=off",
    ",indirect_desc=off",
    ",event_idx=off,indirect_desc=off",
    ",mrg_rxbuf=off,ctrl_vq=off,status=off",
];

fn send_and_see_again<N: Nic>() {
    for properties in PROPERTIES {
        let rig = Rig::with_loopback(properties);
        let mut nic: N = start(&rig);
        for number in 0..4 {
            for len in [14, 42, 60, 64, 65, 1000, 1514] {
                let sent = frame(len, number);
                nic.send(&sent);
                let back = wait_for(&mut nic, |_| true);
                assert!(back == sent, "{properties}: {len} bytes: {back:02x?}");
            }
        }
    }
}

#[test]
fn what_its_raw_driver_sends_to_a_loopback_comes_back_as_it_was() {
    send_and_see_again::<Raw>();
}

#[test]
fn what_its_driver_with_buffers_sends_to_a_loopback_comes_back_as_it_was() {
    send_and_see_again::<Buffered>();
}

fn send_a_ringful_before_looking<N: Nic>() {
    for properties in PROPERTIES {
        let rig = Rig::with_loopback(properties);
        let mut nic: N = start(&rig);
        for round in 0..20 {
            let numbers = (round..).take(QUEUE_SIZE);
            for number in numbers.clone() {
                nic.send(&frame(60, number));
            }
            for number in numbers {
                let back = wait_for(&mut nic, |_| true);
                assert!(back == frame(60, number), "{properties}: {round}: {number}");
            }
        }
        assert_eq!(nic.receive(), None, "{properties}");
    }
}

#[test]
fn a_ringful_of_frames_comes_back_in_order() {
    send_a_ringful_before_looking::<Raw>();
    send_a_ringful_before_looking::<Buffered>();
}

#[test]
fn its_acknowledgement_releases_the_pin() {
    // INTA# of device 4.
    let rig = Rig::with_loopback(",addr=4");
    let mut nic: Raw = start(&rig);
    assert!(!rig.interrupts.level(PCI_FIRST_GSI));
    for number in 0..10 {
        nic.send(&frame(60, number));
        wait_until("the pin is asserted", || {
            rig.interrupts.level(PCI_FIRST_GSI)
        });
        wait_for(&mut nic, |_| true);
        // Transmission and reception may each have asserted it.
        wait_until("the pin is released", || {
            let status = nic.acknowledge_interrupt();
            assert!(
                InterruptStatus::QUEUE_INTERRUPT.contains(status),
                "{:#x}",
                status.bits()
            );
            !rig.interrupts.level(PCI_FIRST_GSI)
        });
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none_until_it_does() {
    let rig = Rig::with_loopback(",addr=4,event_idx=off");
    let mut nic: Buffered = start(&rig);
    nic.disable_interrupts();
    for number in 0..10 {
        nic.send(&frame(60, number));
        wait_for(&mut nic, |_| true);
        assert!(!rig.interrupts.level(PCI_FIRST_GSI));
        assert!(nic.acknowledge_interrupt().is_empty());
    }
    nic.enable_interrupts();
    nic.send(&frame(60, 10));
    wait_until("the pin is asserted", || {
        rig.interrupts.level(PCI_FIRST_GSI)
    });
}

#[test]
fn drivers_of_both_kinds_follow_each_other_on_one_device() {
    let rig = Rig::with_loopback("");
    for number in 0..3 {
        let mut raw: Raw = start(&rig);
        raw.send(&frame(100, number));
        assert_eq!(wait_for(&mut raw, |_| true), frame(100, number));
        // Frames are on their way back when it goes.
        raw.send(&frame(100, 0xf0));
        drop(raw);
        // Its receive buffers are lost, one page each; its rings are not.
        assert_eq!(GuestPages::taken(), QUEUE_SIZE, "{number}");

        let mut buffered: Buffered = start(&rig);
        buffered.send(&frame(1514, number));
        let back = wait_for(&mut buffered, |frame| frame.len() == 1514);
        assert_eq!(back, frame(1514, number));
    }
}
