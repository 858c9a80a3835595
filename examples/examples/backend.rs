//! A backend of one's own as a net client: the frames of a NIC as datagrams of a Unix socket.
//!
//! ```text
//! cargo run --example backend
//! ```
//!
//! Whatever is at the other end of the socket is the network: here a thread that sends each frame back. The
//! machine is the VMM's without a processor, with a driver in this process in the guest's place.

use std::error::Error;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use iothread::{AioContext, FdHandler, Interest, Readiness, WatchId};
use net_client::{
    Drained, DropReason, Frame, FrameSource, IoVec, NetClient, Netdev, Port, Read, Received, Token,
    copy_from_iov, copy_to_iov,
};
use virtio_guest::{DmaMemory, DmaRegion, NetConfig, NetDriver, VirtioPciTransport, pci};

use examples::devices::Devices;
use examples::machine::layout::MIB;
use examples::machine::{DriverView, Machine, MachineConfig, ManualInterrupts};

const FRAME_MAX: usize = 65_535;

/// The backend: one port, and the socket behind it.
#[derive(Debug)]
struct Datagrams {
    port: Arc<Port>,
    socket: Arc<UnixDatagram>,
    watch: Mutex<Option<(Arc<dyn AioContext>, WatchId)>>,
    me: Weak<Self>,
}

impl Datagrams {
    fn new(name: &str, socket: UnixDatagram) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        Ok(Arc::new_cyclic(|me: &Weak<Self>| Self {
            port: Port::new(name, me.clone()),
            socket: Arc::new(socket),
            watch: Mutex::default(),
            me: me.clone(),
        }))
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Option<(Arc<dyn AioContext>, WatchId)>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_reading(&self, readable: bool) {
        if let Some((context, id)) = &*self.watch() {
            context.set_interest(
                *id,
                Interest {
                    readable,
                    ..Interest::NONE
                },
            );
        }
    }
}

impl NetClient for Datagrams {
    // A frame of the guest's. A wire that is full loses it; one that would rather have the guest wait
    // answers `Busy`, and calls `port.room()` later.
    fn receive(&self, frame: &Frame<'_>) -> Received {
        let mut bytes = vec![0; frame.len.min(FRAME_MAX)];
        let len = copy_from_iov(frame.iov, 0, &mut bytes);
        if self.socket.send(&bytes[..len]).is_err() {
            self.port.count_dropped_receiving(DropReason::NoRoom);
        }
        Received::Taken
    }

    // The guest has buffers again.
    fn room(&self) {
        self.set_reading(true);
    }

    // Connected to a NIC, whose frames and ours are dealt with on this context.
    fn attach(&self, context: &Arc<dyn AioContext>) -> io::Result<()> {
        self.detach();
        let id = context.add_fd(self.socket.clone(), Interest::READ, self.me.clone())?;
        *self.watch() = Some((context.clone(), id));
        Ok(())
    }

    fn detach(&self) {
        if let Some((context, id)) = self.watch().take() {
            context.remove_fd(id);
        }
    }
}

impl FdHandler for Datagrams {
    // Datagrams wait: the NIC is offered to read them.
    fn ready(&self, _: Readiness) {
        if self.port.offer(&mut Wire(&self.socket)) == Drained::NoRoom {
            self.set_reading(false);
        }
    }
}

/// The socket as a source of frames.
struct Wire<'a>(&'a UnixDatagram);

impl FrameSource for Wire<'_> {
    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    // One frame, into the guest's own buffers. (`readv` would save the copy.)
    fn read(&mut self, _: Token, iov: &[IoVec]) -> Read {
        let mut bytes = [0; FRAME_MAX];
        match self.0.recv(&mut bytes) {
            Ok(len) => Read::Frame(copy_to_iov(iov, 0, &bytes[..len])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Empty,
            Err(_) => Read::Failed,
        }
    }
}

// What the netdev table shows of it: `-device ...,netdev=wire0` finds it there.
impl Netdev for Datagrams {
    fn kind(&self) -> &str {
        "datagrams"
    }

    fn ports(&self) -> &[Arc<Port>] {
        std::slice::from_ref(&self.port)
    }

    fn info(&self) -> String {
        format!("{:?}", self.socket)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (ours, theirs) = UnixDatagram::pair()?;
    thread::spawn(move || {
        let mut bytes = [0; FRAME_MAX];
        while let Ok(len @ 1..) = theirs.recv(&mut bytes) {
            if theirs.send(&bytes[..len]).is_err() {
                break;
            }
        }
    });

    let interrupts = ManualInterrupts::new();
    let config = MachineConfig {
        ram: 16 * MIB,
        exit_port: None,
    };
    let machine = Machine::new(&config, interrupts.interrupts(), Box::new(io::sink()))?;
    let devices = Devices::new(&machine)?;
    let wire = Datagrams::new("wire0", ours)?;
    devices.netdevs().insert("wire0", wire.clone())?;
    devices.device_add("virtio-net-pci,netdev=wire0")?;
    machine.assign_resources()?;

    let view = DriverView::new(machine.clone());
    let nic = pci::functions(&view, 0).find(|function| pci::is_virtio_net(&view, *function));
    let transport = VirtioPciTransport::probe(view, nic.ok_or("no NIC on the bus")?)?;
    let memory = DmaMemory::new(DmaRegion {
        address: 4 * MIB,
        len: 1 << 20,
    });
    let mut driver = NetDriver::<_, 64>::new(transport, memory, &NetConfig::default())?;
    let frame = [&[0xff; 6][..], &driver.mac(), &[0x88, 0xb5], &[7; 46]].concat();
    driver.transmit(&frame)?;
    let end = Instant::now() + Duration::from_secs(10);
    let mut back = false;
    while !back && Instant::now() < end {
        driver.poll_receive(&mut [0; 2048], |got| back |= got == frame)?;
        thread::yield_now();
    }
    let statistics = wire.port.statistics();
    println!(
        "the guest sent {} frame, the wire brought {} back",
        statistics.received.frames, statistics.sent.frames
    );
    if back {
        Ok(())
    } else {
        Err("no frame came back".into())
    }
}

#[cfg(test)]
#[test]
fn what_is_sent_comes_back() {
    main().unwrap();
}
