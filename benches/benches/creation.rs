//! What it takes until there is a device: `class/virtio-net-pci`, `device/options`, `device/plain`.
#![expect(missing_docs, reason = "criterion makes public functions")]
#![expect(
    clippy::unwrap_used,
    reason = "a bench ends where its set-up or one of its checks fails"
)]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benches::InstantPeer;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use examples::devices::Devices;
use examples::machine::{Machine, MachineConfig, ManualInterrupts, Memory};
use iothread::{AioContext, EventLoop};
use qom::TypeRegistry;
use virtio_net::{VirtioNet, VirtioNetConfig};
use virtio_pci::{VirtioPci, VirtioPciConfig};
use vm_pci::DevFn;

/// The first use of a type: the classes of the leaf and of all that it descends from are made. Then with
/// those that its model has.
fn class(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("class");
    group.throughput(criterion::Throughput::Elements(1));
    group.bench_function("virtio-net-pci", |bencher| {
        bencher.iter_batched(
            types,
            |types| {
                let class = types.class("virtio-net-pci").unwrap();
                assert!(class.is_a("device"));
                (class, types)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("register", |bencher| {
        bencher.iter_with_large_drop(types);
    });
    group.finish();
}

fn types() -> Arc<TypeRegistry> {
    let mut types = TypeRegistry::new();
    virtio_pci_proxies::object::register_all::<Memory>(&mut types).unwrap();
    types.share()
}

/// A device from nothing to its place on the PCI bus, its netdev being there.
fn device(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("device");
    group.throughput(criterion::Throughput::Elements(1));
    group.bench_function("options", |bencher| {
        let machine = machine();
        let devices = Devices::new(&machine).unwrap();
        let peer = InstantPeer::new();
        devices.netdevs().insert("net0", peer.clone()).unwrap();
        bencher.iter_custom(|count| {
            let mut time = Duration::ZERO;
            for _ in 0..count {
                let start = Instant::now();
                let device = devices.device_add(OPTIONS).unwrap();
                time += start.elapsed();
                assert!(peer.port().peer().is_some());
                assert_eq!(identity(&machine), VIRTIO_NET);
                devices.tree().finish_unplug(&device).unwrap();
                assert!(peer.port().peer().is_none());
            }
            time
        });
    });
    group.bench_function("plain", |bencher| {
        let machine = machine();
        let context: Arc<dyn AioContext> = EventLoop::new().unwrap();
        let peer = InstantPeer::new();
        bencher.iter_custom(|count| {
            let mut time = Duration::ZERO;
            for _ in 0..count {
                let start = Instant::now();
                plain(&machine, &context, &peer);
                time += start.elapsed();
                assert!(peer.port().peer().is_some());
                assert_eq!(identity(&machine), VIRTIO_NET);
                drop(machine.pci().bus().detach(place()).unwrap());
                assert!(peer.port().peer().is_none());
            }
            time
        });
    });
    group.finish();
}

fn plain(machine: &Machine, context: &Arc<dyn AioContext>, peer: &InstantPeer) {
    let nic = VirtioNet::new(
        VirtioNetConfig::default(),
        vec![peer.port().clone()],
        vec![context.clone()],
    )
    .unwrap();
    let interrupts = machine.interrupts();
    let pci = VirtioPci::new(
        VirtioPciConfig::default(),
        machine.memory().clone(),
        interrupts.msi.clone(),
        interrupts.kicks.clone(),
    )
    .unwrap();
    pci.bus().plug(nic).unwrap();
    machine.pci().bus().attach(place(), pci).unwrap();
}

fn machine() -> Arc<Machine> {
    let config = MachineConfig {
        ram: 16 << 20,
        exit_port: None,
    };
    let interrupts = ManualInterrupts::new().interrupts();
    Machine::new(&config, interrupts, Box::new(io::sink())).unwrap()
}

fn place() -> DevFn {
    DevFn::new(3, 0).unwrap()
}

fn identity(machine: &Machine) -> u32 {
    let mut identity = [0; 4];
    machine.pci().config_read(0, place(), 0, &mut identity);
    u32::from_le_bytes(identity)
}

const OPTIONS: &str = "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:12:34:56,addr=3";
const VIRTIO_NET: u32 = 0x1000_1af4;

criterion_group! {
    name = creation;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = class, device
}
criterion_main!(creation);
