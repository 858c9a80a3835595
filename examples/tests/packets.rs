//! A packet's way with no KVM: a driver in this process, over the machine's own ports, BARs and
//! messages, to the host's stack behind a real tap.

mod support;

use examples::machine::layout::PCI_FIRST_GSI;
use virtio::net::F;
use virtio_guest::{Interrupts, NetConfig};

use support::{DMA, MESSAGES, Rig, in_own_network, interfaces, wait_until};

#[test]
fn the_hosts_stack_answers_arp_and_ping() {
    in_own_network("the_hosts_stack_answers_arp_and_ping", || {
        let rig = Rig::with_nic(",mac=52:54:00:ab:cd:ef");
        let mut driver = rig.driver();
        assert_eq!(driver.net.mac(), [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert!(driver.net.is_link_up());
        driver.resolve_host();
        for sequence in 1..=100 {
            driver.ping_host(sequence);
        }
        // Each answer that was slept for was told of by the receive queue's own message.
        let receive = MESSAGES[1].data;
        assert!(driver.messages.contains(&receive), "{:?}", driver.messages);
    });
}

#[test]
fn rings_may_be_packed_and_used_in_order() {
    in_own_network("rings_may_be_packed_and_used_in_order", || {
        for format in [F::RING_PACKED, F::IN_ORDER, F::RING_PACKED | F::IN_ORDER] {
            for events in [F::empty(), F::EVENT_IDX] {
                let rig = Rig::with_nic(",packed=on,in_order=on");
                let config = NetConfig {
                    interrupts: Interrupts::Messages(&MESSAGES),
                    features: (NetConfig::default().features - F::EVENT_IDX) | events | format,
                    ..NetConfig::default()
                };
                let mut driver = rig.driver_like(0, DMA, &config);
                assert!(driver.net.features().contains(format | events));
                driver.resolve_host();
                // More than the ring has, so that it goes round.
                for sequence in 1..=200 {
                    driver.ping_host(sequence);
                }
            }
        }
    });
}

#[test]
fn without_vectors_the_pin_tells_of_what_arrives() {
    in_own_network("without_vectors_the_pin_tells_of_what_arrives", || {
        let rig = Rig::with_nic(",vectors=0,addr=4");
        // INTA# of device 4, rotated by as much.
        let line = PCI_FIRST_GSI;
        let mut driver = rig.driver_with(Interrupts::Line);
        driver.resolve_host();
        driver.net.handle_interrupt();
        assert!(!rig.interrupts.level(line), "reading ISR releases the line");
        assert!(!driver.net.prepare_sleep());
        // Something that the driver sleeps for.
        driver.net.transmit(&driver.echo_request(1)).unwrap();
        wait_until("the line is asserted", || rig.interrupts.level(line));
        assert!(driver.net.handle_interrupt().queue);
        assert!(!rig.interrupts.level(line));
    });
}

#[test]
fn a_reset_gives_everything_back_and_the_next_driver_works() {
    in_own_network(
        "a_reset_gives_everything_back_and_the_next_driver_works",
        || {
            let rig = Rig::with_nic("");
            for round in 1..=3 {
                let mut driver = rig.driver();
                driver.resolve_host();
                driver.ping_host(round);
                // Without a word to the device: the machine is reset under the driver.
                rig.devices.reset();
                rig.machine.reset().unwrap();
                assert_eq!(rig.interrupts.vectors().1, 0, "a vector is still routed");
                rig.machine.assign_resources().unwrap();
            }
        },
    );
}

#[test]
fn nothing_is_left_when_a_machine_goes_with_its_driver_at_work() {
    in_own_network(
        "nothing_is_left_when_a_machine_goes_with_its_driver_at_work",
        || {
            let before = interfaces();
            let rig = Rig::with_nic("");
            let mut driver = rig.driver();
            driver.resolve_host();
            driver.ping_host(1);
            let memory = std::sync::Arc::downgrade(rig.machine.memory());
            let interrupts = rig.interrupts.clone();
            drop((rig, driver));
            assert_eq!(interrupts.vectors(), (0, 0));
            assert_eq!(memory.strong_count(), 0, "somebody holds guest memory");
            // An interface goes when the last descriptor is closed, which the kernel may put off.
            wait_until("the tap is gone", || interfaces() == before);
        },
    );
}
