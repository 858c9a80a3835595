//! Frames through the device and a real tap, in a network namespace of the process's own:
//! `tap/tx/1500B/indirect`, ...
//!
//! The device's work and the kernel's: a system call for each frame, and what the host does with a frame
//! to nobody. Where there is no namespace or tap to be had, says so.
#![expect(
    clippy::unwrap_used,
    reason = "a bench ends where its set-up or one of its checks fails"
)]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use benches::{
    Buffers, FrameSize, HEADER_LEN, PacketSocket, Receiver, Round, Transmitter, timed, warmed_up,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use examples::netns;
use net_client::{NetClients, Netdev, Port};

fn main() {
    // While the process has one thread.
    if let Err(error) = netns::enter_new() {
        return not_measured(&error.to_string());
    }
    // The host stays silent where nobody asks it.
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    if let Err(error) = open() {
        return not_measured(&error);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("tap");
    for size in FrameSize::ALL {
        for buffers in [Buffers::Direct, Buffers::Indirect] {
            let id = BenchmarkId::new(format!("tx/{}", size.name()), buffers.name());
            one(&mut group, size, id, || {
                let (netdev, port) = open().unwrap();
                OnTap::new(Transmitter::to(port, size, buffers), netdev)
            });
        }
        for buffers in [Buffers::Mergeable, Buffers::Direct, Buffers::Indirect] {
            let id = BenchmarkId::new(format!("rx/{}", size.name()), buffers.name());
            one(&mut group, size, id, || {
                let (netdev, port) = open().unwrap();
                let socket = PacketSocket::bind(NAME).unwrap();
                OnTap::new(Receiver::from_tap(port, socket, size, buffers), netdev)
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

fn one<R: Round>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    size: FrameSize,
    id: BenchmarkId,
    make: impl Fn() -> R,
) {
    group.throughput(match size {
        FrameSize::Segmented => Throughput::Bytes((HEADER_LEN + size.frame_len()) as u64),
        _ => Throughput::Elements(1),
    });
    let mut round = None;
    group.bench_function(id, |bencher| {
        let round = round.get_or_insert_with(|| warmed_up(make()));
        bencher.iter_custom(|frames| timed(round, frames));
    });
}

/// A tap with an address, and its port.
fn open() -> Result<(Arc<dyn Netdev>, Arc<Port>), String> {
    let netdevs = NetClients::new();
    net_tap::register(&netdevs);
    let netdev = netdevs
        .add(&format!("tap,id=tap0,ifname={NAME},ip=10.0.2.2/24"))
        .map_err(|error| error.to_string())?;
    let port = netdev.ports().first().unwrap().clone();
    Ok((netdev, port))
}

/// The work, and the netdev that it needs.
struct OnTap<R> {
    // In the order in which they are dropped.
    round: R,
    _netdev: Arc<dyn Netdev>,
}

impl<R> OnTap<R> {
    fn new(round: R, netdev: Arc<dyn Netdev>) -> Self {
        Self {
            round,
            _netdev: netdev,
        }
    }
}

impl<R: Round> Round for OnTap<R> {
    fn batch(&self) -> u64 {
        self.round.batch()
    }

    fn prepare(&mut self, frames: u64) {
        self.round.prepare(frames);
    }

    fn work(&mut self) {
        self.round.work();
    }

    fn conclude(&mut self, frames: u64) {
        self.round.conclude(frames);
    }
}

fn not_measured(why: &str) {
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "cannot be measured here: {why}"
    );
    println!("tap: not measured: {why}");
}

const NAME: &str = "bench0";
