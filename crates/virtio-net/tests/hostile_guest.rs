//! What a guest does that no driver does: classes 10, 12, 20 and 23 of the table in
//! `examples/tests/hostile/README.md`, each with a guard whose loss shows here.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]
#![allow(
    dead_code,
    reason = "the scaffold is the device's tests', which use all of it"
)]

#[path = "device/harness.rs"]
mod harness;

use std::sync::atomic::Ordering;

use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtqueue::mock::Buffer;
use vm_memory::{Bytes, GuestAddress};

use harness::{ANSWER, COMMAND, CTRL, HEADER, Nic, TX};

/// `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` with none of them.
const COMMAND_BYTES: [u8; 10] = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn command() -> [Buffer; 2] {
    [Buffer::readable(COMMAND, 10), Buffer::writable(ANSWER, 1)]
}

fn with_command(features: NetF) -> Nic {
    let nic = Nic::with(&|_| {}, features);
    nic.memory
        .write_slice(&COMMAND_BYTES, GuestAddress(COMMAND))
        .unwrap();
    nic
}

#[test]
fn class_10_a_command_that_comes_just_before_the_device_sleeps_is_seen_by_the_second_look() {
    for features in [NetF::all(), NetF::all() - NetF::EVENT_IDX] {
        let mut nic = with_command(features);
        nic.drivers[CTRL].add(&command());
        // The driver makes it available as it is told of the first, and does not kick.
        let late = nic.later(CTRL, &command());
        nic.calls[CTRL].hook.set(late);
        nic.kicks[CTRL].write(1).unwrap();
        nic.turn();
        assert_eq!(nic.used(CTRL).len(), 2, "{features:?}");
    }
}

#[test]
fn class_12_a_command_whose_kick_came_during_a_pause_is_done_after_it() {
    let mut nic = with_command(NetF::all());
    nic.device.pause();
    nic.drivers[CTRL].add(&command());
    nic.kick(CTRL);
    assert_eq!(nic.used(CTRL).len(), 0, "paused");
    nic.device.resume();
    nic.turn();
    assert_eq!(nic.used(CTRL).len(), 1);
}

/// What the peer gets of a header in front of a frame of 60 bytes.
fn sent(nic: &mut Nic, header: [u8; HEADER]) -> Option<Vec<u8>> {
    let mut bytes = header.to_vec();
    bytes.resize(HEADER + 60, 0x5a);
    nic.add_tx(&bytes, &[]);
    nic.kick(TX);
    let used = nic.used(TX);
    assert_eq!(used.len(), 1, "its head comes back");
    assert_eq!(used[0].1, 0, "nothing was written");
    nic.peer.take().pop()
}

#[test]
fn class_20_flags_that_no_driver_sets_do_not_reach_the_host() {
    let mut nic = Nic::new();
    for flags in 0..=0xff_u8 {
        let header = [flags, 0, 0, 0, 0, 0, 14, 0, 16, 0, 0xff, 0xff];
        let got = sent(&mut nic, header).unwrap();
        assert_eq!(got[0], flags & 1, "{flags:#x}");
    }
    assert_eq!(nic.reports.config_changes.load(Ordering::SeqCst), 0);
}

#[test]
fn class_20_every_kind_of_segments_passes_only_as_negotiated_and_with_a_checksum() {
    let mut nic = Nic::new();
    let all = NetF::HOST_TSO4 | NetF::HOST_TSO6 | NetF::HOST_ECN;
    assert!(NetF::from(nic.features).contains(all));
    for kind in 1..=0xff_u8 {
        for flags in [0, 1] {
            let header = [flags, kind, 54, 0, 20, 0, 14, 0, 16, 0, 0, 0];
            let passes = flags == 1 && matches!(kind, 1 | 4 | 0x81 | 0x84);
            let got = sent(&mut nic, header);
            assert_eq!(got.is_some(), passes, "gso_type {kind:#x}, flags {flags}");
        }
    }
}
