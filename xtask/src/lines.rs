//! `cargo xtask lines`: no file of production code is longer than it should be without saying why,
//! and almost nothing in it can panic by `unwrap` or `expect`.
//!
//! Production code is what is in `src` of the crates, the examples and this package, and the examples
//! themselves, up to the tests at a file's end. That each `expect` has its reason, clippy sees to.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Lines of production code in a file. More need the words of [`REASON`] and the reason in the file's text.
const LONGEST: usize = 600;
const REASON: &str = "//! Longer than other files:";
/// Lines of production code for each `unwrap` or `expect`, over all of them.
const LINES_EACH: usize = 1000;

/// Checks every file that is in the repository.
///
/// # Errors
/// One line for each file that is too long, and one for each call where there are too many.
pub(crate) fn check() -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "*.rs"])
        .output()
        .context("cannot run git")?;
    ensure!(listed.status.success(), "git lists no files");
    let listed = String::from_utf8(listed.stdout).context("a file's name is no UTF-8")?;
    let (mut lines, mut longest) = (0, 0);
    let (mut long, mut calls) = (Vec::new(), Vec::new());
    for path in listed.lines().filter(|path| is_production(path)) {
        // A file that is listed and gone is about to be removed.
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        let code: Vec<&str> = production(&text).collect();
        if code.len() > LONGEST && !text.contains(REASON) {
            long.push(format!("{path} has {} lines", code.len()));
        }
        lines += code.len();
        longest = longest.max(code.len());
        let panics = |line: &&str| line.contains(".unwrap()") || line.contains(".expect(");
        let commented = |line: &&str| line.trim_start().starts_with("//");
        for line in code.iter().filter(|line| panics(line) && !commented(line)) {
            calls.push(format!("{path}: {}", line.trim()));
        }
    }
    ensure!(lines > 0, "there is no production code here");
    ensure!(
        long.is_empty(),
        "longer than {LONGEST} lines, and no line begins with '{REASON}':\n  {}",
        long.join("\n  ")
    );
    ensure!(
        calls.len() * LINES_EACH <= lines,
        "more than one unwrap or expect in {LINES_EACH} lines:\n  {}",
        calls.join("\n  ")
    );
    println!(
        "{lines} lines of production code, at most {longest} in a file, with {} unwrap or expect",
        calls.len()
    );
    Ok(())
}

fn is_production(path: &str) -> bool {
    let in_source = path.contains("/src/") || path.starts_with("examples/examples/");
    let of_package = ["crates/", "examples/", "xtask/"]
        .iter()
        .any(|top| path.starts_with(top));
    in_source && of_package && !path.ends_with("tests.rs") && !path.contains("/tests/")
}

/// The lines up to the tests at the end.
fn production(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.lines().peekable();
    std::iter::from_fn(move || {
        let line = rest.next()?;
        let tests = line == "#[cfg(test)]" && rest.peek().is_some_and(|next| next.ends_with('{'));
        (!tests).then_some(line)
    })
}
