//! Pings a guest from the host's side of its tap.
#![expect(unsafe_code, reason = "raw sockets are calls into the C library")]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::readiness::wait_readable;

/// Sends ICMP echo requests (RFC 792) and counts the answers.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    target: Ipv4Addr,
    identifier: u16,
}

impl Pinger {
    /// Opens a raw socket, which takes CAP_NET_RAW in the network namespace that one is in.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn new(target: Ipv4Addr) -> io::Result<Self> {
        // SAFETY: takes numbers and gives one.
        let fd = unsafe {
            libc::socket(
                libc::AF_INET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::IPPROTO_ICMP,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just made the descriptor, which is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        #[expect(clippy::cast_possible_truncation, reason = "any 16 bits will do")]
        let identifier = std::process::id() as u16;
        Ok(Self {
            socket,
            target,
            identifier,
        })
    }

    /// Sends the request number `sequence` and waits for its answer; how long that took, or `None` if
    /// there was none in time.
    ///
    /// # Errors
    /// When the request cannot be sent, or the socket fails.
    pub fn ping(&self, sequence: u16, timeout: Duration) -> io::Result<Option<Duration>> {
        let start = Instant::now();
        self.send(&echo_request(self.identifier, sequence))?;
        loop {
            let Some(left) = timeout.checked_sub(start.elapsed()) else {
                return Ok(None);
            };
            let mut packet = [0; 2048];
            let Some(len) = self.receive(&mut packet, left)? else {
                return Ok(None);
            };
            if packet
                .get(..len)
                .is_some_and(|packet| is_reply(packet, self.target, self.identifier, sequence))
            {
                return Ok(Some(start.elapsed()));
            }
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        // SAFETY: an all-zero address is one, to be filled in.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        #[expect(clippy::cast_possible_truncation, reason = "the constant is 2")]
        let family = libc::AF_INET as libc::sa_family_t;
        address.sin_family = family;
        address.sin_addr.s_addr = u32::from(self.target).to_be();
        #[expect(clippy::cast_possible_truncation, reason = "16 bytes")]
        let address_len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: message and address are as long as is said and live across the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
                (&raw const address).cast(),
                address_len,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The next packet's length, or `None` if there was none in time.
    fn receive(&self, packet: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        if wait_readable([self.socket.as_fd()], Some(timeout))? == [false] {
            return Ok(None);
        }
        // SAFETY: the buffer is as long as is said and lives across the call.
        let len = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                packet.as_mut_ptr().cast(),
                packet.len(),
                0,
            )
        };
        usize::try_from(len)
            .map(Some)
            .map_err(|_| io::Error::last_os_error())
    }
}

fn echo_request(identifier: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![ECHO_REQUEST, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(b"are you there?");
    let sum = checksum(&message).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    message
}

/// Whether an IPv4 packet is the answer to that request.
fn is_reply(packet: &[u8], from: Ipv4Addr, identifier: u16, sequence: u16) -> bool {
    let Some(header_len) = packet.first().map(|byte| usize::from(byte & 0xf) * 4) else {
        return false;
    };
    let (Some(source), Some(message)) = (packet.get(12..16), packet.get(header_len..)) else {
        return false;
    };
    source == from.octets()
        && message.first() == Some(&ECHO_REPLY)
        && message.get(4..6) == Some(&identifier.to_be_bytes())
        && message.get(6..8) == Some(&sequence.to_be_bytes())
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_to_zero() {
        assert_eq!(checksum(&echo_request(0x1234, 7)), 0);
    }

    #[test]
    fn only_the_answer_to_the_request_counts() {
        let from = Ipv4Addr::new(10, 0, 2, 15);
        let packet = |from: Ipv4Addr, kind: u8, identifier: u16, sequence: u16| {
            let mut packet = vec![0; 20];
            packet[0] = 0x45;
            packet[12..16].copy_from_slice(&from.octets());
            let mut message = echo_request(identifier, sequence);
            message[0] = kind;
            packet.extend(message);
            packet
        };
        let table = [
            (packet(from, ECHO_REPLY, 1, 2), true),
            (packet(from, ECHO_REQUEST, 1, 2), false),
            (packet(from, ECHO_REPLY, 1, 3), false),
            (packet(from, ECHO_REPLY, 2, 2), false),
            (packet(Ipv4Addr::LOCALHOST, ECHO_REPLY, 1, 2), false),
            (vec![], false),
            (vec![0x4f; 20], false),
        ];
        for (packet, expected) in table {
            assert_eq!(is_reply(&packet, from, 1, 2), expected, "{packet:x?}");
        }
    }
}
