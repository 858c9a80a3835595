//! What the VMM does with no options, or few.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes only what is marked as a test for one"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use examples::cli::Options;
use examples::ping::Pinger;
use examples::vmm::{self, Ending, VmmError};
use support::{in_own_network, wait_until};

#[test]
fn with_no_options_every_ping_is_answered() {
    in_own_network("with_no_options_every_ping_is_answered", || {
        let ending = vmm::run(&Options::default()).unwrap();
        assert_eq!(ending, Ending::Status(0));
    });
}

#[test]
fn without_kvm_every_ping_is_answered_too() {
    in_own_network("without_kvm_every_ping_is_answered_too", || {
        let ending = vmm::run_without_kvm(&Options::default()).unwrap();
        assert_eq!(ending, Ending::Status(0));
    });
}

#[test]
fn a_card_of_the_legacy_interface_alone_is_driven_by_the_embedded_guest() {
    let name = "a_card_of_the_legacy_interface_alone_is_driven_by_the_embedded_guest";
    in_own_network(name, || {
        let options = Options {
            netdevs: vec!["tap,id=tap0,ip=10.0.2.2/24".into()],
            devices: vec!["virtio-net-pci,netdev=tap0,disable-modern=on".into()],
            ..Options::default()
        };
        for run in [vmm::run, vmm::run_without_kvm] {
            assert_eq!(run(&options).unwrap(), Ending::Status(0));
        }
    });
}

#[test]
fn two_runs_with_no_options_at_once_do_not_disturb_each_other() {
    in_own_network(
        "two_runs_with_no_options_at_once_do_not_disturb_each_other",
        || {
            let run = || {
                // Each enters its own network: a thread is enough for that where it may.
                std::thread::spawn(|| vmm::run_without_kvm(&Options::default()).unwrap())
            };
            let runs = [run(), run()];
            for run in runs {
                assert_eq!(run.join().unwrap(), Ending::Status(0));
            }
        },
    );
}

#[test]
fn a_paused_machine_waits_for_cont_and_ends_with_quit() {
    in_own_network("a_paused_machine_waits_for_cont_and_ends_with_quit", || {
        for run in [vmm::run, vmm::run_without_kvm] {
            let path = std::env::temp_dir().join(format!("vmm-S-{}", std::process::id()));
            let options = Options {
                monitors: vec![format!("unix:{},server=on,wait=off", path.display())],
                paused: true,
                ..Options::default()
            };
            // The machine is run by the thread that was there first: it enters the network.
            let user = std::thread::spawn({
                let path = path.clone();
                move || talk(&path)
            });
            let ending = run(&options).unwrap();
            let answers = user.join().unwrap();
            assert_eq!(
                answers,
                ["paused (prelaunch)", "paused (prelaunch)", "running"]
            );
            assert_eq!(ending, Ending::Quit);
            assert!(!path.exists());
        }
    });
}

#[test]
fn the_embedded_guest_takes_packed_rings() {
    in_own_network("the_embedded_guest_takes_packed_rings", || {
        let options = Options {
            netdevs: vec!["tap,id=tap0,ip=10.0.2.2/24".into()],
            devices: vec!["virtio-net-pci,netdev=tap0,packed=on,rss=on,hash=on".into()],
            ..Options::default()
        };
        for run in [vmm::run, vmm::run_without_kvm] {
            assert_eq!(run(&options).unwrap(), Ending::Status(0));
        }
    });
}

#[test]
fn under_a_monitor_the_embedded_guest_goes_on_until_quit() {
    in_own_network(
        "under_a_monitor_the_embedded_guest_goes_on_until_quit",
        || {
            for run in [vmm::run, vmm::run_without_kvm] {
                let path = std::env::temp_dir().join(format!("vmm-go-{}", std::process::id()));
                let options = Options {
                    monitors: vec![format!("unix:{},server=on,wait=off", path.display())],
                    netdevs: vec!["tap,id=tap0,ip=10.0.2.2/24".into()],
                    devices: vec!["virtio-net-pci,netdev=tap0".into()],
                    ..Options::default()
                };
                let user = std::thread::spawn(move || {
                    let mut client = None;
                    wait_until("the monitor listens", || {
                        client = UnixStream::connect(&path).ok();
                        client.is_some()
                    });
                    let pinger = Pinger::new([10, 0, 2, 15].into()).unwrap();
                    let (mut sequence, mut answered) = (0, 0);
                    // More than would keep it when it has sent its own.
                    wait_until("pings are answered", || {
                        sequence += 1;
                        let answer = pinger.ping(sequence, Duration::from_millis(100));
                        answered += u32::from(matches!(answer, Ok(Some(_))));
                        answered >= 50
                    });
                    client.unwrap().write_all(b"quit\n").unwrap();
                });
                assert_eq!(run(&options).unwrap(), Ending::Quit);
                user.join().unwrap();
            }
        },
    );
}

/// Lets the machine at the other end go on and end; what it says of its status in between.
fn talk(path: &std::path::Path) -> Vec<String> {
    let mut client = None;
    wait_until("the monitor listens", || {
        client = UnixStream::connect(path).ok();
        client.is_some()
    });
    let mut client = BufReader::new(client.unwrap());
    let lines = "info status\nstop\ninfo status\ncont\ninfo status\nquit\n";
    client.get_mut().write_all(lines.as_bytes()).unwrap();
    let lines = client.lines().map_while(Result::ok);
    let status = |line: String| line.split_once("VM status: ").map(|(_, is)| is.to_owned());
    lines.filter_map(status).take(3).collect()
}

#[test]
fn the_embedded_guest_without_a_nic_is_no_machine() {
    in_own_network("the_embedded_guest_without_a_nic_is_no_machine", || {
        let options = Options {
            netdevs: vec!["tap,id=a".into()],
            ..Options::default()
        };
        for run in [vmm::run, vmm::run_without_kvm] {
            let error = run(&options).unwrap_err();
            assert!(matches!(error, VmmError::NoNic), "{error}");
            assert!(error.to_string().contains("no virtio-net device"));
        }
    });
}
