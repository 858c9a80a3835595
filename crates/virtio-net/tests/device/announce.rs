//! Asking the driver to announce itself (virtio 1.4, 5.1.9.5.4).

use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{AnnounceParameters, VirtioNetConfig};

use crate::harness::{ERR, Nic, OK};

const ANNOUNCE: u8 = 2;
const ACK: [u8; 2] = [3, 0];

fn status(nic: &Nic) -> u8 {
    let mut status = [0xa5; 2];
    nic.device.read_config(6, &mut status);
    assert_eq!(status[1], 0);
    status[0]
}

fn config_changes(nic: &Nic) -> usize {
    nic.reports.config_changes.load(Ordering::SeqCst)
}

/// Lets so many milliseconds pass.
fn wait(nic: &Nic, ms: u64) {
    nic.clock.advance(Duration::from_millis(ms));
    nic.turn();
}

#[test]
fn the_driver_is_asked_round_after_round_each_later_than_the_last() {
    let mut nic = Nic::new();
    nic.device.announce_self(AnnounceParameters::default());
    // (time passed, rounds by then): 50, 150, 250, 350 and 450 ms after one another.
    let table = [
        (49, 0),
        (1, 1),
        (149, 1),
        (1, 2),
        (249, 2),
        (1, 3),
        (350, 4),
        (449, 4),
        (1, 5),
        (10_000, 5),
    ];
    for (ms, rounds) in table {
        wait(&nic, ms);
        assert_eq!(config_changes(&nic), rounds, "after {ms} ms more");
        // Answered or not, the next round asks again.
        let asked = if rounds > 0 { ANNOUNCE } else { 0 };
        assert_eq!(status(&nic), 1 | asked);
        if ms == 149 {
            assert_eq!(nic.command(&ACK), OK);
            assert_eq!(status(&nic), 1);
        }
    }
}

/// virtio 1.4, 5.1.9.5.4.2
#[test]
fn the_bit_is_clear_before_the_answer_is_there() {
    let mut nic = Nic::new();
    nic.device.announce_self(AnnounceParameters::default());
    wait(&nic, 50);
    assert_eq!(status(&nic), 1 | ANNOUNCE);
    let device = nic.device.clone();
    let ctrl = nic.drivers.len() - 1;
    nic.calls[ctrl].hook.set(move || {
        let mut status = [0; 2];
        device.read_config(6, &mut status);
        assert_eq!(status, [1, 0]);
    });
    assert_eq!(nic.command(&ACK), OK);
    assert_eq!(status(&nic), 1);
    // Once more does no harm; with data it is no command.
    assert_eq!(nic.command(&ACK), OK);
    assert_eq!(nic.command(&[3, 0, 0]), ERR);
    assert_eq!(nic.command(&[3, 1]), ERR);
}

#[test]
fn a_driver_that_has_not_negotiated_it_is_not_asked() {
    let mut nic = Nic::with(&|_| {}, NetF::all() - NetF::GUEST_ANNOUNCE);
    nic.device.announce_self(AnnounceParameters::default());
    wait(&nic, 10_000);
    assert_eq!((config_changes(&nic), status(&nic)), (0, 1));
    assert_eq!(nic.command(&ACK), ERR);
}

#[test]
fn nothing_of_it_is_left_after_a_reset_and_rounds_that_go_on_ask_the_next_driver() {
    let mut nic = Nic::new();
    nic.device.announce_self(AnnounceParameters::default());
    wait(&nic, 50);
    assert_eq!(status(&nic), 1 | ANNOUNCE);
    nic.device.reset();
    assert_eq!(status(&nic), 1);
    wait(&nic, 150);
    assert_eq!((config_changes(&nic), status(&nic)), (1, 1));
    nic.restart();
    assert_eq!(status(&nic), 1);
    wait(&nic, 250);
    assert_eq!((config_changes(&nic), status(&nic)), (2, 1 | ANNOUNCE));
}

#[test]
fn rounds_begun_anew_take_the_place_of_those_before_and_none_end_them() {
    let nic = Nic::new();
    nic.device.announce_self(AnnounceParameters::default());
    wait(&nic, 40);
    nic.device.announce_self(AnnounceParameters::default());
    wait(&nic, 49);
    assert_eq!(config_changes(&nic), 0);
    wait(&nic, 1);
    assert_eq!(config_changes(&nic), 1);
    nic.device.announce_self(AnnounceParameters {
        rounds: 0,
        ..Default::default()
    });
    wait(&nic, 10_000);
    assert_eq!(config_changes(&nic), 1);
}

#[test]
fn it_is_not_offered_without_the_queue_or_the_field_that_it_needs() {
    let table: [fn(&mut VirtioNetConfig); 3] = [
        |config| config.guest_announce = false,
        |config| config.ctrl_vq = false,
        |config| config.status = false,
    ];
    for change in table {
        let mut config = VirtioNetConfig::default();
        change(&mut config);
        let nic = Nic::idle_of(config, &|_| {}, NetF::all());
        assert!(!NetF::from(nic.features).contains(NetF::GUEST_ANNOUNCE));
    }
}
