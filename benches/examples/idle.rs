//! What many devices cost that do nothing: `idle [DEVICES]`.
//!
//! Each is on a tap of its own, all on one I/O thread. Prints how long it takes to make and activate one, beside
//! the tap's own part, the memory that each adds, and the time of the I/O thread in a second of rest.
#![expect(clippy::expect_used, reason = "ends where its set-up fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use benches::{Format, Rig, open_netdev};
use examples::netns;
use iothread::IoThread;
use virtio::net::F as NetF;

fn main() {
    let count: usize = match std::env::args().nth(1) {
        Some(count) => count.parse().expect("a number of devices"),
        None => 64,
    };
    // While the process has one thread.
    if let Err(error) = netns::enter_new() {
        return println!("not measured: {error}");
    }
    let io = Arc::new(IoThread::new("devices").expect("a thread"));
    // The first of anything is dearer.
    drop(Rig::on(
        &io,
        open_netdev("tap,id=tap0"),
        Format::Split,
        NetF::empty(),
    ));
    let before = resident();
    let (mut opening, mut making) = (Vec::new(), Vec::new());
    let mut rigs = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let netdev = open_netdev("tap,id=tap0");
        opening.push(start.elapsed());
        let start = Instant::now();
        rigs.push(Rig::on(&io, netdev, Format::Split, NetF::empty()));
        making.push(start.elapsed());
    }
    let grown = resident().saturating_sub(before);
    let Some(clock) = rigs.first().map(Rig::clock) else {
        return println!("no device");
    };
    // What was scheduled while they were made is done before the rest begins.
    thread::sleep(Duration::from_millis(100));
    let start = clock.now();
    thread::sleep(Duration::from_secs(1));
    let spent = clock.now() - start;
    println!("devices: {count}");
    println!("opening a tap: {:?}", median(opening));
    println!("making and activating a device: {:?}", median(making));
    println!("memory of a device: {} KiB", grown / count.max(1));
    println!("time of the I/O thread in a second of rest: {spent:?}");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// KiB of memory that the process has.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
