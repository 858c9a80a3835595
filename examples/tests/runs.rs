//! The small examples end by themselves, and print what they are there to show.
//!
//! `cargo test` builds them beside the tests, unless it is told to build one test alone: then what was
//! built last is run, if anything was.

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::skip;

/// What `example` prints to standard output, with a status of 0.
fn output_of(example: &str) -> Option<String> {
    let mut program: PathBuf = std::env::current_exe().ok()?;
    program.pop();
    program.pop();
    program.push("examples");
    program.push(example);
    if !program.exists() {
        skip(&format!("{} is not built", program.display()));
        return None;
    }
    let output = Command::new(program)
        .output()
        .unwrap_or_else(|error| panic!("{example}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{example}: {} {errors}",
        output.status
    );
    assert_eq!(errors, "", "{example}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_example_ends_by_itself_and_prints_what_it_shows() {
    let table: [(&str, &[&str]); 3] = [
        (
            "model",
            &[
                "received 40 bytes: \"there and back\"",
                "queue 1: QueueState { next_avail: 1, next_used: 1 }",
            ],
        ),
        (
            "backend",
            &["IS ANYBODY THERE?\nIS ANYBODY THERE?\nIS ANYBODY THERE?\n"],
        ),
        ("device", &["virtio-net-pci", "/machine/peripheral/net0:"]),
    ];
    for (example, expected) in table {
        let Some(printed) = output_of(example) else {
            continue;
        };
        for part in expected {
            assert!(
                printed.contains(part),
                "{example}: no {part:?} in {printed}"
            );
        }
    }
}
