//! The command line of `cargo xtask guest`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::vmm::Extra;

/// What to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Print how to call it.
    Help,
    /// Print the cases.
    List,
    /// The named cases, or all.
    Suite(Vec<String>),
    /// Commands for the guest's shell.
    Shell(String),
}

/// The command line.
#[derive(Debug)]
pub(crate) struct Options {
    /// What to do.
    pub(crate) action: Action,
    /// What is added to the netdevs and devices of each run.
    pub(crate) extra: Extra,
    /// Stands for the default netdev and device.
    pub(crate) vmm_args: Option<String>,
    /// How many cases run at once; at least one.
    pub(crate) jobs: usize,
    /// Whether a case that fails has no second try.
    pub(crate) once: bool,
    /// Whether the files of a run are kept.
    pub(crate) keep: bool,
    /// How long the commands may take.
    pub(crate) timeout: Option<Duration>,
}

impl Options {
    /// Reads the arguments after the chore's name.
    pub(crate) fn parse(arguments: Vec<String>) -> Result<Self> {
        let mut names = Vec::new();
        let mut commands = None;
        let mut action = None;
        let mut extra = Extra::default();
        let (mut vmm_args, mut keep, mut timeout) = (None, false, None);
        let (mut jobs, mut once) = (None, false);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (option, inline) = match argument.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(value)),
                _ => (argument.as_str(), None),
            };
            let mut value = || {
                let given = inline.map(str::to_owned).or_else(|| arguments.next());
                given.with_context(|| format!("{option} needs a value"))
            };
            match option {
                "--help" | "-h" => action = Some(Action::Help),
                "--list" => action = Some(Action::List),
                "--keep" => keep = true,
                "--once" => once = true,
                "--shell" => commands = Some(value()?),
                "--device" => extra.device = value()?,
                "--netdev" => extra.netdev = value()?,
                "--jobs" => {
                    let number = value()?;
                    let number = number.parse().ok().filter(|number| *number > 0);
                    jobs = Some(number.context("--jobs takes a number of cases, 1 or more")?);
                }
                "--vmm-args" => vmm_args = Some(value()?),
                "--timeout" => {
                    let seconds = value()?;
                    let number = seconds.parse().with_context(|| {
                        format!("--timeout takes a number of seconds, not '{seconds}'")
                    })?;
                    timeout = Some(Duration::from_secs(number));
                }
                _ if option.starts_with('-') => bail!("unknown option {option}\n\n{HELP}"),
                _ => names.push(argument),
            }
        }
        let action = match (action, commands) {
            (Some(action), _) => action,
            (None, Some(commands)) => {
                ensure!(
                    names.is_empty(),
                    "--shell runs no cases: '{}' is left over",
                    names.join(" ")
                );
                ensure!(jobs.is_none() && !once, "--jobs and --once go with cases");
                Action::Shell(commands)
            }
            (None, None) => {
                ensure!(
                    vmm_args.is_none() && timeout.is_none(),
                    "--vmm-args and --timeout go with --shell"
                );
                Action::Suite(names)
            }
        };
        Ok(Self {
            action,
            extra,
            vmm_args,
            jobs: jobs.unwrap_or(1),
            once,
            keep,
            timeout,
        })
    }
}

/// How to call it.
pub(crate) const HELP: &str = "\
usage: cargo xtask guest [NAME...] [--device 'PROPS'] [--netdev 'OPTS'] [--jobs N] [--once] [--keep]
       cargo xtask guest --list
       cargo xtask guest --shell 'COMMANDS' [--device 'PROPS'] [--netdev 'OPTS'] [--vmm-args 'ARGS']
                         [--timeout S] [--keep]

Boots Debian's cloud kernel under the example VMM. With names, or none for all, runs those cases
and ends with 'N passed, M failed'.

  --list           the cases
  --shell CMDS     run commands in the guest (busybox sh; eth0 is up with 10.0.2.15/24, the host is
                   10.0.2.2 with an iperf3 server), print what they print, exit with their status;
                   125 says that the guest could not be run to its end.
                   `host CMDS` in them runs commands on the host, where `monitor LINE` is a line
                   for the VMM's monitor: `host monitor info network`, and /tmp/serial is what is
                   typed on the guest's serial line
  --device PROPS   properties for each network device, packed=on for one; a case whose own
                   contradict them is 'not for this variant', and counted apart
  --netdev OPTS    options for each tap, queues=2 for one, likewise
  --jobs N         run so many cases at once (1); an emulated host is busy with hardly more than one
                   processor, so two on two processors take not much longer than one
  --once           give no case a second try. In an emulated host, up to three cases that failed are
                   run once more, alone, when all others are through: what the first try printed
                   stands, and the last line names those that passed the second
  --vmm-args ARGS  replace the default -netdev tap,id=net0,ip=10.0.2.2/24 and -device
  --timeout S      give the commands so many seconds (3600)
  --keep           keep the files of each run, and say where

Where this machine's KVM cannot boot the guest, QEMU emulates a host that can (qemu-system-x86).
GUEST_MODE=direct or nested decides that; GUEST_VMM=PATH runs a static executable of your own;
GUEST_KERNEL=PATH boots that image in the guest (of the same release, as the modules stay), a vmlinux
for one; GUEST_APPEND adds to the kernel's command line, loglevel=8 for one.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        Options::parse(arguments.iter().map(|&a| a.to_owned()).collect())
    }

    #[test]
    fn a_value_may_follow_its_option_or_stand_in_it() {
        for arguments in [["--shell", "a=b c"].as_slice(), &["--shell=a=b c"]] {
            let options = parse(arguments).unwrap();
            assert!(
                matches!(options.action, Action::Shell(c) if c == "a=b c"),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn options_that_would_be_ignored_are_refused() {
        let wrong: [&[&str]; 10] = [
            &["--shell", "true", "--once"],
            &["--jobs", "0"],
            &["--jobs", "two"],
            &["--shell", "true", "--jobs", "2"],
            &["--timeout", "5"],
            &["bind", "--vmm-args", ""],
            &["--shell", "true", "bind"],
            &["--shell"],
            &["--frob"],
            &["--shell", "x", "--timeout", "soon"],
        ];
        for arguments in wrong {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn cases_and_commands_take_properties() {
        for arguments in [
            ["--device", "packed=on", "bind"].as_slice(),
            &["--shell", "true", "--device=packed=on"],
        ] {
            let options = parse(arguments).unwrap();
            assert_eq!(options.extra.device, "packed=on", "{arguments:?}");
            assert_eq!(options.jobs, 1);
        }
        assert_eq!(parse(&["--jobs=3", "bind"]).unwrap().jobs, 3);
        assert!(!parse(&["bind"]).unwrap().once && parse(&["bind", "--once"]).unwrap().once);
    }
}
