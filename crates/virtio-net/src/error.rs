//! Why a NIC is not made.

use net_client::ConnectError;

use crate::VirtioNetConfig;

/// Queue pairs of one device at most. [QEMU: the queues that a tap can have]
const MAX_QUEUE_PAIRS: usize = 256;
/// Queue sizes that are taken. (QEMU 7.2: up to 1024.)
const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 256..=32768;
/// The smallest MTU that may be offered (virtio 1.4, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// Why a NIC was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioNetError {
    /// `rx_queue_size` is out of range.
    #[error("Invalid rx_queue_size (= {0}), must be a power of 2 between 256 and 32768.")]
    RxQueueSize(u16),
    /// `tx_queue_size` is out of range.
    #[error("Invalid tx_queue_size (= {0}), must be a power of 2 between 256 and 32768")]
    TxQueueSize(u16),
    /// `host_mtu` is too small.
    #[error("Invalid host_mtu (= {0}), must be 0 or between 68 and 65535")]
    HostMtu(u16),
    /// `speed` is out of range.
    #[error("'speed' must be between 0 and INT_MAX")]
    Speed(i64),
    /// `duplex` is no duplex mode.
    #[error("'duplex' must be 'half' or 'full'")]
    Duplex(String),
    /// `tx` is nothing that is known.
    #[error("'tx' must be 'timer' or 'bh'")]
    Tx(String),
    /// The backend has more queues than are supported.
    #[error("Invalid number of queue pairs (= {0}), must be a positive integer less than 257.")]
    QueuePairs(usize),
    /// There is neither one context for all queue pairs nor one for each.
    #[error("{contexts} contexts for {pairs} queue pairs")]
    Contexts {
        /// Contexts given.
        contexts: usize,
        /// Queue pairs.
        pairs: usize,
    },
    /// More I/O threads are asked for than there are queue pairs to run on them.
    #[error(
        "Invalid iothreads (= {threads}), must be at most the number of queue pairs (= {pairs})"
    )]
    IoThreads {
        /// Threads asked for.
        threads: usize,
        /// Queue pairs.
        pairs: usize,
    },
    /// The backend could not become the NIC's peer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Checks what a NIC with so many queue pairs and contexts is to be made of.
pub(crate) fn check(
    config: &VirtioNetConfig,
    pairs: usize,
    contexts: usize,
) -> Result<(), VirtioNetError> {
    let good = |size: u16| QUEUE_SIZES.contains(&size) && size.is_power_of_two();
    if !good(config.rx_queue_size) {
        return Err(VirtioNetError::RxQueueSize(config.rx_queue_size));
    }
    if !good(config.tx_queue_size) {
        return Err(VirtioNetError::TxQueueSize(config.tx_queue_size));
    }
    if (1..MIN_MTU).contains(&config.host_mtu) {
        return Err(VirtioNetError::HostMtu(config.host_mtu));
    }
    if let Some(speed) = config.speed.filter(|speed| i32::try_from(*speed).is_err()) {
        return Err(VirtioNetError::Speed(speed.into()));
    }
    if pairs > MAX_QUEUE_PAIRS {
        return Err(VirtioNetError::QueuePairs(pairs));
    }
    if contexts != 1 && contexts < pairs {
        return Err(VirtioNetError::Contexts { contexts, pairs });
    }
    Ok(())
}
