//! The cases, one file each area.
//!
//! A case is a guest's shell script and a check of what it printed; the script itself may end with
//! another status than 0 (`fail`, `expect` and `wait_for` of the prelude do), which fails the case.
//! To add one, add a [`Case`] to an area's table.

/// Streams and large pings both ways, a small file's sum, then twenty pings.
macro_rules! all_ways {
    () => {
        r#"
stream -t 3
stream -t 3 -R
stream -t 3 --bidir
head -c 3000000 /dev/urandom >/tmp/file
host "nc -l -p 9001 -e sh -c 'cat >/tmp/file' >/dev/null 2>&1 &"
wait_for 10 "the host listens" host_listens 9001
nc 10.0.2.2 9001 </tmp/file
host 'nc -l -p 9002 -e cat /tmp/file >/dev/null 2>&1 &'
wait_for 10 "the host listens" host_listens 9002
expect "sum of a file that went and came" "$(nc 10.0.2.2 9002 <&9 | md5sum)" "$(md5sum </tmp/file)"
# Counted by the IP stack: the program's socket has room for few that come at once.
answered=$(icmp InEchoReps)
ping -q -c 20 -i 0.02 -s 20000 10.0.2.2 >/dev/null || fail "large pings are lost"
expect "answers to large pings" $(($(icmp InEchoReps) - answered)) 20
ping -c 20 -i 0.02 10.0.2.2
"#
    };
}

mod driver;
mod filters;
mod interrupts;
mod lifecycle;
mod offloads;
mod power;
mod queues;
mod topology;
mod traffic;
mod variants;
mod xdp;

use anyhow::{Context, Result, bail, ensure};

use super::watch::Outcome;

pub(crate) use self::offloads::last_pings;

/// One case: a guest, what runs in it, and what must come of it.
#[derive(Debug)]
pub(crate) struct Case {
    /// The name on the command line.
    pub(crate) name: &'static str,
    /// What it shows, in a line.
    pub(crate) about: &'static str,
    /// Properties appended to the default device; what the whole call adds comes before them.
    pub(crate) device: &'static str,
    /// Properties of the whole call, `name=value`, with which the case cannot be or shows nothing, and why.
    pub(crate) not_with: &'static [(&'static str, &'static str)],
    /// Replaces the default netdev and device.
    pub(crate) vmm_args: Option<&'static str>,
    /// How many processors the guest has.
    pub(crate) smp: u8,
    /// Commands for the host before the VMM starts; what runs in the background stays.
    pub(crate) before: &'static str,
    /// Commands for the guest; `host '...'` in them runs something on the host.
    pub(crate) guest: &'static str,
    /// Commands for the host after the VMM has ended.
    pub(crate) after: &'static str,
    /// How many guests in turn run the commands, each to be as it should be. What takes minutes is done in several
    /// boots: an emulated host ends early now and then, and the longer it runs the likelier.
    pub(crate) guests: u32,
    /// How many seconds the guest's commands may say nothing.
    pub(crate) silence: u64,
    /// Judges a run whose commands ended with 0.
    pub(crate) check: fn(&Outcome) -> Result<()>,
}

impl Case {
    /// What a case is unless it says otherwise.
    pub(crate) const PLAIN: Self = Self {
        name: "",
        about: "",
        device: "",
        not_with: &[],
        vmm_args: None,
        smp: 2,
        before: "",
        guest: "",
        after: "",
        guests: 1,
        silence: 60,
        check: booted_once,
    };
}

/// All cases, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    driver::CASES
        .iter()
        .chain(interrupts::CASES)
        .chain(traffic::CASES)
        .chain(offloads::CASES)
        .chain(filters::CASES)
        .chain(queues::CASES)
        .chain(variants::CASES)
        .chain(topology::CASES)
        .chain(xdp::CASES)
        .chain(lifecycle::CASES)
        .chain(power::CASES)
}

/// The guest was booted once and did not reboot by itself.
fn booted_once(outcome: &Outcome) -> Result<()> {
    ensure!(
        outcome.boots == 1,
        "the guest booted {} times",
        outcome.boots
    );
    Ok(())
}

/// The part of a line after `key`, in the first line that starts with it.
fn value<'a>(output: &'a str, key: &str) -> Result<&'a str> {
    output
        .lines()
        .find_map(|line| line.trim().strip_prefix(key))
        .map(str::trim)
        .with_context(|| format!("no line starts with '{key}'"))
}

/// The values of all lines that start with `key`.
fn values<'a>(output: &'a str, key: &str) -> Vec<&'a str> {
    output
        .lines()
        .filter_map(|line| line.trim().strip_prefix(key))
        .map(str::trim)
        .collect()
}

/// How many of how many pings were answered, for each `ping` in the output.
fn pings(output: &str) -> Result<Vec<(u32, u32)>> {
    output
        .lines()
        .filter(|line| line.contains("packets transmitted"))
        .map(|line| {
            let mut numbers = line.split(' ').filter_map(|word| word.parse().ok());
            match (numbers.next(), numbers.next()) {
                (Some(sent), Some(received)) => Ok((sent, received)),
                _ => bail!("cannot read '{line}'"),
            }
        })
        .collect()
}

/// There were `count` runs of `ping`, each of `sent` packets that were all answered.
fn all_pings_answered(outcome: &Outcome, count: usize, sent: u32) -> Result<()> {
    let pings = pings(&outcome.output)?;
    ensure!(
        pings.len() == count,
        "ping ran {} times, not {count}",
        pings.len()
    );
    for (n, ping) in pings.iter().enumerate() {
        ensure!(
            *ping == (sent, sent),
            "ping {}: {} sent, {} answered",
            n + 1,
            ping.0,
            ping.1
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_case_runs_something() {
        let mut names = Vec::new();
        for case in all() {
            assert!(!names.contains(&case.name), "{} is there twice", case.name);
            names.push(case.name);
            assert!(
                !case.about.is_empty() && !case.guest.is_empty(),
                "{}",
                case.name
            );
            assert!(
                case.vmm_args.is_none() || case.device.is_empty(),
                "{}",
                case.name
            );
        }
        assert!(!names.is_empty());
    }

    #[test]
    fn the_numbers_of_every_ping_are_read() {
        let output = "3 packets transmitted, 3 packets received, 0% packet loss\nx\n\
            10 packets transmitted, 7 packets received, 30% packet loss\n";
        assert_eq!(pings(output).unwrap(), [(3, 3), (10, 7)]);
        assert!(pings("no packets transmitted").is_err());
    }

    #[test]
    fn a_check_refuses_what_is_not_as_it_should_be() {
        let sums = |a: &str, b: &str| format!("size: 67108864\nguest: {a}  -\nhost: {b}  -\n");
        let (one, other) = ("0".repeat(64), "f".repeat(64));
        let total = "[  5]   0.00-5.01   sec  2 KBytes";
        let bound = |device: &str, modern: u8, bit: u8, mac: &str| {
            format!(
                "device: {device}\nfeatures: {}{bit}0\nmodern: {modern}\ninterrupts: 3\n\
                 driver: virtio_net\n\
                 10.0.2.15 dev tap0 lladdr {mac} REACHABLE\n",
                "0".repeat(32)
            )
        };
        let mac = "52:54:00:12:34:57";
        let datagrams =
            |counts: &str| format!("{total}  8000 Kbits/sec  0.1 ms  {counts}  receiver\n");
        let cases: [(&str, String, bool); 20] = [
            (
                "ping",
                "100 packets transmitted, 100 packets received\n".into(),
                true,
            ),
            (
                "ping",
                "100 packets transmitted, 99 packets received\n".into(),
                false,
            ),
            ("ping", String::new(), false),
            (
                "iperf3-tx",
                format!("{total}  812345 Kbits/sec   receiver\n"),
                true,
            ),
            (
                "iperf3-tx",
                format!("{total}  3.2 Kbits/sec   receiver\n"),
                false,
            ),
            (
                "iperf3-tx",
                format!("{total}  812345 Kbits/sec   sender\n"),
                false,
            ),
            ("udp-tx", datagrams("10/2800 (0.36%)"), true),
            ("udp-tx", datagrams("300/2800 (11%)"), false),
            ("udp-tx", datagrams("0/20 (0%)"), false),
            ("udp-rx", String::new(), false),
            ("file-to-guest", sums(&one, &one), true),
            ("file-to-guest", sums(&one, &other), false),
            ("file-to-guest", sums("", ""), false),
            ("bind", bound("0x1041", 1, 1, mac), true),
            ("bind", bound("0x1000", 1, 1, mac), true),
            ("bind", bound("0x1000", 0, 0, mac), true),
            ("bind", bound("0x1000", 0, 1, mac), false),
            ("bind", bound("0x1009", 1, 1, mac), false),
            ("bind", bound("0x1041", 1, 0, mac), false),
            ("bind", bound("0x1041", 1, 1, "52:54:00:12:34:56"), false),
        ];
        for (name, output, good) in cases {
            let case = all().find(|case| case.name == name).unwrap();
            let mut outcome = Outcome {
                boots: 1,
                output,
                ..Outcome::new()
            };
            let result = (case.check)(&outcome);
            assert_eq!(
                result.is_ok(),
                good,
                "{name}: {result:?} of {}",
                outcome.output
            );
            outcome.boots = 2;
            assert!((case.check)(&outcome).is_err(), "{name} rebooted");
        }
    }
}
