//! The device on a tap, its engines beside the bare loops of the same kind: `datapath/tx/64B/sync`, ...
//!
//! Device and bare loop run on one processor by turns, a batch of frames each, and the driver on another; so
//! whatever else the machine does meets them alike. An iteration is a frame. Behind that, without criterion: two pairs of
//! queues beside one, requests and answers, many devices. With SAVE_RESULTS set, the tables and a plot are written to
//! `benches/results/`. Where there is no namespace or tap to be had, says so.
#![expect(
    clippy::unwrap_used,
    reason = "a bench ends where its set-up or one of its checks fails"
)]

#[path = "datapath/devices.rs"]
mod devices;
#[path = "datapath/pairs.rs"]
mod pairs;
#[path = "datapath/ping.rs"]
mod ping;
#[path = "datapath/report.rs"]
mod report;

use std::cell::RefCell;
use std::fs;
use std::time::Duration;

use benches::{
    DRIVER_CPU, Format, FrameSize, Layout, MAC, PacketSocket, RawEngine, RawTap, Rig, Took, pin,
};
use criterion::{BenchmarkId, Criterion};
use examples::netns;
use net_client::NetClients;
use virtio::net::F as NetF;

use self::report::{Line, Report};

/// What is measured: which way, what frames, for what driver.
#[derive(Clone, Copy)]
struct Case {
    out: bool,
    layout: Layout,
    /// The driver takes segments of up to 64 KiB, so any frame may be one.
    segments: bool,
}

impl Case {
    const ALL: [Self; 10] = [
        Self::new(true, FrameSize::Smallest, true),
        Self::new(true, FrameSize::Full, true),
        Self::new(true, FrameSize::Segmented, true),
        Self::new(true, FrameSize::Segmented, true).in_small_pieces(),
        Self::new(false, FrameSize::Smallest, false),
        Self::new(false, FrameSize::Full, false),
        Self::new(false, FrameSize::Smallest, true),
        Self::new(false, FrameSize::Full, true),
        Self::new(false, FrameSize::Segmented, true),
        Self::new(false, FrameSize::Segmented, true).in_small_pieces(),
    ];

    const fn new(out: bool, size: FrameSize, segments: bool) -> Self {
        Self {
            out,
            layout: Layout {
                size,
                small_pieces: false,
            },
            segments,
        }
    }

    const fn in_small_pieces(mut self) -> Self {
        self.layout.small_pieces = true;
        self
    }

    fn name(self) -> String {
        let way = if self.out { "tx" } else { "rx" };
        let plain = if self.segments { "" } else { "/plain" };
        let small = if self.layout.small_pieces {
            "/small"
        } else {
            ""
        };
        format!("{way}/{}{plain}{small}", self.layout.size.name())
    }

    /// Frames that are timed as one.
    fn chunk(self) -> u64 {
        match self.layout.size {
            FrameSize::Smallest | FrameSize::Full => 2000,
            FrameSize::Segmented => 120,
        }
    }

    fn without(self) -> NetF {
        if self.segments {
            NetF::empty()
        } else {
            NetF::GUEST_TSO4
                | NetF::GUEST_TSO6
                | NetF::GUEST_ECN
                | NetF::GUEST_UFO
                | NetF::GUEST_USO4
                | NetF::GUEST_USO6
        }
    }
}

/// Who moves the frames, and the host's end of its tap.
struct Contender {
    mover: Mover,
    host: PacketSocket,
    case: Case,
    frame: Vec<u8>,
}

enum Mover {
    Device(Box<Rig>),
    Raw(Box<RawTap>),
}

impl Contender {
    fn device(case: Case, format: Format, engine: &str) -> Self {
        let name = format!("dev-{engine}");
        let netdev = format!("tap,id=tap0,ifname={name},ip=10.7.0.1/30,engine={engine}");
        let mut rig = Rig::new(&netdev, format, case.without());
        if case.out {
            rig.prepare_to_send(case.layout);
        } else {
            rig.prepare_to_receive(case.layout);
        }
        Self::on(case, &name, Mover::Device(Box::new(rig)))
    }

    fn raw(case: Case, engine: RawEngine) -> Self {
        let (name, address) = match engine {
            RawEngine::Vectors => ("raw-vectors", "10.7.0.5/30"),
            RawEngine::IoUring => ("raw-io_uring", "10.7.0.9/30"),
        };
        let mut tap = RawTap::open(name, address, case.layout, engine);
        if case.out {
            tap.prepare_to_send();
        } else {
            tap.prepare_to_receive();
        }
        Self::on(case, name, Mover::Raw(Box::new(tap)))
    }

    fn on(case: Case, name: &str, mover: Mover) -> Self {
        let host = PacketSocket::bind(name).unwrap();
        host.set_queue_len(name, 4096).unwrap();
        Self {
            mover,
            host,
            case,
            frame: case.layout.size.bytes(MAC),
        }
    }

    /// Moves so many frames, at most a chunk.
    fn run(&mut self, frames: u64) -> Took {
        if !self.case.out {
            for _ in 0..frames {
                self.host.send(&self.frame);
            }
        }
        let buffers = self.case.layout.buffers();
        match (&mut self.mover, self.case.out) {
            (Mover::Device(rig), true) => rig.send(frames),
            (Mover::Device(rig), false) => rig.receive(frames * buffers),
            (Mover::Raw(tap), true) => tap.send(frames),
            (Mover::Raw(tap), false) => tap.receive(frames),
        }
    }
}

fn main() {
    // While the process has one thread.
    if let Err(error) = netns::enter_new() {
        return not_measured(&error.to_string());
    }
    // The host stays silent where nobody asks it.
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    for engine in ENGINES {
        let netdevs = NetClients::new();
        net_tap::register(&netdevs);
        if let Err(error) = netdevs.add(&format!("tap,id=tap0,ifname=probe0,engine={engine}")) {
            return not_measured(&error.to_string());
        }
    }
    pin(DRIVER_CPU);
    let mut report = Report::default();
    frames(&mut report);
    if is_wanted("pairs") {
        pairs::measure(&mut report);
    }
    if is_wanted("ping") {
        ping::measure(&mut report);
    }
    if is_wanted("devices") {
        devices::measure(&mut report);
    }
    report.finish();
}

/// Each case on rings of each format by each engine.
fn frames(report: &mut Report) {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .configure_from_args();
    let mut group = criterion.benchmark_group("datapath");
    for case in Case::ALL {
        for (format, engine) in [Format::Split, Format::Packed]
            .into_iter()
            .flat_map(|format| ENGINES.map(|engine| (format, engine)))
        {
            let mut contenders = None;
            let line = RefCell::new(Line::new(case.name(), format.name(), engine));
            let id = format!("{}/{}", format.name(), engine);
            group.bench_function(BenchmarkId::new(case.name(), id), |bencher| {
                let contenders = contenders.get_or_insert_with(|| {
                    [
                        Contender::device(case, format, engine),
                        Contender::raw(case, RawEngine::Vectors),
                        Contender::raw(case, RawEngine::IoUring),
                    ]
                });
                bencher.iter_custom(|frames| {
                    let mut left = frames;
                    let mut device = Duration::ZERO;
                    while left > 0 {
                        let now = left.min(case.chunk());
                        let took = contenders.each_mut().map(|contender| contender.run(now));
                        device += took[0].wall;
                        // Of a few frames the start would be most.
                        if now == case.chunk() {
                            line.borrow_mut().add(took, now);
                        }
                        left -= now;
                    }
                    device
                });
            });
            report.push(line.into_inner());
        }
    }
    group.finish();
    criterion.final_summary();
}

const ENGINES: [&str; 2] = ["sync", "io_uring"];

/// Whether `name` is among what the command line asks for.
fn is_wanted(name: &str) -> bool {
    let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-'));
    // Numbers are values of criterion's options.
    let filter = filters.find(|filter| filter.parse::<f64>().is_err());
    filter.is_none_or(|filter| format!("datapath/{name}").contains(&filter))
}

/// Rounds of a measurement: one, where nothing is to be measured but checked.
fn rounds(wanted: usize) -> usize {
    let is_measured = std::env::args().any(|argument| argument == "--bench");
    if is_measured { wanted } else { 1 }
}

fn not_measured(why: &str) {
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "cannot be measured here: {why}"
    );
    println!("datapath: not measured: {why}");
}
