//! The hash of a received frame, and the queue that it leads to (virtio 1.4, 5.1.9.4.3 and 5.1.9.5.7).

mod flow;
mod toeplitz;
mod tunnel;

use std::sync::Arc;

use virtio::net::{HashReport, HashType};

use self::flow::Flow;
pub(crate) use self::toeplitz::KEY_LEN;
use self::toeplitz::Toeplitz;
pub(crate) use self::tunnel::Tunnels;
use crate::watched::{View, Watched};

/// The bytes at a frame's start that are looked at: two VLAN tags, the longest IPv4 header and ports, or
/// as many IPv6 extension headers as a frame may reasonably have; or a tunnel's headers and those inside. What lies behind
/// is not found.
pub(crate) const PEEK: usize = 256;
/// Entries of the longest indirection table, as QEMU has it, and the fewest that there may be (virtio 1.4,
/// 5.1.4.1).
pub(crate) const MAX_TABLE: usize = 128;

/// All types of hashes that there are but those of tunnels.
pub(crate) fn supported_types() -> HashType {
    HashType::IPV4
        | HashType::TCPV4
        | HashType::UDPV4
        | HashType::IPV6
        | HashType::TCPV6
        | HashType::UDPV6
        | HashType::IP_EX
        | HashType::TCP_EX
        | HashType::UDP_EX
}

/// What the driver has said of hashes.
#[derive(Clone, Debug)]
pub(crate) struct Hashing {
    types: HashType,
    key: [u8; KEY_LEN],
    toeplitz: Arc<Toeplitz>,
    /// Of packets in these the hash is that of the packet inside.
    tunnels: Tunnels,
    /// Frames go to the pair that their hash leads to. `None`: to that whose port they come from.
    steering: Option<Table>,
}

/// Pairs by hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// A power of two of them.
    pub(crate) pairs: Vec<u16>,
    /// The pair of frames that have no hash.
    pub(crate) unclassified: u16,
}

/// The hash of a frame, and what it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash {
    pub(crate) value: u32,
    pub(crate) report: HashReport,
}

impl Hash {
    /// What the header says of a frame that has none.
    pub(crate) const NONE: Self = Self {
        value: 0,
        report: HashReport::None,
    };

    /// `hash_value`, `hash_report` and the padding behind them.
    pub(crate) fn emit(self) -> [u8; 8] {
        let [v0, v1, v2, v3] = self.value.to_le_bytes();
        let [r0, r1] = u16::from(self.report).to_le_bytes();
        [v0, v1, v2, v3, r0, r1, 0, 0]
    }
}

impl Hashing {
    /// No hash is made of any frame, as before a driver asks for it.
    pub(crate) fn new() -> Self {
        Self {
            types: HashType::empty(),
            key: [0; KEY_LEN],
            toeplitz: Arc::new(Toeplitz::new(&[0; KEY_LEN])),
            tunnels: Tunnels::NONE,
            steering: None,
        }
    }

    /// Makes hashes of these types with this key from now on.
    pub(crate) fn set(&mut self, types: HashType, key: &[u8; KEY_LEN]) {
        self.types = types;
        self.key = *key;
        self.toeplitz = Arc::new(Toeplitz::new(key));
    }

    /// Looks into these tunnels, and no others, from now on.
    pub(crate) fn set_tunnels(&mut self, tunnels: Tunnels) {
        self.tunnels = tunnels;
    }

    pub(crate) fn tunnels(&self) -> Tunnels {
        self.tunnels
    }

    pub(crate) fn set_steering(&mut self, table: Option<Table>) {
        self.steering = table;
    }

    pub(crate) fn steering(&self) -> Option<&Table> {
        self.steering.as_ref()
    }

    /// What hashes are made of: types and key.
    pub(crate) fn settings(&self) -> (HashType, &[u8; KEY_LEN]) {
        (self.types, &self.key)
    }

    /// Whether no frame has a hash, so none need be looked at.
    pub(crate) fn is_off(&self) -> bool {
        self.types.is_empty()
    }

    /// The hash of a frame that begins with `start`: its first [`PEEK`] bytes, or all of it where it is shorter.
    pub(crate) fn hash(&self, start: &[u8]) -> Hash {
        if self.is_off() {
            return Hash::NONE;
        }
        let flow = Flow::parse(start, self.tunnels);
        let Some((report, input)) = flow.and_then(|flow| flow.input(self.types)) else {
            return Hash::NONE;
        };
        Hash {
            value: self.toeplitz.hash(input.bytes()),
            report,
        }
    }

    /// The pair that a frame goes to, if frames go where their hash leads (virtio 1.4, 5.1.9.5.7.3).
    pub(crate) fn destination(&self, start: &[u8]) -> Option<usize> {
        let table = self.steering.as_ref()?;
        let hash = self.hash(start);
        let pair = if hash.report == HashReport::None {
            table.unclassified
        } else {
            // Not empty, and its length is a power of two.
            let mask = table.pairs.len().wrapping_sub(1);
            let index = usize::try_from(hash.value).unwrap_or(0) & mask;
            *table.pairs.get(index).unwrap_or(&table.unclassified)
        };
        Some(usize::from(pair))
    }
}

/// What the driver of a device has said of hashes, as it is now.
pub(crate) type HashCell = Watched<Hashing>;

/// A receive queue's look at it.
pub(crate) type HashView = View<Hashing>;
