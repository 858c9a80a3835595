//! Received TCP segments that are put together before the driver gets them (`VIRTIO_NET_F_RSC_EXT`; virtio 1.4,
//! 5.1.9.4 and 5.1.9.4.1).
//!
//! A frame that is kept is copied behind those of its flow that came before, into memory of our own, and given to the
//! driver with them: when the next does not continue it, when it is as long as it can be or its sender wants it pushed,
//! when the interval is over, or when the queue stops. So frames come in by the copy door while the driver has
//! negotiated this. Read in place, each would hold buffers of the driver's for up to the interval, and have to be
//! copied from one to another all the same to become a single frame.
//!
//! What is put together are data segments without gaps, that differ in nothing that matters ([`segment`]): no flag but
//! ACK and PSH, no IP options, extension headers or fragments, no VLAN tag, all TCP options the same, timestamps too. Their
//! checksum is right: the peer says so, or it is looked at here. The first has no PSH: there is nothing to wait for.
//! Behind the data acknowledgements are counted that say the same again, and nothing more. Everything else of a flow
//! goes past, behind what is kept of it: within a flow no frame overtakes another.
//!
//! A tap that puts segments together itself (its host's GRO; a host's own large frames) gives large frames already. They
//! go past too, with the number of their segments in the header, as the driver expects it of any large frame of
//! TCP's. QEMU 7.2 sets it on those only that it has put together. Of UDP's, and of those in tunnels, there is nothing
//! to count, and their header says where their checksum is as ever.

mod checksum;
mod segment;
#[cfg(test)]
mod tests;
mod unit;

use std::time::Duration;

use virtio::net::{F as NetF, HdrF, HdrGso};

use self::segment::{Flow, Look, PEEK, Segment};
pub(crate) use self::unit::Unit;
use self::unit::{Copy, Refused, Trust};
use crate::header::{Allowed, Header, MAX_HEADER};

/// Flows of which something is kept at a time. Each has 64 KiB, once there is something.
pub(crate) const MAX_FLOWS: usize = 16;
/// The fields that say what a header says of its frame: those in front of `num_buffers`.
pub(crate) const SAID: usize = 10;

/// Why segments that were kept ([`guest_rsc_ext`](crate::VirtioNetConfig::guest_rsc_ext)) were given to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FlushReason {
    /// They had been kept for the interval.
    Interval,
    /// The last has PSH.
    Push,
    /// The last is shorter, or the next is longer, or there is no room for the next in one packet.
    Full,
    /// The next of the flow is not the next in its order.
    Sequence,
    /// The next of the flow has other headers or options, or acknowledges less.
    Headers,
    /// The next of the flow is none that is put together with others.
    Control,
    /// Another flow has the place.
    Evicted,
    /// The queue stops, or the driver wants no more segments put together.
    Stopped,
}

impl FlushReason {
    /// All reasons, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Interval,
        Self::Push,
        Self::Full,
        Self::Sequence,
        Self::Headers,
        Self::Control,
        Self::Evicted,
        Self::Stopped,
    ];
}

/// Which packets' segments the driver has put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    /// Those of a driver that has negotiated, or says by command that it copes with, this.
    pub(crate) fn of(features: NetF) -> Self {
        let has = |segments| features.contains(NetF::RSC_EXT | segments);
        Self {
            v4: has(NetF::GUEST_TSO4),
            v6: has(NetF::GUEST_TSO6),
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    fn has(self, v6: bool) -> bool {
        if v6 { self.v6 } else { self.v4 }
    }
}

/// What is to be done with a frame, or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It goes to the driver as it is, but for what its header says if there is something here.
    Pass(Option<[u8; SAID]>),
    /// It is kept.
    Kept,
    /// It is kept, and the unit at this place is complete.
    Complete(usize, FlushReason),
    /// The unit at this place goes first; then it is offered again.
    First(usize, FlushReason),
}

/// What is kept of each flow.
#[derive(Debug)]
pub(crate) struct Coalescer {
    families: Families,
    allowed: Allowed,
    /// On both sides.
    header_len: usize,
    interval: Duration,
    /// The oldest first.
    units: Vec<Unit>,
    /// Memory of those that are gone.
    spare: Vec<Vec<u8>>,
    /// Frames whose checksum was looked at and is not right.
    pub(crate) bad_checksums: u64,
}

impl Coalescer {
    pub(crate) fn new(
        families: Families,
        allowed: Allowed,
        header_len: usize,
        interval: Duration,
    ) -> Self {
        Self {
            families,
            allowed,
            header_len,
            interval,
            units: Vec::new(),
            spare: Vec::new(),
            bad_checksums: 0,
        }
    }

    /// Offers a frame of so many bytes, header included, that `copy` reads from.
    pub(crate) fn offer(
        &mut self,
        bytes: usize,
        copy: &Copy<'_>,
        now: impl FnOnce() -> Duration,
    ) -> Step {
        let len = bytes.saturating_sub(self.header_len);
        let mut header = [0; MAX_HEADER];
        copy(0, header.get_mut(..self.header_len).unwrap_or_default());
        let header = Header::parse(&header, true);
        let mut start = [0; PEEK];
        let there = copy(
            self.header_len,
            start.get_mut(..len.min(PEEK)).unwrap_or_default(),
        );
        let start = start.get(..there).unwrap_or_default();
        match Look::at(start, len) {
            Look::Segment(segment) if self.families.has(segment.flow.v6) => {
                let Some(trust) = trust(&header, &segment) else {
                    return self.pass(&segment.flow, false, &header, bytes, copy);
                };
                match self.units.iter().position(|u| *u.flow() == segment.flow) {
                    Some(at) => self.join(at, &segment, start, copy, trust),
                    None => self.begin((&header, bytes), segment, copy, trust, now),
                }
            }
            Look::Segment(Segment { flow, .. }) => self.pass(&flow, false, &header, bytes, copy),
            Look::Alone { flow, any_port } => self.pass(&flow, any_port, &header, bytes, copy),
            Look::Other => Step::Pass(self.said(&header, bytes, copy)),
        }
    }

    /// The frame goes past, behind what is kept of its flow.
    fn pass(
        &self,
        flow: &Flow,
        any_port: bool,
        header: &Header,
        bytes: usize,
        copy: &Copy<'_>,
    ) -> Step {
        let before = |unit: &Unit| unit.flow().is_before(flow, any_port);
        match self.units.iter().position(before) {
            Some(at) => Step::First(at, FlushReason::Control),
            None => Step::Pass(self.said(header, bytes, copy)),
        }
    }

    fn join(
        &mut self,
        at: usize,
        segment: &Segment,
        start: &[u8],
        copy: &Copy<'_>,
        trust: Trust,
    ) -> Step {
        let Some(unit) = self.units.get_mut(at) else {
            return Step::Pass(None);
        };
        match (unit.join(segment, start, copy, trust), unit.sealed) {
            // More of these may come.
            (Ok(()), None | Some(FlushReason::Control)) => Step::Kept,
            (Ok(()), Some(reason)) => Step::Complete(at, reason),
            (Err(Refused::Break(reason)), _) => Step::First(at, reason),
            (Err(Refused::Checksum), _) => Step::First(at, FlushReason::Control),
        }
    }

    fn begin(
        &mut self,
        (header, bytes): (&Header, usize),
        segment: Segment,
        copy: &Copy<'_>,
        trust: Trust,
        now: impl FnOnce() -> Duration,
    ) -> Step {
        if segment.len() == 0 || segment.push {
            return Step::Pass(self.said(header, bytes, copy));
        }
        if self.units.len() == MAX_FLOWS {
            return Step::First(0, FlushReason::Evicted);
        }
        let memory = self.spare.pop().unwrap_or_default();
        let lens = (self.header_len, bytes.saturating_sub(self.header_len));
        let deadline = now().saturating_add(self.interval);
        match Unit::new(memory, lens, segment, copy, trust, deadline) {
            Ok(unit) => {
                self.units.push(unit);
                Step::Kept
            }
            Err(memory) => {
                self.spare.push(memory);
                self.bad_checksums += 1;
                Step::Pass(self.said(header, bytes, copy))
            }
        }
    }

    /// What the header of a frame that goes past says, if not what it said: how many segments a large one stands for, and
    /// of no other that it stands for some.
    fn said(&self, header: &Header, bytes: usize, copy: &Copy<'_>) -> Option<[u8; SAID]> {
        let rsc_info = HdrF::RSC_INFO.bits();
        let (_, gso_type) = self
            .allowed
            .told(header.flags, header.gso_type, || header.gso_size);
        let kind = gso_type & !u8::from(HdrGso::Ecn);
        let is_tcp = kind == u8::from(HdrGso::Tcpv4) || kind == u8::from(HdrGso::Tcpv6);
        if !is_tcp && header.flags & rsc_info == 0 {
            return None;
        }
        let mut said = *header;
        said.flags &= !rsc_info;
        if is_tcp {
            let tcp = usize::from(header.csum_start);
            let mut data_offset = [0];
            copy(self.header_len + tcp + 12, &mut data_offset);
            let payload = self.header_len + tcp + usize::from(data_offset[0] >> 4) * 4;
            let payload = bytes.saturating_sub(payload);
            let segments = payload.div_ceil(usize::from(header.gso_size).max(1)).max(1);
            said.flags |= rsc_info;
            said.csum_start = u16::try_from(segments).unwrap_or(u16::MAX);
            said.csum_offset = 0;
        }
        said.emit(true).first_chunk().copied()
    }

    /// Takes the unit at this place out.
    pub(crate) fn take(&mut self, at: usize) -> Option<Unit> {
        (at < self.units.len()).then(|| self.units.remove(at))
    }

    /// Puts back what the driver has no room for, where it was.
    pub(crate) fn put_back(&mut self, at: usize, mut unit: Unit, reason: FlushReason) {
        unit.refused = unit.refused.or(Some(reason));
        self.units.insert(at.min(self.units.len()), unit);
    }

    /// A unit that was taken is gone; its memory is used again.
    pub(crate) fn recycle(&mut self, unit: Unit) {
        self.spare.push(unit.into_bytes());
    }

    /// The place of the oldest that has been kept for the interval, or that the driver had no room for; and why it goes.
    pub(crate) fn due(&self, now: Duration) -> Option<(usize, FlushReason)> {
        let is_over = |unit: &Unit| unit.deadline <= now;
        let reason = |unit: &Unit| {
            let interval = || is_over(unit).then_some(FlushReason::Interval);
            unit.refused.or_else(interval)
        };
        let mut units = (0..).zip(&self.units);
        units.find_map(|(at, unit)| Some((at, reason(unit)?)))
    }

    /// The place of the oldest that the driver had no room for.
    pub(crate) fn refused(&self) -> Option<(usize, FlushReason)> {
        let mut units = (0..).zip(&self.units);
        units.find_map(|(at, unit)| Some((at, unit.refused?)))
    }

    /// The driver has no room for what has been kept for the interval.
    pub(crate) fn refuse_due(&mut self, now: Duration) {
        for unit in self.units.iter_mut().filter(|unit| unit.deadline <= now) {
            unit.refused = unit.refused.or(Some(FlushReason::Interval));
        }
    }

    /// When the next is to go of those that the driver may have room for.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let waiting = self.units.iter().filter(|unit| unit.refused.is_none());
        waiting.map(|unit| unit.deadline).min()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What is put together from now on. Called while nothing is kept.
    pub(crate) fn set_families(&mut self, families: Families) {
        self.families = families;
    }
}

/// What is known of a segment's checksum. `None`: the peer says of the frame what it says of none that is kept.
fn trust(header: &Header, segment: &Segment) -> Option<Trust> {
    let flags = HdrF::from_bits_retain(header.flags);
    if header.gso_type != u8::from(HdrGso::None) || flags.contains(HdrF::RSC_INFO) {
        return None;
    }
    if flags.contains(HdrF::NEEDS_CSUM) {
        // It has never left the host, and is to be made where it is sent on.
        let is_tcps =
            usize::from(header.csum_start) == segment.tcp && header.csum_offset == TCP_CHECKSUM;
        return is_tcps.then_some(Trust::Checked);
    }
    Some(if flags.contains(HdrF::DATA_VALID) {
        Trust::Checked
    } else {
        Trust::Unchecked
    })
}

const TCP_CHECKSUM: u16 = 16;
