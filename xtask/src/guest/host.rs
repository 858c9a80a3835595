//! Starts one guest, on this machine's KVM or in an emulated host.
//!
//! Where this machine's KVM boots Linux, the host is a chroot with a network namespace of its own.
//! Elsewhere QEMU emulates a processor with SVM and boots the guest's own kernel as a host, with
//! real KVM on emulated hardware. Both get the same root and run the same script.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};

use super::assets::{Assets, run};
use super::cpio::Tree;
use super::image::{self, Run};
use super::vmm::quote;
use super::watch::{Limits, Outcome, Watch};

/// Where the VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// On this machine's KVM.
    Direct,
    /// On the KVM of a host that QEMU emulates.
    Nested,
}

/// Boots the guest of `what` and waits for its end; `print` gets the commands' output as it comes.
///
/// All files of the run are in `directory`, which must not exist.
pub(crate) fn boot(
    mode: Mode,
    assets: &Assets,
    what: &Run<'_>,
    limits: Limits,
    directory: &Path,
    stop: &Arc<AtomicBool>,
    print: &mut dyn Write,
) -> Result<Outcome> {
    let tree = image::host(assets, what)?;
    match mode {
        Mode::Nested => {
            let files = files(directory)?;
            let [report, console, host_console] = &files;
            let initrd = directory.join("host.cpio");
            fs::write(&initrd, tree.to_cpio()?)?;
            let child = emulated_host(assets, &initrd, host_console, console, report)?;
            Watch::new(mode, limits, child, what.word, files)?.until_the_end(stop, print)
        }
        Mode::Direct => boot_in_chroot(&tree, what.word, limits, directory, stop, print),
    }
}

/// The same with a host's root as it is given, as a chroot on this machine's kernel.
pub(crate) fn boot_in_chroot(
    tree: &Tree,
    word: &str,
    limits: Limits,
    directory: &Path,
    stop: &Arc<AtomicBool>,
    print: &mut dyn Write,
) -> Result<Outcome> {
    let files = files(directory)?;
    let [report, console, _] = &files;
    let root = root(directory);
    tree.to_directory(&root)?;
    let child = chroot(&root, console, report)?;
    Watch::new(Mode::Direct, limits, child, word, files)?.until_the_end(stop, print)
}

/// Where the root of a run in `directory` is, if it is a chroot.
pub(crate) fn root(directory: &Path) -> PathBuf {
    directory.join("root")
}

/// A run's report, console and host's console, empty.
fn files(directory: &Path) -> Result<[PathBuf; 3]> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let files = ["report", "console", "host-console"].map(|name| directory.join(name));
    for file in &files {
        File::create(file)?;
    }
    Ok(files)
}

/// A directory of a chroot's root at which, if it is there, all of this machine's files are.
pub(crate) const OUTER: &str = "outer";

/// The line that installs what a nested run needs.
const INSTALL_QEMU: &str = "sudo apt-get install --no-install-recommends qemu-system-x86";

/// Starts the emulated host. A boot to the first ping takes 18.6 s, and 19.9 s of processor time, on a machine that does
/// nothing else.
///
/// Tried with QEMU 7.2 and not taken: `-la57`, the same; the kernels uncompressed, the same; `mitigations=off` in both
/// kernels, 23.8 s; one emulated processor, a third more under traffic; `thread=single` with `mitigations=off`, of which
/// the one boot hung. What remains is a boot now and then whose host ends at once, without a word, since QEMU gives up
/// with `-no-reboot` on a triple fault, or stops; the runner tries it again.
fn emulated_host(
    assets: &Assets,
    initrd: &Path,
    host_console: &Path,
    console: &Path,
    report: &Path,
) -> Result<Child> {
    const QEMU: &str = "qemu-system-x86_64";
    if Command::new(QEMU)
        .arg("-version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        bail!("{QEMU} is needed to emulate a host for the guest: {INSTALL_QEMU}");
    }
    let serial = |path: &Path| format!("file:{}", path.display());
    dying_with_us(QEMU)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max,+svm,+npt",
            "-m",
            "2048",
            "-smp",
            "2",
        ])
        .arg("-kernel")
        .arg(&assets.kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 loglevel=5 panic=-1"])
        .args([
            "-serial",
            &serial(host_console),
            "-serial",
            &serial(console),
        ])
        .args(["-serial", &serial(report)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().append(true).open(host_console)?)
        .spawn()
        .context("starting QEMU")
}

/// The devices that a host in a chroot sees.
const DEVICES: &str = "null zero random urandom kvm net/tun vhost-net";

fn chroot(root: &Path, console: &Path, report: &Path) -> Result<Child> {
    let root = quote(&root.display().to_string());
    // Only the devices that are needed: what runs in there may be root.
    let script = format!(
        "cd {root} || exit 1; mkdir -p dev/net && for device in {DEVICES}; do \
         if [ -e /dev/$device ]; then : >dev/$device; mount --bind /dev/$device dev/$device; fi; done \
         && mount -t proc proc proc && mount -t sysfs sysfs sys; \
         if [ -d {OUTER} ]; then mount --rbind / {OUTER} || exit 1; fi; \
         exec chroot . /bin/sh /host/main"
    );
    let mut command = dying_with_us("unshare");
    let root_already = run(Command::new("id").arg("-u")).is_ok_and(|o| o.stdout == b"0\n");
    if !root_already {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            &script,
        ])
        .stdin(Stdio::null())
        .stdout(File::options().append(true).open(report)?)
        .stderr(File::options().append(true).open(console)?)
        .spawn()
        .context("starting unshare")
}

/// A command that the kernel kills when this process is gone, however it went.
fn dying_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
