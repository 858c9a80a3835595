//! A guest at the other end of the socket: memory in a file, rings in it, and the protocol's front end.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use iothread::IoThread;
use net_client::{Port, Recorder};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user_transport::{ServeError, VhostUserTransport};
use virtio::{F, le128};
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtqueue::mock::{Buffer, Driver};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::tempfile::TempFile;

pub(crate) const MEMORY: usize = 0x20_0000;
/// Where the guest's memory is for the front end.
pub(crate) const USER: u64 = 0x5500_0000_0000;
pub(crate) const SIZE: u16 = 64;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) type Map = Arc<GuestMemoryMmap<()>>;

/// What a front end chooses for its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Split,
    SplitInOrder,
    Packed,
    PackedInOrder,
}

impl Format {
    pub(crate) const ALL: [Self; 4] = [
        Self::Split,
        Self::SplitInOrder,
        Self::Packed,
        Self::PackedInOrder,
    ];

    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Self::Packed | Self::PackedInOrder)
    }

    pub(crate) fn is_in_order(self) -> bool {
        matches!(self, Self::SplitInOrder | Self::PackedInOrder)
    }

    /// Of what was offered, what is chosen.
    fn choose(self, offered: u64) -> u64 {
        let all = IN_ORDER | RING_PACKED;
        assert_eq!(offered & all, all, "both are offered");
        offered & !all
            | match self {
                Self::Split => 0,
                Self::SplitInOrder => IN_ORDER,
                Self::Packed => RING_PACKED,
                Self::PackedInOrder => all,
            }
    }

    /// What SET_VRING_BASE calls a ring that has taken and used so many entries of its first lap.
    pub(crate) fn base(self, entries: u16) -> u32 {
        if self.is_packed() {
            0x8000_8000 | u32::from(entries) << 16 | u32::from(entries)
        } else {
            entries.into()
        }
    }
}

/// `VIRTIO_F_RING_PACKED`
const RING_PACKED: u64 = 1 << 34;
/// `VIRTIO_F_IN_ORDER`
const IN_ORDER: u64 = 1 << 35;

/// A NIC behind the transport; its wire is one recorder for each pair.
pub(crate) struct Nic {
    pub(crate) transport: Arc<VhostUserTransport>,
    pub(crate) wires: Vec<Arc<Recorder>>,
    _io: IoThread,
}

impl Nic {
    pub(crate) fn new(pairs: usize) -> Self {
        let wires: Vec<_> = (0..pairs)
            .map(|i| Recorder::new(format!("wire{i}")))
            .collect();
        let ports = wires.iter().map(|wire| wire.port().clone()).collect();
        Self {
            wires,
            ..Self::with_ports(ports)
        }
    }

    /// One whose wires are others.
    pub(crate) fn with_ports(ports: Vec<Arc<Port>>) -> Self {
        let io = IoThread::new("io").unwrap();
        let config = VirtioNetConfig {
            mq: ports.len() > 1,
            ctrl_by_front_end: true,
            packed: true,
            in_order: true,
            ..VirtioNetConfig::default()
        };
        let nic = VirtioNet::new(config, ports, vec![io.context()]).unwrap();
        let transport = VhostUserTransport::new();
        transport.bus().plug(nic).unwrap();
        Self {
            transport,
            wires: Vec::new(),
            _io: io,
        }
    }

    /// A front end that has just connected.
    pub(crate) fn connect(&self) -> (UnixStream, JoinHandle<Result<(), ServeError>>) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let transport = self.transport.clone();
        let served = thread::spawn(move || transport.serve(ours));
        (theirs, served)
    }
}

/// A front end that has negotiated, and its guest.
pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    /// The connection again, for what the front end's half of the crate cannot say.
    socket: UnixStream,
    pub(crate) served: JoinHandle<Result<(), ServeError>>,
    pub(crate) memory: Map,
    pub(crate) region: VhostUserMemoryRegionInfo,
    pub(crate) features: u64,
    pub(crate) format: Format,
    pub(crate) rings: Vec<GuestRing>,
    _file: TempFile,
}

/// One ring of the guest's.
pub(crate) struct GuestRing {
    pub(crate) driver: Driver<Map>,
    /// Chains made available so far.
    added: u64,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    error: EventFd,
}

impl Guest {
    /// Negotiates all that is offered with rings of that `format`, passes the memory, and lays out `rings` rings, set up but not started.
    pub(crate) fn new(nic: &Nic, rings: usize, format: Format) -> Self {
        let (socket, served) = nic.connect();
        Self::over(socket, served, rings, format)
    }

    /// The same over a connection that was made.
    pub(crate) fn over(
        socket: UnixStream,
        served: JoinHandle<Result<(), ServeError>>,
        rings: usize,
        format: Format,
    ) -> Self {
        let (frontend, features) = negotiate(&socket, format);
        let file = TempFile::new().unwrap();
        file.as_file().set_len(MEMORY as u64).unwrap();
        let offset = FileOffset::new(file.as_file().try_clone().unwrap(), 0);
        let memory = Arc::new(
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(offset))])
                .unwrap(),
        );
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: file.as_file().as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let negotiated = F::from_bits_retain(le128::from_ne(u128::from(features)));
        let rings = (0..rings)
            .map(|i| GuestRing {
                driver: Driver::new(
                    memory.clone(),
                    GuestAddress(0x2000 * i as u64),
                    SIZE,
                    negotiated,
                ),
                added: 0,
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                call: EventFd::new(EFD_NONBLOCK).unwrap(),
                error: EventFd::new(EFD_NONBLOCK).unwrap(),
            })
            .collect();
        let mut guest = Self {
            frontend,
            socket,
            served,
            memory,
            region,
            features,
            format,
            rings,
            _file: file,
        };
        for i in 0..guest.rings.len() {
            guest.set_up(i);
        }
        guest
    }

    /// Goes on over another connection, with the same memory and the same rings, set up but not started.
    pub(crate) fn reconnect(
        &mut self,
        socket: UnixStream,
        served: JoinHandle<Result<(), ServeError>>,
    ) {
        (self.frontend, self.features) = negotiate(&socket, self.format);
        (self.socket, self.served) = (socket, served);
        self.frontend.set_mem_table(&[self.region]).unwrap();
        for i in 0..self.rings.len() {
            self.set_up(i);
        }
    }

    /// The driver of ring `i` sets it up anew.
    pub(crate) fn begin_anew(&mut self, i: usize) {
        let at = 0x2000 * i as u64;
        self.memory
            .write_slice(&[0; 0x2000], GuestAddress(at))
            .unwrap();
        let features = F::from_bits_retain(le128::from_ne(u128::from(self.features)));
        self.rings[i].driver = Driver::new(self.memory.clone(), GuestAddress(at), SIZE, features);
        self.set_up(i);
    }

    /// Waits until the device says that ring `i` cannot go on.
    pub(crate) fn expect_error(&mut self, i: usize) {
        signalled(&self.rings[i].error);
    }

    fn set_up(&mut self, i: usize) {
        let ring = &self.rings[i];
        self.frontend.set_vring_num(i, SIZE).unwrap();
        self.frontend.set_vring_addr(i, &self.addresses(i)).unwrap();
        self.frontend.set_vring_call(i, &ring.call).unwrap();
        self.frontend.set_vring_err(i, &ring.error).unwrap();
    }

    pub(crate) fn addresses(&self, i: usize) -> VringConfigData {
        let config = self.rings[i].driver.config();
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER + config.desc,
            used_ring_addr: USER + config.device,
            avail_ring_addr: USER + config.driver,
            log_addr: None,
        }
    }

    pub(crate) fn start(&self, i: usize) {
        self.frontend
            .set_vring_kick(i, &self.rings[i].kick)
            .unwrap();
    }

    /// SET_VRING_BASE with all of its 32 bits; whether it was acknowledged.
    pub(crate) fn set_base(&mut self, i: u32, base: u32) -> bool {
        const SET_VRING_BASE: u32 = 10;
        const VERSION_AND_NEED_REPLY: u32 = 1 | 8;
        let message = [SET_VRING_BASE, VERSION_AND_NEED_REPLY, 8, i, base];
        let message: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.socket.write_all(&message).unwrap();
        let mut reply = [0; 20];
        self.socket.read_exact(&mut reply).is_ok() && reply[12..] == [0; 8]
    }

    /// The connection, for what no front end should say.
    pub(crate) fn socket(&self) -> UnixStream {
        self.socket.try_clone().unwrap()
    }

    /// All rings run and are in use.
    pub(crate) fn run(&mut self) {
        for i in 0..self.rings.len() {
            self.start(i);
            self.frontend.set_vring_enable(i, true).unwrap();
        }
    }

    /// Queues a frame on transmit queue `i`, and kicks; what names it on the used ring.
    pub(crate) fn send(&mut self, i: usize, bytes: &[u8]) -> u32 {
        let at = 0x10_0000 + 0x1000 * self.next_buffer(i);
        self.memory.write_slice(&[0; 12], GuestAddress(at)).unwrap();
        self.memory
            .write_slice(bytes, GuestAddress(at + 12))
            .unwrap();
        let len = u32::try_from(bytes.len()).unwrap() + 12;
        let head = self.rings[i].driver.add(&[Buffer::readable(at, len)]);
        self.rings[i].kick.write(1).unwrap();
        head.into()
    }

    /// Makes a buffer available on receive queue `i`, and kicks; where it is.
    pub(crate) fn offer(&mut self, i: usize) -> u64 {
        let at = 0x18_0000 + 0x1000 * self.next_buffer(i);
        self.rings[i].driver.add(&[Buffer::writable(at, 0x1000)]);
        self.rings[i].kick.write(1).unwrap();
        at
    }

    fn next_buffer(&mut self, i: usize) -> u64 {
        let added = &mut self.rings[i].added;
        *added += 1;
        *added % 64
    }

    /// Waits for the next used element of ring `i`.
    pub(crate) fn used(&mut self, i: usize) -> (u32, u32) {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(used) = self.rings[i].driver.take_used() {
                return used;
            }
            assert!(Instant::now() < end, "nothing used on ring {i}");
            thread::yield_now();
        }
    }

    /// The front end leaves; what serving it came to.
    pub(crate) fn leave(self) -> Result<(), ServeError> {
        drop(self.frontend);
        drop(self.socket);
        self.served.join().unwrap()
    }
}

/// A front end at the beginning of a connection, and what it has chosen of what is offered.
fn negotiate(socket: &UnixStream, format: Format) -> (Frontend, u64) {
    let mut frontend = Frontend::from_stream(socket.try_clone().unwrap(), 8);
    frontend.set_owner().unwrap();
    let features = format.choose(frontend.get_features().unwrap());
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features).unwrap();
    (frontend, features)
}

/// Waits for a signal.
pub(crate) fn signalled(fd: &EventFd) {
    let end = Instant::now() + DEADLINE;
    while fd.read().is_err() {
        assert!(Instant::now() < end, "no signal");
        thread::yield_now();
    }
}

/// Waits for the frame on a wire, past its header.
pub(crate) fn arrived(wire: &Recorder, bytes: &[u8]) {
    let frame = wire.wait_for(DEADLINE, |frame| frame.ends_with(bytes));
    assert!(frame.is_some(), "{bytes:x?} did not arrive");
}
