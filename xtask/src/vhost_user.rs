//! `cargo xtask vhost-user`: the example back end, tried by front ends that others wrote.
//!
//! | module | what it holds |
//! |---|---|
//! | [`dpdk`] | DPDK's virtio-user, driven by `dpdk-testpmd` |
//! | [`qemu`] | QEMU's virtio-net-pci, with stock Linux as its guest |
//! | [`back_end`] | the example `vhost-user-net`, and the network namespace that its tap is in |
//! | [`process`] | a program that is ended with its owner, and what it prints |

mod back_end;
mod dpdk;
mod process;
mod qemu;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

const HELP: &str = "\
usage: cargo xtask vhost-user dpdk [VARIANT ...]
       cargo xtask vhost-user qemu [VARIANT ...]

Runs the example vhost-user-net (release build) with a tap in a network namespace of its own, and front
ends that others wrote against it. Needs root.

  dpdk   Debian's dpdk-testpmd (dpdk-dev) with net_virtio_user: each variant sends through the tap, and
         answers pings from the tap's side. Sets up huge pages while it runs.
  qemu   Debian's QEMU with -netdev vhost-user, emulating a machine on which the Linux of `cargo xtask guest`
         boots: each variant runs one of its cases.

VHOST_USER_NET=PATH tries that back end instead of building the example.
";

/// Runs the chore with the arguments after its name; the status is 1 if a case failed.
pub(crate) fn main(arguments: Vec<String>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let result = match arguments.next().as_deref() {
        Some("dpdk") => dpdk::main(&arguments.collect::<Vec<_>>()),
        Some("qemu") => qemu::main(&arguments.collect::<Vec<_>>()),
        Some("help" | "-h" | "--help") => {
            print!("{HELP}");
            Ok(0)
        }
        other => {
            eprint!("{HELP}");
            Err(anyhow::anyhow!("there is no {}", other.unwrap_or("''")))
        }
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vhost-user: {error:#}");
            ExitCode::from(125)
        }
    }
}

/// A case: its name, what runs it.
type Case<'a> = (&'a str, Box<dyn Fn() -> Result<String> + 'a>);

/// Runs the cases that are named, or all, and prints how each went; how many failed.
fn run_cases(cases: &[Case<'_>], named: &[String]) -> Result<usize> {
    if let Some(unknown) = (named.iter()).find(|name| !cases.iter().any(|case| case.0 == **name)) {
        let all: Vec<_> = cases.iter().map(|case| case.0).collect();
        bail!("there is no case '{unknown}'; there are: {}", all.join(" "));
    }
    let mut failed = 0;
    for (name, case) in cases {
        if !named.is_empty() && !named.iter().any(|wanted| wanted == name) {
            continue;
        }
        let began = Instant::now();
        let result = case();
        let seconds = began.elapsed().as_secs_f32();
        match result {
            Ok(seen) => println!("{name:<16} ok ({seconds:.1} s): {seen}"),
            Err(error) => {
                failed += 1;
                println!("{name:<16} FAILED ({seconds:.1} s): {error:#}");
            }
        }
    }
    println!("{failed} failed");
    Ok(failed)
}
