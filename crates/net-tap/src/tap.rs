//! The tap interface itself: a file descriptor with a name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_uint;
use net_client::{IoVec, Offloads};

use crate::address;
use crate::config::{TapConfig, check_name};
use crate::error::TapError;
use crate::sys;

/// The header's length in front of each frame before anybody sets another: `virtio_net_hdr` without
/// `num_buffers`.
pub const INITIAL_HEADER_LEN: usize = 10;

/// The longest frame without its `virtio_net_hdr`: an IP packet of 64 KiB behind an Ethernet header
/// with a VLAN tag.
pub(crate) const FRAME_MAX: usize = 65535 + FRAME_HEADER;
/// An Ethernet header with a VLAN tag.
const FRAME_HEADER: usize = 14 + 4;

/// One open queue of a tap interface, non-blocking: each read takes one frame, each write gives one.
///
/// An interface that did not exist before is gone when its last queue is dropped.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    vnet_hdr: bool,
    multi_queue: bool,
    offloads: Offloads,
    /// Opened here by its name, so in this network namespace.
    is_here: bool,
    /// Writes may find no room.
    limits_sending: AtomicBool,
}

impl Tap {
    /// Makes the interface, or takes one that exists, and opens the queues that `config` asks for; or
    /// takes over the descriptors that it names. All queues are attached.
    ///
    /// # Errors
    /// See [`TapError`]; nothing is left behind then.
    #[doc(alias = "net_init_tap")]
    pub fn open(config: &TapConfig) -> Result<Vec<Self>, TapError> {
        let taps = if config.fds.is_empty() {
            let queues = config.queues.unwrap_or(1);
            if queues == 0 {
                return Err(TapError::NoQueues);
            }
            let template = config.ifname.as_deref().unwrap_or("tap%d");
            let first = Self::open_queue(template, config.vnet_hdr, queues > 1)?;
            let mut taps = vec![first];
            for _ in 1..queues {
                let name = taps[0].name.clone();
                let next = Self::open_queue(&name, Some(taps[0].vnet_hdr), true);
                taps.push(next.map_err(|error| error.after_queues(taps.len(), queues as usize))?);
            }
            taps
        } else {
            Self::inherit(&config.fds)?
        };
        for tap in &taps {
            tap.set_send_buffer(config.sndbuf)?;
        }
        if let (Some(address), Some(tap)) = (config.address, taps.first()) {
            address::bring_up(&tap.name, address)?;
        }
        if let Some(Self { name, vnet_hdr, .. }) = taps.first() {
            tracing::info!(
                interface = name,
                vnet_hdr,
                queues = taps.len(),
                "tap opened"
            );
        }
        Ok(taps)
    }

    /// Uses a tap or macvtap that is open already.
    ///
    /// # Errors
    /// When it is not one. That its frames carry no packet information (IFF_NO_PI) cannot be seen, and
    /// is the caller's to know.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Self, TapError> {
        let file = File::from(fd.into());
        let number = file.as_raw_fd();
        let (name, flags) =
            sys::interface(file.as_fd()).map_err(|source| TapError::NotATap { number, source })?;
        if flags & libc::IFF_TAP == 0 {
            return Err(TapError::Tun { number });
        }
        sys::set_nonblocking(file.as_fd())
            .map_err(|source| TapError::Descriptor { number, source })?;
        let vnet_hdr = flags & libc::IFF_VNET_HDR != 0;
        Self::set_up(file, name, vnet_hdr, flags & libc::IFF_MULTI_QUEUE != 0)
    }

    /// Takes over descriptors of one interface by their numbers.
    fn inherit(numbers: &[RawFd]) -> Result<Vec<Self>, TapError> {
        // All are looked at before one is taken.
        let mut seen: Vec<RawFd> = Vec::new();
        let mut headers = Vec::new();
        for &number in numbers {
            sys::is_inherited(number).map_err(|source| TapError::Descriptor { number, source })?;
            if seen.contains(&number) {
                let source = io::Error::from_raw_os_error(libc::EBUSY);
                return Err(TapError::Descriptor { number, source });
            }
            seen.push(number);
            let (_, flags) = sys::inherited_interface(number)
                .map_err(|source| TapError::NotATap { number, source })?;
            headers.push(flags & libc::IFF_VNET_HDR != 0);
        }
        if headers.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(TapError::HeadersDiffer);
        }
        let inherit = |&number| {
            let fd =
                sys::inherit(number).map_err(|source| TapError::Descriptor { number, source })?;
            Self::from_fd(fd)
        };
        numbers.iter().map(inherit).collect()
    }

    #[doc(alias = "tap_open")]
    fn open_queue(
        template: &str,
        vnet_hdr: Option<bool>,
        multi_queue: bool,
    ) -> Result<Self, TapError> {
        check_name(template)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(|source| TapError::Open { source })?;
        let fd = file.as_fd();

        let known = sys::features(fd).map_err(failed(template, "TUNGETFEATURES"))?;
        let vnet_hdr = vnet_hdr.unwrap_or(known & libc::IFF_VNET_HDR != 0);
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
        if vnet_hdr {
            flags |= libc::IFF_VNET_HDR;
        }
        if multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let name =
            sys::set_interface(fd, template, flags).map_err(failed(template, "TUNSETIFF"))?;
        let mut tap = Self::set_up(file, name, vnet_hdr, multi_queue)?;
        tap.is_here = true;
        Ok(tap)
    }

    fn set_up(
        file: File,
        name: String,
        vnet_hdr: bool,
        multi_queue: bool,
    ) -> Result<Self, TapError> {
        let fd = file.as_fd();
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
        Ok(Self {
            file,
            name,
            vnet_hdr,
            multi_queue,
            offloads,
            is_here: false,
            limits_sending: AtomicBool::new(false),
        })
    }

    /// Something that can be watched, in a tap's place.
    #[cfg(test)]
    pub(crate) fn for_tests(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            name: "tap0".into(),
            vnet_hdr: true,
            multi_queue: true,
            offloads: Offloads::default(),
            is_here: false,
            limits_sending: AtomicBool::new(false),
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

    /// Whether the interface may have several queues.
    pub fn is_multi_queue(&self) -> bool {
        self.multi_queue
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

    /// Attaches this queue to the interface, which then spreads its frames over it too, or detaches
    /// it: it gets none any more. Frames can be written to it all the same.
    ///
    /// # Errors
    /// When the kernel refuses it: the interface has one queue only, or it is so already.
    #[doc(alias = "tap_fd_enable")]
    #[doc(alias = "tap_fd_disable")]
    pub fn set_attached(&self, attached: bool) -> Result<(), TapError> {
        sys::set_queue(self.as_fd(), attached).map_err(failed(&self.name, "TUNSETQUEUE"))
    }

    /// Limits the bytes of frames that were written and that the host has not dealt with yet; then
    /// writes say `WouldBlock`. `None` or 0: no limit.
    ///
    /// # Errors
    /// When a limit was asked for, and the kernel refuses it.
    #[doc(alias = "tap_set_sndbuf")]
    pub fn set_send_buffer(&self, len: Option<u64>) -> Result<(), TapError> {
        let limit = match len {
            None | Some(0) => libc::c_int::MAX,
            Some(len) => libc::c_int::try_from(len).unwrap_or(libc::c_int::MAX),
        };
        match sys::set_send_buffer(self.as_fd(), limit) {
            Err(source) if len.is_some() => return Err(failed(&self.name, "TUNSETSNDBUF")(source)),
            _ => {}
        }
        let limits = limit != libc::c_int::MAX;
        self.limits_sending.store(limits, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there is a limit to what is written, as far as was set here.
    pub(crate) fn limits_sending(&self) -> bool {
        self.limits_sending.load(Ordering::Relaxed)
    }

    /// Bytes of the longest frame that the host gives to a reader that copes with `offloads`, without its
    /// `virtio_net_hdr`, as far as can be known now: the MTU can be raised later, and is that of
    /// somewhere else where the descriptor came from there.
    pub(crate) fn longest_frame(&self, offloads: Offloads) -> usize {
        let Offloads {
            csum: _,
            tso4,
            tso6,
            ecn: _,
            ufo,
            uso4,
            uso6,
            // Only with those above.
            udp_tunnel: _,
            udp_tunnel_csum: _,
        } = offloads;
        let segments = tso4 || tso6 || ufo || uso4 || uso6;
        let mtu = (self.is_here && !segments)
            .then(|| sys::mtu(&self.name).ok())
            .flatten();
        mtu.map_or(FRAME_MAX, |mtu| (mtu + FRAME_HEADER).min(FRAME_MAX))
    }

    /// Writes one frame, header and all; returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room (see [`set_send_buffer`](Self::set_send_buffer)); EIO while the interface is down; EINVAL for a header that
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
/// ECN needs TCP, UDP segmentation is for both versions of IP or for none, and tunnels need both protocols of both.
fn offload_bits(offloads: Offloads) -> c_uint {
    if !offloads.csum {
        return 0;
    }
    let uso = offloads.uso4 && offloads.uso6;
    let tunnel = offloads.udp_tunnel && uso && offloads.tso4 && offloads.tso6;
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
        (tunnel, TUN_F_UDP_TUNNEL_GSO),
        (
            tunnel && offloads.udp_tunnel_csum,
            TUN_F_UDP_TUNNEL_GSO_CSUM,
        ),
    ];
    table
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |bits, (_, bit)| bits | bit)
}

/// Linux 6.17: `include/uapi/linux/if_tun.h`.
const TUN_F_UDP_TUNNEL_GSO: c_uint = 0x80;
const TUN_F_UDP_TUNNEL_GSO_CSUM: c_uint = 0x100;

fn probe_offloads(fd: BorrowedFd<'_>) -> Offloads {
    let takes = |bits| sys::set_offload(fd, libc::TUN_F_CSUM | bits).is_ok();
    let tso = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let uso_bits = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let uso = takes(uso_bits);
    let tunnel = tso | uso_bits | TUN_F_UDP_TUNNEL_GSO;
    Offloads {
        csum: takes(0),
        tso4: takes(libc::TUN_F_TSO4),
        tso6: takes(libc::TUN_F_TSO6),
        ecn: takes(tso | libc::TUN_F_TSO_ECN),
        ufo: takes(libc::TUN_F_UFO),
        uso4: uso,
        uso6: uso,
        udp_tunnel: takes(tunnel),
        udp_tunnel_csum: takes(tunnel | TUN_F_UDP_TUNNEL_GSO_CSUM),
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
            (
                Offloads {
                    tso4: true,
                    tso6: true,
                    udp_tunnel: true,
                    udp_tunnel_csum: true,
                    ..csum
                },
                libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6,
            ),
            (
                Offloads {
                    tso4: true,
                    tso6: true,
                    uso4: true,
                    uso6: true,
                    udp_tunnel_csum: true,
                    ..csum
                },
                0x67,
            ),
            (
                Offloads {
                    tso4: true,
                    tso6: true,
                    uso4: true,
                    uso6: true,
                    udp_tunnel: true,
                    udp_tunnel_csum: true,
                    ..csum
                },
                0x1e7,
            ),
        ];
        for (offloads, bits) in table {
            assert_eq!(offload_bits(offloads), bits, "{offloads:?}");
        }
    }
}
