//! The header in front of each frame, both ways, against the specification in other words.
//!
//! Where [`net`](crate::net) asks what must never happen, this knows what must: which frames of the
//! driver's reach the peer, and with what header; and what the driver finds in its buffers of a frame
//! that comes with any header.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use arbitrary::Arbitrary;
use iothread::{AioContext, EventLoop};
use net_client::{
    Frame, FrameSource, IoVec, NetClient, Offloads, Port, Read, Received, Token, VnetHeader,
    copy_from_iov, copy_to_iov,
};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::mock::{Buffer, SplitDriver};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

const RAM: usize = 0x10_0000;
const SIZE: u16 = 16;
/// Where a frame that is sent lies.
const SENT: u64 = 0x2_0000;
/// Where a frame that comes in goes.
const GOT: u64 = 0x5_0000;
/// Buffers for it, and the most that one takes.
const BUFFERS: u64 = 4;
const BUFFER: u64 = 0x8000;
/// What memory is before the device writes.
const UNTOUCHED: u8 = 0xa5;
/// The longest frame: an IP packet behind an Ethernet header with two VLAN tags.
const LONGEST: usize = 65535 + 14 + 8;

/// What is negotiated, and the frames of both directions.
#[derive(Arbitrary, Debug)]
pub struct Story {
    features: u128,
    legacy: bool,
    /// The peer carries no header.
    plain: bool,
    sent: Vec<Sent>,
    got: Vec<Got>,
}

/// A frame that the driver sends.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Sent {
    header: [u8; 12],
    /// Header included.
    len: Len,
    /// Where the first buffer ends, and the second.
    cuts: [u16; 2],
    /// A buffer that the device may write comes last.
    writable: bool,
}

/// A frame that comes for the driver.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Got {
    header: [u8; 12],
    /// Header included.
    len: Len,
    /// Bytes of each of the driver's buffers.
    buffer: Len,
    door: Door,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Door {
    /// Read into the driver's buffers.
    Read,
    /// So too, but finished after the call.
    ReadLater,
    /// Handed over.
    Handed,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Len {
    Short(u8),
    Usual(u16),
    /// This much short of the longest frame, or longer.
    Long(i8),
}

impl Len {
    fn get(self) -> usize {
        match self {
            Self::Short(len) => len.into(),
            Self::Usual(len) => usize::from(len) % 9000,
            Self::Long(off) => (LONGEST + 12).saturating_add_signed(off.into()),
        }
    }
}

/// `struct virtio_net_hdr`, but for `num_buffers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// Of a driver on a machine as this one, which is little-endian.
    fn of(bytes: &[u8]) -> Self {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }
}

/// What the peer gets of a header before `len` bytes (virtio 1.4, 5.1.9.2.1), if it gets the frame at all.
fn expected(header: Header, len: usize, negotiated: NetF) -> Option<Header> {
    if !(14..=LONGEST).contains(&len) {
        return None;
    }
    let hint = header.hdr_len.min(len.try_into().unwrap_or(u16::MAX));
    let mut clean = Header {
        flags: 0,
        gso_type: 0,
        hdr_len: hint,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };
    let checksum = header.flags % 2 == 1;
    if checksum {
        let last = u64::from(header.csum_start) + u64::from(header.csum_offset) + 1;
        if !negotiated.contains(NetF::CSUM) || last >= len as u64 {
            return None;
        }
        clean = Header {
            flags: 1,
            csum_start: header.csum_start,
            csum_offset: header.csum_offset,
            ..clean
        };
    }
    let needed = match header.gso_type {
        0 => return Some(clean),
        1 => NetF::HOST_TSO4,
        3 => NetF::HOST_UFO,
        4 => NetF::HOST_TSO6,
        5 => NetF::HOST_USO,
        0x81 => NetF::HOST_TSO4 | NetF::HOST_ECN,
        0x84 => NetF::HOST_TSO6 | NetF::HOST_ECN,
        _ => return None,
    };
    let segments = 1..len;
    if !checksum
        || !negotiated.contains(needed)
        || !segments.contains(&usize::from(header.gso_size))
    {
        return None;
    }
    Some(Header {
        gso_type: header.gso_type,
        gso_size: header.gso_size,
        ..clean
    })
}

/// Runs it.
pub fn check(story: &Story) {
    let Some(mut machine) = Machine::new(story) else {
        return;
    };
    for sent in story.sent.iter().take(16) {
        machine.send(sent);
    }
    for got in story.got.iter().take(16) {
        machine.get(got);
    }
    assert_eq!(machine.nic.reset().len(), 2);
}

struct Machine {
    memory: Memory,
    context: Arc<EventLoop>,
    peer: Arc<Peer>,
    nic: Arc<VirtioNet<Memory>>,
    negotiated: NetF,
    header_len: usize,
    rx: SplitDriver<Memory>,
    tx: SplitDriver<Memory>,
    kicks: Vec<Arc<EventFd>>,
}

impl Machine {
    fn new(story: &Story) -> Option<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
        let memory = Arc::new(memory);
        let context = EventLoop::new().expect("an event loop");
        let peer = Peer::new(!story.plain);
        let nic = VirtioNet::new(
            VirtioNetConfig {
                guest_rsc_ext: true,
                ..Default::default()
            },
            vec![peer.port.clone()],
            vec![context.clone() as Arc<dyn AioContext>],
        );
        let nic = nic.expect("a card");
        let known = NetF::CSUM
            | NetF::GUEST_CSUM
            | NetF::HOST_TSO4
            | NetF::HOST_TSO6
            | NetF::HOST_ECN
            | NetF::HOST_UFO
            | NetF::HOST_USO
            | NetF::GUEST_TSO4
            | NetF::GUEST_TSO6
            | NetF::GUEST_ECN
            | NetF::GUEST_UFO
            | NetF::GUEST_USO4
            | NetF::GUEST_USO6
            | NetF::RSC_EXT
            | NetF::MRG_RXBUF;
        let wanted = F::from_bits_retain(virtio::le128::from(story.features));
        let mut features = nic.offered_features() & wanted & F::from(known);
        features.set(F::VERSION_1, !story.legacy);
        nic.negotiate(features).ok()?;
        let negotiated = NetF::from(features);
        let long = NetF::VERSION_1 | NetF::MRG_RXBUF;
        let header_len = if negotiated.intersects(long) { 12 } else { 10 };

        let [rx, tx] = [0, 0x1000]
            .map(|at| SplitDriver::new(memory.clone(), GuestAddress(at), SIZE, features));
        let queues: Vec<_> = [&rx, &tx]
            .into_iter()
            .zip(0..)
            .map(|(driver, index)| ActiveQueue {
                index: QueueIndex(index),
                config: driver.config(),
                state: QueueState::default(),
                kick: Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd")),
                call: Arc::new(NoCall),
                in_flight: None,
            })
            .collect();
        let kicks = queues.iter().map(|queue| queue.kick.clone()).collect();
        let activation = Activation {
            features,
            memory: memory.clone(),
            queues,
        };
        nic.activate(activation).expect("queues by the book");
        Some(Self {
            memory,
            context,
            peer,
            nic,
            negotiated,
            header_len,
            rx,
            tx,
            kicks,
        })
    }

    fn turn(&self, queue: usize) {
        self.kicks[queue].write(1).expect("a kick");
        while self.context.turn(Some(Duration::ZERO)).expect("a turn") > 0 {}
    }

    /// The peer has it as it must be, or has nothing; the driver has its buffers back either way.
    fn send(&mut self, sent: &Sent) {
        let len = sent.len.get();
        let mut bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        for (to, from) in bytes.iter_mut().zip(sent.header) {
            *to = from;
        }
        self.memory
            .write_slice(&bytes, GuestAddress(SENT))
            .expect("memory");
        let cuts = sent.cuts.map(|cut| usize::from(cut).min(len));
        let (first, second) = (cuts[0].min(cuts[1]), cuts[0].max(cuts[1]));
        let mut buffers: Vec<_> = [(0, first), (first, second), (second, len)]
            .into_iter()
            .filter(|(from, to)| from < to)
            .map(|(from, to)| Buffer::readable(SENT + from as u64, (to - from) as u32))
            .collect();
        if sent.writable || buffers.is_empty() {
            buffers.push(Buffer::writable(GOT, 4));
        }
        let writable = buffers.iter().any(|buffer| buffer.writable);
        let head = self.tx.add(&buffers);
        self.turn(1);
        assert_eq!(self.tx.take_used(), Some((head.into(), 0)));

        let expected = match len.checked_sub(self.header_len) {
            Some(frame) if !writable => expected(Header::of(&bytes), frame, self.negotiated),
            _ => None,
        };
        let got = self.peer.state().got.pop();
        assert_eq!(got.is_some(), expected.is_some(), "{expected:?}");
        let (Some(got), Some(expected)) = (got, expected) else {
            return;
        };
        let (header, frame) = got.split_at(self.peer.header_len());
        if !header.is_empty() {
            assert_eq!(Header::of(header), expected);
        }
        assert!(
            *frame == bytes[self.header_len..],
            "what is sent is the frame"
        );
        assert!(self.peer.state().got.is_empty(), "and nothing else");
    }

    /// The driver has it in its buffers, with a header that it can understand, if it fits.
    fn get(&mut self, got: &Got) {
        let room = got.buffer.get().clamp(self.header_len, BUFFER as usize);
        let area = vec![UNTOUCHED; (BUFFERS * BUFFER) as usize];
        self.memory
            .write_slice(&area, GuestAddress(GOT))
            .expect("memory");
        let at = |n: u64| GOT + n * BUFFER;
        let heads: Vec<u32> = (0..BUFFERS)
            .map(|n| Buffer::writable(at(n), room as u32))
            .map(|buffer| self.rx.add(&[buffer]).into())
            .collect();
        self.turn(0);
        // As a driver does of which the backend knows what it copes with.
        let len = got.len.get().max(self.peer.header_len() + 14);
        let mut bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        if self.peer.header_len() > 0 {
            bytes[..10].copy_from_slice(&got.header[..10]);
        }
        self.peer.give(&bytes, got.door);
        self.turn(0);

        let frame = &bytes[self.peer.header_len()..];
        let total = self.header_len + frame.len();
        let mergeable = self.negotiated.contains(NetF::MRG_RXBUF);
        let fits = total <= room * if mergeable { BUFFERS as usize } else { 1 };
        let mut used = Vec::new();
        while let Some(element) = self.rx.take_used() {
            used.push(element);
        }
        if fits {
            self.check_got(frame, &bytes, &heads, room, &used);
        } else {
            assert!(used.iter().all(|(_, len)| *len == 0), "{used:?}");
        }
        // Buffers for the next frame are the next's.
        self.restart_rx();
        if !fits {
            self.forget_waiting();
        }
    }

    fn check_got(
        &self,
        frame: &[u8],
        bytes: &[u8],
        heads: &[u32],
        room: usize,
        used: &[(u32, u32)],
    ) {
        let total = self.header_len + frame.len();
        let count = total.div_ceil(room);
        let claimed: Vec<_> = (0..count)
            .map(|n| (heads[n], room.min(total - n * room) as u32))
            .collect();
        assert_eq!(used, claimed);
        let mut there = Vec::new();
        for (n, (_, len)) in (0..).zip(used) {
            let mut part = vec![0; *len as usize];
            self.memory
                .read_slice(&mut part, GuestAddress(GOT + n * BUFFER))
                .expect("memory");
            there.extend(part);
            // Not a byte more than it says.
            let mut behind = vec![0; room - *len as usize];
            self.memory
                .read_slice(
                    &mut behind,
                    GuestAddress(GOT + n * BUFFER + u64::from(*len)),
                )
                .expect("memory");
            assert!(behind.iter().all(|byte| *byte == UNTOUCHED), "buffer {n}");
        }
        let (header, payload) = there.split_at(self.header_len);
        assert!(payload == frame, "what comes in is the frame");
        if self.header_len > 10 {
            let num_buffers = u16::from_le_bytes([header[10], header[11]]);
            assert_eq!(usize::from(num_buffers), count);
        }
        let header = Header::of(header);
        if self.peer.header_len() == 0 {
            assert_eq!(header, Header::of(&[0; 10]));
            return;
        }
        let given = Header::of(bytes);
        let guest_csum = self.negotiated.contains(NetF::GUEST_CSUM);
        // NEEDS_CSUM and DATA_VALID; tunnels are not negotiated.
        let flags = given.flags & if guest_csum { 3 } else { 0 };
        let kinds = [
            (1, NetF::GUEST_TSO4),
            (3, NetF::GUEST_UFO),
            (4, NetF::GUEST_TSO6),
            (5, NetF::GUEST_USO4 | NetF::GUEST_USO6),
        ];
        // But for the bit of ECN.
        let kind = given.gso_type & !0x80;
        let known = kind == 0
            || (kinds.iter())
                .any(|(number, needs)| kind == *number && self.negotiated.intersects(*needs));
        // Its checksum is to be made, and its segments have a size.
        let is_large = known && kind != 0 && flags & 1 != 0 && given.gso_size != 0;
        let told_bare = known && kind == 0 && given.gso_type == 0;
        let told = is_large || told_bare;
        assert_eq!(header.gso_type, if told { given.gso_type } else { 0 });
        let mut sums = (given.csum_start, given.csum_offset);
        let mut told_flags = flags;
        let tcp = NetF::GUEST_TSO4 | NetF::GUEST_TSO6;
        let counts = self.negotiated.contains(NetF::RSC_EXT) && self.negotiated.intersects(tcp);
        if counts && is_large && (kind == 1 || kind == 4) {
            // RSC_INFO, and the number of its segments instead (virtio 1.4, 5.1.9.4.1).
            told_flags |= 4;
            let start = usize::from(given.csum_start);
            let words = frame.get(start + 12).map_or(0, |byte| byte >> 4);
            let payload = frame.len().saturating_sub(start + usize::from(words) * 4);
            let segments = payload.div_ceil(given.gso_size.into()).max(1);
            sums = (u16::try_from(segments).unwrap_or(u16::MAX), 0);
        }
        assert_eq!(header.flags, told_flags);
        assert_eq!((header.csum_start, header.csum_offset), sums);
    }

    /// What waited for more buffers is gone: with its queue, or where the card copies frames, which it does to put
    /// segments together, at the peer's port, which keeps it until there is room.
    fn forget_waiting(&self) {
        let card = self.peer.port.peer().expect("the card's port");
        card.purge();
        assert!(!card.awaits_frames());
    }

    /// Resets the receive queue, and enables it.
    fn restart_rx(&mut self) {
        let mut queue = self.nic.stop_queue(QueueIndex(0)).expect("it runs");
        let features = if self.negotiated.contains(NetF::VERSION_1) {
            F::VERSION_1
        } else {
            F::empty()
        };
        self.rx = SplitDriver::new(self.memory.clone(), GuestAddress(0), SIZE, features);
        queue.state = QueueState::default();
        self.nic.start_queue(queue).expect("as before");
    }
}

#[derive(Debug)]
struct NoCall;

impl GuestNotifier for NoCall {
    fn notify(&self) {}

    fn event_fd(&self) -> Option<&EventFd> {
        None
    }
}

/// Keeps a copy of each frame that it gets, and gives one at a time.
#[derive(Debug)]
struct Peer {
    port: Arc<Port>,
    vnet: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    header_len: usize,
    got: Vec<Vec<u8>>,
    to_give: Option<(Vec<u8>, bool)>,
    reading: Option<(Token, Vec<IoVec>)>,
}

impl Peer {
    fn new(vnet: bool) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new("peer", me.clone() as _),
            vnet,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Of the header that it carries.
    fn header_len(&self) -> usize {
        self.state().header_len
    }

    fn give(&self, frame: &[u8], door: Door) {
        let later = match door {
            Door::Handed => {
                let _ = self.port.send_bytes(frame);
                self.port.flush(&mut |_| {});
                return;
            }
            Door::Read => false,
            Door::ReadLater => true,
        };
        self.state().to_give = Some((frame.to_vec(), later));
        let _ = self.port.offer(&mut Source(self));
        let reading = self.state().reading.take();
        if let Some((token, iov)) = reading {
            let len = copy_to_iov(&iov, 0, frame);
            self.port.read_done(token, len);
        }
        self.state().to_give = None;
    }
}

struct Source<'a>(&'a Peer);

impl FrameSource for Source<'_> {
    fn max_frame(&self) -> usize {
        let state = self.0.state();
        state.to_give.as_ref().map_or(0, |(frame, _)| frame.len())
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        let mut state = self.0.state();
        match state.to_give.take() {
            None => Read::Empty,
            Some((frame, false)) => Read::Frame(copy_to_iov(iov, 0, &frame)),
            Some((_, true)) => {
                state.reading = Some((token, iov.to_vec()));
                Read::Pending
            }
        }
    }
}

impl NetClient for Peer {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut bytes = vec![0; frame.len];
        assert_eq!(copy_from_iov(frame.iov, 0, &mut bytes), frame.len);
        self.state().got.push(bytes);
        Received::Taken
    }

    fn revoke(&self) {
        let reading = self.state().reading.take();
        if let Some((token, _)) = reading {
            self.port.read_done(token, 0);
        }
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
        self.state().header_len
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.state().header_len = len;
        Ok(())
    }

    fn set_little_endian(&self, _little_endian: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(sent: Vec<Sent>, got: Vec<Got>) -> Story {
        Story {
            features: u128::MAX,
            legacy: false,
            plain: false,
            sent,
            got,
        }
    }

    #[test]
    fn what_must_pass_does_and_what_must_not_does_not() {
        let header = |flags, gso_type| [flags, gso_type, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let sent = |header, len| Sent {
            header,
            len: Len::Usual(len),
            cuts: [5, 40],
            writable: false,
        };
        let story = story(
            vec![
                sent(header(0, 0), 12 + 60),
                sent(header(1, 1), 12 + 3000),
                sent(header(1, 5), 12 + 3000),
                sent(header(0, 1), 12 + 3000),
                sent(header(1, 1), 12 + 1448),
            ],
            vec![],
        );
        let mut machine = Machine::new(&story).unwrap();
        for sent in &story.sent {
            machine.send(sent);
        }
        let statistics = machine.nic.tx_statistics(0).unwrap();
        assert_eq!((statistics.frames, statistics.dropped_in_all()), (3, 2));
    }

    #[test]
    fn frames_come_in_through_each_door() {
        let got = |door| Got {
            header: [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0],
            len: Len::Usual(3000),
            buffer: Len::Usual(1526),
            door,
        };
        let story = story(
            vec![],
            [Door::Read, Door::ReadLater, Door::Handed]
                .map(got)
                .to_vec(),
        );
        let mut machine = Machine::new(&story).unwrap();
        for got in &story.got {
            machine.get(got);
        }
        let statistics = machine.nic.rx_statistics(0).unwrap();
        assert_eq!((statistics.frames, statistics.buffers), (3, 6));
    }

    #[test]
    fn a_frame_that_waits_does_not_come_before_the_next() {
        for features in [NetF::all(), NetF::all() - NetF::RSC_EXT] {
            for door in [Door::Read, Door::ReadLater, Door::Handed] {
                let got = |len, buffer| Got {
                    header: [0; 12],
                    len: Len::Usual(len),
                    buffer: Len::Usual(buffer),
                    door,
                };
                let story = Story {
                    features: features.bits().to_ne(),
                    ..story(vec![], vec![got(3000, 300), got(100, 300)])
                };
                let mut machine = Machine::new(&story).unwrap();
                for got in &story.got {
                    machine.get(got);
                }
                let statistics = machine.nic.rx_statistics(0).unwrap();
                assert_eq!((statistics.frames, statistics.buffers), (1, 1), "{door:?}");
            }
        }
    }

    #[test]
    fn headers_say_what_was_negotiated_whatever_the_peer_says() {
        let all = NetF::all();
        for features in [all, all - NetF::RSC_EXT, all - NetF::GUEST_TSO4, NetF::CSUM] {
            let got = (0..16)
                .map(|n| Got {
                    header: [n & 7, n >> 3, 54, 0, 0xa8, 5 * (n & 1), 34, 0, 16, 0, 0, 0],
                    len: Len::Usual(3000),
                    buffer: Len::Usual(1526),
                    door: Door::Read,
                })
                .collect();
            let story = Story {
                features: features.bits().to_ne(),
                ..story(vec![], got)
            };
            check(&story);
        }
    }
}
