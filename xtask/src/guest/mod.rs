//! `cargo xtask guest`: stock Linux under the example VMM.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cases`] | the cases, one file each area: what runs in the guest, what must come of it |
//! | [`options`] | the command line |
//! | [`variant`] | whether a case is one for the kind of device that a call asks for |
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
mod assets;
mod bpf;
mod cases;
mod console;
mod cpio;
mod host;
mod image;
mod modules;
mod options;
mod runner;
mod variant;
pub(crate) mod vmm;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::cases::Case;
use self::options::{Action, HELP, Options};
use self::runner::{Request, Runner};
use self::watch::{Ending, Limits, Outcome};

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
        Action::Suite(ref names) => suite(names, &options),
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

/// Runs cases and prints how each went; the status is 1 if one failed.
fn suite(names: &[String], options: &Options) -> Result<u8> {
    let cases: Vec<&Case> = if names.is_empty() {
        cases::all().collect()
    } else {
        names
            .iter()
            .map(|name| {
                cases::all()
                    .find(|case| case.name == name)
                    .with_context(|| format!("there is no case '{name}'; --list names them all"))
            })
            .collect::<Result<_>>()?
    };
    let runner = Runner::ready(options.keep)?;
    let (mut passed, mut failed, mut unfit, mut retries) = (0, 0, 0, 0);
    for case in cases {
        print!("{:<16} ", case.name);
        if let Some(reason) = variant::unfit(case, &options.extra)? {
            unfit += 1;
            println!("not for this variant: {reason}");
            continue;
        }
        io::stdout().flush()?;
        let began = Instant::now();
        let request = Request {
            guest: case.guest,
            before: case.before,
            after: case.after,
            arguments: vmm::arguments(case.vmm_args, case.device, &options.extra, case.smp)?,
            limits: Limits {
                silence: Some(Duration::from_secs(case.silence)),
                ..Limits::default()
            },
        };
        let (outcome, again) = runner.boot(&request, &mut io::sink())?;
        retries += again;
        let seconds = began.elapsed().as_secs_f32();
        match verdict(case, &outcome) {
            Ok(()) => {
                passed += 1;
                println!("ok ({seconds:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED ({seconds:.1} s): {error:#}");
                print!(
                    "{}",
                    indented("the guest's commands printed", &outcome.output)
                );
                print!("{}", indented("the host's commands printed", &outcome.host));
                print!("{}", indented("console of guest and VMM", &outcome.console));
                if matches!(outcome.ending, Ending::Died(_)) {
                    print!(
                        "{}",
                        indented("console of the emulated host", &outcome.host_console)
                    );
                }
            }
        }
        io::stdout().flush()?;
    }
    let note = match retries {
        0 => String::new(),
        1 => " (1 retry)".to_owned(),
        n => format!(" ({n} retries)"),
    };
    let unfit = match unfit {
        0 => String::new(),
        n => format!(", {n} not for this variant"),
    };
    println!("{passed} passed, {failed} failed{unfit}{note}");
    Ok(u8::from(failed > 0))
}

/// Whether a case's run is as it should be.
fn verdict(case: &Case, outcome: &Outcome) -> Result<()> {
    match &outcome.ending {
        Ending::Finished(0) => {}
        Ending::Finished(status) => bail!("its commands ended with status {status}"),
        Ending::Died(why) | Ending::Stalled(why) => bail!("{why}"),
    }
    (case.check)(outcome)?;
    let status = outcome.vmm.context("the VMM's exit status is not known")?;
    ensure!(
        status == 0,
        "the guest powered off, but the VMM's exit status is {status}"
    );
    Ok(())
}

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
fn indented(headline: &str, text: &str) -> String {
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
