//! Chores of this workspace, run as `cargo xtask NAME ...`.
//!
//! | chore | what it does |
//! |---|---|
//! | `layers` | checks that the arrows between crates point downwards: [`layers`] |
//! | `conformance` | checks the tables of what the specification demands and the tests that they name: [`conformance`] |
//! | `fuzz` | runs each fuzz target for some seconds: [`fuzz`] |
//! | `lines` | checks how long files are, and what in them can panic: [`lines`] |
//! | `sanitize` | runs tests under AddressSanitizer: [`sanitize`] |
//! | `vhost-user` | tries the vhost-user back end with front ends of others: [`vhost_user`] |
//! | `guest` | boots stock Linux under the example VMM and tries the NIC from inside: [`guest`] |

mod conformance;
mod fuzz;
mod guest;
mod layers;
mod lines;
mod sanitize;
mod vhost_user;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("fuzz") => fuzz::main(args.collect()),
        Some("guest") => guest::main(args.collect()),
        Some("sanitize") => sanitize::main(args.collect()),
        Some("vhost-user") => vhost_user::main(args.collect()),
        Some("conformance") => answer("conformance", conformance::check(Path::new("."))),
        Some("layers") => answer("layers", layers::check()),
        Some("lines") => answer("lines", lines::check()),
        Some("help" | "-h" | "--help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprint!("xtask: there is no chore '{other}'\n\n{HELP}");
            ExitCode::from(2)
        }
        None => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn answer(chore: &str, checked: anyhow::Result<()>) -> ExitCode {
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {chore}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const HELP: &str = "\
usage: cargo xtask CHORE ...

chores:
  layers   check that no crate depends on one of its own level or above
  lines    check that no file is too long, and that almost nothing can panic
  conformance
           check the tables of what the specification demands, and that the tests
           that they name exist
  fuzz     run each fuzz target for some seconds (cargo xtask fuzz --help)
  sanitize run tests under AddressSanitizer (cargo xtask sanitize --help)
  guest    boot stock Linux under the example VMM and try the NIC from inside
           (cargo xtask guest --help)
  vhost-user
           try the vhost-user back end with front ends of others
           (cargo xtask vhost-user --help)
";
