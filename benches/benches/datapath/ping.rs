//! Requests through the tap that the driver answers, beside what a bare loop answers and two wake-ups; and the way from
//! a kick to the interrupt.

use benches::{Format, FrameSize, Layout, PacketSocket, RawEngine, RawTap, Rig, two_wake_ups};
use virtio::net::F as NetF;

use super::report::{Report, Table, median, nanoseconds};
use super::rounds;

/// Requests that are timed as one.
const COUNT: u64 = 20;

pub(crate) fn measure(report: &mut Report) {
    let mut devices: Vec<_> = [
        (Format::Split, "sync"),
        (Format::Split, "io_uring"),
        (Format::Packed, "sync"),
        (Format::Packed, "io_uring"),
    ]
    .into_iter()
    .zip(0..)
    .map(|((format, engine), n)| {
        let ifname = format!("ping{n}");
        let netdev = format!(
            "tap,id=tap0,ifname={ifname},ip=10.7.1.{}/30,engine={engine}",
            4 * n + 1
        );
        let mut rig = Rig::new(&netdev, format, NetF::empty());
        rig.prepare_to_answer();
        let host = PacketSocket::bind_to_hear(&ifname).unwrap();
        (format!("{engine}, {}", format.name()), rig, host)
    })
    .collect();
    let layout = Layout {
        size: FrameSize::Smallest,
        small_pieces: false,
    };
    let mut bare = [
        (RawEngine::Vectors, "raw-ping0", "10.7.2.1/30"),
        (RawEngine::IoUring, "raw-ping1", "10.7.2.5/30"),
    ]
    .map(|(engine, ifname, address)| {
        let mut tap = RawTap::open(ifname, address, layout, engine);
        tap.prepare_to_receive();
        (tap, PacketSocket::bind_to_hear(ifname).unwrap())
    });
    // Nanoseconds of each: the bare loops, two wake-ups; of each device a ping, from kick to interrupt.
    let mut samples: Vec<([f64; 3], Vec<[f64; 2]>)> = Vec::new();
    // The first of anything is dearer.
    for round in 0..=rounds(100) {
        let [vectors, io_uring] =
            (bare.each_mut()).map(|(tap, host)| nanoseconds(tap.ping(host, COUNT).wall, COUNT));
        let wake_ups = nanoseconds(two_wake_ups(COUNT).wall, COUNT);
        let each = devices.iter_mut().map(|(_, rig, host)| {
            [rig.ping(host, COUNT), rig.kick_to_interrupt(COUNT)]
                .map(|took| nanoseconds(took.wall, COUNT))
        });
        let each = each.collect();
        if round > 0 {
            samples.push(([vectors, io_uring, wake_ups], each));
        }
    }
    let mut table = Table::new(
        "A request and its answer",
        "Nanoseconds, medians of what was measured by turns. A frame of 64 bytes from the host through the tap to the driver and \
         back, all asleep when it comes; beside it the bare loops that send back what they read, and two wake-ups by eventfd. \
         The ratio is that of the better of the two loops with the two wake-ups to the device, above 1 where the device is \
         faster. Last, a frame that is sent, from the driver's kick to the interrupt that wakes it.",
        &[
            "engine",
            "device",
            "`readv`, `writev`",
            "io_uring",
            "two wake-ups",
            "ratio",
            "kick to interrupt",
        ],
    );
    let [vectors, io_uring, wake_ups] = [0, 1, 2].map(|n| median(&samples, |s| s.0[n]));
    let better = usize::from(io_uring < vectors);
    for (n, (name, ..)) in devices.iter().enumerate() {
        let ratio = median(&samples, |s| (s.0[better] + s.0[2]) / s.1[n][0]);
        table.row([
            name.clone(),
            format!("{:.0}", median(&samples, |s| s.1[n][0])),
            format!("{vectors:.0}"),
            format!("{io_uring:.0}"),
            format!("{wake_ups:.0}"),
            format!("{ratio:.2}"),
            format!("{:.0}", median(&samples, |s| s.1[n][1])),
        ]);
    }
    report.add(table);
}
