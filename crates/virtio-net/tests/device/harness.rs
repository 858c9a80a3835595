//! A NIC with a driver on one side and a peer that does as told on the other.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use iothread::{AioContext, EventLoop, VirtualClock};
use net_client::{
    Drained, Frame, FrameSource, IoVec, NetClient, Offloads, Port, Read, Received, Token,
    VnetHeader, copy_from_iov, copy_to_iov,
};
use virtio::F;
use virtio::net::F as NetF;
use virtio_bus::{Activation, ActiveQueue, GuestNotifier, Transport, VirtioDevice};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::mock::{Buffer, Driver};
use virtqueue::{QueueIndex, QueueState};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Knows which of its pages were written.
pub(crate) type Memory = Arc<GuestMemoryMmap<AtomicBitmap>>;

pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
pub(crate) const CTRL: usize = 2;
/// Memory that no ring is in.
pub(crate) const DATA: u64 = 0x10_0000;
pub(crate) const HEADER: usize = 12;
/// Where commands are, and where their answers go.
pub(crate) const COMMAND: u64 = 0x7e_0000;
pub(crate) const ANSWER: u64 = 0x7f_0000;
/// `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`.
pub(crate) const OK: u8 = 0;
pub(crate) const ERR: u8 = 1;
/// What an answer byte is before the device writes it.
const UNTOUCHED: u8 = 0xa5;
/// `struct virtio_net_hdr` of a plain frame.
pub(crate) const PLAIN: [u8; HEADER] = [0; HEADER];

/// Something to do once, at a moment in the middle of the device's work.
#[derive(Default)]
pub(crate) struct Hook(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Hook {
    pub(crate) fn set(&self, hook: impl FnOnce() + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(hook));
    }

    fn run(&self) {
        let hook = self.0.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

/// Counts notifications.
#[derive(Debug, Default)]
pub(crate) struct Call {
    count: AtomicUsize,
    /// Run within the next notification.
    pub(crate) hook: Hook,
}

impl Call {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl GuestNotifier for Call {
    fn notify(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.hook.run();
    }

    fn event_fd(&self) -> Option<&EventFd> {
        None
    }
}

/// Writes down what the device reports.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pub(crate) config_changes: AtomicUsize,
    pub(crate) resets: Mutex<Vec<String>>,
    /// Run within the next report of a broken queue.
    pub(crate) reset_hook: Hook,
}

impl Transport for Reports {
    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self, reason: &str) {
        self.resets.lock().unwrap().push(reason.to_owned());
        self.reset_hook.run();
    }
}

/// How the peer answers a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Take,
    /// Keep it until `complete` or `revoke`.
    Keep,
    /// Keep it until the batch's end.
    KeepToFlush,
    Refuse,
}

/// How the peer ends what it has at `revoke`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revoking {
    /// Within the call, the last first.
    Backwards,
    /// Only begins within the call; the context's next turns bring the completions.
    Late,
}

/// The NIC's peer.
#[derive(Debug)]
pub(crate) struct Peer {
    me: Weak<Self>,
    pub(crate) port: Arc<Port>,
    context: Mutex<Option<Arc<dyn AioContext>>>,
    state: Mutex<PeerState>,
    /// Run within the next flush.
    pub(crate) flush_hook: Hook,
}

#[derive(Debug)]
pub(crate) struct PeerState {
    pub(crate) answer: Answer,
    pub(crate) revoking: Revoking,
    /// Frames that are taken before the answer becomes `Refuse`.
    pub(crate) room: usize,
    /// Frames got, header included.
    pub(crate) got: Vec<Vec<u8>>,
    /// Pieces that the last of them was in.
    pub(crate) pieces: usize,
    pub(crate) kept: Vec<Token>,
    /// Where all frames lie that were ever kept.
    pub(crate) lent: Vec<Vec<IoVec>>,
    /// Frames offered.
    pub(crate) offers: usize,
    pub(crate) flushes: usize,
    pub(crate) rooms: usize,
    /// Frames to give.
    pub(crate) to_give: Vec<Vec<u8>>,
    /// Reads go on after the call.
    pub(crate) slow: bool,
    pub(crate) reads: Vec<(Token, Vec<IoVec>)>,
    pub(crate) max_frame: usize,
    pub(crate) header: bool,
    pub(crate) can: Offloads,
    pub(crate) refuses_offloads: bool,
    pub(crate) header_len: Option<usize>,
    pub(crate) offloads: Vec<Offloads>,
    /// What `set_enabled` was told, in order.
    pub(crate) enabled: Vec<bool>,
    pub(crate) refuses_enabling: bool,
}

impl Peer {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            me: me.clone(),
            port: Port::new("peer", me.clone() as Weak<dyn NetClient>),
            context: Mutex::new(None),
            flush_hook: Hook::default(),
            state: Mutex::new(PeerState {
                answer: Answer::Take,
                revoking: Revoking::Backwards,
                room: usize::MAX,
                got: Vec::new(),
                pieces: 0,
                kept: Vec::new(),
                lent: Vec::new(),
                offers: 0,
                flushes: 0,
                rooms: 0,
                to_give: Vec::new(),
                slow: false,
                reads: Vec::new(),
                max_frame: HEADER + 1514,
                header: true,
                can: Offloads {
                    csum: true,
                    tso4: true,
                    tso6: true,
                    ecn: true,
                    ..Default::default()
                },
                refuses_offloads: false,
                header_len: None,
                offloads: Vec::new(),
                enabled: Vec::new(),
                refuses_enabling: false,
            }),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap()
    }

    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.state().got)
    }

    /// Completes a frame that was kept: the `i`th.
    pub(crate) fn complete(&self, i: usize) {
        let token = self.state().kept.remove(i);
        self.port.sent(token);
    }

    /// Ends the `i`th read with `frame`, or with none.
    pub(crate) fn end_read(&self, i: usize, frame: &[u8]) {
        let (token, iov) = self.state().reads.remove(i);
        let len = copy_to_iov(&iov, 0, frame);
        self.port.read_done(token, len);
    }

    /// Has room for so many frames, and says so.
    pub(crate) fn has_room(&self, frames: usize) {
        {
            let mut state = self.state();
            state.room = frames;
            state.answer = Answer::Take;
        }
        self.port.room();
    }

    /// Offers what there is to give.
    pub(crate) fn give(&self) -> Drained {
        self.port.offer(&mut Source(self))
    }

    pub(crate) fn give_frames(&self, frames: impl IntoIterator<Item = Vec<u8>>) -> Drained {
        self.state().to_give.extend(frames);
        self.give()
    }
}

impl NetClient for Peer {
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut state = self.state();
        state.offers += 1;
        if state.answer == Answer::Refuse || state.room == 0 {
            return Received::Busy;
        }
        state.room -= 1;
        let mut bytes = vec![0; frame.len];
        assert_eq!(copy_from_iov(frame.iov, 0, &mut bytes), frame.len);
        state.got.push(bytes);
        state.pieces = frame.iov.len();
        match (state.answer, frame.token) {
            (Answer::Keep | Answer::KeepToFlush, Some(token)) => {
                state.kept.push(token);
                state.lent.push(frame.iov.to_vec());
                Received::Lent
            }
            _ => Received::Taken,
        }
    }

    fn flush(&self, done: &mut dyn FnMut(Token)) {
        let kept = {
            let mut state = self.state();
            state.flushes += 1;
            if state.answer == Answer::KeepToFlush {
                std::mem::take(&mut state.kept)
            } else {
                Vec::new()
            }
        };
        kept.into_iter().for_each(done);
        self.flush_hook.run();
    }

    fn room(&self) {
        self.state().rooms += 1;
    }

    fn revoke(&self) {
        let late = {
            let state = self.state();
            state.revoking == Revoking::Late
        };
        // Not the peer itself: it keeps the context, which keeps what was never run.
        let me = self.me.clone();
        let end = move || {
            let Some(peer) = me.upgrade() else { return };
            let (kept, reads) = {
                let mut state = peer.state();
                (
                    std::mem::take(&mut state.kept),
                    std::mem::take(&mut state.reads),
                )
            };
            for token in kept.into_iter().rev() {
                peer.port.sent(token);
            }
            for (token, _) in reads.into_iter().rev() {
                peer.port.read_done(token, 0);
            }
        };
        match &*self.context.lock().unwrap() {
            Some(context) if late => context.schedule(Box::new(end)),
            _ => end(),
        }
    }

    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        *self.context.lock().unwrap() = Some(context.clone());
        Ok(())
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let mut state = self.state();
        if enabled && state.refuses_enabling {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        state.enabled.push(enabled);
        Ok(())
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        if self.state().header {
            Some(self)
        } else {
            None
        }
    }
}

impl VnetHeader for Peer {
    fn supported_offloads(&self) -> Offloads {
        self.state().can
    }

    fn header_len(&self) -> usize {
        self.state().header_len.unwrap_or(0)
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.state().header_len = Some(len);
        Ok(())
    }

    fn set_little_endian(&self, _little_endian: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut state = self.state();
        if state.refuses_offloads {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        state.offloads.push(offloads);
        Ok(())
    }
}

struct Source<'a>(&'a Peer);

impl FrameSource for Source<'_> {
    fn max_frame(&self) -> usize {
        self.0.state().max_frame
    }

    fn read(&mut self, token: Token, iov: &[IoVec]) -> Read {
        let mut state = self.0.state();
        if state.slow {
            state.reads.push((token, iov.to_vec()));
            return Read::Pending;
        }
        if state.to_give.is_empty() {
            return Read::Empty;
        }
        let frame = state.to_give.remove(0);
        // As `readv` on a tap: what does not fit is cut off, and nobody says so.
        Read::Frame(copy_to_iov(iov, 0, &frame))
    }
}

/// Whether the rings are packed: in test programs whose name says so.
pub(crate) fn packed() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_packed")
}

/// Whether the driver uses the legacy interface: in test programs whose name says so.
pub(crate) fn legacy() -> bool {
    env!("CARGO_CRATE_NAME").ends_with("_legacy")
}

/// A NIC whose driver has set DRIVER_OK, unless told otherwise.
pub(crate) struct Nic {
    pub(crate) memory: Memory,
    pub(crate) device: Arc<VirtioNet<Memory>>,
    pub(crate) context: Arc<EventLoop>,
    pub(crate) clock: Arc<VirtualClock>,
    /// The first pair's.
    pub(crate) peer: Arc<Peer>,
    /// All pairs'.
    pub(crate) peers: Vec<Arc<Peer>>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) drivers: Vec<Driver<Memory>>,
    pub(crate) kicks: Vec<Arc<EventFd>>,
    pub(crate) calls: Vec<Arc<Call>>,
    pub(crate) features: F,
    next_data: u64,
}

impl Nic {
    pub(crate) fn new() -> Self {
        Self::with(&|_| {}, NetF::all())
    }

    /// A NIC with all features that are offered and in `wanted`, whose peer was prepared.
    pub(crate) fn with(prepare: &dyn Fn(&mut PeerState), wanted: NetF) -> Self {
        let nic = Self::idle(prepare, wanted);
        nic.device.negotiate(nic.features).unwrap();
        nic.activate();
        nic
    }

    /// A NIC before feature negotiation.
    pub(crate) fn idle(prepare: &dyn Fn(&mut PeerState), wanted: NetF) -> Self {
        Self::idle_of(VirtioNetConfig::default(), prepare, wanted)
    }

    pub(crate) fn idle_of(
        config: VirtioNetConfig,
        prepare: &dyn Fn(&mut PeerState),
        wanted: NetF,
    ) -> Self {
        Self::idle_pairs(1, config, prepare, wanted)
    }

    /// As [`idle_of`](Self::idle_of), with so many queue pairs (7 at most), each with its peer.
    pub(crate) fn idle_pairs(
        pairs: usize,
        config: VirtioNetConfig,
        prepare: &dyn Fn(&mut PeerState),
        wanted: NetF,
    ) -> Self {
        Self::idle_on(pairs, None, config, prepare, wanted)
    }

    /// As [`idle_pairs`](Self::idle_pairs), on contexts of the caller's.
    pub(crate) fn idle_on(
        pairs: usize,
        contexts: Option<Vec<Arc<dyn AioContext>>>,
        config: VirtioNetConfig,
        prepare: &dyn Fn(&mut PeerState),
        mut wanted: NetF,
    ) -> Self {
        let config = VirtioNetConfig {
            packed: packed(),
            ..config
        };
        if legacy() {
            wanted -= NetF::VERSION_1;
        }
        if !wanted.contains(NetF::VERSION_1) {
            // The legacy interface has no bits past these.
            wanted &= NetF::from_bits_retain(u128::from(u32::MAX).into());
        }
        let clock = VirtualClock::new();
        let context = EventLoop::with_clock(clock.clone()).unwrap();
        let contexts = contexts.unwrap_or_else(|| vec![context.clone()]);
        let peers: Vec<_> = (0..pairs).map(|_| Peer::new()).collect();
        for peer in &peers {
            prepare(&mut peer.state());
        }
        let ports = peers.iter().map(|peer| peer.port.clone()).collect();
        let device = VirtioNet::new(config, ports, contexts).unwrap();
        let reports = Arc::new(Reports::default());
        let weak: Weak<Reports> = Arc::downgrade(&reports);
        device.plugged(weak);
        let features = F::from(NetF::from(device.offered_features()) & wanted);
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x80_0000)]).unwrap());
        let drivers = rings(&memory, &device, features);
        let queues = || 0..drivers.len();
        Self {
            kicks: queues()
                .map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()))
                .collect(),
            calls: queues().map(|_| Arc::new(Call::default())).collect(),
            drivers,
            memory,
            device,
            context,
            clock,
            peer: peers[0].clone(),
            peers,
            reports,
            features,
            next_data: DATA,
        }
    }

    pub(crate) fn loan(&self, index: usize, state: QueueState) -> ActiveQueue {
        ActiveQueue {
            index: QueueIndex(u16::try_from(index).unwrap()),
            config: self.drivers[index].config(),
            state,
            kick: self.kicks[index].clone(),
            call: self.calls[index].clone(),
            in_flight: None,
        }
    }

    /// Where a queue begins.
    pub(crate) fn fresh(&self) -> QueueState {
        QueueState::initial(self.features)
    }

    pub(crate) fn activate(&self) {
        self.activate_from(&vec![self.fresh(); self.drivers.len()]);
    }

    pub(crate) fn activate_from(&self, states: &[QueueState]) {
        let queues = (0..self.drivers.len())
            .map(|i| self.loan(i, states[i]))
            .collect();
        self.device
            .activate(Activation {
                features: self.features,
                memory: self.memory.clone(),
                queues,
            })
            .unwrap();
        // As the transport does.
        for kick in &self.kicks {
            kick.write(1).unwrap();
        }
        self.turn();
    }

    /// Resets the device and starts it again, with new rings.
    pub(crate) fn restart(&mut self) {
        self.device.reset();
        self.device.negotiate(self.features).unwrap();
        self.drivers = rings(&self.memory, &self.device, self.features);
        self.activate();
    }

    /// Turns the loop until nothing is left to do.
    pub(crate) fn turn(&self) {
        while self.context.turn(Some(Duration::ZERO)).unwrap() > 0 {}
    }

    /// Kicks if the device has asked for it, and lets it work. Whether it had.
    pub(crate) fn kick(&mut self, queue: usize) -> bool {
        let wanted = self.drivers[queue].kick_wanted();
        if wanted {
            self.kicks[queue].write(1).unwrap();
        }
        self.turn();
        wanted
    }

    /// Memory for `len` bytes that nothing else is in.
    pub(crate) fn place(&mut self, len: usize) -> u64 {
        let at = self.next_data;
        self.next_data += u64::try_from(len).unwrap().next_multiple_of(16);
        at
    }

    /// Makes a frame available for transmission, in descriptors of the lengths `cuts` and one for the rest.
    pub(crate) fn add_tx(&mut self, bytes: &[u8], cuts: &[usize]) -> u16 {
        self.add_tx_to(TX, bytes, cuts)
    }

    /// As [`add_tx`](Self::add_tx), to any transmit queue.
    pub(crate) fn add_tx_to(&mut self, queue: usize, bytes: &[u8], cuts: &[usize]) -> u16 {
        let at = self.place(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let mut buffers = Vec::new();
        let mut start = 0;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let len = cut.min(bytes.len() - start);
            if len > 0 {
                buffers.push(Buffer::readable(
                    at + u64::try_from(start).unwrap(),
                    u32::try_from(len).unwrap(),
                ));
            }
            start += len;
        }
        self.drivers[queue].add(&buffers)
    }

    /// Makes a buffer available for reception, and returns its head and where it is.
    pub(crate) fn add_rx(&mut self, len: usize) -> (u16, u64) {
        self.add_rx_to(RX, len)
    }

    /// As [`add_rx`](Self::add_rx), to any receive queue.
    pub(crate) fn add_rx_to(&mut self, queue: usize, len: usize) -> (u16, u64) {
        let at = self.place(len);
        self.memory
            .write_slice(&vec![0xa5; len], GuestAddress(at))
            .unwrap();
        let buffer = Buffer::writable(at, u32::try_from(len).unwrap());
        (self.drivers[queue].add(&[buffer]), at)
    }

    /// Prepares a chain, and returns what makes it available: for a hook.
    pub(crate) fn later(
        &mut self,
        queue: usize,
        buffers: &[Buffer],
    ) -> impl FnOnce() + Send + 'static {
        self.drivers[queue].later(buffers)
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Whether the page at `at` was written.
    pub(crate) fn is_dirty(&self, at: u64) -> bool {
        let region = self.memory.find_region(GuestAddress(at)).unwrap();
        region.bitmap().dirty_at(usize::try_from(at).unwrap())
    }

    /// All that the device has used of a queue since last asked.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.drivers[queue].take_used()).collect()
    }

    /// Sends a command to the control queue, the last there is, in descriptors of the lengths `cuts` and one
    /// for the rest, and returns the answer.
    pub(crate) fn command_in(&mut self, bytes: &[u8], cuts: &[u32]) -> u8 {
        let ctrl = self.drivers.len() - 1;
        self.memory
            .write_slice(bytes, GuestAddress(COMMAND))
            .unwrap();
        self.memory
            .write_obj(UNTOUCHED, GuestAddress(ANSWER))
            .unwrap();
        let mut buffers = Vec::new();
        let mut start = 0;
        let end = u32::try_from(bytes.len()).unwrap();
        for cut in cuts.iter().copied().chain([u32::MAX]) {
            let len = cut.min(end - start);
            if len > 0 {
                buffers.push(Buffer::readable(COMMAND + u64::from(start), len));
            }
            start += len;
        }
        buffers.push(Buffer::writable(ANSWER, 1));
        let head = self.drivers[ctrl].add(&buffers);
        self.kick(ctrl);
        assert_eq!(self.used(ctrl), [(u32::from(head), 1)], "{bytes:x?}");
        self.bytes(ANSWER, 1)[0]
    }

    /// Sends a command with room for so many bytes in all behind it, and returns those that the device has written.
    pub(crate) fn command_for(&mut self, bytes: &[u8], room: u32) -> Vec<u8> {
        let ctrl = self.drivers.len() - 1;
        self.memory
            .write_slice(bytes, GuestAddress(COMMAND))
            .unwrap();
        let untouched = vec![UNTOUCHED; usize::try_from(room).unwrap() + 1];
        self.memory
            .write_slice(&untouched, GuestAddress(ANSWER))
            .unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        let head = self.drivers[ctrl].add(&[
            Buffer::readable(COMMAND, len),
            Buffer::writable(ANSWER, room),
        ]);
        self.kick(ctrl);
        let used = self.used(ctrl);
        assert_eq!(used.len(), 1, "{bytes:x?}");
        assert_eq!(used[0].0, u32::from(head));
        let written = usize::try_from(used[0].1).unwrap();
        let all = self.bytes(ANSWER, untouched.len());
        assert!(all[written..].iter().all(|byte| *byte == UNTOUCHED));
        all[..written].to_vec()
    }

    /// Sends a command as Linux does, and returns the answer.
    pub(crate) fn command(&mut self, bytes: &[u8]) -> u8 {
        self.command_in(bytes, &[2])
    }

    pub(crate) fn resets(&self) -> Vec<String> {
        self.reports.resets.lock().unwrap().clone()
    }
}

/// A frame of `len` bytes behind a header.
pub(crate) fn frame(header: [u8; HEADER], len: usize, seed: u8) -> Vec<u8> {
    let mut frame = header.to_vec();
    frame.extend((0..len).map(|i| u8::try_from(i % 251).unwrap() ^ seed));
    frame
}

fn rings(memory: &Memory, device: &VirtioNet<Memory>, features: F) -> Vec<Driver<Memory>> {
    let sizes = (0..).zip(device.queue_max_sizes());
    sizes
        .map(|(i, size)| Driver::new(memory.clone(), GuestAddress(i * 0x1_0000), size, features))
        .collect()
}
