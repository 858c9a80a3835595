//! What each queue counts.

use crate::HeaderFault;

/// What a transmit queue has done since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxStatistics {
    /// Times that the driver's kick woke the queue, or the queue itself to go on.
    pub kicks: u64,
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
    /// Frames with no checksum left to do; counted, as the next three, where the driver may ask for it
    /// (`VIRTIO_NET_F_DEVICE_STATS`).
    pub csum_none: u64,
    /// Frames whose checksum is left to the host.
    pub csum_needed: u64,
    /// Frames to be segmented.
    pub gso_frames: u64,
    /// Bytes of those.
    pub gso_bytes: u64,
    pub(crate) faults: [u64; HeaderFault::ALL.len()],
}

impl TxStatistics {
    /// Frames dropped for `fault`.
    pub fn dropped(&self, fault: HeaderFault) -> u64 {
        self.faults[fault as usize]
    }

    /// Frames dropped for any fault.
    pub fn dropped_malformed(&self) -> u64 {
        self.faults.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }

    /// Frames dropped for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped_malformed().wrapping_add(self.dropped_disabled)
    }
}

/// What a receive queue has done since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxStatistics {
    /// Times that the driver's kick woke the queue, or the queue itself to go on.
    pub kicks: u64,
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
    /// Frames dropped: longer than the MTU that the driver has agreed to.
    pub dropped_over_mtu: u64,
    /// Frames dropped: the driver stopped using the queue's pair while they were being read, or does not run the queue
    /// that they were for.
    pub dropped_disabled: u64,
    /// Chains given back unused: device-readable buffers, or shorter than the header.
    pub bad_chains: u64,
    /// Frames whose checksum the host has found right; counted, as the next four, where the driver may ask for it
    /// (`VIRTIO_NET_F_DEVICE_STATS`).
    pub csum_valid: u64,
    /// Frames whose checksum is left to the driver.
    pub csum_needed: u64,
    /// Frames of whose checksum nothing is known.
    pub csum_none: u64,
    /// Frames that stand for several.
    pub gso_frames: u64,
    /// Bytes of those.
    pub gso_bytes: u64,
}

impl RxStatistics {
    /// Frames dropped for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        let dropped = [
            self.dropped_too_long,
            self.dropped_no_buffers,
            self.dropped_malformed,
            self.dropped_filtered,
            self.dropped_over_mtu,
            self.dropped_disabled,
        ];
        dropped.into_iter().fold(0, u64::wrapping_add)
    }
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
