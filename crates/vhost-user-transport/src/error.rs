//! What a front end did that ends its connection.

use std::io;

use vhost::vhost_user;

/// Why a front end is served no more. The device is reset by then, and the next front end is welcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another front end is being served.
    #[error("another front end is connected; a vhost-user back end serves one at a time")]
    Occupied,
    /// There is no device on the bus.
    #[error("no device is plugged into the transport")]
    NoDevice,
    /// The front end asked for something that cannot be.
    #[error("vhost-user request refused: {0}")]
    Refused(#[from] Refusal),
    /// What the front end sent is no message of the protocol, or the socket failed.
    #[error("vhost-user protocol: {0}")]
    Protocol(vhost_user::Error),
}

/// Why one request was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The ring does not exist.
    #[error("there is no ring {index}: the device has {rings}")]
    NoRing {
        /// What was named.
        index: u32,
        /// How many there are.
        rings: usize,
    },
    /// The ring's size cannot be.
    #[error("ring {index}: size {size} is not 1 to {max_size}")]
    Size {
        /// Which ring.
        index: u32,
        /// What was asked for.
        size: u32,
        /// The largest.
        max_size: u16,
    },
    /// A ring that runs was to be set up.
    #[error("ring {index} is running; {request} needs it stopped by GET_VRING_BASE")]
    Running {
        /// Which ring.
        index: u32,
        /// The request.
        request: &'static str,
    },
    /// A ring was to be started before it was set up.
    #[error("ring {index} was given a kick before {missing}")]
    NotSetUp {
        /// Which ring.
        index: u32,
        /// The request that is missing.
        missing: &'static str,
    },
    /// An address of the front end's lies in no memory region.
    #[error("ring {index}: address {address:#x} of the {area} area is in no memory region")]
    Address {
        /// Which ring.
        index: u32,
        /// Which of its parts.
        area: &'static str,
        /// In the front end's address space.
        address: u64,
    },
    /// A ring is to go on from where it cannot be.
    #[error("ring {index}: cannot go on from base {base:#x}: {reason}")]
    Base {
        /// Which ring.
        index: u32,
        /// What was asked for.
        base: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A descriptor that was passed is no eventfd.
    #[error("ring {index}: the descriptor in {request} is not an eventfd")]
    NotAnEventFd {
        /// Which ring.
        index: u32,
        /// The request.
        request: &'static str,
    },
    /// The front end would poll instead of kick.
    #[error("ring {index}: {request} without a descriptor, but polling is not supported")]
    Polling {
        /// Which ring.
        index: u32,
        /// The request.
        request: &'static str,
    },
    /// Features were chosen that were not offered.
    #[error("features {chosen:#x} were chosen, of which {excess:#x} were not offered")]
    Features {
        /// What was chosen.
        chosen: u64,
        /// What of it was not offered.
        excess: u64,
    },
    /// Features were to change while rings run.
    #[error("features cannot change from {old:#x} to {new:#x} while rings run")]
    FeaturesRunning {
        /// What was negotiated.
        old: u64,
        /// What was asked for.
        new: u64,
    },
    /// The device does not take the features, or does not start.
    #[error("the device refuses: {0}")]
    Device(String),
    /// Guest memory cannot be what was asked for.
    #[error("memory region at {guest_address:#x}, {size:#x} bytes: {reason}")]
    Memory {
        /// Guest-physical.
        guest_address: u64,
        /// Bytes.
        size: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Configuration space does not reach so far.
    #[error("configuration space has {len} bytes, not {size} at {offset}")]
    Config {
        /// First byte asked for.
        offset: u32,
        /// Bytes asked for.
        size: u32,
        /// Bytes there are.
        len: usize,
    },
    /// The record of what is in flight cannot be used.
    #[error("in-flight record: {0}")]
    Inflight(String),
    /// A request that needs a feature of the protocol that this back end has not got.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}
