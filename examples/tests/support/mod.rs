//! What the tests share: a network namespace of their own, and a driver in place of a guest.
#![expect(
    unsafe_code,
    reason = "a child enters its namespace between fork and exec"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only what is marked as a test for one"
)]
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test uses a part, some all of it"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use examples::devices::Devices;
use examples::machine::layout::MIB;
use examples::machine::{DriverView, Machine, MachineConfig, ManualInterrupts};
use examples::netns;
use net_client::Loopback;
use virtio_guest::{
    DmaMemory, DmaRegion, Interrupts, MsixMessage, NetConfig, NetDriver, VirtioPciTransport, pci,
};

/// Runs `body` in a network namespace of its own: the test called `name` starts itself again there.
/// Where that cannot be, or no tap can be made there, says so and passes, but fails in CI.
pub(crate) fn in_own_network(name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return match File::options().read(true).write(true).open("/dev/net/tun") {
            Ok(_) => body(),
            Err(error) => skip(&format!("/dev/net/tun: {error}")),
        };
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1");
    // SAFETY: the child has one thread, and what it calls waits for no lock of another's.
    unsafe { command.pre_exec(|| netns::enter_new().map_err(io::Error::other)) };
    match command.output() {
        Err(error) => skip(&format!("no network namespace: {error}")),
        Ok(output) => {
            print!("{}", String::from_utf8_lossy(&output.stdout));
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{name}: {}", output.status);
        }
    }
}

/// Passes with a line that says why, or fails in CI.
pub(crate) fn skip(why: &str) {
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "cannot be tested here: {why}"
    );
    println!("not tested: {why}");
}

/// Names of the network interfaces of this process's namespace.
pub(crate) fn interfaces() -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    table
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

/// Waits until `condition` holds. The deadline only ends a test that hangs.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// A machine that the test drives itself.
pub(crate) struct Rig {
    // In the order in which they are dropped.
    pub(crate) devices: Arc<Devices>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) interrupts: Arc<ManualInterrupts>,
}

impl Rig {
    /// With no devices.
    pub(crate) fn new() -> Self {
        let interrupts = ManualInterrupts::new();
        let config = MachineConfig {
            ram: 16 * MIB,
            exit_port: None,
        };
        let console = Box::new(io::sink());
        let machine = Machine::new(&config, interrupts.interrupts(), console).unwrap();
        let devices = Arc::new(Devices::new(&machine).unwrap());
        Self {
            devices,
            machine,
            interrupts,
        }
    }

    /// With a tap whose host's side is 10.0.2.2, and a NIC on it with these properties.
    pub(crate) fn with_nic(properties: &str) -> Self {
        let rig = Self::new();
        rig.devices
            .netdev_add("tap,id=tap0,ip=10.0.2.2/24")
            .unwrap();
        rig.devices
            .device_add(&format!("virtio-net-pci,netdev=tap0{properties}"))
            .unwrap();
        rig.machine.assign_resources().unwrap();
        rig
    }

    /// With a netdev that sends each frame back, and a NIC on it with these properties. Needs nothing
    /// of the host.
    pub(crate) fn with_loopback(properties: &str) -> Self {
        let rig = Self::new();
        rig.devices.netdevs().register(
            "loopback",
            Box::new(|_| Ok(Box::new(|id| Ok(Loopback::new(id))))),
        );
        rig.devices.netdev_add("loopback,id=peer").unwrap();
        rig.devices
            .device_add(&format!("virtio-net-pci,netdev=peer{properties}"))
            .unwrap();
        rig.machine.assign_resources().unwrap();
        rig
    }

    /// The driver of the first NIC, started with one message for each queue.
    pub(crate) fn driver(&self) -> Driver {
        self.driver_with(Interrupts::Messages(&MESSAGES))
    }

    /// The driver of the first NIC, started.
    pub(crate) fn driver_with(&self, interrupts: Interrupts<'_>) -> Driver {
        self.driver_of(0, interrupts, DMA)
    }

    /// The driver of the NIC with so many before it on the bus, started in memory of its own.
    pub(crate) fn driver_of(
        &self,
        nic: usize,
        interrupts: Interrupts<'_>,
        dma: DmaRegion,
    ) -> Driver {
        let config = NetConfig {
            interrupts,
            ..NetConfig::default()
        };
        self.driver_like(nic, dma, &config)
    }

    /// As [`driver_of`](Self::driver_of), configured otherwise.
    pub(crate) fn driver_like(&self, nic: usize, dma: DmaRegion, config: &NetConfig<'_>) -> Driver {
        let view = DriverView::new(self.machine.clone());
        let address = pci::functions(&view, 0)
            .filter(|function| pci::is_virtio_net(&view, *function))
            .nth(nic)
            .expect("configuration space shows a virtio-net function");
        let transport = VirtioPciTransport::probe(view, address).unwrap();
        let net = NetDriver::new(transport, DmaMemory::new(dma), config).unwrap();
        Driver {
            net,
            interrupts: self.interrupts.clone(),
            messages: BTreeSet::new(),
            host: [0xff; 6],
        }
    }
}

/// A started driver, and what it was told by message.
pub(crate) struct Driver {
    pub(crate) net: NetDriver<DriverView, 64>,
    pub(crate) interrupts: Arc<ManualInterrupts>,
    /// Data of all messages that came.
    pub(crate) messages: BTreeSet<u32>,
    /// The host's link-layer address, once it is known.
    host: [u8; 6],
}

impl Driver {
    /// Sends `frame`, and waits for one that `is_answer` likes.
    pub(crate) fn ask(&mut self, frame: &[u8], is_answer: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        self.net.transmit(frame).unwrap();
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 2048];
        let mut answer = None;
        while answer.is_none() {
            assert!(Instant::now() < deadline, "no answer");
            self.net
                .poll_receive(&mut buffer, |frame| {
                    if is_answer(frame) {
                        answer.get_or_insert_with(|| frame.to_vec());
                    }
                })
                .unwrap();
            if answer.is_none() && !self.net.prepare_sleep() {
                let messages = self.interrupts.wait(Duration::from_millis(100));
                self.messages
                    .extend(messages.iter().map(|message| message.data));
            }
            self.net.wake();
        }
        answer.unwrap()
    }

    /// Asks for the link-layer address of 10.0.2.2, as 10.0.2.15.
    pub(crate) fn resolve_host(&mut self) {
        let request = arp_request(self.net.mac());
        let reply = self.ask(&request, |frame| answered_by(frame).is_some());
        self.host = answered_by(&reply).unwrap();
    }

    /// A ping of 10.0.2.2.
    pub(crate) fn echo_request(&self, sequence: u16) -> Vec<u8> {
        echo_request(self.net.mac(), self.host, sequence)
    }

    /// Pings 10.0.2.2, whose link-layer address is known.
    pub(crate) fn ping_host(&mut self, sequence: u16) {
        let request = self.echo_request(sequence);
        self.ask(&request, |frame| is_echo_reply(frame, sequence));
    }
}

/// Messages for configuration, receive, transmit and control.
pub(crate) const MESSAGES: [MsixMessage; 4] =
    [message(0x40), message(0x41), message(0x42), message(0x43)];

const fn message(data: u32) -> MsixMessage {
    MsixMessage {
        address: 0xfee0_0000,
        data,
    }
}

/// 10.0.2.15 asks for the link-layer address of 10.0.2.2.
pub(crate) fn arp_request(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend(ARP);
    // Ethernet, IPv4, their lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(GUEST);
    frame.extend([0; 6]);
    frame.extend(HOST);
    frame
}

/// The link-layer address of 10.0.2.2, if `frame` is its answer to an [`arp_request`].
pub(crate) fn answered_by(frame: &[u8]) -> Option<[u8; 6]> {
    let is_answer = frame.len() >= 42
        && frame[12..14] == ARP
        && frame[20..22] == [0, 2]
        && frame[28..32] == HOST;
    is_answer.then(|| frame[22..28].try_into().unwrap())
}

/// 10.0.2.15 pings 10.0.2.2, whose link-layer address is `host`.
pub(crate) fn echo_request(mac: [u8; 6], host: [u8; 6], sequence: u16) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34];
    icmp.extend(sequence.to_be_bytes());
    let sum = checksum(&icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    ip.extend(GUEST);
    ip.extend(HOST);
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    [&host[..], &mac, &IPV4, &ip, &icmp].concat()
}

/// Whether `frame` answers the [`echo_request`] with this number.
pub(crate) fn is_echo_reply(frame: &[u8], sequence: u16) -> bool {
    frame.len() >= 42
        && frame[12..14] == IPV4
        && frame[23] == 1
        && frame[34] == 0
        && frame[40..42] == sequence.to_be_bytes()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

const INSIDE: &str = "EXAMPLES_TEST_IS_IN_ITS_OWN_NETWORK";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The memory that [`Rig::driver`] shares with the device.
pub(crate) const DMA: DmaRegion = DmaRegion {
    address: 4 * MIB,
    len: 1 << 20,
};
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const HOST: [u8; 4] = [10, 0, 2, 2];
