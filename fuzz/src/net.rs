//! A network card on arbitrary rings, without a transport.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arbitrary::Arbitrary;
use iothread::{AioContext, EventLoop, VirtualClock};
use net_client::Port;
use virtio::F;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, Transport, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::mock::{Descriptor, INDIRECT, NEXT, WRITE};
use virtqueue::{QueueConfig, QueueIndex, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::peer::Peer;

type Memory = Arc<GuestMemoryMmap<()>>;

const RAM: usize = 0x3_0000;
const QUEUES: u16 = 3;
const TX: u16 = 1;
const CTRL: u16 = 2;
/// Entries of each queue, unless it is set up oddly.
const SIZE: u16 = 16;
/// Turns of the loop in one step: a driver can keep a device busy for ever, turn by turn.
const TURNS: usize = 4;

/// Where the rings of queue `n` are, a page each.
fn ring(queue: u16) -> u64 {
    0x2_0000 + 0x1000 * u64::from(queue % QUEUES)
}
const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x800;

/// What is run, and how.
#[derive(Arbitrary, Debug)]
pub struct Story {
    peer: Kind,
    features: u128,
    burst: u8,
    /// Where the rings of one queue are instead of where they belong.
    odd: Option<Odd>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    None,
    Loopback,
    Plain,
    Vnet,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Odd {
    queue: u8,
    desc: u16,
    driver: u16,
    device: u16,
    next_avail: u16,
}

/// A step of the driver, the peer, the machine or the clock.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Ram {
        at: u16,
        bytes: [u8; 8],
    },
    Describe {
        queue: u8,
        index: u8,
        address: u32,
        len: Len,
        flags: u8,
        next: u8,
    },
    Offer {
        queue: u8,
        head: u8,
    },
    MoveAvailIdx {
        queue: u8,
        to: u16,
    },
    /// A transmit chain by the book, except for what its header says.
    Frame {
        header: [u8; 12],
        len: u16,
        cut: u16,
    },
    /// Frames by the book, all at once.
    Frames {
        count: u8,
    },
    /// Receive buffers by the book.
    Buffers {
        count: u8,
        len: u16,
    },
    /// A command by the book, except for what it says.
    Command {
        class: u8,
        command: u8,
        data: [u8; 8],
        len: u8,
    },
    Kick {
        queue: u8,
    },
    Turn,
    Moods(u8),
    Complete(u8),
    OfferFrames {
        lens: [u16; 4],
        later: u8,
    },
    SendFrame {
        len: u16,
    },
    FinishRead {
        nth: u8,
        len: u16,
    },
    PeerHasRoom,
    Link(bool),
    Pause,
    Resume,
    StopQueue {
        queue: u8,
    },
    Reset,
    Wait {
        milliseconds: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Len {
    Short(u8),
    Entries(u8),
    Any(u32),
}

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

struct Machine {
    memory: Memory,
    clock: Arc<VirtualClock>,
    context: Arc<EventLoop>,
    peer: Option<Arc<Peer>>,
    _loopback: Option<Arc<net_client::Loopback>>,
    /// The card's view of the transport.
    _transport: Arc<Calls>,
    nic: Arc<VirtioNet<Memory>>,
    /// As negotiated.
    features: Option<F>,
    queues: Vec<ActiveQueue>,
    kicks: Vec<Arc<EventFd>>,
    live: bool,
    paused: bool,
    /// Where the next buffer by the book goes.
    next_buffer: u8,
}

impl Machine {
    fn new(story: &Story) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory");
        let clock = VirtualClock::new();
        let context = EventLoop::with_clock(clock.clone()).expect("an event loop");
        let (mut peer, mut loopback) = (None, None);
        let ports: Vec<Arc<Port>> = match story.peer {
            Kind::None => vec![],
            Kind::Loopback => {
                let lo = loopback.insert(net_client::Loopback::new("lo"));
                vec![lo.port().clone()]
            }
            Kind::Plain | Kind::Vnet => {
                let vnet = matches!(story.peer, Kind::Vnet);
                vec![peer.insert(Peer::new(vnet)).port().clone()]
            }
        };
        let contexts = vec![context.clone() as Arc<dyn AioContext>];
        let config = VirtioNetConfig {
            x_txburst: story.burst.into(),
            ..Default::default()
        };
        let nic = VirtioNet::new(config, ports, contexts).expect("a card");
        let transport = Arc::new(Calls::default());
        let weak: Weak<dyn Transport> = Arc::<Calls>::downgrade(&transport);
        nic.plugged(weak);
        let wanted = F::from_bits_retain(virtio::le128::from(story.features));
        let features = nic.offered_features() & wanted | F::VERSION_1;
        let features = nic.negotiate(features).is_ok().then_some(features);
        let queues = (0..QUEUES).map(|index| queue(index, story)).collect();
        let mut machine = Self {
            memory: Arc::new(memory),
            clock,
            context,
            peer,
            _loopback: loopback,
            _transport: transport,
            nic,
            features,
            kicks: Vec::new(),
            queues,
            live: false,
            paused: false,
            next_buffer: 0,
        };
        machine.kicks = machine.queues.iter().map(|q| q.kick.clone()).collect();
        machine.activate();
        machine
    }

    fn activate(&mut self) {
        let Some(features) = self.features else {
            return;
        };
        assert_eq!(self.queues.len(), usize::from(QUEUES));
        // The control queue is there if it was negotiated.
        let has_ctrl = virtio::net::F::from(features).contains(virtio::net::F::CTRL_VQ);
        let rest = self.queues.split_off(if has_ctrl { 3 } else { 2 });
        let queues = std::mem::take(&mut self.queues);
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
        if let Some(peer) = &self.peer {
            assert_eq!(peer.held(), 0, "the peer still has guest memory");
        }
        self.queues.extend(back);
        self.queues.sort_by_key(|queue| queue.index);
        let indices: Vec<_> = self.queues.iter().map(|queue| queue.index.0).collect();
        assert_eq!(indices, [0, 1, 2], "queues come back once each");
        assert!(self.nic.reset().is_empty(), "queues come back twice");
        self.live = false;
    }

    fn step(&mut self, step: Step) {
        match step {
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
                    self.describe(0, head, Descriptor::new(at, len.into(), WRITE, 0));
                    self.offer(0, head);
                }
            }
            Step::Command {
                class,
                command,
                data,
                len,
            } => {
                let (_, at) = self.buffer();
                self.ram(at, &[class, command]);
                self.ram(at + 2, &data);
                let len = 2 + u32::from(len % 9);
                self.describe(CTRL, 0, Descriptor::new(at, len, NEXT, 1));
                self.describe(CTRL, 1, Descriptor::new(at + 16, 1, WRITE, 0));
                self.offer(CTRL, 0);
            }
            Step::Kick { queue } => self.kick(queue.into()),
            Step::Turn => self.turn(),
            Step::Reset => {
                self.reset();
                if let Some(features) = self.features {
                    for queue in &mut self.queues {
                        queue.state = QueueState::default();
                        self.memory
                            .write_slice(&[0; 4], GuestAddress(queue.config.driver))
                            .ok();
                    }
                    self.nic.negotiate(features).expect("as before");
                }
                self.activate();
            }
            Step::Pause => {
                if !std::mem::replace(&mut self.paused, true) {
                    self.nic.pause();
                    if let Some(peer) = &self.peer {
                        assert_eq!(peer.held(), 0, "the peer still has guest memory");
                    }
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
                        stopped.state = QueueState::default();
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
        }
    }

    fn with_peer(&self, act: impl FnOnce(&Peer)) {
        if let Some(peer) = &self.peer {
            act(peer);
        }
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
        let total = 12 + u32::from(len);
        let cut = u32::from(cut);
        if (1..total).contains(&cut) {
            // Behind the descriptors of chains that are one buffer.
            let rest = SIZE as u8 - 1;
            let descriptor = Descriptor::new(at, cut, NEXT, rest.into());
            self.describe(TX, head, descriptor);
            let descriptor = Descriptor::new(at + u64::from(cut), total - cut, 0, 0);
            self.describe(TX, rest, descriptor);
        } else {
            self.describe(TX, head, Descriptor::new(at, total, 0, 0));
        }
        self.offer(TX, head);
    }

    fn describe(&self, queue: u16, index: u8, descriptor: Descriptor) {
        let at = ring(queue) + 16 * u64::from(index % 32);
        (self.memory)
            .write_obj(descriptor, GuestAddress(at))
            .expect("rings are in memory");
    }

    fn offer(&self, queue: u16, head: u8) {
        let avail = ring(queue) + DRIVER;
        let at = GuestAddress(avail + 2);
        let index: u16 = self.memory.read_obj(at).expect("rings are in memory");
        self.ram(avail + 4 + 2 * u64::from(index % SIZE), &[head, 0]);
        self.ram(avail + 2, &index.wrapping_add(1).to_le_bytes());
        self.kick(queue);
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver that does all by the book.
    fn machine(peer: Kind) -> Machine {
        let story = Story {
            peer,
            features: u128::MAX,
            burst: 0xff,
            odd: None,
            steps: vec![],
        };
        let machine = Machine::new(&story);
        assert!(machine.live);
        machine
    }

    #[test]
    fn frames_by_the_book_pass_in_both_directions() {
        let mut machine = machine(Kind::Vnet);
        for moods in [0xff, 0x55, 0x55] {
            machine.step(Step::Moods(moods));
            let header = [0; 12];
            let (len, cut) = (60, 20);
            machine.step(Step::Frame { header, len, cut });
            machine.step(Step::Turn);
        }
        let (count, len) = (1, 2048);
        machine.step(Step::Buffers { count, len });
        let lens = [60; 4];
        machine.step(Step::OfferFrames { lens, later: 2 });
        machine.step(Step::FinishRead { nth: 0, len: 99 });
        machine.reset();
        assert_eq!(machine.nic.tx_statistics(0).unwrap().frames, 3);
        assert_eq!(machine.nic.rx_statistics(0).unwrap().frames, 2);
    }

    #[test]
    fn a_frame_may_fill_several_buffers_and_wait_for_them() {
        let mut machine = machine(Kind::Vnet);
        let (lens, later) = ([200; 4], 0);
        for count in [0, 6] {
            machine.step(Step::Buffers { count, len: 64 });
            machine.step(Step::OfferFrames { lens, later });
            machine.step(Step::Turn);
        }
        let statistics = machine.nic.rx_statistics(0).unwrap();
        assert_eq!((statistics.frames, statistics.buffers), (2, 8));
    }

    #[test]
    fn a_command_by_the_book_is_done() {
        let mut machine = machine(Kind::Vnet);
        machine.step(Step::Command {
            class: 5,
            command: 0,
            data: [0; 8],
            len: 8,
        });
        machine.step(Step::Turn);
        assert_eq!(machine.nic.ctrl_statistics().acknowledged, 1);
    }

    #[test]
    fn a_frame_that_is_looped_back_comes_in() {
        let mut machine = machine(Kind::Loopback);
        let (count, len) = (1, 2048);
        machine.step(Step::Buffers { count, len });
        let header = [0; 12];
        let (len, cut) = (60, 20);
        machine.step(Step::Frame { header, len, cut });
        machine.step(Step::Turn);
        assert_eq!(machine.nic.rx_statistics(0).unwrap().frames, 1);
    }
}
