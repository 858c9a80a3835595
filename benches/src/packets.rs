//! The host's side of a tap: frames sent to the interface.
#![expect(unsafe_code, reason = "packet sockets are not in the standard library")]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};

use crate::frame::EXPERIMENTAL;

/// A packet socket bound to one interface. Each frame has a header in front, as a NIC's has, so that large
/// ones are segmented by whoever cannot take them whole.
#[derive(Debug)]
pub struct PacketSocket {
    file: File,
}

impl PacketSocket {
    /// Binds to the interface called `name`.
    ///
    /// # Errors
    /// Without the privilege, or the interface.
    pub fn bind(name: &str) -> io::Result<Self> {
        // Protocol 0 receives nothing.
        Self::bind_to(name, 0)
    }

    /// As [`bind`](Self::bind), to hear frames of the benches' own ethertype too.
    ///
    /// # Errors
    /// As of [`bind`](Self::bind).
    pub fn bind_to_hear(name: &str) -> io::Result<Self> {
        let socket = Self::bind_to(name, u16::from_ne_bytes(EXPERIMENTAL))?;
        let deadline = libc::timeval {
            tv_sec: 20,
            tv_usec: 0,
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, deadline)?;
        Ok(socket)
    }

    /// `protocol` is in the network's byte order.
    fn bind_to(name: &str, protocol: u16) -> io::Result<Self> {
        let name = CString::new(name)?;
        // SAFETY: `name` is a string that ends in NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes numbers and gives one. It hears nothing before it is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now, and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        // SAFETY: a structure of numbers, for which zeros are values.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into().unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = index.try_into().unwrap();
        // SAFETY: the address and its length are those of one structure.
        let bound = unsafe {
            libc::bind(
                fd,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>().try_into().unwrap(),
            )
        };
        check(bound)?;
        let socket = Self { file };
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1_i32)?;
        // A batch waits in the interface's queue; it must not wait in the socket.
        socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16_i32 << 20)?;
        Ok(socket)
    }

    /// Sends a frame, which begins with a header of [`HEADER_LEN`](crate::HEADER_LEN) bytes.
    pub fn send(&mut self, frame: &[u8]) {
        // The interface's header is the first ten bytes of the device's.
        let mut short = [0; 1 << 17];
        let (header, rest) = frame.split_at(crate::HEADER_LEN);
        let len = SHORT_HEADER + rest.len();
        short[..SHORT_HEADER].copy_from_slice(&header[..SHORT_HEADER]);
        short[SHORT_HEADER..len].copy_from_slice(rest);
        let sent = self.file.write(&short[..len]).unwrap();
        assert_eq!(sent, len);
    }

    /// Waits for a frame of `len` bytes with its header.
    pub fn expect(&mut self, len: usize) {
        let mut frame = [0; 2048];
        let heard = self.file.read(&mut frame).expect("a frame comes");
        assert_eq!(heard, len - crate::HEADER_LEN + SHORT_HEADER);
    }

    /// Has the interface called `name` keep so many frames that nobody reads yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_queue_len(&self, name: &str, len: i32) -> io::Result<()> {
        // SAFETY: integers, pointers and arrays of those, for which zeros are values.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // The field for numbers of the same union.
        request.ifr_ifru.ifru_metric = len;
        // SAFETY: SIOCSIFTXQLEN reads one `ifreq`.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), SIOCSIFTXQLEN, &request) })
    }

    fn set<T: Copy>(&self, level: i32, option: i32, value: T) -> io::Result<()> {
        // SAFETY: the value and its length are those of one plain value, which each option takes as the kernel has it.
        check(unsafe {
            libc::setsockopt(
                self.file.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<T>().try_into().unwrap(),
            )
        })
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// linux/sockios.h
const SIOCSIFTXQLEN: libc::c_ulong = 0x8943;
/// `virtio_net_hdr` without `num_buffers`.
const SHORT_HEADER: usize = 10;
