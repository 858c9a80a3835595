//! What a card has counted, and how far its limits are used up: sections of their own.

use std::time::Duration;

use virtqueue::QueueMemory;
use vmstate::{Error, Fields, Reader, Section, Writer};

use super::bytes::MAX_PAIRS;
use super::{SavedNet, VirtioNet};
use crate::limit::Limiter;
use crate::statistics::{CtrlStatistics, RxStatistics, TxStatistics};

const COUNTERS: &str = "virtio-net-counters";
const LIMITS: &str = "virtio-net-limits";
const VERSION: u16 = 1;

/// What a card has counted since it was made, which a driver may ask for (virtio 1.4, 5.1.9.5.11).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedCounters {
    /// By pair.
    pub pairs: Vec<(RxStatistics, TxStatistics)>,
    /// The control queue's.
    pub ctrl: CtrlStatistics,
}

/// How far a [`RateLimit`](crate::RateLimit) is used up: the time after which it will be at rest again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedLimit {
    /// That of bytes.
    pub bytes: Duration,
    /// That of frames.
    pub packets: Duration,
}

impl<M: QueueMemory> VirtioNet<M> {
    pub(super) fn saved_counters(&self) -> SavedCounters {
        SavedCounters {
            pairs: (self.pairs.iter())
                .map(|pair| (pair.rx_statistics(), pair.tx_statistics()))
                .collect(),
            ctrl: self.ctrl.statistics(),
        }
    }

    pub(super) fn saved_limits(&self) -> [SavedLimit; 2] {
        [&self.shared.rx_limit, &self.shared.tx_limit].map(|limiter| {
            let [bytes, packets] = limiter.owed();
            SavedLimit { bytes, packets }
        })
    }

    /// Whether there are no counters of pairs that the card has not.
    pub(super) fn check_spent(&self, saved: &SavedNet) -> Result<(), Error> {
        let (there, mine) = (saved.counters.pairs.len(), self.pairs.len());
        if there > mine {
            let reason = format!("of {there} pairs, and the card has {mine}");
            return Err(Error::refused(COUNTERS, "pairs", reason));
        }
        Ok(())
    }

    /// Goes on counting where the other card stopped, and waits as long as that one had to.
    pub(super) fn take_over_spent(&self, saved: &SavedNet) {
        for (pair, (rx, tx)) in self.pairs.iter().zip(&saved.counters.pairs) {
            pair.set_statistics(*rx, *tx);
        }
        self.ctrl.set_statistics(saved.counters.ctrl);
        let [rx, tx] = saved.limits;
        let owe = |limiter: &Limiter, it: SavedLimit| limiter.owe([it.bytes, it.packets]);
        owe(&self.shared.rx_limit, rx);
        owe(&self.shared.tx_limit, tx);
    }
}

impl SavedCounters {
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.section(COUNTERS, VERSION, |fields| {
            fields.list(&self.pairs, |fields, (rx, tx)| {
                let (mut rx, mut tx) = (*rx, *tx);
                write_counters(fields, rx.counters_mut());
                write_counters(fields, rx.flushes.each_mut());
                write_counters(fields, tx.counters_mut());
                write_counters(fields, tx.faults.each_mut());
            });
            write_counters(fields, { self.ctrl }.counters_mut());
        });
    }

    /// All 0 where the section is not there: a version before this one wrote none.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        if !reader.has(COUNTERS) {
            return Ok(Self::default());
        }
        let mut section = reader.section(COUNTERS, VERSION)?;
        let pairs = section.list("pairs", MAX_PAIRS, |section| {
            let (mut rx, mut tx) = (RxStatistics::default(), TxStatistics::default());
            read_counters(section, "rx", rx.counters_mut())?;
            read_counters(section, "rx_flushes", rx.flushes.each_mut())?;
            read_counters(section, "tx", tx.counters_mut())?;
            read_counters(section, "tx_faults", tx.faults.each_mut())?;
            Ok((rx, tx))
        })?;
        let mut ctrl = CtrlStatistics::default();
        read_counters(&mut section, "ctrl", ctrl.counters_mut())?;
        section.finish()?;
        Ok(Self { pairs, ctrl })
    }
}

impl SavedLimit {
    pub(super) fn write(both: &[Self; 2], writer: &mut Writer) {
        writer.section(LIMITS, VERSION, |fields| {
            for Self { bytes, packets } in both {
                fields.u64(nanos(*bytes));
                fields.u64(nanos(*packets));
            }
        });
    }

    /// At rest where the section is not there.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<[Self; 2], Error> {
        if !reader.has(LIMITS) {
            return Ok(Default::default());
        }
        let mut section = reader.section(LIMITS, VERSION)?;
        let mut both = [Self::default(); 2];
        for (limit, name) in both.iter_mut().zip(["rx", "tx"]) {
            limit.bytes = Duration::from_nanos(section.u64(name)?);
            limit.packets = Duration::from_nanos(section.u64(name)?);
        }
        section.finish()?;
        Ok(both)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn write_counters<const N: usize>(fields: &mut Fields<'_>, counters: [&mut u64; N]) {
    fields.list(&counters, |fields, counter| fields.u64(**counter));
}

/// New counters come behind the others: a version that did not have them yet leaves them 0, and one that has more is
/// refused.
fn read_counters<const N: usize>(
    section: &mut Section<'_>,
    field: &str,
    counters: [&mut u64; N],
) -> Result<(), Error> {
    let there = section.list(field, N, |section| section.u64(field))?;
    for (counter, value) in counters.into_iter().zip(there) {
        *counter = value;
    }
    Ok(())
}
