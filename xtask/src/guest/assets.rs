//! What the suite takes from Debian: the cloud kernel with its modules, and the few programs that
//! guest and host need, with their libraries.
//!
//! Packages are fetched with `apt-get download` and unpacked under `target/guest/packages/`, one
//! directory per name and version, so nothing is installed and nothing is fetched twice. Where apt
//! cannot be asked, the newest version already there serves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail, ensure};

use super::cpio::Tree;

/// The package that depends on Debian's current cloud kernel.
const KERNEL_META: &str = "linux-image-cloud-amd64";

/// Programs by package, and where they go in an image. `busybox` itself comes by itself.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("iproute2", &["ip", "tc", "bridge"]),
    ("iperf3", &["iperf3"]),
    ("ethtool", &["ethtool"]),
];

/// Unpacked packages.
#[derive(Debug)]
pub(crate) struct Assets {
    /// The kernel's release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The kernel image.
    pub(crate) kernel: PathBuf,
    /// The directory with the kernel's modules.
    pub(crate) modules: PathBuf,
    busybox: PathBuf,
    applets: Vec<String>,
    programs: BTreeMap<String, PathBuf>,
    libraries: BTreeMap<String, PathBuf>,
}

impl Assets {
    /// Finds or fetches everything, below `cache`.
    pub(crate) fn ready(cache: &Path) -> Result<Self> {
        let mut apt = Apt::new(cache)?;
        let kernel_package = apt.kernel_package()?;
        let kernel_tree = apt.unpacked(&kernel_package)?;
        let release = kernel_package
            .strip_prefix("linux-image-")
            .with_context(|| format!("unexpected kernel package name {kernel_package}"))?
            .to_owned();
        let modules = existing(
            &kernel_tree,
            &[
                &format!("lib/modules/{release}"),
                &format!("usr/lib/modules/{release}"),
            ],
        )?;
        let kernel = existing(&kernel_tree, &[&format!("boot/vmlinuz-{release}")])?;

        let busybox_tree = apt.unpacked("busybox-static")?;
        let busybox = existing(&busybox_tree, &["bin/busybox", "usr/bin/busybox"])?;
        let applets = run(Command::new(&busybox).arg("--list"))?;
        let applets = text(&applets).lines().map(str::to_owned).collect();

        let mut programs = BTreeMap::new();
        let mut wanted_by = Vec::new();
        for (package, names) in PROGRAMS {
            let tree = apt.unpacked(package)?;
            for name in *names {
                let at = ["bin", "sbin", "usr/bin", "usr/sbin"].map(|dir| format!("{dir}/{name}"));
                let path = existing(&tree, &at.each_ref().map(String::as_str))?;
                programs.insert((*name).to_owned(), path);
            }
            wanted_by.push((*package).to_owned());
        }
        let trees = apt.with_libraries(wanted_by)?;
        apt.keep_answers()?;
        let libraries = libraries_of(programs.values(), &trees)?;
        Ok(Self {
            release,
            kernel,
            modules,
            busybox,
            applets,
            programs,
            libraries,
        })
    }

    /// Puts busybox with its applets, the programs and their libraries into `tree`.
    pub(crate) fn install_programs(&self, tree: &mut Tree) -> Result<()> {
        tree.program("bin/busybox", read(&self.busybox)?);
        for (name, path) in &self.programs {
            tree.program(&format!("sbin/{name}"), read(path)?);
        }
        for (path, from) in &self.libraries {
            tree.program(path, read(from)?);
        }
        for applet in &self.applets {
            let taken = ["bin", "sbin"]
                .iter()
                .any(|dir| tree.contains(&format!("{dir}/{applet}")));
            if !taken {
                tree.link(&format!("bin/{applet}"), "/bin/busybox");
            }
        }
        Ok(())
    }
}

/// apt and dpkg as far as they are needed here.
///
/// Asking apt takes most of a second, so its answers are kept until its lists change.
#[derive(Debug)]
struct Apt {
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
    fn new(cache: &Path) -> Result<Self> {
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
    fn keep_answers(&self) -> Result<()> {
        let lines: String = self
            .known
            .iter()
            .map(|(name, c)| remember(name, c))
            .collect();
        fs::write(&self.answers, format!("{}\n{lines}", lists_state()))
            .with_context(|| format!("writing {}", self.answers.display()))
    }

    /// The name of the kernel package that the meta package depends on.
    fn kernel_package(&mut self) -> Result<String> {
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
    fn unpacked(&mut self, package: &str) -> Result<PathBuf> {
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
        fs::rename(&unpacked, into)?;
        Ok(())
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
    fn with_libraries(&mut self, packages: Vec<String>) -> Result<Vec<PathBuf>> {
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

/// The shared libraries that `programs` load, by their path in an image, as the unpacked dynamic
/// loader finds them.
fn libraries_of<'a>(
    programs: impl Iterator<Item = &'a PathBuf>,
    trees: &[PathBuf],
) -> Result<BTreeMap<String, PathBuf>> {
    const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
    let loader = trees
        .iter()
        .flat_map(|tree| {
            [
                LOADER,
                "usr/lib64/ld-linux-x86-64.so.2",
                "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            ]
            .map(|path| tree.join(path))
        })
        // In the package this may be a link to an absolute path.
        .find(|path| {
            fs::metadata(path).is_ok() && !fs::read_link(path).is_ok_and(|l| l.is_absolute())
        })
        .context("libc6 has no dynamic loader")?;
    let directories: Vec<_> = trees
        .iter()
        .flat_map(|tree| ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|d| tree.join(d)))
        .filter(|path| path.is_dir())
        .map(|path| path.display().to_string())
        .collect();
    let mut found = BTreeMap::new();
    for program in programs {
        let output = run(Command::new(&loader)
            .args(["--library-path", &directories.join(":"), "--list"])
            .arg(program))?;
        for line in text(&output).lines() {
            let Some((name, path)) = line.trim().split_once(" => ") else {
                continue;
            };
            let path = path.split(" (").next().unwrap_or_default();
            ensure!(
                path != "not found",
                "{} needs {name}, which no package has",
                program.display()
            );
            if !name.contains('/') {
                found.insert(format!("lib/{name}"), PathBuf::from(path));
            }
        }
    }
    found.insert(LOADER.to_owned(), loader);
    Ok(found)
}

fn existing(tree: &Path, candidates: &[&str]) -> Result<PathBuf> {
    match candidates
        .iter()
        .map(|path| tree.join(path))
        .find(|path| path.exists())
    {
        Some(path) => Ok(path),
        None => bail!("{} has none of {}", tree.display(), candidates.join(", ")),
    }
}

/// Reads a file, naming it if that fails.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Runs a command to its end; anything but success is an error that shows what it printed.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command
        .output()
        .with_context(|| format!("starting {shown}"))?;
    ensure!(
        output.status.success(),
        "{shown}: {}\n{}{}",
        output.status,
        text(&output),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// What a command printed on its standard output.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
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
