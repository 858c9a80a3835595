//! One direction of the device, over and over, for a profiler: `hot_loop tx/64B/direct 100000`.
//!
//! What the device does is all in `device`, so that the rest can be left out:
//! `valgrind --tool=callgrind --toggle-collect='*hot_loop::device*' hot_loop tx/64B/direct 64000`

use benches::{Buffers, FrameSize, Receiver, Round, Transmitter};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !measured(&arguments) {
        println!("usage: hot_loop tx|rx/64B|1500B|64KiB/mergeable|direct|indirect|packed FRAMES");
        println!("going once through each");
        for direction in ["tx", "rx"] {
            for size in FrameSize::ALL {
                for buffers in ["direct", "packed"] {
                    let name = format!("{direction}/{}/{buffers}", size.name());
                    assert!(measured(&[name, size.batch().to_string()]));
                }
            }
        }
    }
}

/// Whether the arguments name something to measure.
fn measured(arguments: &[String]) -> bool {
    let [name, frames] = arguments else {
        return false;
    };
    let (mut parts, Ok(frames)) = (name.split('/'), frames.parse()) else {
        return false;
    };
    let direction = parts.next();
    let size = parts
        .next()
        .and_then(|name| FrameSize::ALL.into_iter().find(|size| size.name() == name));
    let buffers = parts.next().and_then(|name| {
        [
            Buffers::Mergeable,
            Buffers::Direct,
            Buffers::Indirect,
            Buffers::Packed,
        ]
        .into_iter()
        .find(|buffers| buffers.name() == name)
    });
    let (Some(direction), Some(size), Some(buffers)) = (direction, size, buffers) else {
        return false;
    };
    match direction {
        "tx" => run(Transmitter::new(size, buffers), frames),
        "rx" => run(Receiver::new(size, buffers), frames),
        _ => return false,
    }
    println!("{name}: {frames} frames");
    true
}

fn run(mut round: impl Round, mut frames: u64) {
    while frames > 0 {
        let now = frames.min(round.batch());
        round.prepare(now);
        device(&mut round);
        round.conclude(now);
        frames -= now;
    }
}

#[inline(never)]
fn device<R: Round>(round: &mut R) {
    round.work();
}
