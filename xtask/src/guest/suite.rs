//! The cases of one call, one after the other or some at once, and how each went.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cases::{self, Case};
use super::options::Options;
use super::runner::{Request, Runner};
use super::watch::{Ending, Limits, Outcome};
use super::{indented, variant, vmm};

/// What a call's cases have come to.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    unfit: u32,
    retries: u32,
    /// Cases that failed and have not had their second try.
    again: Vec<&'static Case>,
    /// Those of which the second try passed: they count as passed.
    second: Vec<&'static str>,
}

/// How many failed cases are tried again: of more, it is not the machine that had a bad moment.
const SECOND_TRIES: usize = 3;

/// A case's run: how it ended, how often its boot died before, how long all of that took.
struct Ran {
    outcome: Outcome,
    retries: u32,
    took: Duration,
}

/// Runs cases and prints how each went; the status is 1 if one failed.
pub(crate) fn suite(names: &[String], options: &Options) -> Result<u8> {
    let mut tally = Tally::default();
    let mut wanted = Vec::new();
    for case in chosen(names)? {
        if let Some(reason) = variant::unfit(case, &options.extra)? {
            tally.unfit += 1;
            println!("{:<16} not for this variant: {reason}", case.name);
        } else {
            wanted.push(case);
        }
    }
    let runner = Runner::ready(options.keep)?;
    let next = AtomicUsize::new(0);
    let (done, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..options.jobs.min(wanted.len()) {
            let (done, wanted, next, runner) = (done.clone(), &wanted, &next, &runner);
            scope.spawn(move || {
                while let Some(case) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ran = run(runner, case, options);
                    let over = ran.is_err();
                    // Nobody listens any more once a run could not be had at all.
                    if done.send((*case, ran)).is_err() || over {
                        break;
                    }
                }
            });
        }
        drop(done);
        let all: Result<()> = results.iter().try_for_each(|(case, ran)| {
            tally.count(case, &ran?);
            Ok(())
        });
        // What has not begun does not begin.
        next.store(wanted.len(), Ordering::Relaxed);
        drop(results);
        all
    })?;
    // An emulated host on a busy machine leaves a guest without a processor for longer than some cases bear. All that
    // the first try printed stands, and the last line names the case.
    if runner.emulates() && !options.once && tally.again.len() <= SECOND_TRIES {
        for case in std::mem::take(&mut tally.again) {
            println!("{:<16} once more, alone", case.name);
            tally.count_again(case, &run(&runner, case, options)?);
        }
    }
    println!("{}", tally.sum());
    Ok(u8::from(tally.failed > 0))
}

/// The named cases, or all.
fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(cases::all().collect());
    }
    names
        .iter()
        .map(|name| {
            cases::all()
                .find(|case| case.name == name)
                .with_context(|| format!("there is no case '{name}'; --list names them all"))
        })
        .collect()
}

fn run(runner: &Runner, case: &Case, options: &Options) -> Result<Ran> {
    let began = Instant::now();
    let request = Request {
        guest: case.guest,
        before: case.before,
        after: case.after,
        arguments: vmm::arguments(case.vmm_args, case.device, &options.extra, case.smp)?,
        limits: Limits {
            silence: Some(Duration::from_secs(case.silence)),
            ..Limits::default()
        },
    };
    let (mut outcome, mut retries) = runner.boot(&request, &mut io::sink())?;
    for _ in 1..case.guests {
        if verdict(case, &outcome).is_err() {
            break;
        }
        let (next, again) = runner.boot(&request, &mut io::sink())?;
        outcome = next;
        retries += again;
    }
    Ok(Ran {
        outcome,
        retries,
        took: began.elapsed(),
    })
}

impl Tally {
    /// Counts a case and prints how it went.
    fn count(&mut self, case: &'static Case, ran: &Ran) {
        let Ran { outcome, .. } = ran;
        let seconds = ran.took.as_secs_f32();
        self.retries += ran.retries;
        match verdict(case, outcome) {
            Ok(()) => {
                self.passed += 1;
                println!("{:<16} ok ({seconds:.1} s)", case.name);
            }
            Err(error) => {
                self.failed += 1;
                self.again.push(case);
                println!("{:<16} FAILED ({seconds:.1} s): {error:#}", case.name);
                print!(
                    "{}",
                    indented("the guest's commands printed", &outcome.output)
                );
                print!("{}", indented("the host's commands printed", &outcome.host));
                print!("{}", indented("console of guest and VMM", &outcome.console));
                if matches!(outcome.ending, Ending::Died(_)) {
                    print!(
                        "{}",
                        indented("console of the emulated host", &outcome.host_console)
                    );
                }
            }
        }
    }

    /// Counts the second try of a case that failed: in place of the first if it passes.
    fn count_again(&mut self, case: &'static Case, ran: &Ran) {
        self.failed -= 1;
        let failed = self.failed;
        self.count(case, ran);
        if self.failed == failed {
            self.second.push(case.name);
        }
    }

    /// The last line.
    fn sum(&self) -> String {
        let mut line = format!("{} passed, {} failed", self.passed, self.failed);
        if self.unfit > 0 {
            line += &format!(", {} not for this variant", self.unfit);
        }
        match self.retries {
            0 => {}
            1 => line += " (1 retry)",
            n => line += &format!(" ({n} retries)"),
        }
        if !self.second.is_empty() {
            line += &format!("; at the second try: {}", self.second.join(", "));
        }
        line
    }
}

/// Whether a case's run is as it should be.
pub(crate) fn verdict(case: &Case, outcome: &Outcome) -> Result<()> {
    match &outcome.ending {
        Ending::Finished(0) => {}
        Ending::Finished(status) => bail!("its commands ended with status {status}"),
        Ending::Died(why) | Ending::Stalled(why) => bail!("{why}"),
    }
    (case.check)(outcome)?;
    let status = outcome.vmm.context("the VMM's exit status is not known")?;
    ensure!(
        status == 0,
        "the guest powered off, but the VMM's exit status is {status}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(ending: Ending, retries: u32) -> Ran {
        Ran {
            outcome: Outcome {
                ending,
                output: "20 packets transmitted, 20 packets received\n".to_owned(),
                boots: 1,
                vmm: Some(0),
                ..Outcome::new()
            },
            retries,
            took: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_last_line_counts_what_passed_failed_was_left_out_and_tried_again() {
        let case = cases::all().find(|case| case.name == "intx").unwrap();
        let mut tally = Tally::default();
        assert_eq!(tally.sum(), "0 passed, 0 failed");
        tally.count(case, &ran(Ending::Finished(0), 1));
        assert_eq!(tally.sum(), "1 passed, 0 failed (1 retry)");
        tally.count(case, &ran(Ending::Finished(1), 0));
        tally.count(case, &ran(Ending::Died("of itself".to_owned()), 2));
        tally.unfit = 4;
        assert_eq!(
            tally.sum(),
            "1 passed, 2 failed, 4 not for this variant (3 retries)"
        );
    }

    #[test]
    fn a_second_try_that_passes_counts_and_is_named_and_one_that_fails_changes_nothing() {
        let case = |name| cases::all().find(|case| case.name == name).unwrap();
        let mut tally = Tally::default();
        tally.count(case("intx"), &ran(Ending::Finished(1), 0));
        tally.count(case("msix"), &ran(Ending::Finished(1), 0));
        assert_eq!(tally.sum(), "0 passed, 2 failed");
        let again: Vec<_> = tally.again.iter().map(|case| case.name).collect();
        assert_eq!(again, ["intx", "msix"]);
        tally.count_again(case("intx"), &ran(Ending::Finished(0), 0));
        tally.count_again(case("msix"), &ran(Ending::Finished(1), 1));
        assert_eq!(
            tally.sum(),
            "1 passed, 1 failed (1 retry); at the second try: intx"
        );
    }

    #[test]
    fn a_name_that_no_case_has_is_refused_and_no_name_means_all() {
        assert_eq!(chosen(&[]).unwrap().len(), cases::all().count());
        assert_eq!(chosen(&["ping".to_owned()]).unwrap().len(), 1);
        assert!(chosen(&["ping".to_owned(), "pong".to_owned()]).is_err());
    }
}
