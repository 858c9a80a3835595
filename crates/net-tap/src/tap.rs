//! The tap interface itself: a file descriptor with a name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::c_uint;
use net_client::{IoVec, Offloads};

use crate::address;
use crate::config::{TapConfig, check_name};
use crate::error::TapError;
use crate::sys;

/// The header's length in front of each frame before anybody sets another: `virtio_net_hdr` without
/// `num_buffers`.
pub const INITIAL_HEADER_LEN: usize = 10;

/// An open tap interface, non-blocking: each read takes one frame, each write gives one.
///
/// An interface that did not exist before is gone when this is dropped.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    vnet_hdr: bool,
    offloads: Offloads,
}

impl Tap {
    /// Makes the interface, or takes one that exists.
    ///
    /// # Errors
    /// See [`TapError`]; nothing is left behind then.
    #[doc(alias = "tap_open")]
    pub fn open(config: &TapConfig) -> Result<Self, TapError> {
        let template = config.ifname.as_deref().unwrap_or("tap%d");
        check_name(template)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| TapError::Open { source })?;
        let fd = file.as_fd();

        let known = sys::features(fd).map_err(failed(template, "TUNGETFEATURES"))?;
        let vnet_hdr = config.vnet_hdr.unwrap_or(known & libc::IFF_VNET_HDR != 0);
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
        if vnet_hdr {
            flags |= libc::IFF_VNET_HDR;
        }
        let name =
            sys::set_interface(fd, template, flags).map_err(failed(template, "TUNSETIFF"))?;
        let mut offloads = Offloads::default();
        if vnet_hdr {
            // A persistent interface remembers what its last user set.
            sys::set_header_len(fd, INITIAL_HEADER_LEN)
                .map_err(failed(&name, "TUNSETVNETHDRSZ"))?;
            sys::set_little_endian(fd, false).map_err(failed(&name, "TUNSETVNETLE"))?;
            offloads = probe_offloads(fd);
        }
        // Frames that whoever reads them copes with, until it says otherwise: plain ones.
        sys::set_offload(fd, 0).map_err(failed(&name, "TUNSETOFFLOAD"))?;
        let tap = Self {
            file,
            name,
            vnet_hdr,
            offloads,
        };
        if let Some(address) = config.address {
            address::bring_up(&tap.name, address)?;
        }
        tracing::info!(interface = tap.name, vnet_hdr, "tap opened");
        Ok(tap)
    }

    /// Something that can be watched, in a tap's place.
    #[cfg(test)]
    pub(crate) fn for_tests(fd: std::os::fd::OwnedFd) -> Self {
        Self {
            file: fd.into(),
            name: "tap0".into(),
            vnet_hdr: true,
            offloads: Offloads::default(),
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether each frame has a `virtio_net_hdr` in front.
    pub fn has_vnet_header(&self) -> bool {
        self.vnet_hdr
    }

    /// The offloads that the kernel knows, probed when the tap was opened.
    pub fn supported_offloads(&self) -> Offloads {
        self.offloads
    }

    /// Sets the header's length in front of each frame, 10 or more.
    ///
    /// # Errors
    /// When the kernel refuses it, or frames have no header.
    #[doc(alias = "tap_fd_set_vnet_hdr_len")]
    pub fn set_header_len(&self, len: usize) -> Result<(), TapError> {
        let result = if self.vnet_hdr {
            sys::set_header_len(self.as_fd(), len)
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        };
        result.map_err(failed(&self.name, "TUNSETVNETHDRSZ"))
    }

    /// Sets whether the header's fields are little-endian, or the host's.
    ///
    /// # Errors
    /// When the kernel refuses it.
    #[doc(alias = "tap_fd_set_vnet_le")]
    pub fn set_little_endian(&self, little_endian: bool) -> Result<(), TapError> {
        sys::set_little_endian(self.as_fd(), little_endian)
            .map_err(failed(&self.name, "TUNSETVNETLE"))
    }

    /// Sets what the reader of this tap copes with in frames.
    ///
    /// What the kernel has only together is left out where half is asked for: it sends fewer kinds
    /// of frames then, never others.
    ///
    /// # Errors
    /// When the kernel refuses it.
    #[doc(alias = "tap_fd_set_offload")]
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        sys::set_offload(self.as_fd(), offload_bits(offloads))
            .map_err(failed(&self.name, "TUNSETOFFLOAD"))
    }

    /// Writes one frame, header and all; returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; EIO while the interface is down; EINVAL for a header that
    /// does not fit the frame; EBADFD when the interface is gone.
    pub fn write(&self, frame: &[IoVec]) -> io::Result<usize> {
        sys::write(self.as_fd(), frame)
    }

    /// Reads one frame, header and all, into `buffers`; returns its length. What does not fit is
    /// cut off.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; EBADFD when the interface is gone.
    pub fn read(&self, buffers: &[IoVec]) -> io::Result<usize> {
        sys::read(self.as_fd(), buffers)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The TUN_F_ bits of `offloads`, as far as the kernel takes them: everything needs the checksum,
/// ECN needs TCP, and UDP segmentation is for both versions of IP or for none.
fn offload_bits(offloads: Offloads) -> c_uint {
    if !offloads.csum {
        return 0;
    }
    let uso = offloads.uso4 && offloads.uso6;
    let table = [
        (true, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (
            offloads.ecn && (offloads.tso4 || offloads.tso6),
            libc::TUN_F_TSO_ECN,
        ),
        (offloads.ufo, libc::TUN_F_UFO),
        (uso, libc::TUN_F_USO4),
        (uso, libc::TUN_F_USO6),
    ];
    table
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |bits, (_, bit)| bits | bit)
}

fn probe_offloads(fd: BorrowedFd<'_>) -> Offloads {
    let takes = |bits| sys::set_offload(fd, libc::TUN_F_CSUM | bits).is_ok();
    let tso = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let uso = takes(libc::TUN_F_USO4 | libc::TUN_F_USO6);
    Offloads {
        csum: takes(0),
        tso4: takes(libc::TUN_F_TSO4),
        tso6: takes(libc::TUN_F_TSO6),
        ecn: takes(tso | libc::TUN_F_TSO_ECN),
        ufo: takes(libc::TUN_F_UFO),
        uso4: uso,
        uso6: uso,
    }
}

fn failed(interface: &str, ioctl: &'static str) -> impl FnOnce(io::Error) -> TapError {
    let interface = interface.to_owned();
    move |source| TapError::Ioctl {
        interface,
        ioctl,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sets_that_the_kernel_takes_are_asked_of_it() {
        let csum = Offloads {
            csum: true,
            ..Offloads::default()
        };
        let table = [
            (Offloads::default(), 0),
            (
                Offloads {
                    tso4: true,
                    ..Offloads::default()
                },
                0,
            ),
            (csum, libc::TUN_F_CSUM),
            (Offloads { ecn: true, ..csum }, libc::TUN_F_CSUM),
            (
                Offloads {
                    ecn: true,
                    tso6: true,
                    ..csum
                },
                libc::TUN_F_CSUM | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN,
            ),
            (Offloads { uso4: true, ..csum }, libc::TUN_F_CSUM),
            (
                Offloads {
                    uso4: true,
                    uso6: true,
                    ..csum
                },
                libc::TUN_F_CSUM | libc::TUN_F_USO4 | libc::TUN_F_USO6,
            ),
        ];
        for (offloads, bits) in table {
            assert_eq!(offload_bits(offloads), bits, "{offloads:?}");
        }
    }
}
