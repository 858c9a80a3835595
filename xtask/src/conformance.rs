//! `cargo xtask conformance`: what the tables of conformance say is so.
//!
//! A table is `crates/*/tests/conformance/README.md`: a row for each thing that the specification demands, with its
//! section and the tests that would fail. Each test that is named exists and is not ignored; each section that the table
//! says it is about has a row. A directory of tests may be run once more by a program of its own, on packed rings or
//! with a legacy driver: `device_packed.rs` beside `device/`. Such a program has all the modules of the directory, but
//! those that it says it is without.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// How the paragraph begins that lists a table's sections.
const SECTIONS: &str = "Sections with demands: ";

/// Checks every table, and every program that runs a directory's tests once more.
///
/// # Errors
/// One line for each thing that is not so.
pub(crate) fn check(root: &Path) -> Result<()> {
    let (mut rows, mut tests) = (0, BTreeSet::new());
    let mut wrong = Vec::new();
    let crates = root.join("crates");
    for entry in fs::read_dir(&crates).with_context(|| crates.display().to_string())? {
        let name = entry?.file_name();
        let name = name.to_str().context("a crate's name is no UTF-8")?;
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        let tests_of = format!("crates/{name}/tests");
        if let Some(text) = read(&format!("{tests_of}/conformance/README.md")) {
            let table = Table::parse(&text).with_context(|| format!("the table of {name}"))?;
            let faults = table.faults(name, &read);
            wrong.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
            rows += table.rows.len();
            tests.extend(table.tests().map(str::to_owned));
        }
        wrong.extend(again(root, &tests_of)?);
    }
    ensure!(rows > 0, "there is no table here");
    ensure!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
    println!("{rows} demands, {} tests", tests.len());
    Ok(())
}

/// What is wrong with the programs in `tests_of` that run a directory's tests once more.
fn again(root: &Path, tests_of: &str) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let Ok(entries) = fs::read_dir(root.join(tests_of)) else {
        return Ok(wrong);
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        names.push(name.to_str().context("a name is no UTF-8")?.to_owned());
    }
    for dir in &names {
        let Ok(main) = fs::read_to_string(root.join(tests_of).join(dir).join("main.rs")) else {
            continue;
        };
        let suffixed = |file: &&String| file.starts_with(&format!("{dir}_"));
        for file in names.iter().filter(suffixed) {
            let path = format!("{tests_of}/{file}");
            let program = fs::read_to_string(root.join(&path)).with_context(|| path.clone())?;
            let left_out = left_out(dir, &main, &program);
            wrong.extend(left_out.map(|module| format!("{path} is without {dir}/{module}.rs")));
        }
    }
    Ok(wrong)
}

/// Modules of a directory's tests that a program which runs them once more has not, and does not say that it has not.
fn left_out<'a>(dir: &str, main: &'a str, program: &str) -> impl Iterator<Item = &'a str> {
    let modules = main
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'));
    modules.filter(move |module| {
        let has = program.contains(&format!("\"{dir}/{module}.rs\""));
        let says = (program.lines())
            .any(|line| line.starts_with("//! Without ") && line.contains(&format!("`{module}`")));
        !has && !says
    })
}

struct Table<'a> {
    rows: Vec<Row<'a>>,
    sections: Vec<&'a str>,
}

struct Row<'a> {
    section: &'a str,
    /// Tests, as `` `module::name` `` and separated by commas, or why there is none.
    proof: &'a str,
}

impl<'a> Table<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let mut rows = Vec::new();
        let cells = (text.lines()).filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
        for line in cells.skip(1) {
            let cells: Vec<_> = line.split(" | ").collect();
            let [section, _, proof] = cells[..] else {
                bail!("a row of other than three cells: {line}");
            };
            rows.push(Row { section, proof });
        }
        let sections = (text.split("\n\n"))
            .find_map(|paragraph| paragraph.strip_prefix(SECTIONS))
            .with_context(|| format!("no paragraph begins with '{SECTIONS}'"))?;
        let sections = sections.trim().trim_end_matches('.');
        let sections = sections.split(',').map(str::trim).collect();
        Ok(Self { rows, sections })
    }

    fn tests(&self) -> impl Iterator<Item = &'a str> {
        (self.rows.iter())
            .filter(|row| row.proof.starts_with('`'))
            .flat_map(|row| row.proof.split(", "))
    }

    /// What is not as this table, of a crate's, says; `read` has the files.
    fn faults(&self, of: &str, read: &impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut faults = Vec::new();
        for section in &self.sections {
            if !self.rows.iter().any(|row| row.section == *section) {
                faults.push(format!("section {section} has no row"));
            }
        }
        for test in self.tests() {
            if !exists(of, test, read) {
                faults.push(format!("there is no test {test}"));
            }
        }
        faults
    }
}

/// Whether there is a test `` `module::name` ``. A module is in the crate's `tests`, or in `src/`, or named from
/// `crates/` on.
fn exists(of: &str, test: &str, read: &impl Fn(&str) -> Option<String>) -> bool {
    let Some((module, name)) = (test.strip_prefix('`'))
        .and_then(|rest| rest.strip_suffix('`'))
        .and_then(|path| path.split_once("::"))
    else {
        return false;
    };
    let place = if module.starts_with("crates/") {
        module.to_owned()
    } else if module.starts_with("src/") {
        format!("crates/{of}/{module}")
    } else {
        format!("crates/{of}/tests/{module}")
    };
    // Tests of a module may be in a file of their own.
    let files = [format!("{place}.rs"), format!("{place}/tests.rs")];
    files.iter().filter_map(|file| read(file)).any(|text| {
        text.split_once(&format!("fn {name}() {{"))
            .is_some_and(|(before, _)| before.trim_end().ends_with("#[test]"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_this_workspace_are_so() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        check(root.expect("this package is in the workspace")).unwrap();
    }

    #[test]
    fn what_a_table_names_must_be_there() {
        let read = |path: &str| {
            let text = match path {
                "crates/a/tests/x.rs" => "#[test]\nfn good() {\n}\nfn helper() {\n}",
                "crates/a/src/y/tests.rs" => "#[test]\n    fn inner() {",
                "crates/b/tests/d/z.rs" => "#[test]\n#[ignore]\nfn idle() {\n}",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let table = "\
            Sections with demands: 1.1,\n1.2.\n\n\
            | section | the device | test |\n|---|---|---|\n\
            | 1.1 | does | `x::good`, `src/y::inner` |\n\
            | 1.1 | does | `x::helper`, `x::none`, `w::good`, `x` |\n\
            | 1.1 | has | `crates/b/tests/d/z::idle` |\n\
            | 1.3 | has | not offered: IT |\n";
        let faults = Table::parse(table).unwrap().faults("a", &read);
        assert_eq!(
            faults,
            [
                "section 1.2 has no row",
                "there is no test `x::helper`",
                "there is no test `x::none`",
                "there is no test `w::good`",
                "there is no test `x`",
                "there is no test `crates/b/tests/d/z::idle`",
            ]
        );
        assert!(Table::parse("| a | b | c |\n| 1 | 2 |").is_err());
        assert!(Table::parse("| a | b | c |\n| 1 | 2 | 3 |").is_err());
    }

    #[test]
    fn a_program_that_runs_tests_once_more_has_them_all_or_says_so() {
        let main = "mod harness;\nmod rx;\nmod tx;\n";
        let program = "//! Without `rx`: why.\n#[path = \"device/harness.rs\"]\nmod harness;\n";
        let left_out: Vec<_> = left_out("device", main, program).collect();
        assert_eq!(left_out, ["tx"]);
    }
}
