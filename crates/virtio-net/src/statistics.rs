//! What each queue counts.

use std::fmt::{self, Write as _};

use crate::rsc::Unit;
use crate::{FlushReason, HeaderFault};

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
    /// Times that the limit was reached.
    pub throttled: u64,
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
    /// All of them but the faults, in the order in which they are saved: new ones come last.
    pub(crate) fn counters_mut(&mut self) -> [&mut u64; 13] {
        let Self {
            kicks,
            frames,
            bytes,
            busy,
            throttled,
            batches,
            notifications,
            dropped_disabled,
            stray_completions,
            csum_none,
            csum_needed,
            gso_frames,
            gso_bytes,
            faults: _,
        } = self;
        [
            kicks,
            frames,
            bytes,
            busy,
            throttled,
            batches,
            notifications,
            dropped_disabled,
            stray_completions,
            csum_none,
            csum_needed,
            gso_frames,
            gso_bytes,
        ]
    }

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
    /// Frames that were to be put together with others, and whose checksum is not right: the driver gets them as they
    /// are. Counted, as the next five, where segments are put together (`VIRTIO_NET_F_RSC_EXT`).
    pub csum_bad: u64,
    /// Frames that stand for several because these were put together here.
    pub rsc_frames: u64,
    /// Bytes of those.
    pub rsc_bytes: u64,
    /// Segments that those stand for.
    pub rsc_segments: u64,
    /// Duplicate acknowledgements that those stand for beside.
    pub rsc_dup_acks: u64,
    pub(crate) flushes: [u64; FlushReason::ALL.len()],
}

impl RxStatistics {
    /// Times that segments which were kept, or one, were given to the driver for `reason`.
    pub fn flushed(&self, reason: FlushReason) -> u64 {
        self.flushes[reason as usize]
    }

    /// The driver has got a unit.
    pub(crate) fn count_flushed(&mut self, unit: &Unit, reason: FlushReason) {
        self.flushes[reason as usize] += 1;
        if unit.is_large() {
            self.rsc_frames += 1;
            count_bytes(&mut self.rsc_bytes, unit.frame().len());
            self.rsc_segments += u64::from(unit.segments());
            self.rsc_dup_acks += u64::from(unit.dup_acks());
        }
    }

    /// All of them but the flushes, in the order in which they are saved: new ones come last.
    pub(crate) fn counters_mut(&mut self) -> [&mut u64; 24] {
        let Self {
            kicks,
            frames,
            bytes,
            buffers,
            no_room,
            batches,
            notifications,
            dropped_too_long,
            dropped_no_buffers,
            dropped_malformed,
            dropped_filtered,
            dropped_over_mtu,
            dropped_disabled,
            bad_chains,
            csum_valid,
            csum_needed,
            csum_none,
            gso_frames,
            gso_bytes,
            csum_bad,
            rsc_frames,
            rsc_bytes,
            rsc_segments,
            rsc_dup_acks,
            flushes: _,
        } = self;
        [
            kicks,
            frames,
            bytes,
            buffers,
            no_room,
            batches,
            notifications,
            dropped_too_long,
            dropped_no_buffers,
            dropped_malformed,
            dropped_filtered,
            dropped_over_mtu,
            dropped_disabled,
            bad_chains,
            csum_valid,
            csum_needed,
            csum_none,
            gso_frames,
            gso_bytes,
            csum_bad,
            rsc_frames,
            rsc_bytes,
            rsc_segments,
            rsc_dup_acks,
        ]
    }

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

impl CtrlStatistics {
    /// All of them, in the order in which they are saved: new ones come last.
    pub(crate) fn counters_mut(&mut self) -> [&mut u64; 3] {
        let Self {
            acknowledged,
            refused,
            unanswered,
        } = self;
        [acknowledged, refused, unanswered]
    }
}

impl fmt::Display for TxStatistics {
    /// Each counter with its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = [
            ("kicks", self.kicks),
            ("frames", self.frames),
            ("bytes", self.bytes),
            ("busy", self.busy),
            ("throttled", self.throttled),
            ("batches", self.batches),
            ("notifications", self.notifications),
            ("dropped_disabled", self.dropped_disabled),
            ("stray_completions", self.stray_completions),
            ("csum_none", self.csum_none),
            ("csum_needed", self.csum_needed),
            ("gso_frames", self.gso_frames),
            ("gso_bytes", self.gso_bytes),
        ];
        write_counters(f, &counters)?;
        for fault in HeaderFault::ALL {
            f.write_str(" dropped")?;
            // As the other counters are named: `ChecksumOffset` is `dropped_checksum_offset`.
            for letter in format!("{fault:?}").chars() {
                if letter.is_uppercase() {
                    f.write_char('_')?;
                }
                f.write_char(letter.to_ascii_lowercase())?;
            }
            write!(f, "={}", self.dropped(fault))?;
        }
        Ok(())
    }
}

impl fmt::Display for RxStatistics {
    /// Each counter with its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = [
            ("kicks", self.kicks),
            ("frames", self.frames),
            ("bytes", self.bytes),
            ("buffers", self.buffers),
            ("no_room", self.no_room),
            ("batches", self.batches),
            ("notifications", self.notifications),
            ("dropped_too_long", self.dropped_too_long),
            ("dropped_no_buffers", self.dropped_no_buffers),
            ("dropped_malformed", self.dropped_malformed),
            ("dropped_filtered", self.dropped_filtered),
            ("dropped_over_mtu", self.dropped_over_mtu),
            ("dropped_disabled", self.dropped_disabled),
            ("bad_chains", self.bad_chains),
            ("csum_valid", self.csum_valid),
            ("csum_needed", self.csum_needed),
            ("csum_none", self.csum_none),
            ("gso_frames", self.gso_frames),
            ("gso_bytes", self.gso_bytes),
            ("csum_bad", self.csum_bad),
            ("rsc_frames", self.rsc_frames),
            ("rsc_bytes", self.rsc_bytes),
            ("rsc_segments", self.rsc_segments),
            ("rsc_dup_acks", self.rsc_dup_acks),
        ];
        write_counters(f, &counters)?;
        for reason in FlushReason::ALL {
            write!(f, " flushed_{reason:?}={}", self.flushed(reason))?;
        }
        Ok(())
    }
}

impl fmt::Display for CtrlStatistics {
    /// Each counter with its name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = [
            ("acknowledged", self.acknowledged),
            ("refused", self.refused),
            ("unanswered", self.unanswered),
        ];
        write_counters(f, &counters)
    }
}

/// Adds the bytes of a frame to a counter: of all that is counted here only bytes fill 64 bits within a machine's life, and
/// "The statistics counter replied by the device MUST wrap around to zero by the device on the overflow" (virtio 1.4,
/// 5.1.9.5.11.12).
#[inline]
pub(crate) fn count_bytes(counter: &mut u64, len: usize) {
    *counter = counter.wrapping_add(len as u64);
}

fn write_counters(f: &mut fmt::Formatter<'_>, counters: &[(&str, u64)]) -> fmt::Result {
    for (i, (name, counter)) in counters.iter().enumerate() {
        let space = if i == 0 { "" } else { " " };
        write!(f, "{space}{name}={counter}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_wrap_around_to_zero() {
        let mut counter = u64::MAX - 100;
        for expected in [u64::MAX - 36, 27, 91] {
            count_bytes(&mut counter, 64);
            assert_eq!(counter, expected);
        }
        let received = RxStatistics {
            dropped_too_long: u64::MAX,
            dropped_filtered: 3,
            ..Default::default()
        };
        assert_eq!(received.dropped_in_all(), 2);
        let sent = TxStatistics {
            dropped_disabled: u64::MAX,
            faults: [1; HeaderFault::ALL.len()],
            ..Default::default()
        };
        let faults = HeaderFault::ALL.len() as u64;
        assert_eq!(sent.dropped_in_all(), faults - 1);
    }
}
