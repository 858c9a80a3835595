//! A network card's state as bytes, and a fresh card that goes on with it: a driver that was there all the time
//! does not notice.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use examples::machine::RunState;
use examples::monitor::Console;
use proptest::prelude::*;
use virtio::net::F;
use virtio_guest::{Error, Interrupts, NetConfig};
use virtio_pci::SavedPci;

use support::{DMA, Driver, MESSAGES, Rig, wait_until};

const OFFERED: &str = ",id=nic,packed=on,in_order=on,suspend=on,ctrl_guest_offloads=off";

fn rig(properties: &str) -> Rig {
    let rig = Rig::with_loopback(properties);
    rig.devices.complete();
    rig
}

fn driver(rig: &Rig, features: F) -> Driver {
    let config = NetConfig {
        features: (NetConfig::default().features - F::EVENT_IDX)
            | features
            | F::CTRL_RX
            | F::GUEST_ANNOUNCE,
        interrupts: Interrupts::Messages(&MESSAGES),
        ..NetConfig::default()
    };
    let driver = rig.driver_like(0, DMA, &config);
    assert!(driver.net.features().contains(features | F::CTRL_RX));
    driver
}

/// Saves the card, and puts a fresh one in its place. What `paused` does it does while nothing moves.
fn replace(rig: &Rig, paused: impl FnOnce()) {
    rig.devices.pause();
    paused();
    let state = rig.devices.save_nic("nic").unwrap();
    let read = SavedPci::from_bytes(&state).unwrap();
    assert_eq!(read.to_bytes(), state, "written otherwise than read");
    rig.devices.restore_nic("nic", &state).unwrap();
    let again = rig.devices.save_nic("nic").unwrap();
    assert_eq!(SavedPci::from_bytes(&again).unwrap(), read, "saved anew");
    rig.devices.resume();
}

#[test]
fn a_card_that_is_replaced_keeps_its_link_and_what_was_set_while_it_ran() {
    let rig = rig(&format!("{OFFERED},anti_spoof=off,tx_limit_bytes=5000000"));
    let _driver = driver(&rig, F::empty());
    let card = || rig.devices.tree().find("nic").unwrap();
    let set = |name: &str, value: &str| qdev::set_text(&card(), name, value).unwrap();
    set("anti_spoof", "on");
    set("rx_limit_packets", "7");
    set("tx_limit_bytes", "0");
    assert!(rig.devices.set_link("nic", false));
    replace(&rig, || {});
    let fresh = card();
    assert!(fresh.get::<bool>("anti_spoof").unwrap());
    for (limit, expected) in [
        ("rx_limit_bytes", 0),
        ("rx_limit_packets", 7),
        ("tx_limit_bytes", 0),
        ("tx_limit_packets", 0),
    ] {
        assert_eq!(fresh.get::<u64>(limit).unwrap(), expected, "{limit}");
    }
    let nic = rig.devices.nics().remove(0);
    assert!(!nic.ports[0].link_is_up());
}

/// For all on the link, or for a card that is not there.
fn frame(number: u16, to: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..16].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[14], frame[15]])
}

const ALL: [u8; 6] = [0xff; 6];
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// What a driver has sent and got.
struct Story {
    driver: Driver,
    sent: u16,
    got: u16,
}

impl Story {
    /// Sends until there is no room.
    fn send(&mut self, frames: u16) {
        for _ in 0..frames {
            match self.driver.net.transmit(&frame(self.sent, ALL)) {
                Ok(()) => self.sent += 1,
                Err(Error::QueueFull) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Takes what is there: each frame once, and in their order.
    fn receive(&mut self) {
        let got = &mut self.got;
        let mut buffer = [0; 2048];
        let received = self.driver.net.poll_receive(&mut buffer, |frame| {
            assert_eq!(number(frame), *got, "lost, doubled or out of order");
            *got += 1;
        });
        received.unwrap();
    }

    fn receive_all(&mut self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while self.got < self.sent {
            assert!(
                std::time::Instant::now() < deadline,
                "{} of {}",
                self.got,
                self.sent
            );
            self.receive();
            std::thread::yield_now();
        }
    }

    /// Whether a frame for somebody else comes in.
    fn is_promiscuous(&mut self) -> bool {
        self.receive_all();
        self.driver.net.transmit(&frame(0xffff, NOBODY)).unwrap();
        self.driver.net.transmit(&frame(self.sent, ALL)).unwrap();
        self.sent += 1;
        let mut strays = 0;
        let mut buffer = [0; 2048];
        let (got, driver) = (&mut self.got, &mut self.driver);
        wait_until("a frame for all", || {
            let received = driver.net.poll_receive(&mut buffer, |frame| {
                if frame[..6] == NOBODY {
                    strays += 1;
                } else {
                    *got += 1;
                }
            });
            received.unwrap();
            *got == self.sent
        });
        strays == 1
    }

    /// A command that has its answer later.
    fn ask_for_promiscuous(&mut self, on: bool) {
        let asked = self.driver.net.control(0, 0, &[on.into()], || false);
        assert!(
            matches!(asked, Ok(true) | Err(Error::ControlTimeout)),
            "{asked:?}"
        );
    }

    fn await_answer(&mut self) {
        let platform = self.driver.net.transport().platform().clone();
        let control = self.driver.net.control_queue().unwrap();
        wait_until("an answer", || match control.poll(&platform) {
            Ok(answer) => {
                assert_ne!(answer, Some(false));
                answer.is_some()
            }
            Err(error) => panic!("{error}"),
        });
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u16),
    Receive,
    ReceiveAll,
    /// Replaces the card, with so many frames made available meanwhile.
    Replace(u16),
    /// With a command in flight as well.
    ReplaceAsking(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..90_u16).prop_map(Step::Send),
        2 => Just(Step::Receive),
        1 => Just(Step::ReceiveAll),
        2 => (0..20_u16).prop_map(Step::Replace),
        1 => any::<bool>().prop_map(Step::ReplaceAsking),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Guest bug classes 12 and 30.
    #[test]
    fn a_driver_whose_card_is_replaced_at_any_time_loses_nothing_and_gets_nothing_twice(
        packed: bool,
        in_order: bool,
        event_idx: bool,
        mergeable: bool,
        steps in prop::collection::vec(step(), 1..12),
    ) {
        let chosen = [
            (packed, F::RING_PACKED),
            (in_order, F::IN_ORDER),
            (event_idx, F::EVENT_IDX),
            (mergeable, F::MRG_RXBUF),
        ];
        let features = chosen.iter().filter(|(on, _)| *on).fold(F::empty(), |all, (_, one)| all | *one);
        let rig = rig(OFFERED);
        let mut story = Story { driver: driver(&rig, features), sent: 0, got: 0 };
        let mut promiscuous = true;
        for step in steps {
            match step {
                Step::Send(frames) => story.send(frames),
                Step::Receive => story.receive(),
                Step::ReceiveAll => story.receive_all(),
                Step::Replace(frames) => replace(&rig, || story.send(frames)),
                Step::ReplaceAsking(on) => {
                    let mut answered = true;
                    replace(&rig, || {
                        story.ask_for_promiscuous(on);
                        answered = false;
                    });
                    prop_assert!(!answered);
                    story.await_answer();
                    promiscuous = on;
                }
            }
        }
        story.receive_all();
        prop_assert_eq!(story.is_promiscuous(), promiscuous);
        replace(&rig, || ());
        prop_assert_eq!(story.is_promiscuous(), promiscuous);
        story.send(40);
        story.receive_all();
    }
}

/// Guest bug class 12: a driver that sleeps is woken by the fresh card.
#[test]
fn the_fresh_card_wakes_a_driver_that_sleeps() {
    for features in [F::empty(), F::EVENT_IDX, F::EVENT_IDX | F::RING_PACKED] {
        let rig = rig(OFFERED);
        let mut story = Story {
            driver: driver(&rig, features),
            sent: 0,
            got: 0,
        };
        story.send(10);
        story.receive_all();
        assert!(!story.driver.net.prepare_sleep());
        rig.interrupts.take();
        replace(&rig, || story.send(1));
        let receive = MESSAGES[1].data;
        wait_until("the receive queue's message", || {
            let messages = rig.interrupts.wait(Duration::from_millis(100));
            messages.iter().any(|message| message.data == receive)
        });
        story.driver.net.wake();
        story.receive_all();
    }
}

#[test]
fn the_fresh_card_asks_the_driver_to_announce_itself() {
    let rig = rig(OFFERED);
    let story = Story {
        driver: driver(&rig, F::empty()),
        sent: 0,
        got: 0,
    };
    let status = || {
        let mut status = [0; 2];
        story.driver.net.transport().read_config(6, &mut status);
        status
    };
    assert_eq!(status(), [1, 0]);
    replace(&rig, || ());
    wait_until("the announce bit", || status() == [3, 0]);
}

#[test]
fn another_card_refuses_and_says_what_it_lacks() {
    // (made with, restored with, what it says)
    let table = [
        (
            OFFERED,
            ",id=nic,rx_queue_size=512,packed=on,in_order=on,suspend=on,ctrl_guest_offloads=off",
            "section 'virtio', field 'queues[0].max_size': up to 256 entries, and the device's has up to 512",
        ),
        (
            OFFERED,
            ",id=nic,in_order=on,suspend=on,ctrl_guest_offloads=off",
            "section 'virtio', field 'features': the device does not offer ",
        ),
        (
            OFFERED,
            ",id=nic,packed=on,in_order=on,suspend=on,ctrl_guest_offloads=off,vectors=8",
            "section 'pci', field 'msix.table': 4 vectors, and the function has 8",
        ),
        (
            OFFERED,
            ",id=nic,packed=on,in_order=on,suspend=on,ctrl_guest_offloads=off,host_mtu=1400",
            "section 'virtio-net', field 'config': the card is another: its configuration space is not the same at 8",
        ),
        (
            OFFERED,
            ",id=nic,packed=on,in_order=on,suspend=on,ctrl_guest_offloads=off,disable-legacy=on",
            "section 'pci', field 'config': the function is another: the byte at 0x2 is not the same",
        ),
    ];
    for (made, restored, expected) in table {
        let first = rig(made);
        let _driver = driver(&first, F::RING_PACKED);
        first.devices.pause();
        let state = first.devices.save_nic("nic").unwrap();
        let other = rig(restored);
        other.devices.pause();
        let error = other
            .devices
            .restore_nic("nic", &state)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(expected), "{restored}: {error}");
        // It is as after power-on, and a driver can use it.
        other.machine.assign_resources().unwrap();
        other.devices.resume();
        let mut story = Story {
            driver: driver(&other, F::empty()),
            sent: 0,
            got: 0,
        };
        story.send(3);
        story.receive_all();
    }
}

fn saved() -> (Rig, Vec<u8>) {
    let rig = rig(OFFERED);
    let mut story = Story {
        driver: driver(&rig, F::RING_PACKED | F::EVENT_IDX),
        sent: 0,
        got: 0,
    };
    story.send(5);
    story.receive_all();
    rig.devices.pause();
    let state = rig.devices.save_nic("nic").unwrap();
    (rig, state)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_state_that_was_changed_anywhere_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (rig, mut state) = saved();
        for (at, value) in changes {
            let at = at.index(state.len());
            state[at] = value;
        }
        if let Some(cut) = cut {
            state.truncate(cut.index(state.len()));
        }
        let _ = rig.devices.restore_nic("nic", &state);
        // Whatever became of it, it can be used from the beginning.
        rig.devices.resume();
        rig.devices.reset();
        rig.machine.reset().unwrap();
        rig.machine.assign_resources().unwrap();
        let mut story = Story { driver: driver(&rig, F::empty()), sent: 0, got: 0 };
        story.send(3);
        story.receive_all();
    }
}

#[test]
fn the_monitor_saves_and_restores_a_card_that_stands_still() {
    let rig = rig(OFFERED);
    let mut story = Story {
        driver: driver(&rig, F::empty()),
        sent: 0,
        got: 0,
    };
    let control = rig.machine.control().clone();
    let run_state = Arc::new(RunState::new(control.clone(), true));
    let console = Console {
        devices: rig.devices.clone(),
        run_state: run_state.clone(),
        control,
    };
    let file = std::env::temp_dir().join(format!("save-restore-{}", std::process::id()));
    let [save, restore] =
        ["save", "restore"].map(|verb| format!("{verb}-device nic {}", file.display()));
    run_state.runs();
    for line in [&save, &restore] {
        assert_eq!(
            console.execute(line),
            "Error: the machine runs: stop it first\n"
        );
    }
    run_state.is_paused();
    assert_eq!(console.execute(&save), "Error: the device is not paused\n");
    rig.devices.pause();
    assert_eq!(console.execute(&save), "");
    story.send(7);
    assert_eq!(console.execute(&restore), "");
    rig.devices.resume();
    story.receive_all();
    rig.devices.pause();
    std::fs::write(&file, b"no state").unwrap();
    let answer = console.execute(&restore);
    assert_eq!(
        answer,
        "Error: this is no saved state, or one of another framing\n"
    );
    let missing = console.execute("save-device nobody /tmp/x");
    assert_eq!(missing, "Error: Device 'nobody' not found\n");
    rig.devices.resume();
    story.send(7);
    story.receive_all();
    std::fs::remove_file(&file).unwrap();
}
