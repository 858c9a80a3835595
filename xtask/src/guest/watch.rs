//! Watches a run: reads what host and guest say, and decides when and how the run has ended.
//!
//! The emulator's nested SVM is not perfect: now and then host or guest lock up.
//! [`Ending::Died`] is such an end, which may be tried again; a guest that lives while its commands
//! get nowhere is [`Ending::Stalled`], which may not. What tells them apart is a sign of life every
//! few seconds from both user spaces.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::console::{Said, Splitter};
use super::host::Mode;

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

impl Outcome {
    /// A run of which nothing is known yet.
    pub(crate) fn new() -> Self {
        Self {
            ending: Ending::Died("nothing is known of it".to_owned()),
            output: String::new(),
            boots: 0,
            vmm: None,
            host: String::new(),
            console: String::new(),
            host_console: String::new(),
        }
    }
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

/// A run under way.
#[derive(Debug)]
pub(crate) struct Watch {
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
const NO_SIGN: Duration = Duration::from_secs(60);
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
/// What a VMM says of a guest whose processor gave up, in lower case.
const TRIPLE_FAULT: &str = "triple fault";
const PANIC: &str = "Kernel panic - not syncing";

impl Watch {
    /// Starts to watch `child`, which writes report, console and its own console into `files`.
    pub(crate) fn new(
        mode: Mode,
        limits: Limits,
        child: Child,
        word: &str,
        files: [PathBuf; 3],
    ) -> Result<Self> {
        let child = Guard(child);
        let [report, console, host_console] = files;
        let now = Instant::now();
        Ok(Self {
            mode,
            limits,
            child,
            report: Tail::new(report)?,
            console: Tail::new(console)?,
            host_console: Tail::new(host_console)?,
            splitter: Splitter::new(word),
            phase: Phase::Host,
            phase_began: now,
            host_lived: now,
            guest_lived: now,
            spoke: now,
            began: None,
            ending: None,
            outcome: Outcome::new(),
        })
    }

    /// Waits for the run's end; `print` gets the commands' output as it comes.
    pub(crate) fn until_the_end(
        mut self,
        stop: &AtomicBool,
        print: &mut dyn Write,
    ) -> Result<Outcome> {
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
        self.outcome.ending = match self.ending.take() {
            Some(ending) => ending,
            None => self.went_down(),
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
        // What the guest said before the host's end may be read after it.
        if self.phase == Phase::Done {
            return;
        }
        self.phase = phase;
        self.phase_began = Instant::now();
        self.spoke = self.phase_began;
    }

    /// How a run ended whose host is done while the guest's commands are not.
    fn went_down(&self) -> Ending {
        let Some(status) = self.outcome.vmm else {
            return Ending::Stalled("the host's script ended before the commands did".to_owned());
        };
        // Status 1 is the VMM's own refusal, of an option say. Any other, before a command has
        // run, is a guest that went down while it booted.
        if self.outcome.boots == 0 && status > 1 {
            return Ending::Died(format!(
                "the VMM ended with status {status} while the guest booted"
            ));
        }
        // The console is the commands' too, so what the VMM says of the guest stands behind what they did.
        let last = self.outcome.output.lines().last().unwrap_or_default();
        let said = |text: &str| text.to_lowercase().contains(TRIPLE_FAULT);
        if said(last) || said(&self.outcome.console) {
            return Ending::Died(format!(
                "the VMM ended with status {status} on a triple fault"
            ));
        }
        Ending::Stalled(format!(
            "the VMM ended with status {status} before the commands did"
        ))
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Watches a run whose files hold these texts from the start, in a host that just waits.
    fn watched(report: &str, console: &str, host_console: &str) -> Outcome {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xtask-watch-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = [
            file("r", report),
            file("c", console),
            file("h", host_console),
        ];
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let limits = Limits {
            boot: Duration::ZERO,
            silence: Some(Duration::ZERO),
            total: Duration::from_secs(1000),
        };
        let outcome = Watch::new(Mode::Nested, limits, child, "w", files)
            .and_then(|watch| watch.until_the_end(&AtomicBool::new(false), &mut std::io::sink()))
            .unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        outcome
    }

    const START: &str = "@host alive\n@host start\n";
    const BEGIN: &str = "boot\n@@guest:w:begin@@\n";

    #[test]
    fn a_run_that_went_well_brings_output_status_and_what_the_host_said() {
        let report = format!("{START}mine\n@host vmm 0\n@host done\n");
        let outcome = watched(
            &report,
            &format!("{BEGIN}hello\n@@guest:w:end:3@@\ndown\n"),
            "",
        );
        assert_eq!(outcome.ending, Ending::Finished(3));
        assert_eq!(
            (outcome.output.as_str(), outcome.host.as_str()),
            ("hello\n", "mine\n")
        );
        assert_eq!((outcome.vmm, outcome.boots), (Some(0), 1));
        assert_eq!(outcome.console, "boot\ndown\n");
    }

    #[test]
    fn only_what_the_emulator_does_to_a_boot_is_tried_again() {
        let down = |status: u8| format!("{START}@host vmm {status}\n@host done\n");
        let lockup = "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!\n";
        let cases: [(&str, String, String, &str, bool); 11] = [
            ("host locked up", START.into(), BEGIN.into(), lockup, true),
            (
                "host panicked",
                START.into(),
                String::new(),
                "Kernel panic - not syncing: x",
                true,
            ),
            ("guest locked up", START.into(), lockup.into(), "", true),
            (
                "guest never came up",
                START.into(),
                "boot\n".into(),
                "",
                true,
            ),
            ("VMM crashed at boot", down(139), "boot\n".into(), "", true),
            (
                "VMM refused an option",
                down(1),
                "vmm: -device x: what?\n".into(),
                "",
                false,
            ),
            (
                "VMM ended under the commands",
                down(2),
                BEGIN.into(),
                "",
                false,
            ),
            (
                "triple fault",
                down(2),
                format!("{BEGIN}@@guest:w:reboot@@\nTriple fault"),
                "",
                true,
            ),
            (
                "triple fault under the commands",
                down(2),
                format!("{BEGIN}one\nvmm: the guest crashed: triple fault at rip 0xfff0\n"),
                "",
                true,
            ),
            (
                "commands that speak of one",
                down(2),
                format!("{BEGIN}triple fault\nvmm: something else\n"),
                "",
                false,
            ),
            (
                "commands say nothing",
                START.into(),
                BEGIN.into(),
                "",
                false,
            ),
        ];
        for (name, report, console, host_console, again) in cases {
            let ending = watched(&report, &console, host_console).ending;
            match ending {
                Ending::Died(_) => assert!(again, "{name}: {ending:?}"),
                Ending::Stalled(_) => assert!(!again, "{name}: {ending:?}"),
                Ending::Finished(_) => panic!("{name}: {ending:?}"),
            }
        }
    }
}
