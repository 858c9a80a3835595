//! What each queue counts.

use crate::HeaderFault;

/// What a transmit queue has done since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxStatistics {
    /// Frames that the peer took.
    pub frames: u64,
    /// Bytes of those, without headers.
    pub bytes: u64,
    /// Times that the peer had no room.
    pub busy: u64,
    /// Times that the used ring was published.
    pub batches: u64,
    /// Notifications sent to the driver.
    pub notifications: u64,
    /// Frames dropped: the driver does not use the queue's pair.
    pub dropped_disabled: u64,
    /// Completions by the peer of what it did not have.
    pub stray_completions: u64,
    pub(crate) faults: [u64; HeaderFault::ALL.len()],
}

impl TxStatistics {
    /// Frames dropped for `fault`.
    pub fn dropped(&self, fault: HeaderFault) -> u64 {
        self.faults[fault as usize]
    }

    /// Frames dropped for any fault.
    pub fn dropped_in_all(&self) -> u64 {
        self.faults.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }
}

/// What a receive queue has done since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxStatistics {
    /// Frames given to the driver.
    pub frames: u64,
    /// Bytes of those, without headers.
    pub bytes: u64,
    /// Chains that those took.
    pub buffers: u64,
    /// Times that there was no buffer.
    pub no_room: u64,
    /// Times that the used ring was published.
    pub batches: u64,
    /// Notifications sent to the driver.
    pub notifications: u64,
    /// Frames dropped: larger than the buffers can ever take.
    pub dropped_too_long: u64,
    /// Frames dropped: buffers enough for them did not come in time.
    pub dropped_no_buffers: u64,
    /// Frames dropped: shorter than their header, or stopped half way.
    pub dropped_malformed: u64,
    /// Frames dropped: the driver's filters keep them out.
    pub dropped_filtered: u64,
    /// Frames dropped: the driver stopped using the queue's pair while they were being read.
    pub dropped_disabled: u64,
    /// Chains given back unused: device-readable buffers, or shorter than the header.
    pub bad_chains: u64,
}

/// What the control queue has done since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CtrlStatistics {
    /// Commands done.
    pub acknowledged: u64,
    /// Commands answered with an error.
    pub refused: u64,
    /// Chains with no room for an answer.
    pub unanswered: u64,
}
