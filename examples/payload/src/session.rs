//! Bring the device up, answer, ping, and say so.

use core::net::Ipv4Addr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities};
use smoltcp::socket::icmp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet, Icmpv4Repr,
    IpAddress, IpCidr, IpProtocol, Ipv4Packet,
};
use virtio_guest::net::F;
use virtio_guest::phy::Device;
use virtio_guest::{DmaMemory, Error, Interrupts, NetConfig, NetDriver, VirtioPciTransport, pci};

use crate::{BootInfo, ExitStatus, Machine};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Pings sent.
    pub sent: u16,
    /// Pings that the other side answered.
    pub answered: u16,
    /// Pings of others that were answered here.
    pub requests: u16,
    /// How many of those there were to be.
    pub requests_wanted: u16,
}

impl Summary {
    /// Success only if all was answered, either way.
    pub fn status(&self) -> ExitStatus {
        if self.answered == self.sent && self.requests >= self.requests_wanted {
            ExitStatus::Success
        } else {
            ExitStatus::Lost
        }
    }
}

/// Entries in the queues, few so that little has to be set up.
const QUEUE_SIZE: u16 = 32;
/// Entries that they may have: a legacy device says how many there are.
const MAX_QUEUE_SIZE: u16 = 256;

/// Drives the first virtio-net function on bus 0 as `info` says, and prints what happens.
///
/// # Errors
///
/// `None` if there is no such function; else what keeps the driver from working.
pub fn run<M: Machine>(machine: &M, info: &BootInfo) -> Result<Summary, Option<Error>> {
    let address = pci::functions(machine, 0)
        .find(|function| pci::is_virtio_net(machine, *function))
        .ok_or(None)?;
    let transport = VirtioPciTransport::probe(machine, address)?;
    let vectors = transport.msix().map_or(0, |msix| msix.vectors());
    machine.print(format_args!(
        "virtio-net at {address}, {vectors} MSI-X vectors"
    ));

    // With fewer vectors than messages the last vector is for all the rest.
    let messages = machine.messages();
    let messages = messages.get(..vectors.into()).unwrap_or(messages);
    let interrupts = if messages.is_empty() {
        Interrupts::Polled
    } else {
        Interrupts::Messages(messages)
    };
    let config = NetConfig {
        queue_size: if transport.is_legacy() {
            MAX_QUEUE_SIZE
        } else {
            QUEUE_SIZE
        },
        interrupts,
        // Taken where the card offers it. One pair of queues is all that is driven, so no MQ and no RSS.
        features: NetConfig::default().features | F::RING_PACKED,
        ..NetConfig::default()
    };
    let driver = NetDriver::new(transport, DmaMemory::new(info.dma), &config)?;
    let mac = EthernetAddress(driver.mac());
    let [a, b, c, d, e, f] = mac.0;
    machine.print(format_args!(
        "MAC {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
    ));
    machine.print(format_args!(
        "features {:#x}, {} rings",
        driver.features().bits().to_ne(),
        if driver.features().contains(F::RING_PACKED) {
            "packed"
        } else {
            "split"
        }
    ));
    machine.print(format_args!(
        "link {}",
        if driver.is_link_up() { "up" } else { "down" }
    ));

    let mut wire = Wire {
        device: Device::new(driver),
        requests: 0,
    };
    let summary = converse(machine, info, mac, &mut wire);
    let broken = wire.device.driver().needs_reset();
    let _transport = wire.device.into_driver().shut_down()?;

    if broken {
        machine.print(format_args!("the device gave up"));
    }
    machine.print(format_args!(
        "{} of {} pings answered",
        summary.answered, summary.sent
    ));
    machine.print(format_args!(
        "{} pings of others answered, {} interrupts",
        summary.requests,
        machine.messages_received()
    ));
    Ok(summary)
}

/// One ping after the other; when there are no more, waits for those of others.
fn converse<M: Machine>(
    machine: &M,
    info: &BootInfo,
    mac: EthernetAddress,
    wire: &mut Wire<&M>,
) -> Summary {
    let now = || Instant::from_millis(i64::try_from(machine.now()).unwrap_or(i64::MAX));
    let mut interface = Interface::new(Config::new(mac.into()), wire, now());
    let address = IpCidr::new(info.guest.into(), info.prefix_len);
    interface.update_ip_addrs(|addresses| {
        // There is room for two.
        let _ = addresses.push(address);
    });
    machine.print(format_args!("{address} up, pinging {}", info.host));

    // Room for one packet each way and some more.
    let mut storage = [SocketStorage::EMPTY];
    let (mut received, mut sent) = ([0; 512], [0; 512]);
    let (mut received_at, mut sent_at) = (
        [icmp::PacketMetadata::EMPTY; 4],
        [icmp::PacketMetadata::EMPTY; 4],
    );
    let mut socket = icmp::Socket::new(
        icmp::PacketBuffer::new(received_at.as_mut_slice(), received.as_mut_slice()),
        icmp::PacketBuffer::new(sent_at.as_mut_slice(), sent.as_mut_slice()),
    );
    // Not bound yet and the identifier is not 0, so it cannot fail.
    let _ = socket.bind(icmp::Endpoint::Ident(IDENTIFIER));
    let mut sockets = SocketSet::new(storage.as_mut_slice());
    let handle = sockets.add(socket);

    let mut summary = Summary {
        sent: 0,
        answered: 0,
        requests: 0,
        requests_wanted: info.requests,
    };
    let mut waiting_since = None;
    let mut idle_since = machine.now();
    let mut said_endless = false;
    loop {
        // Asked for before the look, so that whatever comes after it ends the sleep below; unless
        // something was there before the request, for which no interrupt will come.
        let look_again = wire.device.driver().prepare_sleep();
        interface.poll(now(), wire, &mut sockets);

        if let Some(since) = waiting_since {
            if received_reply(&mut sockets, handle, info.host, summary.sent) {
                summary.answered += 1;
                machine.print(format_args!(
                    "ping {}: reply from {}",
                    summary.sent, info.host
                ));
                waiting_since = None;
                // It came after interrupts were asked for, so one is there, and is taken before
                // the next ping rather than with its answer's.
                if !look_again {
                    machine.sleep();
                }
            } else if machine.now().saturating_sub(since) > REPLY_TIMEOUT {
                machine.print(format_args!("ping {}: no reply", summary.sent));
                waiting_since = None;
            }
            idle_since = machine.now();
        }
        if waiting_since.is_none() && summary.sent < info.pings {
            summary.sent += 1;
            send_request(&mut sockets, handle, info.host, summary.sent);
            waiting_since = Some(machine.now());
            continue;
        }
        if wire.requests != summary.requests {
            summary.requests = wire.requests;
            idle_since = machine.now();
        }
        if info.requests == BootInfo::ENDLESS {
            if waiting_since.is_none() && !said_endless {
                said_endless = true;
                machine.print(format_args!("answering pings until the monitor's quit"));
            }
            if !look_again {
                machine.sleep();
            }
            continue;
        }
        let patience_is_over = machine.now().saturating_sub(idle_since) > REQUEST_TIMEOUT;
        if waiting_since.is_none() && (summary.requests >= info.requests || patience_is_over) {
            return summary;
        }

        if !look_again {
            machine.sleep();
        }
    }
}

/// Queues the echo request with number `number`.
fn send_request(sockets: &mut SocketSet<'_>, handle: SocketHandle, host: Ipv4Addr, number: u16) {
    let request = Icmpv4Repr::EchoRequest {
        ident: IDENTIFIER,
        seq_no: number,
        data: PING_DATA,
    };
    let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
    // There is room: the one before has left or was given up. If not, this one is lost too.
    if let Ok(buffer) = socket.send(request.buffer_len(), IpAddress::from(host)) {
        let mut packet = Icmpv4Packet::new_unchecked(buffer);
        request.emit(&mut packet, &ChecksumCapabilities::default());
    }
}

/// Whether the answer to request `number` has come, among whatever else has.
fn received_reply(
    sockets: &mut SocketSet<'_>,
    handle: SocketHandle,
    host: Ipv4Addr,
    number: u16,
) -> bool {
    let socket = sockets.get_mut::<icmp::Socket<'_>>(handle);
    while let Ok((bytes, from)) = socket.recv() {
        let checksums = ChecksumCapabilities::default();
        let reply = Icmpv4Packet::new_checked(bytes)
            .and_then(|packet| Icmpv4Repr::parse(&packet, &checksums));
        if let Ok(Icmpv4Repr::EchoReply {
            ident: IDENTIFIER,
            seq_no,
            data,
        }) = reply
            && from == IpAddress::from(host)
            && seq_no == number
            && data == PING_DATA
        {
            return true;
        }
    }
    false
}

/// The device, with an eye on what the stack answers by itself.
struct Wire<P> {
    device: Device<P, { MAX_QUEUE_SIZE as usize }>,
    /// Echo replies sent.
    requests: u16,
}

impl<P: virtio_guest::Platform> phy::Device for Wire<P> {
    type RxToken<'a>
        = <Device<P, { MAX_QUEUE_SIZE as usize }> as phy::Device>::RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Watched<'a, <Device<P, { MAX_QUEUE_SIZE as usize }> as phy::Device>::TxToken<'a>>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (received, token) = self.device.receive(now)?;
        Some((
            received,
            Watched {
                token,
                requests: &mut self.requests,
            },
        ))
    }

    fn transmit(&mut self, now: Instant) -> Option<Self::TxToken<'_>> {
        let token = self.device.transmit(now)?;
        Some(Watched {
            token,
            requests: &mut self.requests,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

/// Counts a frame that is an echo reply.
struct Watched<'a, T> {
    token: T,
    requests: &'a mut u16,
}

impl<T: phy::TxToken> phy::TxToken for Watched<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.token.consume(len, |frame| {
            let result = f(frame);
            if is_echo_reply(frame) {
                *self.requests = self.requests.saturating_add(1);
            }
            result
        })
    }
}

fn is_echo_reply(frame: &[u8]) -> bool {
    let icmp = |frame| {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let is_ipv4 = frame.ethertype() == EthernetProtocol::Ipv4;
        let packet = Ipv4Packet::new_checked(is_ipv4.then(|| frame.payload())?).ok()?;
        let is_icmp = packet.next_header() == IpProtocol::Icmp;
        let message = Icmpv4Packet::new_checked(is_icmp.then(|| packet.payload())?).ok()?;
        Some(message.msg_type())
    };
    icmp(frame) == Some(Icmpv4Message::EchoReply)
}

/// Which pings are ours.
const IDENTIFIER: u16 = 0x5a4e;

/// What our pings carry.
const PING_DATA: &[u8] = b"a frame on its way through virtio";

/// How long to wait for the answer to a ping, in milliseconds; generous, since an emulated
/// processor may need many for one.
const REPLY_TIMEOUT: u64 = 5_000;

/// How long to wait for the next ping of others.
const REQUEST_TIMEOUT: u64 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_echo_reply_is_one() {
        let mut frame = [0; 42];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..18].copy_from_slice(&[0x45, 0, 0, 28]);
        frame[23] = 1;
        assert!(is_echo_reply(&frame));
        for (at, value) in [(12, 9), (17, 60), (23, 17), (34, 8)] {
            let mut other = frame;
            other[at] = value;
            assert!(!is_echo_reply(&other), "byte {at} is {value}");
        }
        assert!(!is_echo_reply(&frame[..41]));
    }

    #[test]
    fn a_run_succeeds_only_if_both_sides_were_answered() {
        let summary = |answered, requests| Summary {
            sent: 10,
            answered,
            requests,
            requests_wanted: 2,
        };
        assert_eq!(summary(10, 2).status(), ExitStatus::Success);
        assert_eq!(summary(9, 2).status(), ExitStatus::Lost);
        assert_eq!(summary(10, 1).status(), ExitStatus::Lost);
    }
}
