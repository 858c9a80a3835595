//! A program that is ended with its owner, and what it prints.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A program that runs. Its standard input stays open until it is asked to end.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose output goes to a file of that name in `directory`. The kernel ends it when this
    /// process is gone, however that went.
    pub(crate) fn start(directory: &Path, name: &str, line: &[String]) -> Result<Self> {
        let log = directory.join(name);
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(line)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", line.join(" ")))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until `done` says so of the output. A program that ends before is an error.
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        seconds: u64,
        mut done: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let ended = self.child.try_wait()?;
            if done(&self.output()) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!(
                    "{} ended ({status}) before {what}:\n{}",
                    self.name,
                    self.tail()
                );
            }
            if Instant::now() > end {
                bail!(
                    "{}: {what}: not so after {seconds} s:\n{}",
                    self.name,
                    self.tail()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Closes its standard input, or sends it a signal, and waits for its end.
    pub(crate) fn end(mut self, signal: Option<&str>) -> Result<(ExitStatus, String)> {
        drop(self.child.stdin.take());
        if let Some(signal) = signal {
            send(self.id(), signal)?;
        }
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, self.output()));
            }
            if Instant::now() > end {
                bail!("{} does not end:\n{}", self.name, self.tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of what it has printed, set in.
    pub(crate) fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<_> = output.lines().collect();
        let from = lines.len().saturating_sub(30);
        (lines.iter().skip(from))
            .map(|line| format!("    {line}\n"))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process of ours.
fn send(id: u32, signal: &str) -> Result<()> {
    let status = Command::new("kill")
        .args(["-s", signal, &id.to_string()])
        .status()
        .context("running kill")?;
    if !status.success() {
        bail!("kill -s {signal} {id}: {status}");
    }
    Ok(())
}
