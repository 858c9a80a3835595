//! What the VMM and the guest program agree on.

use core::net::Ipv4Addr;

use virtio_guest::DmaRegion;

/// Where the linker put the program: its image reaches from here up to less than 3 MiB.
pub const LOAD_ADDRESS: u64 = 0x10_0000;

/// The port to which the program writes one byte, its [`ExitStatus`], as the last thing it does.
pub const EXIT_PORT: u16 = 0xf4;

/// How the guest program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Every ping was answered.
    Success = 0,
    /// Some pings were lost, or too few came from the other side.
    Lost = 1,
    /// There is no network device, or it cannot be driven.
    NoDevice = 2,
    /// What was passed in RDI is no [`BootInfo`].
    NoBootInfo = 3,
    /// The program panicked.
    Panic = 4,
    /// The processor raised an exception.
    Exception = 5,
}

/// What the program is to do; RDI points at its bytes when the program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// How many pings to send.
    pub pings: u16,
    /// How many pings of others to answer, at least, before ending; [`ENDLESS`](Self::ENDLESS) of them keep the program
    /// answering until somebody else ends it.
    pub requests: u16,
    /// The program's own address.
    pub guest: Ipv4Addr,
    /// Whom to ping.
    pub host: Ipv4Addr,
    /// How many bits of the addresses name the network.
    pub prefix_len: u8,
    /// Memory outside of the image for rings and buffers; two mebibytes are enough.
    pub dma: DmaRegion,
}

impl BootInfo {
    /// More pings than there will be.
    pub const ENDLESS: u16 = u16::MAX;

    /// Length in memory.
    pub const LEN: usize = 40;

    /// Its bytes in memory: a magic number, then the fields, little-endian, in the order
    /// `magic: u64, dma.address: u64, dma.len: u32, pings: u16, requests: u16, guest: [u8; 4],
    /// host: [u8; 4], prefix_len: u8`, and zeros.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            if let Some((place, after)) =
                core::mem::take(&mut rest).split_at_mut_checked(field.len())
            {
                place.copy_from_slice(field);
                rest = after;
            }
        };
        put(&MAGIC);
        put(&self.dma.address.to_le_bytes());
        put(&self.dma.len.to_le_bytes());
        put(&self.pings.to_le_bytes());
        put(&self.requests.to_le_bytes());
        put(&self.guest.octets());
        put(&self.host.octets());
        put(&[self.prefix_len]);
        bytes
    }

    /// Takes the bytes apart; `None` if they do not begin with the magic number or the prefix is
    /// longer than an address.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let rest = bytes.as_slice();
        let (magic, rest) = rest.split_first_chunk::<8>()?;
        let (address, rest) = rest.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (pings, rest) = rest.split_first_chunk::<2>()?;
        let (requests, rest) = rest.split_first_chunk::<2>()?;
        let (guest, rest) = rest.split_first_chunk::<4>()?;
        let (host, rest) = rest.split_first_chunk::<4>()?;
        let prefix_len = *rest.first()?;
        (*magic == MAGIC && prefix_len <= 32).then(|| Self {
            pings: u16::from_le_bytes(*pings),
            requests: u16::from_le_bytes(*requests),
            guest: (*guest).into(),
            host: (*host).into(),
            prefix_len,
            dma: DmaRegion {
                address: u64::from_le_bytes(*address),
                len: u32::from_le_bytes(*len),
            },
        })
    }
}

const MAGIC: [u8; 8] = *b"vnetboot";

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: BootInfo = BootInfo {
        pings: 0x102,
        requests: 3,
        guest: Ipv4Addr::new(10, 0, 2, 15),
        host: Ipv4Addr::new(10, 0, 2, 2),
        prefix_len: 24,
        dma: DmaRegion {
            address: 0x1_0040_0000,
            len: 0x10_0000,
        },
    };

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(BootInfo::from_bytes(&INFO.to_bytes()), Some(INFO));
    }

    #[test]
    fn other_bytes_are_no_boot_info() {
        assert_eq!(BootInfo::from_bytes(&[0; BootInfo::LEN]), None);
        let mut bytes = INFO.to_bytes();
        bytes[32] = 33;
        assert_eq!(BootInfo::from_bytes(&bytes), None, "a prefix of 33 bits");
    }
}
