//! The example `vhost-user-net`, and the network namespace that its tap is in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use super::process::Process;
use crate::guest::vmm;

/// The tap's address; a front end's is any other in its network.
pub(crate) const ADDRESS: &str = "10.0.2.2";

/// Replaces the back end that would be built.
const OVERRIDE: &str = "VHOST_USER_NET";

/// Builds the example and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return fs::canonicalize(path).context(OVERRIDE);
    }
    let (root, target) = vmm::workspace()?;
    eprintln!("vhost-user: building the back end");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--package", "examples"])
        .args(["--example", "vhost-user-net", "--target-dir"])
        .arg(&target)
        .current_dir(root)
        .status()
        .context("running cargo")?;
    if !status.success() {
        bail!("building the back end: {status}");
    }
    Ok(target.join("release/examples/vhost-user-net"))
}

/// A directory and a network namespace for one case, gone with it.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    /// Whose namespace it is.
    holder: Process,
}

impl Place {
    pub(crate) fn new(name: &str) -> Result<Self> {
        // The path goes into option strings.
        let name = name.replace(['=', ','], "-");
        let directory =
            std::env::temp_dir().join(format!("vhost-user-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let line = [
            "unshare",
            "--net",
            "--",
            "sh",
            "-c",
            "echo ready; read line",
        ];
        let mut holder = Process::start(&directory, "namespace", &line.map(str::to_owned))?;
        holder.wait_for("a namespace", 10, |output| output.contains("ready"))?;
        let place = Self { directory, holder };
        place.check("ip link set lo up")?;
        // Only what is counted comes through the tap.
        place.check("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")?;
        Ok(place)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn socket(&self) -> String {
        self.directory.join("socket").display().to_string()
    }

    /// Starts the back end with so many queue pairs, and waits until front ends can connect.
    pub(crate) fn back_end(&self, program: &Path, pairs: u16) -> Result<Process> {
        let queues = match pairs {
            1 => String::new(),
            pairs => format!(",queues={pairs}"),
        };
        let line = [
            "nsenter".to_owned(),
            format!("--net=/proc/{}/ns/net", self.holder.id()),
            program.display().to_string(),
            "--socket".to_owned(),
            self.socket(),
            "-netdev".to_owned(),
            format!("tap,id=n0,ifname=tap0,ip={ADDRESS}/24{queues}"),
        ];
        let mut back_end = Process::start(&self.directory, "back-end", &line)?;
        back_end.wait_for("it listens", 10, |output| output.contains("waiting for"))?;
        Ok(back_end)
    }

    /// Runs a command in the namespace.
    pub(crate) fn run(&self, command: &str) -> Result<Output> {
        Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            // Of this namespace's interfaces, not of those of the mount's.
            .args(["unshare", "--mount", "sh", "-c"])
            .arg(format!("mount -t sysfs sysfs /sys && {command}"))
            .output()
            .context("running nsenter")
    }

    /// The same of one that must succeed; what it prints.
    pub(crate) fn check(&self, command: &str) -> Result<String> {
        let output = self.run(command)?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{command}: {}: {text} {errors}", output.status);
        }
        Ok(text)
    }

    /// A statistic of the tap, from the host's side: what the device sends is received there.
    pub(crate) fn counter(&self, name: &str) -> Result<u64> {
        let text = self.check(&format!("cat /sys/class/net/tap0/statistics/{name}"))?;
        text.parse().with_context(|| format!("{name}: {text}"))
    }

    /// The tap's number, which a new one would not have.
    pub(crate) fn tap_index(&self) -> Result<String> {
        self.check("cat /sys/class/net/tap0/ifindex")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing is lost if a file stays.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether this is root, which namespaces and huge pages need.
pub(crate) fn need_root() -> Result<()> {
    let id = Command::new("id")
        .arg("-u")
        .output()
        .context("running id")?;
    if id.stdout != b"0\n" {
        bail!("needs root, for a network namespace with a tap");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!("needs /dev/net/tun");
    }
    Ok(())
}
