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

use anyhow::{Context, Result, bail, ensure};

use super::apt::Apt;
use super::cpio::Tree;

/// Programs by package, and where they go in an image. `busybox` itself comes by itself.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("iproute2", &["ip", "tc", "bridge"]),
    ("iperf3", &["iperf3"]),
    ("ethtool", &["ethtool"]),
    ("tcpdump", &["tcpdump"]),
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
