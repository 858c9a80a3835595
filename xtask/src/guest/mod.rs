//! `cargo xtask guest`: stock Linux under the example VMM.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cases`] | the cases, one file each area: what runs in the guest, what must come of it |
//! | [`host`] | one run from boot to power-off, direct or nested, and its watchdog |
//! | [`console`] | the guest's serial port taken apart into output and noise |
//! | [`image`] | the root file systems of guest and host |
//! | [`modules`] | kernel modules with their dependencies |
//! | [`assets`] | kernel and programs from Debian's packages |
//! | [`cpio`] | file trees and the archives they go in |
//! | [`vmm`] | building the VMM, and its arguments |

mod assets;
mod cases;
mod console;
mod cpio;
mod host;
mod image;
mod modules;
mod vmm;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use self::assets::Assets;
use self::cases::Case;
use self::host::{Ending, Limits, Mode, Outcome};
use self::image::Run;

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

/// How often a boot that died is tried again.
const RETRIES: u32 = 2;

/// How many lines of a console are shown after a failure.
const TAIL: usize = 40;

#[derive(Debug)]
enum Action {
    Help,
    List,
    /// The named cases, or all.
    Suite(Vec<String>),
    /// Commands for the guest's shell.
    Shell(String),
}

#[derive(Debug)]
struct Options {
    action: Action,
    device: String,
    vmm_args: Option<String>,
    keep: bool,
    timeout: Option<Duration>,
}

impl Options {
    fn parse(arguments: Vec<String>) -> Result<Self> {
        let mut names = Vec::new();
        let mut commands = None;
        let mut action = None;
        let (mut device, mut vmm_args, mut keep, mut timeout) = (None, None, false, None);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (option, inline) = match argument.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(value)),
                _ => (argument.as_str(), None),
            };
            let mut value = || {
                let given = inline.map(str::to_owned).or_else(|| arguments.next());
                given.with_context(|| format!("{option} needs a value"))
            };
            match option {
                "--help" | "-h" => action = Some(Action::Help),
                "--list" => action = Some(Action::List),
                "--keep" => keep = true,
                "--shell" => commands = Some(value()?),
                "--device" => device = Some(value()?),
                "--vmm-args" => vmm_args = Some(value()?),
                "--timeout" => {
                    let seconds = value()?;
                    let number = seconds.parse().with_context(|| {
                        format!("--timeout takes a number of seconds, not '{seconds}'")
                    })?;
                    timeout = Some(Duration::from_secs(number));
                }
                _ if option.starts_with('-') => bail!("unknown option {option}\n\n{HELP}"),
                _ => names.push(argument),
            }
        }
        let action = match (action, commands) {
            (Some(action), _) => action,
            (None, Some(commands)) => {
                ensure!(
                    names.is_empty(),
                    "--shell runs no cases: '{}' is left over",
                    names.join(" ")
                );
                Action::Shell(commands)
            }
            (None, None) => {
                ensure!(
                    device.is_none() && vmm_args.is_none() && timeout.is_none(),
                    "--device, --vmm-args and --timeout go with --shell"
                );
                Action::Suite(names)
            }
        };
        Ok(Self {
            action,
            device: device.unwrap_or_default(),
            vmm_args,
            keep,
            timeout,
        })
    }
}

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
    let bench = Bench::ready(options.keep)?;
    let (mut passed, mut failed, mut retries) = (0, 0, 0);
    for case in cases {
        print!("{:<16} ", case.name);
        io::stdout().flush()?;
        let began = Instant::now();
        let request = Request {
            guest: case.guest,
            before: case.before,
            after: case.after,
            arguments: vmm::arguments(case.vmm_args, case.device, case.smp)?,
            limits: Limits {
                silence: Some(Duration::from_secs(case.silence)),
                ..Limits::default()
            },
        };
        let (outcome, again) = bench.boot(&request, &mut io::sink())?;
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
    println!("{passed} passed, {failed} failed{note}");
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
    let arguments = vmm::arguments(options.vmm_args.as_deref(), &options.device, 2)?;
    let bench = Bench::ready(options.keep)?;
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
    let (outcome, _) = bench.boot(&request, &mut io::stdout())?;
    let status = match &outcome.ending {
        Ending::Finished(status) => *status,
        Ending::Died(why) | Ending::Stalled(why) => {
            eprintln!("guest: {why}");
            BROKEN
        }
    };
    if status != 0 {
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

/// One guest asked for.
#[derive(Debug)]
struct Request<'a> {
    guest: &'a str,
    before: &'a str,
    after: &'a str,
    arguments: Vec<String>,
    limits: Limits,
}

/// All that runs have in common.
#[derive(Debug)]
struct Bench {
    assets: Assets,
    vmm: Vec<u8>,
    mode: Mode,
    runs: PathBuf,
    keep: bool,
    stop: Arc<AtomicBool>,
}

impl Bench {
    /// Fetches, builds and finds out what is needed for a run.
    fn ready(keep: bool) -> Result<Self> {
        let (workspace, target) = vmm::workspace()?;
        let cache = target.join("guest");
        let stop = Arc::new(AtomicBool::new(false));
        let assets = Assets::ready(&cache)?;
        let vmm = vmm::executable(&workspace, &cache)?;
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let runs = cache.join(if keep { "kept" } else { "runs" });
        if !keep {
            remove_leftovers(&runs);
        }
        let mut bench = Self {
            assets,
            vmm,
            mode: Mode::Nested,
            runs,
            keep,
            stop,
        };
        bench.mode = bench.choose(&cache)?;
        Ok(bench)
    }

    /// Boots a guest, again where the boot died; also returns how often.
    fn boot(&self, request: &Request<'_>, print: &mut dyn Write) -> Result<(Outcome, u32)> {
        let mut again = 0;
        loop {
            let outcome = self.boot_once(self.mode, request, print)?;
            let Ending::Died(why) = &outcome.ending else {
                return Ok((outcome, again));
            };
            // Once something is printed, it cannot be printed from the start again.
            let printed = !outcome.output.is_empty() && request.limits.silence.is_none();
            if self.mode == Mode::Direct || again == RETRIES || printed {
                return Ok((outcome, again));
            }
            again += 1;
            eprintln!("guest: {why}: retry {again} of {RETRIES}");
            eprint!("{}", indented("console of guest and VMM", &outcome.console));
            eprint!(
                "{}",
                indented("console of the emulated host", &outcome.host_console)
            );
        }
    }

    fn boot_once(
        &self,
        mode: Mode,
        request: &Request<'_>,
        print: &mut dyn Write,
    ) -> Result<Outcome> {
        let word = word();
        let run = Run {
            word: &word,
            vmm: &self.vmm,
            arguments: &request.arguments,
            guest: request.guest,
            before: request.before,
            after: request.after,
        };
        let directory = self.runs.join(&word);
        let outcome = host::boot(
            mode,
            &self.assets,
            &run,
            request.limits,
            &directory,
            &self.stop,
            print,
        );
        if self.keep {
            eprintln!("guest: the run's files are in {}", directory.display());
        } else {
            // Nothing is lost if a file stays; the directory's name is not used again.
            fs::remove_dir_all(&directory).ok();
        }
        outcome
    }

    /// Direct where this machine's KVM boots the guest, else nested.
    ///
    /// `GUEST_MODE` decides; else a short boot does, whose answer is kept for this kernel.
    fn choose(&self, cache: &Path) -> Result<Mode> {
        match std::env::var("GUEST_MODE").as_deref() {
            Ok("direct") => return Ok(Mode::Direct),
            Ok("nested") => return Ok(Mode::Nested),
            Ok(other) => bail!("GUEST_MODE is direct or nested, not '{other}'"),
            Err(_) => {}
        }
        if fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(Mode::Nested);
        }
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let key = format!("{} on {}", self.assets.release, host.trim());
        let kept = cache.join("mode");
        if let Ok(text) = fs::read_to_string(&kept) {
            match text.trim().strip_prefix(&key).map(str::trim) {
                Some("direct") => return Ok(Mode::Direct),
                Some("nested") => return Ok(Mode::Nested),
                _ => {}
            }
        }
        eprintln!("guest: trying whether this machine's KVM boots the guest");
        let request = Request {
            guest: "true",
            before: "",
            after: "",
            arguments: vmm::arguments(None, "", 1)?,
            limits: Limits {
                boot: Duration::from_secs(15),
                ..Limits::default()
            },
        };
        let outcome = self.boot_once(Mode::Direct, &request, &mut io::sink())?;
        let (mode, name) = match outcome.ending {
            Ending::Finished(_) => (Mode::Direct, "direct"),
            _ => (Mode::Nested, "nested"),
        };
        // A VMM that gave up by itself says nothing about the machine.
        if outcome.vmm.is_none() || mode == Mode::Direct {
            fs::write(&kept, format!("{key} {name}\n"))?;
        }
        self.stop
            .load(Ordering::Relaxed)
            .then_some(())
            .map_or(Ok(mode), |()| bail!("interrupted"))
    }
}

/// Removes the files of runs whose process is gone without having done so.
fn remove_leftovers(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .split_once('-')
            .and_then(|(p, _)| u32::from_str_radix(p, 16).ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // What cannot be removed is in nobody's way.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// A word that no other run's markers carry, and a name for the run's directory.
fn word() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), now.as_micros())
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

const HELP: &str = "\
usage: cargo xtask guest [NAME...] [--keep]
       cargo xtask guest --list
       cargo xtask guest --shell 'COMMANDS' [--device 'PROPS'] [--vmm-args 'ARGS'] [--timeout S] [--keep]

Boots Debian's cloud kernel under the example VMM. With names, or none for all, runs those cases
and ends with 'N passed, M failed'.

  --list           the cases
  --shell CMDS     run commands in the guest (busybox sh; eth0 is up with 10.0.2.15/24, the host is
                   10.0.2.2 with an iperf3 server), print what they print, exit with their status;
                   125 says that the guest could not be run to its end.
                   `host CMDS` in them runs commands on the host
  --device PROPS   append properties to the default device, virtio-net-pci,netdev=net0
  --vmm-args ARGS  replace the default -netdev tap,id=net0,ip=10.0.2.2/24 and -device
  --timeout S      give the commands so many seconds (3600)
  --keep           keep the files of each run, and say where

Where this machine's KVM cannot boot the guest, QEMU emulates a host that can (qemu-system-x86).
GUEST_MODE=direct or nested decides that; GUEST_VMM=PATH runs a static executable of your own.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        Options::parse(arguments.iter().map(|&a| a.to_owned()).collect())
    }

    #[test]
    fn a_value_may_follow_its_option_or_stand_in_it() {
        for arguments in [["--shell", "a=b c"].as_slice(), &["--shell=a=b c"]] {
            let options = parse(arguments).unwrap();
            assert!(
                matches!(options.action, Action::Shell(c) if c == "a=b c"),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn options_that_would_be_ignored_are_refused() {
        let wrong: [&[&str]; 6] = [
            &["--device", "x=y"],
            &["bind", "--vmm-args", ""],
            &["--shell", "true", "bind"],
            &["--shell"],
            &["--frob"],
            &["--shell", "x", "--timeout", "soon"],
        ];
        for arguments in wrong {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn only_the_end_of_a_long_console_is_shown() {
        let text: String = (0..100).map(|n| format!("line {n}\r\n")).collect();
        let shown = indented("console", &text);
        assert!(shown.starts_with("  console:\n    line 60\n"));
        assert!(shown.ends_with("    line 99\n"));
        assert_eq!(indented("console", "\n \n"), "");
    }
}
