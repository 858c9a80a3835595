//! Several queues, descriptors from elsewhere, scripts, and what goes over the wire in one piece.
#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "taps opened by hand; helpers of tests, outside their functions"
)]

mod common;

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{DEADLINE, config, exists, has_ip, in_namespace, ip, not_run, open, run_dry};
use iothread::{AioContext, EventLoop};
use net_client::{DropReason, NetClients, Netdev, Offloads, Port, Received, Recorder};
use net_tap::{Tap, TapConfig, TapNetdev};

const HOST: &str = "10.0.2.2";
const GUEST: [u8; 4] = [10, 0, 2, 15];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const BROADCAST: [u8; 6] = [0xff; 6];

fn with(change: impl FnOnce(&mut TapConfig)) -> TapConfig {
    let mut config = TapConfig {
        address: Some("10.0.2.2/24".parse().unwrap()),
        ..config("vm0")
    };
    change(&mut config);
    config
}

/// A NIC at each of the netdev's ports, all on one context.
fn nics(tap: &TapNetdev) -> (Arc<EventLoop>, Vec<Arc<Recorder>>) {
    let context = EventLoop::new().unwrap();
    let shared: Arc<dyn AioContext> = context.clone();
    let nics = tap.ports().iter().map(|port| {
        let nic = Recorder::lending("nic");
        Port::connect(nic.port(), port, &shared).unwrap();
        nic
    });
    let nics = nics.collect();
    (context, nics)
}

/// Sends UDP datagrams of the host's, one from each of 64 ports, to all.
fn send_flows() {
    for _ in 0..64 {
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"flow", "10.0.2.255:4000").unwrap();
    }
}

/// How many frames of [`send_flows`] came to each.
fn flows(context: &EventLoop, nics: &[Arc<Recorder>]) -> Vec<usize> {
    run_dry(context);
    let count = |nic: &Arc<Recorder>| {
        let frames = nic.take_frames();
        frames
            .iter()
            .filter(|frame| frame.ends_with(b"flow"))
            .count()
    };
    nics.iter().map(count).collect()
}

fn set_enabled(tap: &TapNetdev, queue: usize, enabled: bool) -> io::Result<()> {
    let client = tap.ports()[queue].client().unwrap();
    client.set_enabled(enabled)
}

#[test]
fn frames_are_spread_over_the_queues_that_are_enabled() {
    in_namespace("frames_are_spread_over_the_queues_that_are_enabled", || {
        let tap = open(&with(|config| config.queues = Some(3)));
        let (context, nics) = nics(&tap);
        let enabled = || {
            let queues = tap.queues().iter();
            queues.map(|queue| queue.is_enabled()).collect::<Vec<_>>()
        };
        assert_eq!(enabled(), [true, false, false]);
        send_flows();
        assert_eq!(flows(&context, &nics), [64, 0, 0]);

        set_enabled(&tap, 1, true).unwrap();
        set_enabled(&tap, 1, true).unwrap();
        assert_eq!(enabled(), [true, true, false]);
        send_flows();
        let spread = flows(&context, &nics);
        assert_eq!(spread.iter().sum::<usize>(), 64, "{spread:?}");
        assert!(
            spread[0] > 5 && spread[1] > 5 && spread[2] == 0,
            "{spread:?}"
        );

        // Nothing is in either of the first two any more, and the loop rests.
        set_enabled(&tap, 2, true).unwrap();
        set_enabled(&tap, 0, false).unwrap();
        set_enabled(&tap, 1, false).unwrap();
        set_enabled(&tap, 1, false).unwrap();
        send_flows();
        assert_eq!(flows(&context, &nics), [0, 0, 64]);
        assert_eq!(context.turn(Some(Duration::ZERO)).unwrap(), 0);

        // What a queue that rests is sent passes.
        assert_eq!(nics[1].port().send_bytes(&[0; 64]), Received::Taken);
        let statistics = tap.ports()[1].statistics();
        assert_eq!(statistics.received.dropped_in_all(), 0);
    });
}

#[test]
fn what_is_set_while_a_queue_rests_holds_when_it_is_enabled() {
    in_namespace(
        "what_is_set_while_a_queue_rests_holds_when_it_is_enabled",
        || {
            let tap = open(&with(|config| config.queues = Some(2)));
            let (context, nics) = nics(&tap);
            let client = tap.ports()[1].client().unwrap();
            let header = client.vnet_header().unwrap();
            header.set_header_len(12).unwrap();
            header.set_little_endian(true).unwrap();
            header.set_offloads(Offloads::default()).unwrap();
            assert_eq!(header.header_len(), 12);
            set_enabled(&tap, 1, true).unwrap();
            set_enabled(&tap, 0, false).unwrap();
            // Moved to another context meanwhile, too.
            let other = EventLoop::new().unwrap();
            let shared: Arc<dyn AioContext> = other.clone();
            tap.ports()[1].move_to(&shared).unwrap();
            send_flows();
            run_dry(&context);
            run_dry(&other);
            let frames = nics[1].take_frames();
            let flows: Vec<_> = frames
                .iter()
                .filter(|frame| frame.ends_with(b"flow"))
                .collect();
            assert_eq!(flows.len(), 64);
            // Header, Ethernet, IPv4, UDP.
            assert!(
                flows
                    .iter()
                    .all(|frame| frame.len() == 12 + 14 + 20 + 8 + 4)
            );
        },
    );
}

#[test]
fn an_interface_deleted_under_its_queues_refuses_them_and_leaves_the_loop_at_rest() {
    in_namespace(
        "an_interface_deleted_under_its_queues_refuses_them_and_leaves_the_loop_at_rest",
        || {
            let tap = open(&with(|config| config.queues = Some(2)));
            let (context, nics) = nics(&tap);
            if !has_ip() {
                return;
            }
            assert!(ip("link del vm0"));
            run_dry(&context);
            let error = set_enabled(&tap, 1, true).unwrap_err().to_string();
            assert!(error.contains("(vm0): TUNSETQUEUE"), "{error}");
            assert!(!tap.queues()[1].is_enabled());
            run_dry(&context);
            let table = [(0, DropReason::Backend), (1, DropReason::Backend)];
            for (queue, reason) in table {
                assert_eq!(nics[queue].port().send_bytes(&[0; 64]), Received::Taken);
                let statistics = tap.ports()[queue].statistics();
                assert_eq!(statistics.received.dropped(reason), 1, "queue {queue}");
            }
        },
    );
}

#[test]
fn the_only_queue_of_a_tap_is_always_enabled() {
    in_namespace("the_only_queue_of_a_tap_is_always_enabled", || {
        let tap = open(&config("vm0"));
        for enabled in [false, true] {
            set_enabled(&tap, 0, enabled).unwrap();
            assert!(tap.queues()[0].is_enabled());
        }
    });
}

/// A file of this test's own, executable.
fn script(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("net-tap-{}-{name}", std::process::id()));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn scripts_run_with_the_interface_there_and_a_failure_leaves_nothing() {
    in_namespace(
        "scripts_run_with_the_interface_there_and_a_failure_leaves_nothing",
        || {
            drop(open(&config("probe")));
            let log = script("log", "");
            let text = |word: &str, status: i32| {
                let log = log.display();
                format!(
                    "#!/bin/sh\ngrep -q \"$1:\" /proc/net/dev && echo {word} $1 $# >> {log}\nexit {status}\n"
                )
            };
            let up = script("up", &text("up", 0));
            let down = script("down", &text("down", 0));
            let fails = script("fails", &text("fails", 3));
            let (up, down, fails) = (up.display(), down.display(), fails.display());
            let netdevs = NetClients::new();
            net_tap::register(&netdevs);

            let line = format!("tap,id=net0,ifname=vm0,script={up},downscript={down}");
            let tap = netdevs.add(&line).unwrap();
            assert_eq!(
                tap.info(),
                format!("ifname=vm0,script={up},downscript={down}")
            );
            assert_eq!(fs::read_to_string(&log).unwrap(), "up vm0 1\n");
            netdevs.remove("net0").unwrap();
            drop(tap);
            assert_eq!(fs::read_to_string(&log).unwrap(), "up vm0 1\ndown vm0 1\n");
            assert!(!exists("vm0"));

            let table = [
                (
                    fails.to_string(),
                    format!("network script {fails} failed with status 768"),
                ),
                (
                    "/nonexistent".into(),
                    "could not launch network script /nonexistent: No such file".into(),
                ),
            ];
            for (script, words) in table {
                let line = format!("tap,id=net0,ifname=vm0,script={script},downscript={down}");
                let error = netdevs.add(&line).unwrap_err().to_string();
                assert!(error.starts_with(&words), "{error}");
                assert!(!exists("vm0"), "{script}");
            }
            assert_eq!(
                fs::read_to_string(&log).unwrap(),
                "up vm0 1\ndown vm0 1\nfails vm0 1\n"
            );
            // A downscript that fails is said, and that is all.
            let line = format!("tap,id=net0,ifname=vm0,downscript={fails}");
            drop(netdevs.add(&line).unwrap());
            netdevs.remove("net0").unwrap();
            assert!(!exists("vm0"));
            for file in [
                log,
                PathBuf::from(up.to_string()),
                PathBuf::from(down.to_string()),
                PathBuf::from(fails.to_string()),
            ] {
                fs::remove_file(file).unwrap();
            }
        },
    );
}

#[test]
fn the_send_buffer_is_limited_where_it_is_asked_for() {
    in_namespace("the_send_buffer_is_limited_where_it_is_asked_for", || {
        let table = [
            (None, libc::c_int::MAX),
            (Some(0), libc::c_int::MAX),
            (Some(1 << 20), 1 << 20),
            (Some(1 << 40), libc::c_int::MAX),
        ];
        for (sndbuf, expected) in table {
            let tap = open(&with(|config| config.sndbuf = sndbuf));
            let mut limit: libc::c_int = 0;
            // SAFETY: TUNGETSNDBUF writes one `int`.
            let result = unsafe {
                libc::ioctl(
                    tap.tap().as_fd().as_raw_fd(),
                    libc::TUNGETSNDBUF,
                    &mut limit,
                )
            };
            assert_eq!((result, limit), (0, expected), "{sndbuf:?}");
        }
    });
}

/// Opens a tun or tap by hand, not close-on-exec.
fn open_by_hand(name: &str, flags: i32) -> RawFd {
    // SAFETY: the path is a string that ends in NUL.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    let result = unsafe { libc::ioctl(fd, libc::TUNSETIFF, &mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    fd
}

#[test]
fn descriptors_that_were_left_open_are_taken_over_once() {
    in_namespace(
        "descriptors_that_were_left_open_are_taken_over_once",
        || {
            drop(open(&config("probe")));
            if !has_ip() {
                return;
            }
            let netdevs = NetClients::new();
            net_tap::register(&netdevs);
            let tap = libc::IFF_TAP | libc::IFF_NO_PI;
            let one = open_by_hand("vm0", tap | libc::IFF_VNET_HDR);
            let several = tap | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
            let [a, b] = [0, 1].map(|_| open_by_hand("vm1", several));
            let plain = open_by_hand("vm2", tap);
            let tun = open_by_hand("vm3", libc::IFF_TUN | libc::IFF_NO_PI);
            // SAFETY: takes a number and makes another, which nobody owns.
            let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            let own = fs::File::open("/dev/null").unwrap();

            let refused = [
                (
                    "fd=999".to_owned(),
                    "Can't use file descriptor 999: Bad file descriptor".to_owned(),
                ),
                (
                    format!("fd={}", own.as_raw_fd()),
                    format!(
                        "Can't use file descriptor {}: Device or resource busy",
                        own.as_raw_fd()
                    ),
                ),
                (
                    format!("fd={null}"),
                    format!(
                        "Unable to query TUNGETIFF on FD {null}: Inappropriate ioctl for device"
                    ),
                ),
                (
                    format!("fds={a}:{a}"),
                    format!("Can't use file descriptor {a}: Device"),
                ),
                (
                    format!("fds={a}:{plain}"),
                    "vnet_hdr not consistent across given tap fds".to_owned(),
                ),
                (
                    format!("fd={tun}"),
                    format!("file descriptor {tun} is a tun"),
                ),
            ];
            for (options, words) in refused {
                let error = netdevs
                    .add(&format!("tap,id=x,{options}"))
                    .unwrap_err()
                    .to_string();
                assert!(error.starts_with(&words), "{options}: {error}");
            }
            // What could not be used together is still there to be used.
            for (id, options) in [
                ("net0", format!("fd={one}")),
                ("net1", format!("fds={a}:{b}")),
                ("net2", format!("fd={plain}")),
            ] {
                let tap = netdevs.add(&format!("tap,id={id},{options}")).unwrap();
                assert_eq!(tap.info(), options);
                assert_eq!(tap.ports().len(), if id == "net1" { 2 } else { 1 });
                let has_header = tap.ports()[0].client().unwrap().vnet_header().is_some();
                assert_eq!(has_header, id != "net2");
                let error = netdevs
                    .add(&format!("tap,id=x,{options}"))
                    .unwrap_err()
                    .to_string();
                assert!(error.contains("in use by this process"), "{error}");
            }
            // Frames pass, and a read of none does not wait.
            assert!(ip("addr add 10.0.2.2/24 dev vm1") && ip("link set vm1 up"));
            let tap = netdevs.find("net1").unwrap();
            let context = EventLoop::new().unwrap();
            let shared: Arc<dyn AioContext> = context.clone();
            let nic = Recorder::lending("nic");
            Port::connect(nic.port(), &tap.ports()[0], &shared).unwrap();
            send_flows();
            run_dry(&context);
            assert!(nic.len() >= 64, "{}", nic.len());
            drop(tap);
            for (id, interface) in [("net0", "vm0"), ("net1", "vm1"), ("net2", "vm2")] {
                netdevs.remove(id).unwrap();
                assert!(!exists(interface), "{interface}");
            }
        },
    );
}

#[test]
fn a_macvtap_works_by_its_descriptor() {
    in_namespace("a_macvtap_works_by_its_descriptor", || {
        drop(open(&config("probe")));
        if !has_ip() {
            return;
        }
        let made = ip("link add parent type veth peer name other")
            && ip("link set parent up")
            && ip("link set other up")
            && ip("link add link parent name mv0 type macvtap mode bridge")
            && ip("link add link parent name mv1 type macvtap mode bridge")
            && ip("link set mv0 up")
            && ip("link set mv1 up");
        if !made {
            // A module that a kernel may do without: no failure, wherever it is.
            println!("not run: the kernel has no macvtap, or no veth");
            return;
        }
        let open_node = |name: &str| -> Option<OwnedFd> {
            // The directory of this namespace's interfaces takes a mount of its own.
            let look = format!("mount -t sysfs sysfs /sys && cat /sys/class/net/{name}/tap*/dev");
            let output = Command::new("unshare")
                .args(["-m", "sh", "-c", &look])
                .output()
                .ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            let (major, minor) = text.trim().split_once(':')?;
            let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
            let path = std::env::temp_dir().join(format!("net-tap-{}-{name}", std::process::id()));
            let path = CString::new(path.to_str()?).ok()?;
            // SAFETY: the path is a string that ends in NUL.
            let result = unsafe {
                libc::mknod(
                    path.as_ptr(),
                    libc::S_IFCHR | 0o600,
                    libc::makedev(major, minor),
                )
            };
            if result != 0 {
                return None;
            }
            // SAFETY: as above.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
            // SAFETY: as above.
            unsafe { libc::unlink(path.as_ptr()) };
            // SAFETY: the descriptor was opened just now, and nobody else knows it.
            (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let (Some(first), Some(second)) = (open_node("mv0"), open_node("mv1")) else {
            return not_run("no device nodes of a macvtap");
        };
        let context = EventLoop::new().unwrap();
        let shared: Arc<dyn AioContext> = context.clone();
        let [from, to] = [first, second].map(|fd| {
            let tap = Tap::from_fd(fd).unwrap();
            assert!(tap.has_vnet_header() && tap.supported_offloads().csum);
            let tap = TapNetdev::from_taps("net0", vec![tap]).unwrap();
            let client = tap.ports()[0].client().unwrap();
            client.vnet_header().unwrap().set_header_len(12).unwrap();
            let nic = Recorder::lending("nic");
            Port::connect(nic.port(), &tap.ports()[0], &shared).unwrap();
            (tap, nic)
        });
        let frame = [
            &[0; 12][..],
            &BROADCAST,
            &GUEST_MAC,
            &[0x88, 0xb5],
            &[7; 50],
        ]
        .concat();
        assert_eq!(from.1.port().send_bytes(&frame), Received::Taken);
        while !to
            .1
            .take_frames()
            .iter()
            .any(|got| got[12..] == frame[12..])
        {
            assert!(context.turn(Some(DEADLINE)).unwrap() > 0, "no frame came");
        }
        // Its interface goes: the kernel takes frames all the same, and says nothing.
        assert!(ip("link del mv0"));
        run_dry(&context);
        assert_eq!(from.1.port().send_bytes(&frame), Received::Taken);
        run_dry(&context);
        let error = Tap::from_fd(from.0.tap().as_fd().try_clone_to_owned().unwrap()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("Link has been severed"), "{error}");
    });
}

/// A UDP packet of the guest's to the host's port, whose checksum is left to the host, behind a header of
/// 10 bytes that says so and how it is to be cut.
fn udp(gso_type: u8, gso_size: u16, mac: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(GUEST);
    ip.extend([10, 0, 2, 2]);
    let sum = |bytes: &[u8]| {
        let words = bytes.chunks(2);
        let sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    };
    let check = !sum(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let pseudo = [&ip[12..20], &[0, 17], &udp_len.to_be_bytes()].concat();
    // NEEDS_CSUM over what follows the Ethernet and IP headers, to be put at 6 in there.
    let mut frame = vec![1, gso_type];
    for field in [14 + 20 + 8, gso_size, 14 + 20, 6] {
        frame.extend(field.to_le_bytes());
    }
    frame.extend(mac);
    frame.extend(GUEST_MAC);
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(4000_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    frame.extend(sum(&pseudo).to_be_bytes());
    frame.extend(payload);
    frame
}

fn mac_of(interface: &str) -> [u8; 6] {
    let output = Command::new("ip")
        .args(["link", "show", interface])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split("link/ether ").nth(1).unwrap();
    let bytes = mac[..17]
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap());
    bytes.collect::<Vec<_>>().try_into().unwrap()
}

const UDP_L4: u8 = 5;
const UDP: u8 = 3;

#[test]
fn a_large_udp_frame_of_the_guests_is_cut_by_the_host() {
    in_namespace("a_large_udp_frame_of_the_guests_is_cut_by_the_host", || {
        let tap = open(&with(|_| {}));
        let client = tap.ports()[0].client().unwrap();
        let header = client.vnet_header().unwrap();
        header.set_little_endian(true).unwrap();
        let supported = header.supported_offloads();
        if !has_ip() {
            return;
        }
        let (_context, nics) = nics(&tap);
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let payload: Vec<u8> = (0..3000_u32).map(|i| (i % 251) as u8).collect();
        // (the kind, whether the host has it, the datagrams that come of it)
        let table = [
            (UDP_L4, supported.uso4, vec![1200, 1200, 600]),
            (UDP, supported.ufo, vec![3000]),
        ];
        for (kind, supported, lens) in table {
            if !supported {
                not_run(&format!("gso type {kind}: the kernel has none"));
                continue;
            }
            let frame = udp(kind, 1200, mac_of("vm0"), port, &payload);
            assert_eq!(nics[0].port().send_bytes(&frame), Received::Taken);
            let mut got: Vec<u8> = Vec::new();
            for len in lens {
                let mut datagram = [0; 4000];
                assert_eq!(socket.recv(&mut datagram).unwrap(), len, "kind {kind}");
                got.extend(&datagram[..len]);
            }
            assert_eq!(got, payload, "kind {kind}");
        }
    });
}

#[test]
fn a_large_udp_frame_of_the_hosts_comes_whole_where_the_guest_copes_with_it() {
    in_namespace(
        "a_large_udp_frame_of_the_hosts_comes_whole_where_the_guest_copes_with_it",
        || {
            let tap = open(&with(|_| {}));
            let client = tap.ports()[0].client().unwrap();
            let header = client.vnet_header().unwrap();
            header.set_little_endian(true).unwrap();
            let supported = header.supported_offloads();
            if !(supported.uso4 && supported.uso6) {
                return not_run("the kernel has no USO");
            }
            if !has_ip() {
                return;
            }
            assert!(ip("neigh add 10.0.2.15 lladdr 52:54:00:12:34:56 dev vm0"));
            let (context, nics) = nics(&tap);
            let uso = Offloads {
                csum: true,
                uso4: true,
                uso6: true,
                ..Offloads::default()
            };
            let table = [
                (Offloads::default(), vec![1200, 1200, 600]),
                (uso, vec![3000]),
            ];
            for (offloads, lens) in table {
                header.set_offloads(offloads).unwrap();
                let socket = UdpSocket::bind((HOST, 0)).unwrap();
                let segment: libc::c_int = 1200;
                // SAFETY: UDP_SEGMENT reads one `int`.
                let result = unsafe {
                    libc::setsockopt(
                        socket.as_raw_fd(),
                        libc::SOL_UDP,
                        libc::UDP_SEGMENT,
                        (&raw const segment).cast(),
                        4,
                    )
                };
                assert_eq!(result, 0);
                socket.send_to(&[7; 3000], "10.0.2.15:4000").unwrap();
                run_dry(&context);
                let frames = nics[0].take_frames();
                let udp = frames.iter().filter(|frame| frame.ends_with(&[7; 600]));
                let got: Vec<_> = udp.map(|frame| (frame[1], frame.len() - 10 - 42)).collect();
                let kind = if lens.len() == 1 { UDP_L4 } else { 0 };
                let expected: Vec<_> = lens.into_iter().map(|len| (kind, len)).collect();
                assert_eq!(got, expected, "{offloads:?}");
            }
        },
    );
}
