//! `cargo xtask sanitize`: the tests of the crates that make no system calls, under AddressSanitizer.
//!
//! Those crates hold all that follows a guest's pointers, the unsafe code among it. The sanitizer is the
//! nightly compiler's and needs nothing beside it; the interpreter that finds more comes as a component
//! that not every machine can have.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// The crates.
const CRATES: [&str; 6] = [
    "virtqueue",
    "qom",
    "keyval",
    "qdev",
    "net-client",
    "virtio-net",
];

/// Where a sanitizer's runtime comes with the compiler, and where it finds leaks too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const HELP: &str = "\
usage: cargo xtask sanitize [CRATE ...]

Runs the tests of the named crates under AddressSanitizer, or of all that make no system calls.
Needs a nightly toolchain. See fuzz/README.md.
";

/// Runs the chore with the arguments after its name.
pub(crate) fn main(arguments: Vec<String>) -> ExitCode {
    if arguments
        .iter()
        .any(|text| text == "--help" || text == "-h")
    {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match command(&arguments).and_then(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sanitize: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is run for the crates named, or for all.
fn command(named: &[String]) -> Result<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask is not in a workspace")?;
    let crates: Vec<&str> = if named.is_empty() {
        CRATES.to_vec()
    } else {
        named.iter().map(String::as_str).collect()
    };
    if let Some(unknown) = crates.iter().find(|name| !CRATES.contains(name)) {
        bail!(
            "'{unknown}' is not one of those that make no system calls: {}",
            CRATES.join(", ")
        );
    }
    let mut command = Command::new("cargo");
    // rustup's cargo: the one that has started this program knows no toolchains.
    command.args(["+nightly", "test", "--lib", "--tests", "--target", TARGET]);
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    for name in crates {
        command.args(["--package", name]);
    }
    // Apart from what is built without it.
    let target_dir = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => Path::new(&dir).join("sanitize"),
        None => root.join("target/sanitize"),
    };
    command
        .current_dir(root)
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTFLAGS", "-Zsanitizer=address");
    Ok(command)
}

/// Whether all tests passed and the sanitizer found nothing.
fn run(mut command: Command) -> Result<bool> {
    let status = command.status().context("cannot run cargo")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_all_or_those_named_and_no_others() -> Result<()> {
        let all = command(&[])?;
        let packages = |command: &Command| {
            let arguments = command.get_args();
            arguments.filter(|text| *text == "--package").count()
        };
        assert_eq!(packages(&all), CRATES.len());
        assert_eq!(packages(&command(&["qom".to_owned()])?), 1);
        assert!(command(&["net-tap".to_owned()]).is_err());
        Ok(())
    }
}
