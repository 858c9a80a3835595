//! A network card of one to three queue pairs on arbitrary rings, without a transport.
//!
//! Frames come to it through both doors: a peer has its frames read into lent buffers
//! ([`Step::OfferFrames`]) and hands others over ([`Step::SendFrame`]), and while a filter stands
//! between the two ([`Step::Filter`]) the first way leads through the second door.

mod commands;
mod story;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use iothread::{AioContext, EventLoop, VirtualClock};
use net_client::{Direction, Directions, Filter, FilterId, Passing, Port, Position, Verdict};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, Transport, VirtioDevice};
use virtio_net::{RateLimit, TxMitigation, VirtioNet, VirtioNetConfig};
use virtqueue::mock::{AVAIL, Descriptor, INDIRECT, NEXT, USED, WRITE};
use virtqueue::{QueueConfig, QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::story::Story;
use self::story::{Kind, Len, Step, Ways};
use crate::peer::Peer;

type Memory = Arc<GuestMemoryMmap<()>>;

const RAM: usize = 0x3_0000;
/// The most queue pairs.
const PAIRS: usize = 3;
/// The most queues: those of the pairs, and the control queue.
const QUEUES: u16 = 7;
/// Entries of each queue, unless it is set up oddly.
const SIZE: u16 = 16;
/// Turns of the loop in one step: a driver can keep a device busy for ever, turn by turn.
const TURNS: usize = 4;

/// Where the rings of queue `n` are, a page each.
fn ring(queue: u16) -> u64 {
    0x2_0000 + 0x1000 * u64::from(queue % QUEUES)
}
/// The wrap counter in a packed ring's offset.
const WRAP: u16 = 1 << 15;
const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x800;

#[derive(Debug, Default)]
struct Calls(AtomicUsize);

impl GuestNotifier for Calls {
    fn notify(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn event_fd(&self) -> Option<&EventFd> {
        None
    }
}

impl Transport for Calls {
    fn config_changed(&self) {}

    fn needs_reset(&self, reason: &str) {
        assert!(!reason.is_empty());
    }
}

/// Runs it.
pub fn check(story: &Story) {
    let mut machine = Machine::new(story);
    for step in &story.steps {
        machine.step(*step);
    }
    machine.reset();
}

/// Says of each frame what its two bits say, used again and again.
#[derive(Debug)]
struct Sieve(AtomicUsize);

impl Filter for Sieve {
    fn filter(&self, passing: &Passing<'_>) -> Verdict {
        let mut bytes = [0; 64];
        assert!(passing.copy_ethernet(&mut bytes) <= passing.ethernet_len());
        let verdicts = self.0.load(Ordering::Relaxed);
        (self.0).store(verdicts >> 2 | (verdicts & 3) << 6, Ordering::Relaxed);
        match verdicts & 3 {
            0 => Verdict::Drop,
            1 => Verdict::Hold,
            _ => Verdict::Pass,
        }
    }
}

/// What is at the other end of one pair's link.
enum End {
    Peer(Arc<Peer>),
    Loopback(Arc<net_client::Loopback>),
}

impl End {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::None | Kind::Loopback => Self::Loopback(net_client::Loopback::new("lo")),
            Kind::Plain => Self::Peer(Peer::new(false)),
            Kind::Vnet => Self::Peer(Peer::new(true)),
        }
    }

    fn port(&self) -> &Arc<Port> {
        match self {
            Self::Peer(peer) => peer.port(),
            Self::Loopback(loopback) => loopback.port(),
        }
    }
}

struct Machine {
    memory: Memory,
    clock: Arc<VirtualClock>,
    context: Arc<EventLoop>,
    ends: Vec<End>,
    /// A filter of the pair, and at whose port.
    filters: [Option<(Arc<Port>, FilterId)>; PAIRS],
    /// The card's view of the transport.
    _transport: Arc<Calls>,
    nic: Arc<VirtioNet<Memory>>,
    /// What the driver wants, and what it has.
    wanted: F,
    features: Option<F>,
    pairs: usize,
    left_out: u8,
    /// The pair that steps are about.
    pair: usize,
    queues: Vec<ActiveQueue>,
    kicks: Vec<Arc<EventFd>>,
    live: bool,
    paused: bool,
    /// Where the next buffer by the book goes.
    next_buffer: u8,
    /// By queue: the descriptors that its driver has written for itself, and where the next of a packed ring goes,
    /// with the wrap counter.
    drafts: Vec<[Descriptor; 32]>,
    next: [u16; QUEUES as usize],
}

impl Machine {
    fn new(story: &Story) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
        let clock = VirtualClock::new();
        let context = EventLoop::with_clock(clock.clone()).expect("an event loop");
        let pairs = 1 + usize::from(story.more_pairs) % PAIRS;
        let ends: Vec<_> = match story.peers[0] {
            Kind::None => vec![],
            _ => story.peers.map(End::new).into_iter().take(pairs).collect(),
        };
        let pairs = ends.len().max(1);
        let ports = ends.iter().map(|end| end.port().clone()).collect();
        let contexts = vec![context.clone() as Arc<dyn AioContext>];
        // A few frames at once, and then one in some milliseconds.
        let limit = RateLimit {
            packets: if story.ways.has(Ways::LIMITS) { 500 } else { 0 },
            ..Default::default()
        };
        let config = VirtioNetConfig {
            mq: story.mq,
            x_txburst: story.burst.into(),
            packed: story.ways.has(Ways::PACKED),
            in_order: story.ways.has(Ways::IN_ORDER),
            rss: story.ways.has(Ways::RSS),
            hash: story.ways.has(Ways::HASH),
            hash_tunnel: story.ways.has(Ways::HASH),
            anti_spoof: story.ways.has(Ways::ANTI_SPOOF),
            mrg_rxbuf: !story.ways.has(Ways::NO_MERGEABLE),
            failover: story.ways.has(Ways::RSC),
            guest_rsc_ext: story.ways.has(Ways::RSC),
            // As long as a few steps of the clock.
            rsc_interval: 20_000_000,
            tx: if story.ways.has(Ways::TX_TIMER) {
                TxMitigation::Timer
            } else {
                TxMitigation::Bh
            },
            x_txtimer: 5_000_000,
            rx_limit: limit,
            tx_limit: limit,
            ..Default::default()
        };
        let nic = VirtioNet::new(config, ports, contexts).expect("a card");
        let transport = Arc::new(Calls::default());
        let weak: Weak<dyn Transport> = Arc::<Calls>::downgrade(&transport);
        nic.plugged(weak);
        let mut wanted = F::from_bits_retain(virtio::le128::from(story.features));
        wanted &= nic.offered_features();
        wanted.set(F::VERSION_1, !story.legacy);
        let queues: Vec<_> = (0..QUEUES).map(|index| queue(index, story)).collect();
        let mut machine = Self {
            memory: Arc::new(memory),
            clock,
            context,
            ends,
            filters: [const { None }; PAIRS],
            _transport: transport,
            nic,
            wanted,
            features: None,
            pairs,
            left_out: story.left_out,
            pair: 0,
            kicks: queues.iter().map(|queue| queue.kick.clone()).collect(),
            queues,
            live: false,
            paused: false,
            next_buffer: 0,
            drafts: vec![[Descriptor::default(); 32]; QUEUES.into()],
            next: [WRAP; QUEUES as usize],
        };
        machine.refuse(story.refused);
        machine.negotiate();
        if machine.is_packed() {
            for queue in &mut machine.queues {
                let start = match queue.state.next_avail {
                    0 => WRAP,
                    odd => odd & (WRAP | (SIZE - 1)),
                };
                (queue.state.next_avail, queue.state.next_used) = (start, start);
                machine.next[usize::from(queue.index.0)] = start;
            }
        }
        machine.activate();
        machine
    }

    fn refuse(&self, what: u8) {
        for (n, end) in self.ends.iter().enumerate() {
            if let End::Peer(peer) = end {
                // Never of the first that it carries frames at all, or little would happen.
                peer.refuse(if n == 0 { what & 0b011 } else { what });
            }
        }
    }

    /// As a driver does that takes what it can get.
    fn negotiate(&mut self) {
        let wanted = self.wanted;
        self.features = self.nic.negotiate(wanted).is_ok().then_some(wanted);
        for peer in self.peers() {
            peer.set_negotiated(NetF::from(wanted));
        }
    }

    fn net_features(&self) -> NetF {
        self.features.unwrap_or(F::empty()).into()
    }

    /// Pairs that the driver may use.
    fn usable(&self) -> usize {
        if self.net_features().contains(NetF::MQ) {
            self.pairs
        } else {
            1
        }
    }

    fn rx(&self) -> u16 {
        2 * (self.pair % self.usable()) as u16
    }

    fn tx(&self) -> u16 {
        self.rx() + 1
    }

    fn ctrl(&self) -> u16 {
        2 * self.usable() as u16
    }

    fn is_packed(&self) -> bool {
        self.wanted.contains(F::RING_PACKED)
    }

    fn header_len(&self) -> u32 {
        if self.net_features().contains(NetF::HASH_REPORT) {
            return 20;
        }
        let long = NetF::VERSION_1 | NetF::MRG_RXBUF;
        if self.net_features().intersects(long) {
            12
        } else {
            10
        }
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.ends.iter().filter_map(|end| match end {
            End::Peer(peer) => Some(&**peer),
            End::Loopback(_) => None,
        })
    }

    fn activate(&mut self) {
        let Some(features) = self.features else {
            return;
        };
        assert_eq!(self.queues.len(), usize::from(QUEUES));
        // The control queue is there if it was negotiated.
        let has_ctrl = self.net_features().contains(NetF::CTRL_VQ);
        let count = self.ctrl() + u16::from(has_ctrl);
        let left_out = self.left_out;
        let enabled =
            |queue: &ActiveQueue| queue.index.0 < count && left_out & 1 << (queue.index.0 % 8) == 0;
        let (queues, rest): (Vec<_>, _) = self.queues.drain(..).partition(enabled);
        let lent = queues.len();
        let activation = Activation {
            features,
            memory: self.memory.clone(),
            queues,
        };
        match self.nic.activate(activation) {
            Ok(()) => self.live = true,
            Err(refused) => {
                assert_eq!(refused.queues.len(), lent, "all come back");
                self.queues = refused.queues;
            }
        }
        self.queues.extend(rest);
    }

    fn reset(&mut self) {
        let back = self.nic.reset();
        self.check_nothing_is_held();
        self.queues.extend(back);
        self.queues.sort_by_key(|queue| queue.index);
        let indices: Vec<_> = self.queues.iter().map(|queue| queue.index.0).collect();
        let all: Vec<_> = (0..QUEUES).collect();
        assert_eq!(indices, all, "queues come back once each");
        assert!(self.nic.reset().is_empty(), "queues come back twice");
        self.live = false;
    }

    fn check_nothing_is_held(&self) {
        for peer in self.peers() {
            assert_eq!(peer.held(), 0, "the peer still has guest memory");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pair(pair) => self.pair = usize::from(pair) % PAIRS,
            Step::Ram { at, bytes } => self.ram(u64::from(at) * 3, &bytes),
            Step::Describe {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => {
                let len = match len {
                    Len::Short(len) => len.into(),
                    Len::Entries(n) => 16 * u32::from(n),
                    Len::Any(len) => len,
                };
                let flags = u16::from(flags) & (NEXT | WRITE | INDIRECT);
                let address = u64::from(address) % (RAM as u64 + 0x100);
                let descriptor = Descriptor::new(address, len, flags, u16::from(next % 32));
                self.describe(queue.into(), index, descriptor);
            }
            Step::Offer { queue, head } => self.offer(queue.into(), head),
            Step::MoveAvailIdx { queue, to } if self.is_packed() => {
                self.next[usize::from(queue) % self.next.len()] = to & (WRAP | (SIZE - 1));
            }
            Step::MoveAvailIdx { queue, to } => {
                self.ram(ring(queue.into()) + DRIVER + 2, &to.to_le_bytes());
            }
            Step::Frame { header, len, cut } => self.frame(header, len, cut),
            Step::Frames { count } => {
                for _ in 0..count % SIZE as u8 {
                    self.frame([0; 12], 60, 0);
                }
                self.turn();
            }
            Step::Buffers { count, len } => {
                for _ in 0..=count % SIZE as u8 {
                    let (head, at) = self.buffer();
                    let descriptor = Descriptor::new(at, len.into(), WRITE, 0);
                    self.describe(self.rx(), head, descriptor);
                    self.offer(self.rx(), head);
                }
            }
            Step::Command {
                class,
                command,
                data,
                len,
            } => {
                let mut bytes = vec![class, command];
                bytes.extend(data);
                let mut room = 2 + usize::from(match len {
                    0..0xe000 => len % 9,
                    _ => len % 1024,
                });
                if class >= 0x80 {
                    bytes = commands::known(class, command, data, len);
                    room = bytes.len();
                }
                self.command(&bytes, room);
            }
            Step::UsePairs(pairs) => {
                let any = pairs > 0xf0;
                let count = if any { pairs } else { pairs % PAIRS as u8 + 1 };
                self.command(&[4, 0, count, u8::from(any)], 4);
            }
            Step::Kick { queue } => self.kick(queue.into()),
            Step::Turn => self.turn(),
            Step::Reset => {
                self.reset();
                let packed = self.is_packed();
                for queue in &mut self.queues {
                    queue.state = QueueState::initial(self.wanted);
                    let (rings, len) = if packed {
                        (queue.config.desc, 16 * usize::from(SIZE))
                    } else {
                        (queue.config.driver, 4)
                    };
                    (self.memory)
                        .write_slice(&vec![0; len], GuestAddress(rings))
                        .ok();
                }
                self.next = [WRAP; QUEUES as usize];
                self.negotiate();
                self.activate();
            }
            Step::Pause => {
                if !std::mem::replace(&mut self.paused, true) {
                    self.nic.pause();
                    self.check_nothing_is_held();
                }
            }
            Step::Resume => {
                if std::mem::replace(&mut self.paused, false) {
                    self.nic.resume();
                }
            }
            Step::StopQueue { queue } => {
                let index = QueueIndex(u16::from(queue) % QUEUES);
                if let Some(mut stopped) = self.nic.stop_queue(index) {
                    assert!(self.live);
                    assert_eq!(stopped.index, index);
                    // Stopped, it goes on where it stood.
                    if queue < 0x80 {
                        stopped.state = QueueState::initial(self.wanted);
                        self.next[usize::from(index.0)] = WRAP;
                    }
                    if let Err(refused) = self.nic.start_queue(stopped) {
                        self.queues.extend(refused.queues);
                    }
                }
            }
            Step::Wait { milliseconds } => {
                self.clock
                    .advance(Duration::from_millis(milliseconds.into()));
                self.turn();
            }
            Step::Moods(moods) => self.with_peer(|peer| peer.set_moods(moods)),
            Step::Complete(nth) => self.with_peer(|peer| peer.complete(nth)),
            Step::OfferFrames { lens, later } => self.with_peer(|peer| peer.offer(lens, later)),
            Step::SendFrame { len } => self.with_peer(|peer| peer.send(len)),
            Step::FinishRead { nth, len } => self.with_peer(|peer| peer.finish_read(nth, len)),
            Step::PeerHasRoom => self.with_peer(|peer| peer.port().room()),
            Step::Link(up) => self.with_peer(|peer| peer.port().set_link(up)),
            Step::Filter { verdict, at_peer } => self.filter(verdict, at_peer),
            Step::Release => {
                if let Some((port, filter)) = &self.filters[self.pair] {
                    for direction in [Direction::Tx, Direction::Rx] {
                        port.release(*filter, direction, 2);
                    }
                }
            }
            Step::Disconnect => self.with_peer(|peer| {
                peer.port().disconnect();
                assert_eq!(peer.held(), 0, "the peer still has guest memory");
            }),
            Step::Refuse(what) => self.refuse(what),
        }
    }

    fn filter(&mut self, verdict: u8, at_peer: bool) {
        if let Some((port, filter)) = self.filters[self.pair].take() {
            port.remove_filter(filter);
            return;
        }
        let port = match self.ends.get(self.pair) {
            Some(end) if at_peer => end.port().clone(),
            _ => match self.nic.ports().into_iter().nth(self.pair) {
                Some(port) => port,
                None => return,
            },
        };
        let sieve = Arc::new(Sieve(AtomicUsize::new(verdict.into())));
        let filter = port.add_filter(sieve, Directions::All, Position::Tail);
        self.filters[self.pair] = Some((port, filter));
    }

    fn with_peer(&self, act: impl FnOnce(&Peer)) {
        if let Some(End::Peer(peer)) = self.ends.get(self.pair) {
            act(peer);
        }
    }

    /// In one buffer with what lies behind it, and one for the answer.
    fn command(&mut self, bytes: &[u8], room: usize) {
        let (_, at) = self.buffer();
        self.ram(at, bytes);
        let ctrl = self.ctrl();
        // The answer to a question about counters is longer than that of others.
        let answer = if bytes[0] == 8 { 512 } else { 1 };
        self.describe(ctrl, 0, Descriptor::new(at, room as u32, NEXT, 1));
        self.describe(ctrl, 1, Descriptor::new(at + 0x800, answer, WRITE, 0));
        self.offer(ctrl, 0);
    }

    fn turn(&self) {
        for _ in 0..TURNS {
            let calls = self.context.turn(Some(Duration::ZERO)).expect("a turn");
            if calls == 0 {
                break;
            }
        }
    }

    /// A descriptor and the memory for it, of fifteen of each.
    fn buffer(&mut self) -> (u8, u64) {
        let head = self.next_buffer;
        self.next_buffer = (head + 1) % (SIZE as u8 - 1);
        (head, 0x1000 * u64::from(head))
    }

    /// In two buffers, if `cut` lies inside.
    fn frame(&mut self, header: [u8; 12], len: u16, cut: u16) {
        let (head, at) = self.buffer();
        self.ram(at, &header);
        let total = self.header_len() + u32::from(len);
        let cut = u32::from(cut);
        if (1..total).contains(&cut) {
            // Behind the descriptors of chains that are one buffer.
            let rest = SIZE as u8 - 1;
            let descriptor = Descriptor::new(at, cut, NEXT, rest.into());
            self.describe(self.tx(), head, descriptor);
            let descriptor = Descriptor::new(at + u64::from(cut), total - cut, 0, 0);
            self.describe(self.tx(), rest, descriptor);
        } else {
            self.describe(self.tx(), head, Descriptor::new(at, total, 0, 0));
        }
        self.offer(self.tx(), head);
    }

    /// Into the split ring, or for the packed one.
    fn describe(&mut self, queue: u16, index: u8, descriptor: Descriptor) {
        if self.is_packed() {
            self.drafts[usize::from(queue % QUEUES)][usize::from(index % 32)] = descriptor;
            return;
        }
        let at = ring(queue) + 16 * u64::from(index % 32);
        (self.memory)
            .write_obj(descriptor, GuestAddress(at))
            .expect("rings are in memory");
    }

    fn offer(&mut self, queue: u16, head: u8) {
        if self.is_packed() {
            self.offer_packed(queue, head);
            return self.kick(queue);
        }
        let avail = ring(queue) + DRIVER;
        let at = GuestAddress(avail + 2);
        let index: u16 = self.memory.read_obj(at).expect("rings are in memory");
        self.ram(avail + 4 + 2 * u64::from(index % SIZE), &[head, 0]);
        self.ram(avail + 2, &index.wrapping_add(1).to_le_bytes());
        self.kick(queue);
    }

    /// Lays the chain that begins with `head` into the ring, the last of it first, and names it after its head.
    fn offer_packed(&mut self, queue: u16, head: u8) {
        let drafts = &self.drafts[usize::from(queue % QUEUES)];
        let (mut chain, mut at) = (Vec::new(), usize::from(head) % 32);
        while chain.len() < usize::from(SIZE) {
            chain.push(drafts[at]);
            if drafts[at].flags() & NEXT == 0 {
                break;
            }
            at = usize::from(drafts[at].next()) % 32;
        }
        let next = &mut self.next[usize::from(queue % QUEUES)];
        let mut bytes = Vec::new();
        for descriptor in chain {
            let available = if *next & WRAP != 0 { AVAIL } else { USED };
            let slot = *next & !WRAP;
            let mut raw = [0; 16];
            raw[..8].copy_from_slice(&descriptor.addr().0.to_le_bytes());
            raw[8..12].copy_from_slice(&descriptor.len().to_le_bytes());
            raw[12] = head;
            raw[14..].copy_from_slice(&(descriptor.flags() | available).to_le_bytes());
            bytes.push((ring(queue) + 16 * u64::from(slot), raw));
            *next = match slot + 1 {
                SIZE => *next & WRAP ^ WRAP,
                slot => *next & WRAP | slot,
            };
        }
        for (at, raw) in bytes.into_iter().rev() {
            self.ram(at, &raw);
        }
    }

    fn kick(&self, queue: u16) {
        let _ = self.kicks[usize::from(queue % QUEUES)].write(1);
    }

    fn ram(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }
}

fn queue(index: u16, story: &Story) -> ActiveQueue {
    let base = ring(index);
    let mut config = QueueConfig {
        max_size: 256,
        size: SIZE,
        desc: base,
        driver: base + DRIVER,
        device: base + DEVICE,
    };
    let mut state = QueueState::default();
    if let Some(odd) = story.odd
        && u16::from(odd.queue) % QUEUES == index
    {
        config.desc = base + u64::from(odd.desc & 0xff0);
        config.driver = base + u64::from(odd.driver & 0xffe);
        config.device = base + u64::from(odd.device & 0xffc);
        state.next_avail = odd.next_avail;
        state.next_used = odd.next_avail;
    }
    ActiveQueue {
        index: QueueIndex(index),
        config,
        state,
        kick: Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd")),
        call: Arc::new(Calls::default()),
        in_flight: None,
    }
}
