//! Frames through the device alone: `tx/1500B/indirect`, `rx/64B/mergeable`, ...
//!
//! The peer takes frames at once, or offers them; no kernel copies anything. An iteration is a frame, in
//! batches of 64 (4 large ones), and the time is the device's.
#![expect(missing_docs, reason = "criterion makes public functions")]

use std::hint::black_box;
use std::time::Duration;

use benches::{Buffers, FrameSize, HEADER_LEN, Receiver, Round, Transmitter, timed, warmed_up};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};

fn tx(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tx");
    for size in FrameSize::ALL {
        for buffers in [Buffers::Direct, Buffers::Indirect] {
            one(&mut group, size, buffers.name(), || {
                Transmitter::new(size, buffers)
            });
        }
    }
    group.finish();
}

fn rx(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rx");
    for size in FrameSize::ALL {
        for buffers in [Buffers::Mergeable, Buffers::Direct, Buffers::Indirect] {
            one(&mut group, size, buffers.name(), || {
                Receiver::new(size, buffers)
            });
        }
        // The other door: frames that cannot be read in place.
        one(&mut group, size, "copied", || {
            Receiver::copied(size, Buffers::Mergeable)
        });
    }
    group.finish();
}

fn one<R: Round>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    size: FrameSize,
    name: &str,
    make: impl Fn() -> R,
) {
    group.throughput(match size {
        FrameSize::Segmented => Throughput::Bytes((HEADER_LEN + size.frame_len()) as u64),
        _ => Throughput::Elements(1),
    });
    let id = BenchmarkId::new(size.name(), name);
    let mut round = None;
    group.bench_function(id, |bencher| {
        let round = round.get_or_insert_with(|| warmed_up(make()));
        bencher.iter_custom(|frames| timed(black_box(round), frames));
    });
}

criterion_group! {
    name = frames;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = tx, rx
}
criterion_main!(frames);
