//! Two pairs of queues, each on an I/O thread and a processor of its own, beside one of them alone.
//!
//! With two processors none is left for the driver. So it offers a queue full of frames on each pair, kicks, and
//! sleeps until they have come back; what is compared is the processor time that each I/O thread has had for its
//! own. The bare loops are on two queues of one tap likewise.

use benches::{Format, FrameSize, Layout, RawEngine, RawTap, Rig, Took};
use virtio::net::F as NetF;

use super::report::{Report, Table, median, nanoseconds};
use super::{ENGINES, rounds};

const CPUS: [usize; 2] = [0, 1];
const LAYOUT: Layout = Layout {
    size: FrameSize::Smallest,
    small_pieces: false,
};
/// Frames that are timed as one: a queue full.
const FRAMES: u64 = 256;

/// Nanoseconds of processor time for a frame: the first alone, the second alone, both together.
type Round = [f64; 4];

pub(crate) fn measure(report: &mut Report) {
    let mut table = Table::new(
        "Two pairs on two I/O threads",
        "Processor time in nanoseconds for a frame of 64 bytes that is sent, medians: of a pair alone, and beside the other one; \
         above 1 where it is faster beside the other. Bursts of 256 frames, the driver asleep meanwhile.",
        &["", "pair", "alone", "beside the other", "ratio"],
    );
    for engine in ENGINES {
        for format in [Format::Split, Format::Packed] {
            let netdev =
                format!("tap,id=tap0,ifname=pairs,ip=10.7.0.13/30,queues=2,engine={engine}");
            let mut rig = Rig::with_pairs(&netdev, format, NetF::empty(), &CPUS);
            rig.prepare_to_send(LAYOUT);
            let name = format!("device, {engine}, {}", format.name());
            add(&mut table, &name, |pairs| rig.burst(pairs));
        }
    }
    for (engine, name) in [
        (RawEngine::Vectors, "bare `writev`"),
        (RawEngine::IoUring, "bare io_uring"),
    ] {
        let mut taps = RawTap::open_queues("raw-pairs", "10.7.0.17/30", LAYOUT, engine, 2);
        for tap in &mut taps {
            tap.prepare_to_send();
        }
        add(&mut table, name, |pairs| {
            let cpus: Vec<_> = pairs.iter().map(|&n| CPUS[n]).collect();
            let mut chosen: Vec<_> = (0..)
                .zip(&mut taps)
                .filter_map(|(n, tap)| pairs.contains(&n).then_some(tap))
                .collect();
            RawTap::send_together(&mut chosen, &cpus, FRAMES)
        });
    }
    report.add(table);
}

fn add(table: &mut Table, name: &str, mut send: impl FnMut(&[usize]) -> Vec<Took>) {
    // The first of anything is dearer.
    send(&[0, 1]);
    let each = |took: &Took| nanoseconds(took.cpu, FRAMES);
    let samples: Vec<Round> = (0..rounds(300))
        .map(|_| {
            let (first, second, both) = (send(&[0]), send(&[1]), send(&[0, 1]));
            [&first[0], &second[0], &both[0], &both[1]].map(each)
        })
        .collect();
    for n in 0..2 {
        table.row([
            name.to_owned(),
            n.to_string(),
            format!("{:.0}", median(&samples, |s| s[n])),
            format!("{:.0}", median(&samples, |s| s[2 + n])),
            format!("{:.2}", median(&samples, |s| s[n] / s[2 + n])),
        ]);
    }
}
