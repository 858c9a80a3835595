//! The header in front of each frame, and the offloads that it makes possible.

use std::io;

/// What the receiver of frames copes with, so that the sender need not do it: what TUNSETOFFLOAD of a tap
/// says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames with a partial checksum.
    pub csum: bool,
    /// TCP over IPv4 frames larger than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 frames larger than the MTU.
    pub tso6: bool,
    /// TCP segmentation with the ECN bits set.
    pub ecn: bool,
    /// UDP fragmentation.
    pub ufo: bool,
    /// UDP segmentation over IPv4.
    pub uso4: bool,
    /// UDP segmentation over IPv6.
    pub uso6: bool,
    /// Large frames of the kinds above inside UDP tunnels: takes TCP and UDP segmentation of both versions of IP, and a
    /// header of 24 bytes or more.
    pub udp_tunnel: bool,
    /// Those with a partial checksum of the tunnel's.
    pub udp_tunnel_csum: bool,
}

impl Offloads {
    /// All that there are.
    pub const ALL: Self = Self {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        ufo: true,
        uso4: true,
        uso6: true,
        udp_tunnel: true,
        udp_tunnel_csum: true,
    };

    /// What two receivers both cope with.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self {
            csum: self.csum && other.csum,
            tso4: self.tso4 && other.tso4,
            tso6: self.tso6 && other.tso6,
            ecn: self.ecn && other.ecn,
            ufo: self.ufo && other.ufo,
            uso4: self.uso4 && other.uso4,
            uso6: self.uso6 && other.uso6,
            udp_tunnel: self.udp_tunnel && other.udp_tunnel,
            udp_tunnel_csum: self.udp_tunnel_csum && other.udp_tunnel_csum,
        }
    }
}

/// A client that can carry a `virtio_net_hdr` in front of each frame.
///
/// The NIC asks when it is created and sets at feature negotiation and reset, on whichever thread the
/// driver's write came in, while it may hold its control locks: no method calls it back, waits for it, or
/// waits for a turn of the context. What frames on their way have in front of them is the NIC's
/// business: it has them forgotten first, with [`Port::purge`](crate::Port::purge).
/// [QEMU: qemu_has_vnet_hdr and kin]
pub trait VnetHeader {
    /// The offloads that the client can do as a receiver, probed once.
    #[doc(alias = "qemu_has_ufo")]
    fn supported_offloads(&self) -> Offloads;

    /// The length of the header in front of each frame: what was set last.
    fn header_len(&self) -> usize;

    /// Sets the length of the header in front of each frame, in both directions: 10, 12 or more.
    ///
    /// # Errors
    /// When the client cannot carry a header of this length.
    #[doc(alias = "qemu_set_vnet_hdr_len")]
    fn set_header_len(&self, len: usize) -> io::Result<()>;

    /// Whether header fields are little-endian (virtio 1.0 and later) or the host's.
    ///
    /// # Errors
    /// When the client cannot do it.
    #[doc(alias = "qemu_set_vnet_le")]
    fn set_little_endian(&self, little_endian: bool) -> io::Result<()>;

    /// Sets what the peer copes with in frames that this client sends to it.
    ///
    /// # Errors
    /// When the client refuses the set.
    #[doc(alias = "qemu_set_offload")]
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
}
