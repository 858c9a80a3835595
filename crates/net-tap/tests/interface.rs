//! A real tap, in a network namespace of each test's own.
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "namespaces and user ids; helpers of tests, outside their functions"
)]

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::{DEADLINE, config, exists, has_ip, in_namespace, ip, not_run, open, run_dry};
use iothread::{AioContext, EventLoop, IoThread};
use net_client::{DropReason, NetClients, Netdev, Offloads, Port, Received, Recorder};
use net_tap::{Tap, TapConfig};

fn with_address(ifname: &str, address: &str) -> TapConfig {
    TapConfig {
        address: Some(address.parse().unwrap()),
        ..config(ifname)
    }
}

/// A header of zeros, then an ARP request for 10.0.2.2 from 10.0.2.15.
fn arp_request(header_len: usize) -> Vec<u8> {
    let mut frame = vec![0; header_len];
    frame.extend([0xff; 6]);
    frame.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56, 10, 0, 2, 15]);
    frame.extend([0; 6]);
    frame.extend([10, 0, 2, 2]);
    frame
}

fn is_arp_reply(frame: &[u8], header_len: usize) -> bool {
    frame.get(header_len + 12..header_len + 14) == Some(&[0x08, 0x06])
        && frame.get(header_len + 20..header_len + 22) == Some(&[0, 2])
        && frame.get(header_len + 28..header_len + 32) == Some(&[10, 0, 2, 2])
}

#[test]
fn the_host_answers_arp_through_a_tap_with_an_address() {
    in_namespace("the_host_answers_arp_through_a_tap_with_an_address", || {
        // (vnet_hdr, the header's length, whether the peer reads in place)
        let table = [
            (true, 10, false),
            (true, 10, true),
            (true, 12, true),
            (false, 0, true),
            (false, 0, false),
        ];
        for (vnet_hdr, header_len, lends) in table {
            let tap = open(&TapConfig {
                vnet_hdr: Some(vnet_hdr),
                ..with_address("vm0", "10.0.2.2/24")
            });
            let nic = if lends {
                Recorder::lending("nic")
            } else {
                Recorder::new("nic")
            };
            let thread = IoThread::new("io").unwrap();
            let port = &tap.ports()[0];
            if header_len > 0 {
                let client = port.client().unwrap();
                let header = client.vnet_header().unwrap();
                header.set_header_len(header_len).unwrap();
                header.set_little_endian(true).unwrap();
            } else {
                assert!(port.client().unwrap().vnet_header().is_none());
            }
            Port::connect(nic.port(), port, &thread.context()).unwrap();
            assert_eq!(
                nic.port().send_bytes(&arp_request(header_len)),
                Received::Taken
            );
            let reply = nic.wait_for(DEADLINE, |frame| is_arp_reply(frame, header_len));
            assert!(
                reply.is_some(),
                "vnet_hdr {vnet_hdr}, {header_len}, lends {lends}"
            );
            nic.port().disconnect();
            let statistics = port.statistics();
            assert_eq!(statistics.received.frames, 1);
            assert!(statistics.sent.frames >= 1);
            drop(tap);
            // A turn of the thread that is under way holds the interface to its end.
            let dropped = Instant::now();
            while exists("vm0") {
                assert!(
                    dropped.elapsed() < DEADLINE,
                    "vnet_hdr {vnet_hdr}, {header_len}, lends {lends}"
                );
                std::thread::yield_now();
            }
        }
    });
}

#[test]
fn an_option_string_makes_a_tap_and_netdev_del_removes_it() {
    in_namespace(
        "an_option_string_makes_a_tap_and_netdev_del_removes_it",
        || {
            let netdevs = NetClients::new();
            net_tap::register(&netdevs);
            drop(open(&config("probe")));

            let tap = netdevs.add("tap,id=net0,ifname=vm0,ip=fec0::2/64").unwrap();
            assert_eq!(
                (tap.kind(), &*tap.info()),
                ("tap", "ifname=vm0,script=no,downscript=no")
            );
            assert_eq!(tap.ports()[0].name(), "net0");
            assert!(exists("vm0"));

            // The second open of the interface fails, and leaves the id free.
            let error = netdevs
                .add("tap,id=net1,ifname=vm0")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("(vm0): TUNSETIFF") && error.contains("another process"),
                "{error}"
            );
            let error = netdevs
                .add("tap,id=net1,ifname=lo")
                .unwrap_err()
                .to_string();
            assert!(error.contains("not a tap"), "{error}");
            let table = [
                (
                    "tap,id=net1,ifname=much-too-long-a-name",
                    "cannot name an interface",
                ),
                ("tap,id=net1,ifname=vm1,fo=1", "Invalid parameter 'fo'"),
                ("tap,id=net0,ifname=vm1", "Duplicate ID 'net0' for netdev"),
                (
                    "tap,id=net1,ifname=vm1,ip=10.0.2.2",
                    "Parameter 'ip' expects",
                ),
                (
                    "tap,id=net1,ifname=vm1,queues=1000",
                    "(vm1): TUNSETIFF: Argument list too long (os error 7); 1000 queues are too many: the \
                     kernel lets the interface have 256",
                ),
                (
                    "tap,id=net1,ifname=vm0,queues=2",
                    "made for one queue and is to have several",
                ),
            ];
            for (text, words) in table {
                let error = netdevs.add(text).unwrap_err().to_string();
                assert!(error.contains(words), "{text}: {error}");
                assert!(!exists("vm1"), "{text}");
            }
            assert_eq!(netdevs.ids(), ["net0"]);

            drop(tap);
            netdevs.remove("net0").unwrap();
            assert!(!exists("vm0"));
            assert!(netdevs.find("net0").is_none());

            // Without a name the kernel chooses one.
            let tap = netdevs.add("tap,id=net0").unwrap();
            assert_eq!(tap.info(), "ifname=tap0,script=no,downscript=no");
        },
    );
}

#[test]
fn a_tap_whose_peer_has_no_room_is_not_read_until_there_is() {
    in_namespace(
        "a_tap_whose_peer_has_no_room_is_not_read_until_there_is",
        || {
            for lends in [false, true] {
                let tap = open(&with_address("vm0", "10.0.2.2/24"));
                let nic = if lends {
                    Recorder::lending("nic")
                } else {
                    Recorder::new("nic")
                };
                let context = EventLoop::new().unwrap();
                let shared: Arc<dyn AioContext> = context.clone();
                Port::connect(nic.port(), &tap.ports()[0], &shared).unwrap();
                nic.set_room(0);
                for _ in 0..3 {
                    assert_eq!(nic.port().send_bytes(&arp_request(10)), Received::Taken);
                }
                // Turn until the reply was refused; then the loop has nothing more to do.
                while nic.refused() == 0 {
                    context.turn(Some(DEADLINE)).unwrap();
                }
                run_dry(&context);
                let refused = nic.refused();
                assert!(refused <= 2, "the tap asks over and over: {refused}");
                assert!(nic.is_empty());

                // Room for one, then for all: nothing is lost, and the order is kept.
                let mut replies = 0;
                for room in [1, usize::MAX] {
                    nic.set_room(room);
                    while replies < room.min(3) {
                        context.turn(Some(DEADLINE)).unwrap();
                        let frames = nic.take_frames();
                        replies += frames
                            .iter()
                            .filter(|frame| is_arp_reply(frame, 10))
                            .count();
                        if room == 1 && !frames.is_empty() {
                            break;
                        }
                    }
                }
                assert_eq!(replies, 3, "lends: {lends}");
                assert_eq!(tap.ports()[0].statistics().sent.dropped_in_all(), 0);
            }
        },
    );
}

#[test]
fn frames_are_dropped_and_counted_while_the_interface_is_down() {
    in_namespace(
        "frames_are_dropped_and_counted_while_the_interface_is_down",
        || {
            let tap = open(&config("vm0"));
            let nic = Recorder::new("nic");
            let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
            Port::connect(nic.port(), &tap.ports()[0], &context).unwrap();
            assert_eq!(nic.port().send_bytes(&arp_request(10)), Received::Taken);
            // A header that asks for a checksum past the frame's end.
            let statistics = tap.ports()[0].statistics();
            assert_eq!(statistics.received.dropped(DropReason::LinkDown), 1);
        },
    );
}

#[test]
fn a_frame_that_the_host_refuses_is_counted_as_malformed() {
    in_namespace(
        "a_frame_that_the_host_refuses_is_counted_as_malformed",
        || {
            let tap = open(&with_address("vm0", "10.0.2.2/24"));
            let nic = Recorder::new("nic");
            let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
            Port::connect(nic.port(), &tap.ports()[0], &context).unwrap();
            // NEEDS_CSUM from a byte past the frame's end; a header and nothing else; less than a header.
            let mut past_the_end = arp_request(10);
            past_the_end[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
            for frame in [&past_the_end[..], &past_the_end[..10], &past_the_end[..4]] {
                assert_eq!(nic.port().send_bytes(frame), Received::Taken);
            }
            let statistics = tap.ports()[0].statistics();
            assert_eq!(statistics.received.dropped(DropReason::Malformed), 3);
        },
    );
}

#[test]
fn an_interface_deleted_under_the_tap_does_not_keep_the_loop_busy() {
    in_namespace(
        "an_interface_deleted_under_the_tap_does_not_keep_the_loop_busy",
        || {
            let tap = open(&with_address("vm0", "10.0.2.2/24"));
            let nic = Recorder::new("nic");
            let context = EventLoop::new().unwrap();
            let shared: Arc<dyn AioContext> = context.clone();
            Port::connect(nic.port(), &tap.ports()[0], &shared).unwrap();
            if !has_ip() {
                return;
            }
            assert!(ip("link del vm0"));
            context.turn(Some(DEADLINE)).unwrap();
            run_dry(&context);
            assert_eq!(nic.port().send_bytes(&arp_request(10)), Received::Taken);
            let statistics = tap.ports()[0].statistics();
            assert_eq!(statistics.received.dropped(DropReason::Backend), 1);
        },
    );
}

#[test]
fn an_interface_made_beforehand_is_used_and_stays() {
    in_namespace("an_interface_made_beforehand_is_used_and_stays", || {
        // Says that it may not be run here, where that is so.
        drop(open(&config("vm0")));
        if !has_ip() {
            return;
        }
        assert!(ip("tuntap add dev vm0 mode tap"));
        let tap = open(&config("vm0"));
        assert_eq!(tap.tap().name(), "vm0");
        drop(tap);
        assert!(exists("vm0"));
    });
}

#[test]
fn offloads_that_the_kernel_has_can_be_set() {
    in_namespace("offloads_that_the_kernel_has_can_be_set", || {
        let tap = open(&config("vm0"));
        let tap: &Tap = tap.tap();
        assert!(tap.has_vnet_header());
        let supported = tap.supported_offloads();
        assert!(
            supported.csum && supported.tso4 && supported.tso6,
            "{supported:?}"
        );
        tap.set_offloads(supported).unwrap();
        tap.set_offloads(Offloads::default()).unwrap();
        let error = tap.set_header_len(4).unwrap_err().to_string();
        assert!(
            error.contains("(vm0): TUNSETVNETHDRSZ: Invalid argument"),
            "{error}"
        );
    });
}

#[test]
fn without_the_privilege_the_error_says_what_to_do() {
    in_namespace("without_the_privilege_the_error_says_what_to_do", || {
        drop(open(&config("vm0")));
        // Capabilities go with the user id, where there is another to go to.
        // SAFETY: takes a number alone; this process exists for this test.
        if unsafe { libc::setresuid(65534, 65534, 65534) } != 0 {
            not_run("this user namespace has one user");
            return;
        }
        let error = Tap::open(&config("vm0")).unwrap_err().to_string();
        let with_node = error.contains("(vm0): TUNSETIFF: Operation not permitted")
            && error.contains("ip tuntap add dev vm0 mode tap user $USER");
        let without_node = error.starts_with("could not open /dev/net/tun: Permission denied");
        assert!(with_node || without_node, "{error}");
    });
}
