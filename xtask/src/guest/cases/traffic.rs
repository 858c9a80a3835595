//! Frames both ways: pings, streams, files.

use anyhow::{Context, Result, bail, ensure};

use super::{Case, all_pings_answered, booted_once, value};
use crate::guest::watch::Outcome;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ping",
        about: "100 pings, none lost",
        guest: "ping -c 100 -i 0.02 10.0.2.2",
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 1, 100)
        },
        ..Case::PLAIN
    },
    Case {
        name: "iperf3-tx",
        about: "iperf3 TCP from guest to host",
        guest: "iperf3 -c 10.0.2.2 -t 5 -f k",
        check: streamed,
        ..Case::PLAIN
    },
    Case {
        name: "iperf3-rx",
        about: "iperf3 TCP from host to guest",
        guest: "iperf3 -c 10.0.2.2 -t 5 -f k -R",
        check: streamed,
        ..Case::PLAIN
    },
    Case {
        name: "file-to-guest",
        about: "a file of 64 MiB reaches the guest intact",
        guest: r#"
host 'head -c 67108864 /dev/urandom >/tmp/file'
host 'nc -l -p 9001 -e cat /tmp/file >/dev/null 2>&1 &'
wait_for 10 "the host listens" host_listens 9001
nc 10.0.2.2 9001 <&9 >/tmp/file
echo "size: $(stat -c %s /tmp/file)"
echo "guest: $(sha256sum </tmp/file)"
echo "host: $(host 'sha256sum </tmp/file')"
"#,
        check: intact,
        ..Case::PLAIN
    },
    Case {
        name: "file-from-guest",
        about: "a file of 64 MiB reaches the host intact",
        guest: r#"
head -c 67108864 /dev/urandom >/tmp/file
host "nc -l -p 9001 -e sh -c 'cat >/tmp/file' >/dev/null 2>&1 &"
wait_for 10 "the host listens" host_listens 9001
nc 10.0.2.2 9001 </tmp/file
echo "size: $(host 'stat -c %s /tmp/file')"
echo "guest: $(sha256sum </tmp/file)"
echo "host: $(host 'sha256sum </tmp/file')"
"#,
        check: intact,
        ..Case::PLAIN
    },
];

/// iperf3 moved at least a megabit a second by the receiver's count.
fn streamed(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let line = outcome
        .output
        .lines()
        .find(|line| line.trim_end().ends_with("receiver"))
        .context("iperf3 printed no receiver's total")?;
    let words: Vec<_> = line.split_whitespace().collect();
    let rate = words.windows(2).find_map(|pair| match pair {
        [number, "Kbits/sec"] => number.parse::<f64>().ok(),
        _ => None,
    });
    let Some(rate) = rate else {
        bail!("cannot read '{line}'")
    };
    ensure!(rate > 1000.0, "only {rate} kbit/s arrived");
    Ok(())
}

/// Both ends have the same file, of the size that was sent.
fn intact(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let output = &outcome.output;
    let size = value(output, "size:")?;
    ensure!(size == "67108864", "the file that arrived has {size} bytes");
    let (guest, host) = (value(output, "guest:")?, value(output, "host:")?);
    ensure!(guest.len() > 64, "sha256sum printed '{guest}'");
    ensure!(guest == host, "the sums differ: guest {guest}, host {host}");
    Ok(())
}
