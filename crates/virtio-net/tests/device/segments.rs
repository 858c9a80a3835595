//! TCP segments as they come from a wire, and a look at what a driver gets of them.
#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths and numbers of a few"
)]

/// The header's length.
pub(crate) const HEADER: usize = 12;

pub(crate) const FIN: u8 = 1;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 0x10;

pub(crate) const NEEDS_CSUM: u8 = 1;
pub(crate) const DATA_VALID: u8 = 2;
pub(crate) const RSC_INFO: u8 = 4;

/// A TCP segment from one of several senders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) v6: bool,
    /// Makes its address and its port.
    pub(crate) sender: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// A multiple of 4 bytes.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    /// Bytes behind the packet.
    pub(crate) padding: usize,
    /// `flags` and `gso_type` of the header in front, and `gso_size`.
    pub(crate) said: (u8, u8, u16),
    /// The checksum is not right.
    pub(crate) corrupt: bool,
}

impl Tcp {
    pub(crate) fn new(seq: u32, payload: &[u8]) -> Self {
        Self {
            v6: false,
            sender: 1,
            seq,
            ack: 1000,
            flags: ACK,
            window: 500,
            options: Vec::new(),
            payload: payload.to_vec(),
            tos: 0,
            ttl: 64,
            id: 0,
            padding: 0,
            said: (0, 0, 0),
            corrupt: false,
        }
    }

    /// Where the TCP header is in the frame.
    pub(crate) fn tcp_at(&self) -> usize {
        if self.v6 { 54 } else { 34 }
    }

    /// With a header in front.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend([0x10, self.sender, 0, 80]);
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        let words = 5 + self.options.len() / 4;
        tcp.extend([(words << 4) as u8, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let len = tcp.len() as u16;
        let mut ip = Vec::new();
        let addresses = if self.v6 {
            ip.extend([0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
            ip.extend(len.to_be_bytes());
            ip.extend([6, self.ttl]);
            let mut addresses = [0x20; 32];
            addresses[15] = self.sender;
            addresses[31] = 0xaa;
            addresses.to_vec()
        } else {
            ip.extend([0x45, self.tos]);
            ip.extend((len + 20).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([0x40, 0, self.ttl, 6, 0, 0]);
            vec![10, 0, 0, self.sender, 10, 0, 0, 0xaa]
        };
        ip.extend(&addresses);
        if !self.v6 {
            let sum = !sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let pseudo = [&addresses, &len.to_be_bytes()[..], &[0, 6]].concat();
        let partial = self.said.0 & NEEDS_CSUM != 0;
        let sum = if partial {
            sum(&pseudo)
        } else {
            !sum(&[pseudo, tcp.clone()].concat())
        };
        let sum = if self.corrupt { sum ^ 0x100 } else { sum };
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![0; HEADER];
        frame[0] = self.said.0;
        frame[1] = self.said.1;
        frame[4..6].copy_from_slice(&self.said.2.to_le_bytes());
        if partial {
            frame[6..8].copy_from_slice(&(self.tcp_at() as u16).to_le_bytes());
            frame[8..10].copy_from_slice(&16_u16.to_le_bytes());
        }
        frame.extend([0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, self.sender]);
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(ip);
        frame.extend(tcp);
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }
}

/// What a frame is of whose flow anything can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) v6: bool,
    pub(crate) sender: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) payload: Vec<u8>,
    /// `flags`, `gso_type` and `gso_size` of the header.
    pub(crate) said: (u8, u8, u16),
    /// Segments and duplicate acknowledgements, where the header says so.
    pub(crate) rsc: Option<(u16, u16)>,
}

impl Got {
    /// Looks at a frame. `None` if it is not a TCP segment, without IP options or tags, that is as it was sent: its
    /// lengths are those of what is there, and its checksums right.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let (header, frame) = frame.split_at_checked(HEADER)?;
        let le16 = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let be16 = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let be32 = |at: usize| Some(u32::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let (v6, tcp) = match be16(12)? {
            0x0800 => (false, 34),
            0x86dd => (true, 54),
            _ => return None,
        };
        let (end, addresses, protocol) = if v6 {
            (54 + usize::from(be16(18)?), 22..54, *frame.get(20)?)
        } else {
            if *frame.get(14)? != 0x45
                || be16(20)? & 0x3fff != 0
                || sum(frame.get(14..34)?) != 0xffff
            {
                return None;
            }
            (14 + usize::from(be16(16)?), 26..34, *frame.get(23)?)
        };
        let segment = frame.get(tcp..end)?;
        let payload = usize::from(*segment.get(12)? >> 4) * 4;
        if protocol != 6 || payload < 20 {
            return None;
        }
        let sender = frame[if v6 { 37 } else { 29 }];
        let len = u16::try_from(segment.len()).ok()?;
        let pseudo = [&frame[addresses], &len.to_be_bytes(), &[0, 6]].concat();
        let said = (header[0], header[1], le16(4));
        let rsc = (said.0 & RSC_INFO != 0).then(|| (le16(6), le16(8)));
        let is_right = if said.0 & NEEDS_CSUM != 0 {
            be16(tcp + 16)? == sum(&pseudo)
        } else {
            sum(&[&pseudo, segment].concat()) == 0xffff
        };
        is_right.then_some(())?;
        Some(Self {
            v6,
            sender,
            seq: be32(tcp + 4)?,
            ack: be32(tcp + 8)?,
            flags: segment[13],
            window: be16(tcp + 14)?,
            payload: segment.get(payload..)?.to_vec(),
            said,
            rsc,
        })
    }
}

/// A ones' complement sum.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
