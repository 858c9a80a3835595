//! `cargo xtask guest`: stock Linux under the example VMM.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cases`] | the cases, one file each area: what runs in the guest, what must come of it |
//! | [`options`] | the command line |
//! | [`variant`] | whether a case is one for the kind of device that a call asks for |
//! | [`suite`] | the cases of a call, and how each went |
//! | [`runner`] | what all runs share; a boot that died is tried again |
//! | [`host`] | one run, direct or nested |
//! | [`watch`] | its watchdog: reads what host and guest say, decides how the run ended |
//! | [`console`] | the guest's serial port taken apart into output and noise |
//! | [`image`] | the root file systems of guest and host |
//! | [`modules`] | kernel modules with their dependencies |
//! | [`apt`] | Debian packages, fetched and unpacked |
//! | [`assets`] | kernel and programs from Debian's packages |
//! | [`bpf`] | XDP programs for the guest |
//! | [`cpio`] | file trees and the archives they go in |
//! | [`vmm`] | building the VMM, and its arguments |

mod apt;
pub(crate) mod assets;
mod bpf;
pub(crate) mod cases;
mod console;
pub(crate) mod cpio;
pub(crate) mod host;
pub(crate) mod image;
mod modules;
mod options;
pub(crate) mod runner;
pub(crate) mod suite;
mod variant;
pub(crate) mod vmm;
pub(crate) mod watch;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use self::options::{Action, HELP, Options};
use self::runner::{Request, Runner};
use self::watch::{Ending, Limits};

/// Runs the chore with the arguments after its name.
pub(crate) fn main(arguments: Vec<String>) -> ExitCode {
    let result = Options::parse(arguments).and_then(|options| match options.action {
        Action::Help => {
            print!("{HELP}");
            Ok(0)
        }
        Action::List => {
            for case in cases::all() {
                println!("{:<16} {}", case.name, case.about);
            }
            Ok(0)
        }
        Action::Suite(ref names) => suite::suite(names, &options),
        Action::Shell(ref commands) => shell(commands, &options),
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::from(BROKEN)
        }
    }
}

/// The exit status when the guest could not be run to its end; `1` says that a case failed.
const BROKEN: u8 = 125;

/// How many lines of a console are shown after a failure.
const TAIL: usize = 40;

/// Runs commands in a guest, prints what they print, returns their status.
fn shell(commands: &str, options: &Options) -> Result<u8> {
    let arguments = vmm::arguments(options.vmm_args.as_deref(), "", &options.extra, 2)?;
    let runner = Runner::ready(options.keep)?;
    let request = Request {
        guest: commands,
        before: "",
        after: "",
        arguments,
        limits: Limits {
            silence: None,
            total: options.timeout.unwrap_or(Duration::from_secs(3600)),
            ..Limits::default()
        },
    };
    let (outcome, _) = runner.boot(&request, &mut io::stdout())?;
    let status = match &outcome.ending {
        Ending::Finished(status) => *status,
        Ending::Died(why) | Ending::Stalled(why) => {
            eprintln!("guest: {why}");
            BROKEN
        }
    };
    // Commands that end with a status of their own are no trouble of the guest's.
    if !matches!(outcome.ending, Ending::Finished(_)) {
        eprint!("{}", indented("console of guest and VMM", &outcome.console));
    }
    if matches!(outcome.ending, Ending::Died(_)) {
        eprint!(
            "{}",
            indented("console of the emulated host", &outcome.host_console)
        );
    }
    if let Some(vmm) = outcome.vmm.filter(|vmm| *vmm != 0) {
        eprintln!("guest: the VMM's exit status is {vmm}");
    }
    Ok(status)
}

/// The end of a text under a headline, each line set in; nothing for an empty text.
pub(crate) fn indented(headline: &str, text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let Some(tail) = lines
        .get(lines.len().saturating_sub(TAIL)..)
        .filter(|t| !t.is_empty())
    else {
        return String::new();
    };
    let body: String = tail
        .iter()
        .map(|line| format!("    {}\n", line.trim_end()))
        .collect();
    format!("  {headline}:\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_console_is_shown() {
        let text: String = (0..100).map(|n| format!("line {n}\r\n")).collect();
        let shown = indented("console", &text);
        assert!(shown.starts_with("  console:\n    line 60\n"));
        assert!(shown.ends_with("    line 99\n"));
        assert_eq!(indented("console", "\n \n"), "");
    }
}
