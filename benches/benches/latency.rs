//! From the driver's kick to the device's interrupt, across threads: `latency/kick-to-interrupt`, and
//! beside it the same two wake-ups with no device between them, `latency/bare-iothread`.
#![expect(missing_docs, reason = "criterion makes public functions")]
#![expect(
    clippy::unwrap_used,
    reason = "a bench ends where its set-up or one of its checks fails"
)]

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use benches::{FrameSize, HEADER_LEN, InstantPeer};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use examples::devices::Devices;
use examples::machine::{DriverView, Interrupts, Machine, MachineConfig, ManualInterrupts};
use examples::readiness::{borrow, wait_readable};
use iothread::{AioContext, FdHandler, Interest, IoThread, Readiness, WatchedEventFd};
use virtio_bus::{KickAddress, KickBinder};
use virtio_guest::net::Header;
use virtio_guest::{
    DmaMemory, DmaRegion, Interrupts as DriverInterrupts, MsixMessage, NetConfig, NetDriver,
    VirtioPciTransport, pci,
};
use vm_pci::{DevFn, MsiMessage, MsiSink, MsiVector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn latency(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("latency");
    group.throughput(Throughput::Elements(1));

    // The whole stack: options, PCI registers, MSI-X; the kick and the interrupt are those descriptors
    // that KVM would signal and be signalled by.
    let rig = Rig::new();
    let mut driver = rig.driver();
    let kick = rig.doorbells.transmit_kick();
    let vector = rig.messages.vector(TRANSMIT_MESSAGE.data);
    let frame = FrameSize::Smallest.bytes([0xff; 6]).split_off(HEADER_LEN);
    let view = DriverView::new(rig.machine.clone());
    let context = rig.devices.tree().service::<dyn AioContext>().unwrap();
    await_rest(&*context);
    rig.peer.take_counts();
    group.bench_function("kick-to-interrupt", |bencher| {
        bencher.iter_custom(|count| {
            let mut time = Duration::ZERO;
            for _ in 0..count {
                driver.queue_transmit(&Header::default(), &frame).unwrap();
                let queue = driver.transmit_queue().queue_mut();
                assert!(!queue.enable_interrupts(&view), "all is reaped");
                assert!(queue.publish(&view), "the device sleeps");
                time += round_trip(&kick, &vector.event);
                await_rest(&*context);
                assert_eq!(driver.reap_transmit().unwrap(), 1);
            }
            assert_eq!(rig.peer.take_counts().0, count);
            time
        });
    });
    drop((driver, rig));

    let thread = IoThread::new("bare").unwrap();
    let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let echo = Arc::new(Echo {
        kick: event(),
        call: event(),
    });
    let handler: Arc<dyn FdHandler> = echo.clone();
    let context: Arc<dyn AioContext> = thread.context();
    context
        .add_fd(
            Arc::new(WatchedEventFd(echo.kick.clone())),
            Interest::READ,
            Arc::downgrade(&handler),
        )
        .unwrap();
    group.bench_function("bare-iothread", |bencher| {
        bencher.iter_custom(|count| {
            let mut time = Duration::ZERO;
            for _ in 0..count {
                time += round_trip(&echo.kick, &echo.call);
                await_rest(&*context);
            }
            time
        });
    });
    group.finish();
}

/// Kicks, and waits for the interrupt.
fn round_trip(kick: &EventFd, call: &EventFd) -> Duration {
    let start = Instant::now();
    kick.write(1).unwrap();
    let [called] = wait_readable([borrow(call)], Some(DEADLINE)).unwrap();
    let time = start.elapsed();
    assert!(called, "no interrupt");
    assert_eq!(call.read().unwrap(), 1);
    time
}

/// Returns when the context has done what it had to do: the device interrupts before it is finished.
fn await_rest(context: &dyn AioContext) {
    let (done, wait) = mpsc::channel();
    context.schedule(Box::new(move || {
        let _ = done.send(());
    }));
    wait.recv().unwrap();
}

/// Answers each kick at once.
struct Echo {
    kick: Arc<EventFd>,
    call: Arc<EventFd>,
}

impl FdHandler for Echo {
    fn ready(&self, _readiness: Readiness) {
        self.kick.read().unwrap();
        self.call.write(1).unwrap();
    }
}

/// A machine with one NIC, whose thread is its own.
struct Rig {
    // In the order in which they are dropped.
    devices: Devices,
    machine: Arc<Machine>,
    messages: Arc<Messages>,
    doorbells: Arc<Doorbells>,
    peer: Arc<InstantPeer>,
}

impl Rig {
    fn new() -> Self {
        let messages = Arc::new(Messages::default());
        let doorbells = Arc::new(Doorbells::default());
        let interrupts = Interrupts {
            msi: messages.clone(),
            kicks: doorbells.clone(),
            lines: ManualInterrupts::new(),
        };
        let config = MachineConfig {
            ram: 16 << 20,
            exit_port: None,
        };
        let machine = Machine::new(&config, interrupts, Box::new(io::sink())).unwrap();
        let devices = Devices::new(&machine).unwrap();
        let peer = InstantPeer::new();
        devices.netdevs().insert("net0", peer.clone()).unwrap();
        devices.device_add("virtio-net-pci,netdev=net0").unwrap();
        machine.assign_resources().unwrap();
        Self {
            devices,
            machine,
            messages,
            doorbells,
            peer,
        }
    }

    fn driver(&self) -> NetDriver<DriverView, 64> {
        let view = DriverView::new(self.machine.clone());
        let address = pci::functions(&view, 0)
            .find(|function| pci::is_virtio_net(&view, *function))
            .unwrap();
        let transport = VirtioPciTransport::probe(view, address).unwrap();
        let messages = [
            message(0x40),
            message(0x41),
            TRANSMIT_MESSAGE,
            message(0x43),
        ];
        let config = NetConfig {
            interrupts: DriverInterrupts::Messages(&messages),
            ..NetConfig::default()
        };
        let memory = DmaMemory::new(DmaRegion {
            address: 4 << 20,
            len: 1 << 20,
        });
        NetDriver::new(transport, memory, &config).unwrap()
    }
}

/// Vectors that nobody but the bench waits for.
#[derive(Debug, Default)]
struct Messages {
    vectors: Mutex<Vec<Arc<Vector>>>,
}

#[derive(Debug)]
struct Vector {
    event: EventFd,
    message: Mutex<Option<MsiMessage>>,
}

impl Messages {
    /// The vector that sends `data`.
    fn vector(&self, data: u32) -> Arc<Vector> {
        let vectors = self.vectors.lock().unwrap();
        let sends = |vector: &&Arc<Vector>| {
            let message = vector.message.lock().unwrap();
            message.is_some_and(|message| message.data == data)
        };
        vectors.iter().find(sends).unwrap().clone()
    }
}

impl MsiSink for Messages {
    fn vector(&self, _requester: DevFn) -> io::Result<Arc<dyn MsiVector>> {
        let vector = Arc::new(Vector {
            event: EventFd::new(EFD_NONBLOCK)?,
            message: Mutex::default(),
        });
        self.vectors.lock().unwrap().push(vector.clone());
        Ok(vector)
    }
}

impl MsiVector for Vector {
    fn event_fd(&self) -> &EventFd {
        &self.event
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.message.lock().unwrap() = message;
        Ok(())
    }
}

/// Notify registers as KVM would bind them; the bench signals their descriptors itself.
#[derive(Debug, Default)]
struct Doorbells {
    bound: Mutex<Vec<(u64, Arc<EventFd>)>>,
}

impl Doorbells {
    /// Queues follow each other in the notify structure, the transmit queue after the receive queue.
    fn transmit_kick(&self) -> Arc<EventFd> {
        let mut bound = self.bound.lock().unwrap().clone();
        bound.sort_by_key(|(address, _)| *address);
        bound.get(1).unwrap().1.clone()
    }
}

impl KickBinder for Doorbells {
    fn bind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        self.bound.lock().unwrap().push((at.address, kick.clone()));
        Ok(())
    }

    fn unbind(&self, at: KickAddress, _kick: &Arc<EventFd>) -> io::Result<()> {
        let mut bound = self.bound.lock().unwrap();
        bound.retain(|(address, _)| *address != at.address);
        Ok(())
    }
}

const fn message(data: u32) -> MsixMessage {
    MsixMessage {
        address: 0xfee0_0000,
        data,
    }
}

const TRANSMIT_MESSAGE: MsixMessage = message(0x42);
/// Only ends a bench that hangs.
const DEADLINE: Duration = Duration::from_secs(20);

criterion_group! {
    name = to_interrupt;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = latency
}
criterion_main!(to_interrupt);
