//! What the runs of one call have in common: packages, the VMM, the mode; and what is done about a
//! boot that died.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::assets::Assets;
use super::host::{self, Mode};
use super::image::Run;
use super::watch::{Ending, Limits, Outcome};
use super::{indented, vmm};

/// How often a boot that died is tried again.
const RETRIES: u32 = 2;

/// One guest asked for.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Commands for the guest.
    pub(crate) guest: &'a str,
    /// Commands for the host before the VMM starts.
    pub(crate) before: &'a str,
    /// Commands for the host after the VMM has ended.
    pub(crate) after: &'a str,
    /// The VMM's arguments.
    pub(crate) arguments: Vec<String>,
    /// How long it may take.
    pub(crate) limits: Limits,
}

/// All that runs have in common.
#[derive(Debug)]
pub(crate) struct Runner {
    assets: Assets,
    vmm: Vec<u8>,
    mode: Mode,
    runs: PathBuf,
    keep: bool,
    stop: Arc<AtomicBool>,
}

impl Runner {
    /// Fetches, builds and finds out what is needed for a run.
    pub(crate) fn ready(keep: bool) -> Result<Self> {
        let (workspace, target) = vmm::workspace()?;
        let cache = target.join("guest");
        let stop = Arc::new(AtomicBool::new(false));
        let assets = Assets::ready(&cache)?;
        let vmm = vmm::executable(&workspace, &cache)?;
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let runs = cache.join(if keep { "kept" } else { "runs" });
        if !keep {
            remove_leftovers(&runs);
        }
        let mut runner = Self {
            assets,
            vmm,
            mode: Mode::Nested,
            runs,
            keep,
            stop,
        };
        runner.mode = runner.choose(&cache)?;
        Ok(runner)
    }

    /// Whether the guests' host is an emulated one.
    pub(crate) fn emulates(&self) -> bool {
        self.mode == Mode::Nested
    }

    /// Boots a guest, again where the boot died; also returns how often.
    ///
    /// What the guest's commands print goes to `print` as it comes; in an emulated host only when the boot
    /// is over, since one that died is forgotten and tried again from the start.
    pub(crate) fn boot(
        &self,
        request: &Request<'_>,
        print: &mut dyn Write,
    ) -> Result<(Outcome, u32)> {
        let mut again = 0;
        loop {
            if self.mode == Mode::Direct {
                return Ok((self.boot_once(self.mode, request, print)?, again));
            }
            let mut held = Vec::new();
            let outcome = self.boot_once(self.mode, request, &mut held)?;
            match &outcome.ending {
                Ending::Died(why) if again < RETRIES => {
                    again += 1;
                    eprintln!("guest: {why}: retry {again} of {RETRIES}");
                }
                _ => {
                    print.write_all(&held).context("cannot print")?;
                    return Ok((outcome, again));
                }
            }
            eprint!("{}", indented("console of guest and VMM", &outcome.console));
            eprint!(
                "{}",
                indented("console of the emulated host", &outcome.host_console)
            );
        }
    }

    fn boot_once(
        &self,
        mode: Mode,
        request: &Request<'_>,
        print: &mut dyn Write,
    ) -> Result<Outcome> {
        let word = word();
        let run = Run {
            word: &word,
            vmm: &self.vmm,
            arguments: &request.arguments,
            guest: request.guest,
            before: request.before,
            after: request.after,
        };
        let directory = self.runs.join(&word);
        let outcome = host::boot(
            mode,
            &self.assets,
            &run,
            request.limits,
            &directory,
            &self.stop,
            print,
        );
        if self.keep {
            eprintln!("guest: the run's files are in {}", directory.display());
        } else {
            // Nothing is lost if a file stays; the directory's name is not used again.
            fs::remove_dir_all(&directory).ok();
        }
        outcome
    }

    /// Direct where this machine's KVM boots the guest, else nested.
    ///
    /// `GUEST_MODE` decides; else a short boot does, whose answer is kept for this kernel.
    fn choose(&self, cache: &Path) -> Result<Mode> {
        match std::env::var("GUEST_MODE").as_deref() {
            Ok("direct") => return Ok(Mode::Direct),
            Ok("nested") => return Ok(Mode::Nested),
            Ok(other) => bail!("GUEST_MODE is direct or nested, not '{other}'"),
            Err(_) => {}
        }
        if fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(Mode::Nested);
        }
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let key = format!("{} on {}", self.assets.release, host.trim());
        let kept = cache.join("mode");
        if let Ok(text) = fs::read_to_string(&kept) {
            match text.trim().strip_prefix(&key).map(str::trim) {
                Some("direct") => return Ok(Mode::Direct),
                Some("nested") => return Ok(Mode::Nested),
                _ => {}
            }
        }
        eprintln!("guest: trying whether this machine's KVM boots the guest");
        let request = Request {
            guest: "true",
            before: "",
            after: "",
            arguments: vmm::arguments(None, "", &vmm::Extra::default(), 1)?,
            limits: Limits {
                boot: Duration::from_secs(15),
                ..Limits::default()
            },
        };
        let outcome = self.boot_once(Mode::Direct, &request, &mut io::sink())?;
        let (mode, name) = match outcome.ending {
            Ending::Finished(_) => (Mode::Direct, "direct"),
            _ => (Mode::Nested, "nested"),
        };
        // A VMM that gave up by itself says nothing about the machine.
        if outcome.vmm.is_none() || mode == Mode::Direct {
            fs::write(&kept, format!("{key} {name}\n"))?;
        }
        self.stop
            .load(Ordering::Relaxed)
            .then_some(())
            .map_or(Ok(mode), |()| bail!("interrupted"))
    }
}

/// Removes the files of runs whose process is gone without having done so.
pub(crate) fn remove_leftovers(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .split_once('-')
            .and_then(|(p, _)| u32::from_str_radix(p, 16).ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // What cannot be removed is in nobody's way.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// A word that no other run's markers carry, of this process or another, and a name for the run's directory.
pub(crate) fn word() -> String {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}-{run:x}", std::process::id(), now.as_micros())
}
