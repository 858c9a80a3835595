//! Frames in batches, of which one part is timed.

use std::time::{Duration, Instant};

/// A batch's three parts.
pub trait Round {
    /// The most frames in one batch.
    fn batch(&self) -> u64;

    /// What precedes the work on `frames` frames: the driver's part, or the host's. Not timed.
    fn prepare(&mut self, frames: u64);

    /// The work. Timed.
    fn work(&mut self);

    /// What follows: takes what came out, and checks that it is `frames` frames. Not timed.
    fn conclude(&mut self, frames: u64);
}

/// Does the work on `frames` frames in full batches (and one for the rest), and returns how long the work
/// alone took. For criterion's `iter_custom`, an iteration being a frame.
pub fn timed(round: &mut impl Round, mut frames: u64) -> Duration {
    let mut time = Duration::ZERO;
    while frames > 0 {
        let now = frames.min(round.batch());
        round.prepare(now);
        let start = Instant::now();
        round.work();
        time += start.elapsed();
        round.conclude(now);
        frames -= now;
    }
    time
}

/// After a full batch, so that one has been checked whatever follows, and memory has been touched.
pub fn warmed_up<R: Round>(mut round: R) -> R {
    let batch = round.batch();
    timed(&mut round, batch);
    round
}
