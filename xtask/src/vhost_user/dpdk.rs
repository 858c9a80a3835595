//! DPDK's virtio-user, driven by `dpdk-testpmd`: a front end and a driver that share nothing with ours.
//!
//! Each variant runs twice: `txonly` until the tap has counted enough frames, and `icmpecho`, which answers what
//! the tap's side asks. That the variant's features were negotiated is read from what the driver logs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::back_end::{self, Place};
use super::process::Process;
use super::{Case, run_cases};

/// One way of setting the driver up.
struct Variant {
    name: &'static str,
    /// More for `--vdev=net_virtio_user0`.
    options: &'static str,
    pairs: u16,
    /// Feature bits that must have been negotiated, and those that must not.
    with: u64,
    without: u64,
}

const MRG_RXBUF: u64 = 1 << 15;
const RING_PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;

/// The driver asks for in-order rings unless told otherwise.
const VARIANTS: &[Variant] = &[
    Variant {
        name: "plain",
        options: ",in_order=0",
        pairs: 1,
        with: MRG_RXBUF,
        without: RING_PACKED | IN_ORDER,
    },
    Variant {
        name: "packed_vq=1",
        options: ",packed_vq=1,in_order=0",
        pairs: 1,
        with: RING_PACKED,
        without: IN_ORDER,
    },
    Variant {
        name: "in_order=1",
        options: ",in_order=1",
        pairs: 1,
        with: IN_ORDER,
        without: RING_PACKED,
    },
    Variant {
        name: "packed-in_order",
        options: ",packed_vq=1,in_order=1",
        pairs: 1,
        with: RING_PACKED | IN_ORDER,
        without: 0,
    },
    Variant {
        name: "mrg_rxbuf=0",
        options: ",mrg_rxbuf=0",
        pairs: 1,
        with: 0,
        without: MRG_RXBUF,
    },
    Variant {
        name: "queues=2",
        options: ",queues=2",
        pairs: 2,
        with: 0,
        without: RING_PACKED,
    },
    Variant {
        name: "packed-queues=2",
        options: ",queues=2,packed_vq=1",
        pairs: 2,
        with: RING_PACKED,
        without: 0,
    },
    Variant {
        name: "queue_size=1024",
        options: ",queue_size=1024",
        pairs: 1,
        with: 0,
        without: RING_PACKED,
    },
];

/// Frames that the tap must have counted; several times around each ring.
const FRAMES: u64 = 20_000;

/// Runs the variants that are named, or all.
pub(crate) fn main(named: &[String]) -> Result<usize> {
    back_end::need_root()?;
    ensure!(
        (Command::new("dpdk-testpmd")
            .arg("--help")
            .stdin(Stdio::null()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok(),
        "dpdk-testpmd is missing: apt-get install --no-install-recommends dpdk-dev"
    );
    let program = back_end::build()?;
    let _pages = HugePages::reserve()?;
    let mut cases: Vec<Case<'_>> = Vec::new();
    for variant in VARIANTS {
        let program = &program;
        cases.push((variant.name, Box::new(|| both_ways(program, variant))));
    }
    let program = &program;
    cases.push(("reconnect", Box::new(|| reconnect(program))));
    run_cases(&cases, named)
}

/// Sends through the tap, then answers pings.
fn both_ways(program: &Path, variant: &Variant) -> Result<String> {
    let place = Place::new(variant.name)?;
    let back_end = place.back_end(program, variant.pairs)?;
    let sent = transmit(&place, variant).with_context(|| said("back end", &back_end))?;
    let answered = answer(&place, variant).with_context(|| said("back end", &back_end))?;
    ensure!(
        !back_end.output().contains("sent away"),
        "{}",
        said("back end", &back_end)
    );
    let (status, output) = back_end.end(Some("TERM"))?;
    ensure!(
        status.success(),
        "the back end ended with {status}:\n{output}"
    );
    Ok(format!("{sent} frames sent, {answered} pings answered"))
}

/// A front end that is killed; the next one finds the same tap.
fn reconnect(program: &Path) -> Result<String> {
    let variant = &VARIANTS[0];
    let place = Place::new("reconnect")?;
    let back_end = place.back_end(program, 1)?;
    let tap = place.tap_index()?;
    for round in 0..2 {
        let mut testpmd = testpmd(&place, variant, "txonly")?;
        let before = place.counter("rx_packets")?;
        testpmd.wait_for("frames at the tap", 20, |_| {
            place
                .counter("rx_packets")
                .is_ok_and(|now| now >= before + FRAMES)
        })?;
        testpmd.end(Some("KILL"))?;
        ensure!(
            place.tap_index()? == tap,
            "round {round}: it is another tap"
        );
    }
    let answered = answer(&place, variant).with_context(|| said("back end", &back_end))?;
    ensure!(place.tap_index()? == tap, "it is another tap");
    back_end.end(Some("TERM"))?;
    Ok(format!(
        "killed twice; {answered} pings answered by the third"
    ))
}

fn transmit(place: &Place, variant: &Variant) -> Result<u64> {
    let before = place.counter("rx_packets")?;
    let mut testpmd = testpmd(place, variant, "txonly")?;
    let mut seen = 0;
    testpmd.wait_for("frames at the tap", 20, |_| {
        seen = place.counter("rx_packets").unwrap_or(before) - before;
        seen >= FRAMES
    })?;
    let (_, output) = testpmd.end(None)?;
    check_features(variant, &output)?;
    check_queues(variant, &output, "TX-packets:", FRAMES / 8)?;
    Ok(seen)
}

fn answer(place: &Place, variant: &Variant) -> Result<usize> {
    let mut testpmd = testpmd(place, variant, "icmpecho")?;
    testpmd.wait_for("an answer to a ping", 20, |_| {
        place
            .run("ping -q -c 1 -W 1 10.0.2.15")
            .is_ok_and(|output| output.status.success())
    })?;
    // Of several addresses, so that the tap has flows for all queues.
    let mut answered = 0;
    for host in 16..48 {
        place.check(&format!("ping -q -c 2 -i 0.002 -W 5 10.0.2.{host}"))?;
        answered += 2;
    }
    place.check("ping -q -c 20 -i 0.002 -W 5 -s 1400 10.0.2.15")?;
    answered += 20;
    let (_, output) = testpmd.end(None)?;
    check_features(variant, &output)?;
    check_queues(variant, &output, "RX-packets:", 1)?;
    Ok(answered)
}

/// Starts testpmd on the socket.
fn testpmd(place: &Place, variant: &Variant, mode: &str) -> Result<Process> {
    let line = [
        "dpdk-testpmd",
        "--log-level=pmd.net.virtio.*:debug",
        "-l",
        "0,1",
        "--in-memory",
        "--single-file-segments",
        "-m",
        "256",
        "--no-pci",
        "--no-telemetry",
    ];
    let mut line: Vec<String> = line.map(str::to_owned).to_vec();
    line.push(format!(
        "--vdev=net_virtio_user0,path={}{}",
        place.socket(),
        variant.options
    ));
    line.push("--".to_owned());
    line.push(format!("--forward-mode={mode}"));
    line.push(format!("--rxq={0}", variant.pairs));
    line.push(format!("--txq={0}", variant.pairs));
    line.extend(
        [
            "--nb-cores=1",
            "--no-mlockall",
            "--total-num-mbufs=16384",
            "--txpkts=64",
        ]
        .map(str::to_owned),
    );
    Process::start(place.directory(), &format!("testpmd-{mode}"), &line)
}

/// Whether what the driver has negotiated is what the variant is about.
fn check_features(variant: &Variant, output: &str) -> Result<()> {
    const SAYS: &str = "features after negotiate = ";
    let text = (output.lines()).find_map(|line| line.split_once(SAYS));
    let (_, text) = text.context("testpmd says no features")?;
    let features = u64::from_str_radix(text.trim(), 16).context("testpmd's features")?;
    ensure!(
        features & variant.with == variant.with && features & variant.without == 0,
        "features {features:#x} were negotiated, not with {:#x} and without {:#x}",
        variant.with,
        variant.without
    );
    Ok(())
}

/// Whether each queue has passed at least `least` frames, as testpmd's statistics by stream say.
fn check_queues(variant: &Variant, output: &str, counter: &str, least: u64) -> Result<()> {
    if variant.pairs == 1 {
        return Ok(());
    }
    for queue in 0..variant.pairs {
        let head = format!("Forward Stats for RX Port= 0/Queue= {queue} ");
        let passed = (output.split_once(&head))
            .and_then(|(_, rest)| rest.split_once(counter))
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok());
        match passed {
            Some(passed) if passed >= least => {}
            Some(passed) => bail!("queue {queue}: {counter} {passed}, less than {least}"),
            None => bail!("testpmd says nothing of queue {queue}"),
        }
    }
    Ok(())
}

fn said(what: &str, process: &Process) -> String {
    format!("the {what} said:\n{}", process.tail())
}

/// Huge pages for a testpmd, given back at the end.
struct HugePages {
    before: u64,
}

const PAGES: &str = "/proc/sys/vm/nr_hugepages";
/// Of 2 MiB: what testpmd is told to take, and some.
const ENOUGH: u64 = 160;

impl HugePages {
    fn reserve() -> Result<Self> {
        let before = number()?;
        let pages = Self { before };
        if free()? < ENOUGH {
            fs::write(PAGES, (before + ENOUGH).to_string())
                .with_context(|| format!("huge pages are needed: echo {ENOUGH} >{PAGES}"))?;
            let end = Instant::now() + Duration::from_secs(10);
            while free()? < ENOUGH {
                ensure!(
                    Instant::now() < end,
                    "{ENOUGH} huge pages are needed, and {} could be had: is memory short?",
                    free()?
                );
                thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Pages that stay are in nobody's way.
        let _ = fs::write(PAGES, self.before.to_string());
    }
}

fn number() -> Result<u64> {
    let text = fs::read_to_string(PAGES).with_context(|| format!("huge pages: {PAGES}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{PAGES}: {text}"))
}

fn free() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    let line = line.context("this kernel has no huge pages")?;
    line.trim().parse().context("HugePages_Free")
}
