//! A net client of every mood: takes, keeps or refuses frames, and reads its own in any order.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};

use net_client::{
    Frame, FrameSource, IoVec, NetClient, Offloads, Port, Read, Received, Token, VnetHeader,
    copy_from_iov, copy_to_iov, total_len,
};
use virtio::net::F as NetF;

/// The longest frame that the peer has, its header included.
const MAX_FRAME: usize = 12 + 65549;
/// The longest that a NIC may send: an IP packet behind an Ethernet header with two tags.
const MAX_SENT: usize = 65535 + 14 + 8;

/// The peer.
#[derive(Debug)]
pub struct Peer {
    port: Arc<Port>,
    vnet: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    header_len: usize,
    /// Two bits for each frame that comes, used again and again.
    moods: u8,
    refused: u8,
    /// The number of the next byte that it sends.
    seq: u32,
    negotiated: NetF,
    lent: Vec<Lent>,
    reads: Vec<(Token, Vec<IoVec>)>,
}

/// A frame that it keeps.
#[derive(Debug)]
struct Lent {
    token: Token,
    iov: Vec<IoVec>,
    /// What was in the first piece, where that is the card's: the guest cannot write to it.
    first: Vec<u8>,
}

impl Lent {
    /// It has not been overwritten.
    fn check(&self) {
        let bytes = look_at(&self.iov);
        assert_eq!(bytes[..self.first.len()], self.first, "of {:?}", self.token);
    }
}

impl Peer {
    /// Makes one that carries a header in front of each frame, or does not.
    pub fn new(vnet: bool) -> Arc<Self> {
        Arc::new_cyclic(|me: &std::sync::Weak<Self>| Self {
            port: Port::new("peer", me.clone() as _),
            vnet,
            state: Mutex::default(),
        })
    }

    /// Its end of the link.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// What becomes of the frames to come.
    pub fn set_moods(&self, moods: u8) {
        self.lock().moods = moods;
    }

    /// From now on offloads (bit 0), taking part in the work or not (1), or the header (2) cannot be set.
    pub fn refuse(&self, what: u8) {
        self.lock().refused = what;
    }

    /// What the driver may ask for in the headers of the frames to come.
    pub fn set_negotiated(&self, features: NetF) {
        self.lock().negotiated = features;
    }

    /// Is finished with one frame of those that it keeps.
    pub fn complete(&self, nth: u8) {
        let mut state = self.lock();
        if state.lent.is_empty() {
            return;
        }
        let nth = usize::from(nth) % state.lent.len();
        let lent = state.lent.remove(nth);
        drop(state);
        lent.check();
        self.port.sent(lent.token);
    }

    /// Has frames of these lengths to be read, each of which may end later.
    pub fn offer(&self, lens: [u16; 4], later: u8) {
        let header_len = self.lock().header_len;
        let mut source = Source {
            peer: self,
            frames: lens.map(|len| header_len + usize::from(len)).to_vec(),
            later,
        };
        let _ = self.port.offer(&mut source);
    }

    /// Hands one frame over, of any length.
    pub fn send(&self, len: u16) {
        let frame = self.lock().frame(len.into());
        let _ = self.port.send_bytes(&frame);
        self.port
            .flush(&mut |token| panic!("{token:?} was not lent"));
    }

    /// Ends one of the reads that go on, with at most so many bytes.
    pub fn finish_read(&self, nth: u8, len: u16) {
        let mut state = self.lock();
        if state.reads.is_empty() {
            return;
        }
        let nth = usize::from(nth) % state.reads.len();
        let (token, iov) = state.reads.remove(nth);
        let frame = state.frame(len.into());
        drop(state);
        let len = copy_to_iov(&iov, 0, &frame);
        self.port.read_done(token, len);
    }

    /// Frames and buffers of the card that it has.
    pub fn held(&self) -> usize {
        let state = self.lock();
        let reads = state.reads.iter();
        // What a port reads for itself, to drop it, is in its own memory.
        state.lent.len() + reads.filter(|(token, _)| *token != Token::PORT).count()
    }

    fn answer(&self, to: u8) -> io::Result<()> {
        match self.lock().refused & to {
            0 => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl NetClient for Peer {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let bytes = look_at(frame.iov);
        assert_eq!(bytes.len(), frame.len);
        let mut state = self.lock();
        let sent = (frame.len)
            .checked_sub(state.header_len)
            .expect("a frame begins with its header");
        assert!((14..=MAX_SENT).contains(&sent), "a frame of {sent} bytes");
        if state.header_len > 0 {
            check_header(&bytes[..state.header_len], sent, state.negotiated);
        }
        let mood = state.moods & 3;
        state.moods = state.moods.rotate_right(2);
        match (mood, frame.token) {
            (0, _) => Received::Busy,
            (1, Some(token)) => {
                assert!(state.lent.iter().all(|lent| lent.token != token));
                let own = match state.header_len {
                    0 => 0,
                    _ => frame.iov.first().map_or(0, IoVec::len),
                };
                state.lent.push(Lent {
                    token,
                    iov: frame.iov.to_vec(),
                    first: bytes[..own].to_vec(),
                });
                Received::Lent
            }
            _ => Received::Taken,
        }
    }

    fn flush(&self, done: &mut dyn FnMut(Token)) {
        // By mood, half of what it keeps or all of it, last first.
        let mut state = self.lock();
        let kept = match state.moods & 4 {
            0 => state.lent.len().div_ceil(2),
            _ => 0,
        };
        let sent = state.lent.split_off(kept);
        drop(state);
        for lent in sent.into_iter().rev() {
            lent.check();
            done(lent.token);
        }
    }

    fn revoke(&self) {
        let (lent, reads) = {
            let mut state = self.lock();
            (mem::take(&mut state.lent), mem::take(&mut state.reads))
        };
        for lent in lent {
            lent.check();
            self.port.sent(lent.token);
        }
        for (token, _) in reads {
            self.port.read_done(token, 0);
        }
    }

    fn room(&self) {
        // What is waiting is offered again at some later step.
    }

    fn set_enabled(&self, _enabled: bool) -> io::Result<()> {
        self.answer(0b010)
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        self.vnet.then_some(self)
    }
}

impl VnetHeader for Peer {
    fn supported_offloads(&self) -> Offloads {
        Offloads {
            udp_tunnel: false,
            udp_tunnel_csum: false,
            ..Offloads::ALL
        }
    }

    fn header_len(&self) -> usize {
        self.lock().header_len
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.answer(0b100)?;
        self.lock().header_len = len;
        Ok(())
    }

    fn set_little_endian(&self, _little_endian: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        self.answer(0b001)
    }
}

struct Source<'a> {
    peer: &'a Peer,
    frames: Vec<usize>,
    later: u8,
}

impl FrameSource for Source<'_> {
    fn max_frame(&self) -> usize {
        MAX_FRAME
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        let Some(len) = self.frames.pop() else {
            return Read::Empty;
        };
        assert!(iov.len() <= 1024, "more than one call can take");
        let later = self.later & 1 != 0;
        self.later >>= 1;
        if later {
            let mut state = self.peer.lock();
            assert!(state.reads.iter().all(|(lent, _)| *lent != token));
            state.reads.push((token, iov.to_vec()));
            return Read::Pending;
        }
        let frame = self.peer.lock().frame(len);
        // As a tap does: what does not fit is cut.
        Read::Frame(copy_to_iov(iov, 0, &frame))
    }
}

impl State {
    /// So many bytes, header included: a segment of one of two flows, where they are enough. Most continue the one before,
    /// and some say more than ACK, or of their checksum that it is right, which it is not.
    fn frame(&mut self, len: usize) -> Vec<u8> {
        const HEADERS: usize = 14 + 20 + 20;
        let mut bytes = vec![0; len];
        let Some((header, frame)) = bytes.split_at_mut_checked(self.header_len) else {
            return bytes;
        };
        if frame.len() < HEADERS || frame.len() > 14 + 65535 {
            return bytes;
        }
        let packet = (frame.len() - 14) as u16;
        let payload = (frame.len() - HEADERS) as u32;
        if let Some(flags) = header.first_mut() {
            // DATA_VALID.
            *flags = if len % 16 == 5 { 0 } else { 2 };
        }
        let flags = match len % 32 {
            7 => 0x18,
            8 => 0x11,
            _ => 0x10,
        };
        let ip = [
            0x45,
            0,
            (packet >> 8) as u8,
            packet as u8,
            0,
            0,
            0x40,
            0,
            64,
            6,
        ];
        frame[12] = 8;
        frame[14..24].copy_from_slice(&ip);
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2 + (len % 8 == 3) as u8]);
        let mut sum: u32 = (frame[14..34].chunks(2))
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        sum = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!sum as u16).to_be_bytes());
        frame[38..42].copy_from_slice(&self.seq.to_be_bytes());
        frame[46] = 0x50;
        frame[47] = flags;
        self.seq = self.seq.wrapping_add(payload);
        bytes
    }
}

/// Reads all of it, so that memory that is not there shows.
fn look_at(iov: &[IoVec]) -> Vec<u8> {
    let mut bytes = vec![0; total_len(iov)];
    assert_eq!(copy_from_iov(iov, 0, &mut bytes), bytes.len());
    bytes
}

/// What the NIC has checked (virtio 1.4, 5.1.9.2), in other words.
fn check_header(header: &[u8], frame_len: usize, negotiated: NetF) {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (flags, gso_type) = (header[0], header[1]);
    let (hdr_len, gso_size) = (field(2), field(4));
    let (csum_start, csum_offset) = (field(6), field(8));
    assert!(flags <= 1, "flags {flags:#x}");
    assert!(hdr_len <= frame_len);
    if flags == 1 {
        assert!(negotiated.contains(NetF::CSUM), "checksum without CSUM");
        assert!(csum_start + csum_offset + 2 <= frame_len, "checksum");
    }
    let needed = match gso_type {
        0 => return,
        1 => NetF::HOST_TSO4,
        4 => NetF::HOST_TSO6,
        0x81 => NetF::HOST_TSO4 | NetF::HOST_ECN,
        0x84 => NetF::HOST_TSO6 | NetF::HOST_ECN,
        3 => NetF::HOST_UFO,
        5 => NetF::HOST_USO,
        other => panic!("gso_type {other:#x}"),
    };
    assert!(negotiated.contains(needed), "gso_type {gso_type:#x}");
    assert_eq!(flags, 1, "segmentation without a checksum");
    assert!((1..frame_len).contains(&gso_size), "segments of {gso_size}");
}
