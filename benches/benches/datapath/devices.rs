//! What devices on one I/O thread cost: to make, while nothing happens, and for the one that is at work.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use benches::{Format, FrameSize, Layout, Rig, allocated, open_netdev};
use iothread::IoThread;
use virtio::net::F as NetF;

use super::report::{Report, Table, median, nanoseconds};
use super::rounds;

/// Frames that are timed as one.
const FRAMES: u64 = 2000;

pub(crate) fn measure(report: &mut Report) {
    let mut table = Table::new(
        "Devices on one I/O thread",
        "Medians. Each device is on a tap of its own. Memory is what is allocated for each, the driver's part of the \
         bench among it and guest memory not; the time of the I/O thread is that of a second in which nothing happens; \
         the frame is of 64 bytes and sent by one device, the others at rest.",
        &[
            "devices",
            "opening a tap, µs",
            "making and activating a device, µs",
            "memory of one, KiB",
            "I/O thread in a second, µs",
            "a frame, ns",
        ],
    );
    for count in [1, 8, 64] {
        table.row(some(count));
    }
    report.add(table);
}

fn some(count: usize) -> [String; 6] {
    let io = Arc::new(IoThread::new("devices").unwrap());
    let open = || open_netdev("tap,id=tap0,engine=sync");
    // The first of anything is dearer.
    drop(Rig::on(&io, open(), Format::Split, NetF::empty()));
    let before = allocated();
    let (mut opening, mut making, mut rigs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let start = Instant::now();
        let netdev = open();
        opening.push(start.elapsed());
        let start = Instant::now();
        rigs.push(Rig::on(&io, netdev, Format::Split, NetF::empty()));
        making.push(start.elapsed());
    }
    let grown = allocated().saturating_sub(before) / count / 1024;
    // What was scheduled while they were made is done before the rest begins.
    let clock = rigs[0].clock();
    rigs[0].settle();
    let start = clock.now();
    if rounds(2) > 1 {
        thread::sleep(Duration::from_secs(1));
    }
    let spent = clock.now() - start;
    // On a tap that is up.
    let mut working = Rig::on(
        &io,
        open_netdev("tap,id=tap0,ifname=working,ip=10.7.3.1/30,engine=sync"),
        Format::Split,
        NetF::empty(),
    );
    working.prepare_to_send(Layout {
        size: FrameSize::Smallest,
        small_pieces: false,
    });
    let frames: Vec<_> = (0..rounds(100))
        .map(|_| nanoseconds(working.send(FRAMES).wall, FRAMES))
        .collect();
    let micros = |times: &[Duration]| format!("{:.0}", median(times, |t| t.as_secs_f64() * 1e6));
    [
        count.to_string(),
        micros(&opening),
        micros(&making),
        grown.to_string(),
        spent.as_micros().to_string(),
        format!("{:.0}", median(&frames, |ns| *ns)),
    ]
}
