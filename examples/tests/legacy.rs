//! Drivers from before virtio 1.0, over the machine's ports, to the host's stack behind a real tap.
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]

mod support;

use std::time::{Duration, Instant};

use examples::machine::DriverView;
use virtio::net::F;
use virtio_guest::{DmaMemory, Interrupts, NetConfig, NetDriver, VirtioPciTransport, pci};

use support::{
    DMA, MESSAGES, Rig, answered_by, arp_request, echo_request, in_own_network, is_echo_reply,
};

/// A legacy device says how long its queues are, and they are this long.
type Driver = NetDriver<DriverView, 256>;

fn start(rig: &Rig, only_legacy: bool, config: &NetConfig<'_>) -> Driver {
    let view = DriverView::new(rig.machine.clone());
    let address = pci::functions(&view, 0)
        .find(|function| pci::is_virtio_net(&view, *function))
        .unwrap();
    // A driver that knows both takes the legacy interface only where there is no other.
    let transport = if only_legacy {
        VirtioPciTransport::probe(view, address)
    } else {
        VirtioPciTransport::probe_legacy(view, address)
    };
    let transport = transport.unwrap();
    assert!(transport.is_legacy());
    NetDriver::new(transport, DmaMemory::new(DMA), config).unwrap()
}

/// Sends `frame`, and polls for one that is an answer.
fn ask(driver: &mut Driver, frame: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    driver.transmit(frame).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut buffer = [0; 2048];
    let mut answer = None;
    while answer.is_none() {
        assert!(Instant::now() < deadline, "no answer");
        let take = |frame: &[u8]| {
            if is_answer(frame) {
                answer = Some(frame.to_vec());
            }
        };
        driver.poll_receive(&mut buffer, take).unwrap();
        std::thread::yield_now();
    }
    answer.unwrap()
}

fn ping(driver: &mut Driver) {
    let mac = driver.mac();
    let answer = ask(driver, &arp_request(mac), |frame| {
        answered_by(frame).is_some()
    });
    let host = answered_by(&answer).unwrap();
    for sequence in 1..=10 {
        let request = echo_request(mac, host, sequence);
        ask(driver, &request, |frame| is_echo_reply(frame, sequence));
    }
}

#[test]
fn a_legacy_driver_pings_the_host_with_either_header_and_any_kind_of_interrupt() {
    let name = "a_legacy_driver_pings_the_host_with_either_header_and_any_kind_of_interrupt";
    in_own_network(name, || {
        for (properties, only_legacy) in [
            ("", false),
            (",disable-modern=on", true),
            (",disable-modern=on,vectors=0", true),
        ] {
            let usual = NetConfig::default().features | F::CTRL_RX;
            for features in [usual, usual | F::MRG_RXBUF, F::MAC] {
                for interrupts in [
                    Interrupts::Polled,
                    Interrupts::Line,
                    Interrupts::Messages(&MESSAGES),
                ] {
                    let messages = matches!(interrupts, Interrupts::Messages(_));
                    if messages && properties.contains("vectors=0") {
                        continue;
                    }
                    let config = NetConfig {
                        features,
                        interrupts,
                        ..NetConfig::default()
                    };
                    // The host forgets who does not answer its own questions: each has a new link.
                    let rig = Rig::with_nic(properties);
                    let mut driver = start(&rig, only_legacy, &config);
                    assert!(!driver.features().contains(F::VERSION_1));
                    assert!(driver.is_link_up());
                    ping(&mut driver);
                    if features.contains(F::CTRL_VQ) {
                        // Promiscuous mode on.
                        let deadline = Instant::now() + Duration::from_secs(20);
                        let wait = || Instant::now() < deadline;
                        assert!(driver.control(0, 0, &[1], wait).unwrap());
                    }
                    driver.shut_down().unwrap();
                }
            }
        }
    });
}

#[test]
fn an_address_that_a_legacy_driver_writes_is_its_own_from_then_on() {
    in_own_network(
        "an_address_that_a_legacy_driver_writes_is_its_own_from_then_on",
        || {
            let rig = Rig::with_nic(",disable-modern=on,ctrl_mac_addr=off");
            let mut driver = start(&rig, true, &NetConfig::default());
            let mac = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];
            for (at, byte) in (0..).zip(mac) {
                driver.transport_mut().write_config(at, byte);
            }
            let answer = ask(&mut driver, &arp_request(mac), |frame| {
                answered_by(frame).is_some() && frame[..6] == mac
            });
            assert_eq!(answer[..6], mac);
        },
    );
}
