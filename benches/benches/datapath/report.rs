//! The tables and the plot.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use benches::Took;

/// One engine of the device on frames of one kind, and the two bare loops beside it.
pub(crate) struct Line {
    name: String,
    format: &'static str,
    engine: &'static str,
    /// Nanoseconds a frame, of each chunk: wall and processor time of the device, of `writev` or `readv`, of
    /// io_uring.
    samples: Vec<[(f64, f64); 3]>,
}

impl Line {
    pub(crate) fn new(name: String, format: &'static str, engine: &'static str) -> Self {
        Self {
            name,
            format,
            engine,
            samples: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, took: [Took; 3], frames: u64) {
        let each = |time| nanoseconds(time, frames);
        self.samples
            .push(took.map(|took| (each(took.wall), each(took.cpu))));
    }

    fn median(&self, pick: impl Fn(&[(f64, f64); 3]) -> f64) -> f64 {
        median(&self.samples, pick)
    }
}

/// Of each of so many.
#[expect(clippy::cast_precision_loss, reason = "not so many frames")]
pub(crate) fn nanoseconds(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

pub(crate) fn median<T>(samples: &[T], pick: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(pick).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A table with what it says.
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new(title: &str, text: &str, head: &[&str]) -> Self {
        let rule = "|---".repeat(head.len());
        Self(format!(
            "## {title}\n\n{text}\n\n| {} |\n{rule}|\n",
            head.join(" | ")
        ))
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let _ = writeln!(self.0, "| {} |", cells.join(" | "));
    }
}

#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
    tables: Vec<Table>,
}

impl Report {
    pub(crate) fn push(&mut self, line: Line) {
        if !line.samples.is_empty() {
            self.lines.push(line);
        }
    }

    pub(crate) fn add(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Prints the table, and saves it with the plot if that is asked for.
    pub(crate) fn finish(self) {
        let mut tables = Vec::new();
        if !self.lines.is_empty() {
            tables.push(self.table());
        }
        tables.extend(self.tables.iter().map(|table| table.0.clone()));
        let table = tables.join("\n");
        println!("\n{table}");
        if env::var_os("SAVE_RESULTS").is_some() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
            let saved = fs::create_dir_all(&folder)
                .and_then(|()| fs::write(folder.join("datapath.md"), self.page(&table)))
                .and_then(|()| fs::write(folder.join("datapath.svg"), self.plot()));
            if let Err(error) = saved {
                println!("not saved: {error}");
            }
        }
    }

    fn page(&self, table: &str) -> String {
        format!(
            "# Frames through the device on a tap, beside the bare loops\n\nMade by `SAVE_RESULTS=1 cargo bench \
             -p benches --bench datapath`; the text is in `benches/README.md`.\n\n{}\n\n{table}\n\
             ![plot](datapath.svg)\n",
            machine()
        )
    }

    fn table(&self) -> String {
        let mut table = String::from(
            "## Frames\n\nNanoseconds a frame, medians; the ratios are medians of what was measured side by side, above 1 where \
             the device is faster.\n\n\
             | | rings | engine | device | `writev`, `readv` | ratio | io_uring | ratio | device, processor time | ratio to \
             that of the bare loop of its kind |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for line in &self.lines {
            let kind = if line.engine == "sync" { 1 } else { 2 };
            let _ = writeln!(
                table,
                "| {} | {} | {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.2} | {:.0} | {:.2} |",
                line.name,
                line.format,
                line.engine,
                line.median(|s| s[0].0),
                line.median(|s| s[1].0),
                line.median(|s| s[1].0 / s[0].0),
                line.median(|s| s[2].0),
                line.median(|s| s[2].0 / s[0].0),
                line.median(|s| s[0].1),
                line.median(|s| s[kind].1 / s[0].1),
            );
        }
        table
    }

    /// For each line four bars: device, bare loops, shortest the fastest.
    fn plot(&self) -> String {
        const WIDTH: f64 = 640.0;
        const LEFT: f64 = 220.0;
        const BAR: usize = 9;
        let height = 40 + self.lines.len() * (3 * BAR + 10);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            WIDTH + LEFT + 80.0
        );
        let colours = ["#c0392b", "#7f8c8d", "#2980b9"];
        let labels = ["device", "writev, readv", "io_uring, 32 at once"];
        for (n, (colour, label)) in colours.iter().zip(labels).enumerate() {
            let x = 220 + 150 * n;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"8\" width=\"9\" height=\"9\" fill=\"{colour}\"/><text x=\"{}\" \
                 y=\"16\">{label}</text>",
                x + 14
            );
        }
        for (row, line) in self.lines.iter().enumerate() {
            let values = [0, 1, 2].map(|n| line.median(|s| s[n].0));
            // Each line has its own scale: what counts is how its bars compare.
            let longest = values.into_iter().fold(1.0, f64::max);
            let top = 30 + row * (3 * BAR + 10);
            let _ = writeln!(
                svg,
                "<text x=\"4\" y=\"{}\">{} {} {}</text>",
                top + 2 * BAR,
                line.name,
                line.format,
                line.engine
            );
            for (n, (value, colour)) in values.into_iter().zip(colours).enumerate() {
                let y = top + n * BAR;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.0}\" height=\"{}\" fill=\"{colour}\"/><text \
                     x=\"{:.0}\" y=\"{}\">{value:.0} ns</text>",
                    WIDTH * value / longest,
                    BAR - 1,
                    LEFT + WIDTH * value / longest + 4.0,
                    y + BAR - 1,
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// What it was measured on.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpus.lines()
            .find_map(|line| line.strip_prefix(name)?.split_once(": "))
            .map_or("unknown", |(_, value)| value)
            .to_owned()
    };
    let count = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!(
        "{count} processors ({}), Linux {}, load {load} at the end.",
        field("model name"),
        kernel.trim()
    )
}
