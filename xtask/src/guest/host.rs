//! Runs one guest to its end, on this machine's KVM or in an emulated host, and watches it.
//!
//! Where this machine's KVM boots Linux, the host is a chroot with a network namespace of its own.
//! Elsewhere QEMU emulates a processor with SVM and boots the guest's own kernel as a host, with
//! real KVM on emulated hardware. Both get the same root and run the same script.
//!
//! The emulator's nested SVM is not perfect: now and then host or guest lock up. [`Ending::Died`] is such
//! an end, which may be tried again; a guest that lives while its commands say nothing
//! is [`Ending::Stalled`], which may not. What tells them apart is a sign of life every few
//! seconds from both user spaces.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::assets::{Assets, run};
use super::console::{Said, Splitter};
use super::image::{self, Run};
use super::vmm::quote;

/// Where the VMM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// On this machine's KVM.
    Direct,
    /// On the KVM of a host that QEMU emulates.
    Nested,
}

/// How long a run may take, in its parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From the VMM's start to the first command.
    pub(crate) boot: Duration,
    /// Between two pieces of output, while the guest shows that it lives.
    pub(crate) silence: Option<Duration>,
    /// From the first command to the last.
    pub(crate) total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(120),
            silence: Some(Duration::from_secs(60)),
            total: Duration::from_secs(400),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The commands ended with this status, and the VMM after them.
    Finished(u8),
    /// The boot died: of the emulated host, or at least not of what the commands found.
    Died(String),
    /// The machine lived, the case did not get on.
    Stalled(String),
}

/// What a run brought.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) ending: Ending,
    /// What the commands printed.
    pub(crate) output: String,
    /// How often the commands started: once, and once more after each reboot.
    pub(crate) boots: u32,
    /// The VMM's exit status, as a shell gives it.
    pub(crate) vmm: Option<i32>,
    /// What the host's commands printed.
    pub(crate) host: String,
    /// Everything else that came from guest and VMM.
    pub(crate) console: String,
    /// The emulated host's own console.
    pub(crate) host_console: String,
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
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let tree = image::host(assets, what)?;
    let report = directory.join("report");
    let console = directory.join("console");
    let host_console = directory.join("host-console");
    for file in [&report, &console, &host_console] {
        File::create(file)?;
    }
    let child = match mode {
        Mode::Nested => {
            let initrd = directory.join("host.cpio");
            fs::write(&initrd, tree.to_cpio()?)?;
            emulated_host(assets, &initrd, &host_console, &console, &report)?
        }
        Mode::Direct => {
            let root = directory.join("root");
            tree.to_directory(&root)?;
            chroot(&root, &console, &report)?
        }
    };
    Watch {
        mode,
        limits,
        child: Guard(child),
        report: Tail::new(report)?,
        console: Tail::new(console)?,
        host_console: Tail::new(host_console)?,
        splitter: Splitter::new(what.word),
        phase: Phase::Host,
        phase_began: Instant::now(),
        host_lived: Instant::now(),
        guest_lived: Instant::now(),
        spoke: Instant::now(),
        began: None,
        ending: None,
        outcome: Outcome {
            ending: Ending::Died(String::new()),
            output: String::new(),
            boots: 0,
            vmm: None,
            host: String::new(),
            console: String::new(),
            host_console: String::new(),
        },
    }
    .watched(stop, print)
}

/// The line that installs what a nested run needs.
const INSTALL_QEMU: &str = "sudo apt-get install --no-install-recommends qemu-system-x86";

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

fn chroot(root: &Path, console: &Path, report: &Path) -> Result<Child> {
    let root = quote(&root.display().to_string());
    let script = format!(
        "mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc && \
         mount -t sysfs sysfs {root}/sys; exec chroot {root} /bin/sh /host/main"
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

/// A child that does not outlive its value.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Either may fail only because the process has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A file that somebody else writes, read as it grows.
#[derive(Debug)]
struct Tail {
    file: File,
}

impl Tail {
    fn new(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file })
    }

    fn more(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host boots.
    Host,
    /// The guest boots, for the first time or again.
    Guest,
    /// The commands run.
    Commands,
    /// The commands have ended; the guest powers off.
    Down,
    /// The host's script has ended.
    Done,
}

#[derive(Debug)]
struct Watch {
    mode: Mode,
    limits: Limits,
    child: Guard,
    report: Tail,
    console: Tail,
    host_console: Tail,
    splitter: Splitter,
    phase: Phase,
    phase_began: Instant,
    host_lived: Instant,
    guest_lived: Instant,
    spoke: Instant,
    began: Option<Instant>,
    ending: Option<Ending>,
    outcome: Outcome,
}

/// How long the emulated host has to reach its script.
const HOST_BOOT: Duration = Duration::from_secs(120);
/// How long a user space that gives a sign of life every few seconds may give none.
const NO_SIGN: Duration = Duration::from_secs(30);
/// How long the guest has to power off.
const POWER_OFF: Duration = Duration::from_secs(45);
/// How often the files are looked at.
const TURN: Duration = Duration::from_millis(20);

/// Last words of a kernel whose machine is broken.
const LOCKUPS: &[&str] = &[
    "soft lockup",
    "hard LOCKUP",
    "self-detected stall on CPU",
    "detected stalls on CPUs",
];
const PANIC: &str = "Kernel panic - not syncing";

impl Watch {
    fn watched(mut self, stop: &AtomicBool, print: &mut dyn Write) -> Result<Outcome> {
        let mut report_line = Vec::new();
        loop {
            // Asked before the files are read, so that nothing written before its end is missed.
            let exited = self.child.0.try_wait()?;
            for byte in self.report.more()? {
                if byte == b'\n' {
                    let line = String::from_utf8_lossy(&report_line).trim_end().to_owned();
                    self.reported(&line);
                    report_line.clear();
                } else {
                    report_line.push(byte);
                }
            }
            let bytes = self.console.more()?;
            if !bytes.is_empty() {
                self.guest_lived = Instant::now();
            }
            for said in self.splitter.feed(&bytes) {
                self.said(said, print)?;
            }
            let more = self.host_console.more()?;
            self.outcome
                .host_console
                .push_str(&String::from_utf8_lossy(&more));

            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if self.phase == Phase::Done {
                break;
            }
            if let Some(ending) = self.overdue() {
                self.ending = Some(ending);
                break;
            }
            if let Some(status) = exited {
                let who = if self.mode == Mode::Nested {
                    "the emulated host"
                } else {
                    "the host's script"
                };
                self.ending = Some(Ending::Died(format!("{who} ended early: {status}")));
                break;
            }
            std::thread::sleep(TURN);
        }
        self.outcome.ending = match self.ending {
            Some(ending) => ending,
            None => Ending::Stalled(match self.outcome.vmm {
                Some(status) => {
                    format!("the VMM ended with status {status} before the commands did")
                }
                None => "the host's script ended before the commands did".to_owned(),
            }),
        };
        Ok(self.outcome)
    }

    fn reported(&mut self, line: &str) {
        self.host_lived = Instant::now();
        let Some(word) = line.strip_prefix("@host ") else {
            self.outcome.host.push_str(line);
            self.outcome.host.push('\n');
            return;
        };
        match word {
            "alive" => {}
            "start" => self.enter(Phase::Guest),
            "done" => self.enter(Phase::Done),
            other => match other.strip_prefix("vmm ").and_then(|n| n.parse().ok()) {
                Some(status) => {
                    self.outcome.vmm = Some(status);
                    // Status 1 is the VMM's own refusal, of an option say. Any other, before
                    // a command has run, is a guest that went down while it booted.
                    if self.ending.is_none() && self.outcome.boots == 0 && status > 1 {
                        self.ending = Some(Ending::Died(format!(
                            "the VMM ended with status {status} while the guest booted"
                        )));
                    }
                }
                None => self.outcome.host_console.push_str(&format!("{line}\n")),
            },
        }
    }

    fn said(&mut self, said: Said, print: &mut dyn Write) -> Result<()> {
        match said {
            Said::Begin => {
                self.outcome.boots += 1;
                self.began.get_or_insert_with(Instant::now);
                self.enter(Phase::Commands);
            }
            Said::Output(bytes) => {
                self.spoke = Instant::now();
                self.outcome
                    .output
                    .push_str(&String::from_utf8_lossy(&bytes));
                print.write_all(&bytes)?;
                print.flush()?;
            }
            Said::Alive => {}
            Said::Reboot => self.enter(Phase::Guest),
            Said::End(status) => {
                self.ending = Some(Ending::Finished(status));
                self.enter(Phase::Down);
            }
            Said::Noise(bytes) => self
                .outcome
                .console
                .push_str(&String::from_utf8_lossy(&bytes)),
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_began = Instant::now();
        self.spoke = self.phase_began;
    }

    /// Whether the run has to be given up, and as what.
    fn overdue(&self) -> Option<Ending> {
        let died = |what: &str| Some(Ending::Died(what.to_owned()));
        let lockup = |text: &str| LOCKUPS.iter().find(|words| text.contains(**words)).copied();
        if let Some(words) = lockup(&self.outcome.host_console) {
            return died(&format!("the emulated host's kernel says '{words}'"));
        }
        if self.outcome.host_console.contains(PANIC) {
            return died("the emulated host's kernel panicked");
        }
        if let Some(words) = lockup(&self.outcome.console) {
            return died(&format!("the guest's kernel says '{words}'"));
        }
        if self.outcome.console.contains(PANIC) || self.outcome.output.contains(PANIC) {
            return Some(Ending::Stalled("the guest's kernel panicked".to_owned()));
        }
        let in_phase = self.phase_began.elapsed();
        if self.phase == Phase::Host {
            return (in_phase > HOST_BOOT)
                .then(|| Ending::Died("the host did not come up".to_owned()));
        }
        if self.host_lived.elapsed() > NO_SIGN {
            return died("the host gives no sign of life");
        }
        if self.outcome.vmm.is_some() {
            // The host's last commands run.
            return None;
        }
        match self.phase {
            Phase::Guest if in_phase > self.limits.boot => died("the guest did not come up"),
            Phase::Commands if self.guest_lived.elapsed() > NO_SIGN => {
                died("the guest gives no sign of life")
            }
            Phase::Commands
                if self
                    .limits
                    .silence
                    .is_some_and(|limit| self.spoke.elapsed() > limit) =>
            {
                Some(Ending::Stalled(format!(
                    "the guest lives, but its commands have said nothing for {} s",
                    self.spoke.elapsed().as_secs()
                )))
            }
            Phase::Commands
                if self
                    .began
                    .is_some_and(|at| at.elapsed() > self.limits.total) =>
            {
                Some(Ending::Stalled(format!(
                    "the commands still ran after {} s",
                    self.limits.total.as_secs()
                )))
            }
            Phase::Down if in_phase > POWER_OFF => Some(Ending::Stalled(
                "the guest did not power off, or the VMM did not end".to_owned(),
            )),
            _ => None,
        }
    }
}
