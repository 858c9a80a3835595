//! Segments of one flow that have become one frame.

use std::time::Duration;

use virtio::net::{HdrF, HdrGso};

use super::FlushReason;
use super::checksum::Sum;
use super::segment::{Flow, Segment};
use crate::header::{Header, MAX_HEADER};

/// The longest IP packet.
const MAX_PACKET: usize = 65535;
/// The longest frame with its header.
const MAX_BYTES: usize = MAX_HEADER + 14 + MAX_PACKET;
/// Where the IP header is: frames with tags are not put together.
const IP: usize = 14;
/// From their header on.
const IP_CHECKSUM: usize = 10;
const TCP_CHECKSUM: usize = 16;
const FLAG_PUSH: u8 = 0x08;

/// A frame that more segments may be put behind.
#[derive(Debug)]
pub(crate) struct Unit {
    /// The header, and the frame: the first segment's as it came, until there is another.
    bytes: Vec<u8>,
    header_len: usize,
    first: Segment,
    /// The number behind the last segment.
    next_seq: u32,
    ack: u32,
    window: [u8; 2],
    push: bool,
    segments: u16,
    dup_acks: u16,
    /// Nothing more may be put behind it, and why.
    pub(super) sealed: Option<FlushReason>,
    /// When it is given to the driver at the latest.
    pub(super) deadline: Duration,
    /// Why it was to be given to the driver, which had no room.
    pub(super) refused: Option<FlushReason>,
}

/// A frame's bytes from an offset on, its header included; how many there were.
pub(super) type Copy<'a> = dyn Fn(usize, &mut [u8]) -> usize + 'a;

/// Whether a checksum is to be looked at: the peer knows of some frames that theirs is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    Checked,
    Unchecked,
}

/// Why a segment is not in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The unit has to go first.
    Break(FlushReason),
    /// Its checksum is not right.
    Checksum,
}

impl Unit {
    /// A unit of one segment, in memory that was another's perhaps.
    pub(super) fn new(
        mut bytes: Vec<u8>,
        (header_len, len): (usize, usize),
        first: Segment,
        copy: &Copy<'_>,
        trust: Trust,
        deadline: Duration,
    ) -> Result<Self, Vec<u8>> {
        bytes.clear();
        bytes.reserve(MAX_BYTES);
        bytes.resize(header_len + len, 0);
        let copied = copy(0, &mut bytes);
        let unit = Self {
            next_seq: first.next_seq(),
            ack: first.ack,
            window: first.window,
            push: first.push,
            segments: 1,
            dup_acks: 0,
            sealed: None,
            deadline,
            refused: None,
            bytes,
            header_len,
            first,
        };
        let Segment { payload, tcp, .. } = &unit.first;
        let rest = unit.frame().get(*tcp..payload.end).unwrap_or_default();
        let sum = (unit.first)
            .pseudo_header(unit.frame(), rest.len())
            .and(rest);
        if copied == header_len + len && (trust == Trust::Checked || sum.is_right()) {
            Ok(unit)
        } else {
            Err(unit.bytes)
        }
    }

    pub(super) fn flow(&self) -> &Flow {
        &self.first.flow
    }

    /// Puts a segment behind it whose frame begins with `start`, unless something speaks against it.
    pub(super) fn join(
        &mut self,
        segment: &Segment,
        start: &[u8],
        copy: &Copy<'_>,
        trust: Trust,
    ) -> Result<(), Refused> {
        if let Some(reason) = self.sealed
            && (segment.len() > 0 || self.dup_acks == 0)
        {
            return Err(Refused::Break(reason));
        }
        if segment.len() == 0 {
            return self.join_ack(segment, start, trust);
        }
        if segment.seq != self.next_seq {
            return Err(Refused::Break(FlushReason::Sequence));
        }
        if !self.first.is_like(self.frame(), segment, start) {
            return Err(Refused::Break(FlushReason::Headers));
        }
        // Behind it, in numbers that begin again.
        if segment.ack.wrapping_sub(self.ack) > u32::MAX / 2 {
            return Err(Refused::Break(FlushReason::Headers));
        }
        // A large frame is of segments of one size, the last of which may be shorter.
        let size = self.first.len();
        let end = self.first.payload.start + self.payload_len();
        if segment.len() > size || end + segment.len() > IP + MAX_PACKET {
            return Err(Refused::Break(FlushReason::Full));
        }
        // What the first was padded with is not of the packet.
        self.bytes.truncate(self.header_len + end);
        let at = self.bytes.len();
        self.bytes.resize(at + segment.len(), 0);
        let payload = self.bytes.get_mut(at..).unwrap_or_default();
        let copied = copy(self.header_len + segment.payload.start, payload);
        if copied < segment.len() || !is_right(segment, start, payload, trust) {
            self.bytes.truncate(at);
            return Err(Refused::Checksum);
        }
        // Of at least a byte each, so there are fewer than 2^16.
        self.segments += 1;
        self.next_seq = segment.next_seq();
        self.ack = segment.ack;
        self.window = segment.window;
        self.push |= segment.push;
        if segment.push {
            self.sealed = Some(FlushReason::Push);
        } else if segment.len() < size || end + segment.len() + size > IP + MAX_PACKET {
            self.sealed = Some(FlushReason::Full);
        }
        Ok(())
    }

    /// Counts an acknowledgement that says what the last segment has said. Data that follows is not put in front of it.
    fn join_ack(&mut self, segment: &Segment, start: &[u8], trust: Trust) -> Result<(), Refused> {
        let is_again = segment.seq == self.next_seq
            && segment.ack == self.ack
            && segment.window == self.window
            && !segment.push
            && self.first.is_like(self.frame(), segment, start);
        if !is_again || self.dup_acks == u16::MAX {
            return Err(Refused::Break(FlushReason::Control));
        }
        if !is_right(segment, start, &[], trust) {
            return Err(Refused::Checksum);
        }
        self.dup_acks += 1;
        self.sealed = Some(FlushReason::Control);
        Ok(())
    }

    /// Whether it stands for more than the one frame that it was made of.
    pub(crate) fn is_large(&self) -> bool {
        self.segments > 1 || self.dup_acks > 0
    }

    /// Segments that it stands for.
    pub(crate) fn segments(&self) -> u16 {
        self.segments
    }

    /// Acknowledgements that it stands for beside.
    pub(crate) fn dup_acks(&self) -> u16 {
        self.dup_acks
    }

    /// The frame, without its header.
    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get(self.header_len..).unwrap_or_default()
    }

    /// The header and the frame, once it is [`finish`](Self::finish)ed.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Makes it what the driver gets: the frame as it came if it is the only one, else a large frame. More may be put
    /// behind it after that, and it be finished again.
    pub(crate) fn finish(&mut self) {
        if self.is_large() {
            self.write_headers();
        }
    }

    /// Gives back its memory.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn payload_len(&self) -> usize {
        let padded = self.frame().len();
        if self.segments > 1 {
            padded.saturating_sub(self.first.payload.start)
        } else {
            self.first.len()
        }
    }

    /// A large frame says how many segments and acknowledgements it stands for where others say where their checksum is
    /// (virtio 1.4, 5.1.9.4.1).
    fn write_headers(&mut self) {
        let Segment { tcp, payload, .. } = self.first.clone();
        let end = payload.start + self.payload_len();
        self.bytes.truncate(self.header_len + end);
        let v6 = self.first.flow.v6;
        let kind = if v6 { HdrGso::Tcpv6 } else { HdrGso::Tcpv4 };
        let header = Header {
            flags: (HdrF::NEEDS_CSUM | HdrF::DATA_VALID | HdrF::RSC_INFO).bits(),
            gso_type: u8::from(kind),
            hdr_len: narrow(payload.start),
            gso_size: narrow(self.first.len()),
            csum_start: self.segments,
            csum_offset: self.dup_acks,
            ..Default::default()
        };
        let header_len = self.header_len;
        let Some((to, frame)) = self.bytes.split_at_mut_checked(header_len) else {
            return;
        };
        // VERSION_1 comes with the feature, which is past what others can say.
        for (to, from) in to.iter_mut().zip(header.emit(true)) {
            *to = from;
        }
        if v6 {
            put(frame, IP + 4, &narrow(end - tcp).to_be_bytes());
        } else {
            put(frame, IP + 2, &narrow(end - IP).to_be_bytes());
            put(frame, IP + IP_CHECKSUM, &[0, 0]);
        }
        put(frame, tcp + 8, &self.ack.to_be_bytes());
        put(frame, tcp + 14, &self.window);
        if self.push
            && let Some(flags) = frame.get_mut(tcp + 13)
        {
            *flags |= FLAG_PUSH;
        }
        let pseudo_header = self.first.pseudo_header(frame, end - tcp).folded();
        put(frame, tcp + TCP_CHECKSUM, &pseudo_header.to_be_bytes());
        if !v6 {
            let sum = Sum::of(frame.get(IP..tcp).unwrap_or_default()).folded();
            put(frame, IP + IP_CHECKSUM, &(!sum).to_be_bytes());
        }
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// A packet's lengths are below 2^16.
fn narrow(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Whether a segment with this payload, whose frame begins with `start`, is as it was sent.
fn is_right(segment: &Segment, start: &[u8], payload: &[u8], trust: Trust) -> bool {
    if trust == Trust::Checked {
        return true;
    }
    let header = start.get(segment.tcp..segment.payload.start);
    let len = segment.payload.end - segment.tcp;
    let sum = segment.pseudo_header(start, len);
    // The header has an even number of bytes.
    sum.and(header.unwrap_or_default()).and(payload).is_right()
}
