//! apt and dpkg, as far as they serve here: packages are fetched and unpacked, never installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

use super::assets::{run, text};

/// The package that depends on Debian's current cloud kernel.
const KERNEL_META: &str = "linux-image-cloud-amd64";

/// apt and dpkg as far as they are needed here.
///
/// Asking apt takes most of a second, so its answers are kept until its lists change.
#[derive(Debug)]
pub(crate) struct Apt {
    packages: PathBuf,
    updated: bool,
    known: BTreeMap<String, Candidate>,
    answers: PathBuf,
}

/// What apt would install under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    version: String,
    depends: Vec<String>,
}

impl Apt {
    /// With packages and answers kept below `cache`.
    pub(crate) fn new(cache: &Path) -> Result<Self> {
        let packages = cache.join("packages");
        fs::create_dir_all(&packages)
            .with_context(|| format!("creating {}", packages.display()))?;
        let answers = cache.join("apt-answers");
        let kept = fs::read_to_string(&answers).unwrap_or_default();
        let known = match kept.split_once('\n') {
            Some((state, rest)) if state == lists_state() => {
                rest.lines().filter_map(recall).collect()
            }
            _ => BTreeMap::new(),
        };
        Ok(Self {
            packages,
            updated: false,
            known,
            answers,
        })
    }

    /// Keeps apt's answers for the next run.
    pub(crate) fn keep_answers(&self) -> Result<()> {
        let lines: String = self
            .known
            .iter()
            .map(|(name, c)| remember(name, c))
            .collect();
        fs::write(&self.answers, format!("{}\n{lines}", lists_state()))
            .with_context(|| format!("writing {}", self.answers.display()))
    }

    /// The name of the kernel package that the meta package depends on.
    pub(crate) fn kernel_package(&mut self) -> Result<String> {
        match self.candidate(KERNEL_META) {
            Ok(candidate) => candidate
                .depends
                .into_iter()
                .find(|name| name.starts_with("linux-image-"))
                .with_context(|| format!("{KERNEL_META} depends on no linux-image package")),
            Err(error) => self
                .cached("linux-image-")
                .and_then(|path| {
                    let name = path.file_name()?.to_str()?;
                    Some(name.split_once('_')?.0.to_owned())
                })
                .ok_or(error),
        }
    }

    /// The directory with the contents of `package`, fetched if it is not there.
    pub(crate) fn unpacked(&mut self, package: &str) -> Result<PathBuf> {
        let candidate = match self.candidate(package) {
            Ok(candidate) => candidate,
            Err(error) => return self.cached(&format!("{package}_")).ok_or(error),
        };
        let into = self.packages.join(format!(
            "{package}_{}",
            candidate.version.replace(':', "%3a")
        ));
        if into.is_dir() {
            return Ok(into);
        }
        eprintln!("guest: fetching {package} {}", candidate.version);
        let scratch = self.packages.join(format!(".fetch-{}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        let fetched = self.fetch(package, &candidate.version, &scratch, &into);
        // What is left there is of no use to anyone.
        fs::remove_dir_all(&scratch).ok();
        fetched.with_context(|| format!("fetching the package {package}"))?;
        Ok(into)
    }

    fn fetch(&mut self, package: &str, version: &str, scratch: &Path, into: &Path) -> Result<()> {
        let download = || {
            // A download into a directory that apt's own user cannot write needs no sandbox.
            run(Command::new("apt-get")
                .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
                .arg(format!("{package}={version}"))
                .current_dir(scratch))
        };
        if let Err(error) = download() {
            if self.updated {
                return Err(error);
            }
            self.update()?;
            download()?;
        }
        let deb = fs::read_dir(scratch)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .context("apt-get download left no .deb file")?;
        let unpacked = scratch.join("unpacked");
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
        match fs::rename(&unpacked, into) {
            // Somebody else was faster.
            Err(_) if into.is_dir() => Ok(()),
            done => Ok(done?),
        }
    }

    /// What apt would install as `package`; asks for new lists once if it knows none.
    fn candidate(&mut self, package: &str) -> Result<Candidate> {
        self.ask(&[package.to_owned()]).or_else(|error| {
            if self.updated {
                return Err(error);
            }
            self.update()?;
            self.ask(&[package.to_owned()])
        })?;
        self.known
            .get(package)
            .cloned()
            .with_context(|| format!("apt knows no package {package}"))
    }

    /// Asks apt about several packages at once, as far as it has not been asked before.
    fn ask(&mut self, packages: &[String]) -> Result<()> {
        let open: Vec<_> = packages
            .iter()
            .filter(|name| !self.known.contains_key(*name))
            .collect();
        if !open.is_empty() {
            let output = run(Command::new("apt-cache")
                .args(["show", "--no-all-versions"])
                .args(open))?;
            self.known
                .extend(text(&output).split("\n\n").filter_map(described));
        }
        Ok(())
    }

    fn update(&mut self) -> Result<()> {
        self.updated = true;
        eprintln!("guest: refreshing apt's lists");
        run(Command::new("apt-get").args(["-q", "update"]))
            .context("apt knows too little; run `sudo apt-get update` once")?;
        self.known.clear();
        Ok(())
    }

    /// `packages` and the library packages they depend on, unpacked.
    pub(crate) fn with_libraries(&mut self, packages: Vec<String>) -> Result<Vec<PathBuf>> {
        let mut level = packages;
        let mut seen = Vec::new();
        let mut trees = Vec::new();
        while !level.is_empty() {
            // One question for all; where it fails, each is asked for by itself below.
            self.ask(&level).ok();
            let mut next = Vec::new();
            for package in level {
                trees.push(self.unpacked(&package)?);
                match self.candidate(&package) {
                    Ok(candidate) => next.extend(candidate.depends),
                    Err(_) => {
                        // Without apt, any library package that is here may be the one.
                        trees.extend(self.all_cached("lib"));
                        trees.extend(self.all_cached("zlib"));
                    }
                }
                seen.push(package);
            }
            next.sort();
            next.dedup();
            next.retain(|name| is_library(name) && !seen.contains(name));
            level = next;
        }
        Ok(trees)
    }

    fn cached(&self, prefix: &str) -> Option<PathBuf> {
        self.all_cached(prefix).pop()
    }

    /// Unpacked packages whose directory starts with `prefix`, by age.
    fn all_cached(&self, prefix: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.packages) else {
            return Vec::new();
        };
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let matches = entry.file_name().to_str()?.starts_with(prefix);
                matches.then_some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, path)| path).collect()
    }
}

/// The package that a paragraph of `apt-cache show` describes.
fn described(paragraph: &str) -> Option<(String, Candidate)> {
    let field = |name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let depends = ["Pre-Depends", "Depends"]
        .iter()
        .flat_map(|name| dependencies(field(name).unwrap_or_default()))
        .collect();
    Some((
        field("Package")?.to_owned(),
        Candidate {
            version: field("Version")?.to_owned(),
            depends,
        },
    ))
}

/// What changes when apt's lists do.
fn lists_state() -> String {
    let changed = fs::metadata("/var/lib/apt/lists")
        .and_then(|m| m.modified())
        .ok();
    let since = changed
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    format!("lists {}", since.as_micros())
}

fn remember(name: &str, candidate: &Candidate) -> String {
    format!(
        "{name} {} {}\n",
        candidate.version,
        candidate.depends.join(",")
    )
}

fn recall(line: &str) -> Option<(String, Candidate)> {
    let mut words = line.split(' ');
    let (name, version, depends) = (words.next()?, words.next()?, words.next()?);
    let depends = depends
        .split(',')
        .filter(|d| !d.is_empty())
        .map(str::to_owned)
        .collect();
    Some((
        name.to_owned(),
        Candidate {
            version: version.to_owned(),
            depends,
        },
    ))
}

/// The package names of a dependency field, of alternatives the first.
fn dependencies(field: &str) -> Vec<String> {
    field
        .split(',')
        .filter_map(|one| {
            let first = one.split('|').next()?;
            let name = first.split(['(', ':', ' ']).find(|word| !word.is_empty())?;
            Some(name.to_owned())
        })
        .collect()
}

fn is_library(package: &str) -> bool {
    (package.starts_with("lib") || package.starts_with("zlib")) && !package.ends_with("-bin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_described_by_its_paragraph_and_recalled_as_it_was_remembered() {
        let paragraph = "Package: iperf3\nVersion: 1:3.12-1\nDepends: libc6 (>= 2), libiperf0\n";
        let (name, candidate) = described(paragraph).unwrap();
        assert_eq!(
            (name.as_str(), candidate.version.as_str()),
            ("iperf3", "1:3.12-1")
        );
        assert_eq!(candidate.depends, ["libc6", "libiperf0"]);
        let line = remember(&name, &candidate);
        assert_eq!(
            recall(line.trim_end_matches('\n')).unwrap(),
            (name, candidate)
        );
        assert!(described("Version: 1\n").is_none());
    }

    #[test]
    fn a_dependency_field_yields_the_first_of_alternatives_without_versions() {
        let field = "debconf (>= 0.5) | debconf-2.0, libc6 (>= 2.34), zlib1g:any, libmnl0";
        assert_eq!(
            dependencies(field),
            ["debconf", "libc6", "zlib1g", "libmnl0"]
        );
        assert!(dependencies("").is_empty());
    }
}
