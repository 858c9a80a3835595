//! `cargo xtask fuzz`: each fuzz target for some seconds.
//!
//! The targets are in `fuzz/`, whose README says what to do with a finding. They need a nightly
//! compiler and cargo-fuzz; this chore installs neither.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// Runs the chore with the arguments after its name.
pub(crate) fn main(arguments: Vec<String>) -> ExitCode {
    let result = Options::parse(arguments).and_then(|options| {
        if options.help {
            print!("{HELP}");
            return Ok(true);
        }
        run(&options)
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(BROKEN)
        }
    }
}

/// The exit status when the targets could not be run; `1` says that one has found something.
const BROKEN: u8 = 125;
/// Seconds for each target, unless told.
const SECONDS: u32 = 30;
/// Seconds that one input may take: a device that does not end is a finding.
const TIMEOUT: u32 = 25;
/// How many lines of what a target printed are shown after a finding.
const TAIL: usize = 80;

const HELP: &str = "\
usage: cargo xtask fuzz [--seconds N] [TARGET ...]

Runs the named fuzz targets, or all, for N seconds each (30), and ends with 'N passed, M failed'.
Needs a nightly toolchain and cargo-fuzz. See fuzz/README.md.
";

/// The command line.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    help: bool,
    seconds: u32,
    targets: Vec<String>,
}

impl Options {
    fn parse(arguments: Vec<String>) -> Result<Self> {
        let mut options = Self {
            help: false,
            seconds: SECONDS,
            targets: Vec::new(),
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--help" | "-h" => options.help = true,
                "--seconds" => {
                    let text = arguments.next().context("--seconds needs a value")?;
                    options.seconds = seconds(&text)?;
                }
                option if option.starts_with('-') => match option.strip_prefix("--seconds=") {
                    Some(text) => options.seconds = seconds(text)?,
                    None => bail!("unknown option {option}\n\n{HELP}"),
                },
                _ => options.targets.push(argument),
            }
        }
        Ok(options)
    }
}

/// At least one: for the fuzzer, 0 means for ever.
fn seconds(text: &str) -> Result<u32> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
    seconds.with_context(|| format!("--seconds takes a number from 1 on, not '{text}'"))
}

/// Whether all targets passed.
fn run(options: &Options) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask is not in a workspace")?;
    check_tools(root)?;
    let listed = succeed(cargo_fuzz(root, "list"), "cannot list the fuzz targets")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let all: Vec<&str> = listed.split_whitespace().collect();
    for target in &options.targets {
        ensure!(
            all.contains(&target.as_str()),
            "there is no fuzz target '{target}', only {}",
            all.join(", ")
        );
    }
    let wanted = |target: &&str| {
        options.targets.is_empty() || options.targets.iter().any(|named| named == target)
    };
    println!("building");
    succeed(cargo_fuzz(root, "build"), "cannot build the fuzz targets")?;

    let (mut passed, mut failed) = (0, 0);
    for target in all.into_iter().filter(wanted) {
        print!("{target:<16} ");
        io::stdout().flush()?;
        let began = Instant::now();
        let output = fuzz(root, target, options.seconds)?;
        let took = began.elapsed().as_secs();
        if output.status.success() {
            passed += 1;
            println!("ok ({took} s)");
        } else {
            failed += 1;
            println!("FAILED ({took} s): {}", output.status);
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
                println!("    {line}");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Says which of the two tools is missing, rather than what cargo makes of it.
fn check_tools(root: &Path) -> Result<()> {
    let works = |command: &mut Command| {
        (command.arg("--version").output()).is_ok_and(|output| output.status.success())
    };
    ensure!(
        works(&mut nightly_cargo(root)),
        "there is no nightly toolchain, which the fuzz targets need: rustup toolchain install nightly"
    );
    ensure!(
        works(nightly_cargo(root).arg("fuzz")),
        "there is no cargo-fuzz, which runs the fuzz targets: cargo install --locked cargo-fuzz"
    );
    Ok(())
}

/// Runs one target on what it has found before and on its seeds.
fn fuzz(root: &Path, target: &str, seconds: u32) -> Result<Output> {
    let corpus = root.join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut command = cargo_fuzz(root, "run");
    // What is new is written into the first directory.
    command.arg(target).arg(corpus);
    let seeds = root.join("fuzz/seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={TIMEOUT}"));
    command.output().context("cannot run cargo fuzz")
}

fn succeed(mut command: Command, what: &str) -> Result<Output> {
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "{what}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn cargo_fuzz(root: &Path, verb: &str) -> Command {
    let mut command = nightly_cargo(root);
    command.args(["fuzz", verb, "--fuzz-dir", "fuzz"]);
    command
}

/// rustup's cargo: the one that has started this program knows no toolchains.
fn nightly_cargo(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.arg("+nightly").current_dir(root);
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_takes_seconds_and_targets() -> Result<()> {
        let table: [(&[&str], u32, &[&str]); 4] = [
            (&[], 30, &[]),
            (&["--seconds", "5"], 5, &[]),
            (&["a", "--seconds=7", "b"], 7, &["a", "b"]),
            (&["a"], 30, &["a"]),
        ];
        for (arguments, seconds, targets) in table {
            let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
            let options = Options::parse(arguments)?;
            assert_eq!(options.seconds, seconds);
            assert_eq!(options.targets, targets);
        }
        Ok(())
    }

    #[test]
    fn what_is_no_number_of_seconds_is_refused() {
        for wrong in [
            &["--seconds"][..],
            &["--seconds", "0"],
            &["--seconds=x"],
            &["--second=1"],
        ] {
            let arguments = wrong.iter().map(|text| (*text).to_owned()).collect();
            assert!(Options::parse(arguments).is_err(), "{wrong:?}");
        }
    }
}
