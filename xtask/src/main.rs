//! Chores of this workspace, run as `cargo xtask NAME ...`.
//!
//! | chore | what it does |
//! |---|---|
//! | `guest` | boots stock Linux under the example VMM and tries the NIC from inside: [`guest`] |

mod guest;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("guest") => guest::main(args.collect()),
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

const HELP: &str = "\
usage: cargo xtask CHORE ...

chores:
  guest    boot stock Linux under the example VMM and try the NIC from inside
           (cargo xtask guest --help)
";
