//! The instructions of the device for one frame, by callgrind, as a table:
//! `cargo run --release -p benches --example instructions -- target/release/examples/hot_loop`.
//!
//! Each kind of frame is counted in two runs, one of more batches than the other: what is left of the difference is without
//! the start. With SAVE_RESULTS set the table is written to `benches/results/instructions.md`.
#![expect(clippy::expect_used, reason = "ends where it cannot count")]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Batches of the two runs.
const BATCHES: [u64; 2] = [20, 120];

fn main() {
    let Some(hot_loop) = env::args().nth(1) else {
        return println!("usage: instructions PATH_OF_HOT_LOOP");
    };
    let mut table = String::from(
        "# Instructions of the device for one frame\n\nMade by `SAVE_RESULTS=1 cargo run --release -p benches --example \
         instructions -- target/release/examples/hot_loop`; the text is in `benches/README.md`.\n\n| | instructions |\n|---|---|\n",
    );
    for way in ["tx", "rx"] {
        for (size, batch) in [("64B", 64), ("1500B", 64), ("64KiB", 4)] {
            for buffers in ["mergeable", "packed", "direct", "indirect"] {
                let name = format!("{way}/{size}/{buffers}");
                let [few, many] = BATCHES.map(|batches| count(&hot_loop, &name, batches * batch));
                let frames = (BATCHES[1] - BATCHES[0]) * batch;
                let _ = writeln!(table, "| `{name}` | {} |", (many - few) / frames);
            }
        }
    }
    println!("{table}");
    if env::var_os("SAVE_RESULTS").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/instructions.md");
        fs::write(file, table).expect("the table is saved");
    }
}

/// What callgrind counts in the device's part of so many frames.
fn count(hot_loop: &str, name: &str, frames: u64) -> u64 {
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*hot_loop*device*",
            hot_loop,
            name,
            &frames.to_string(),
        ])
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = collected.expect("callgrind says what it has collected");
    number.trim().parse().expect("a number")
}
