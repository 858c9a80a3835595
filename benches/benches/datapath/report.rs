//! The table and the plot.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use benches::Took;

/// One engine of the device on frames of one kind, and the two bare loops beside it.
pub(crate) struct Line {
    name: String,
    engine: &'static str,
    /// Nanoseconds a frame, of each chunk: wall and processor time of the device, of `writev` or `readv`, of
    /// io_uring.
    samples: Vec<[(f64, f64); 3]>,
}

impl Line {
    pub(crate) fn new(name: String, engine: &'static str) -> Self {
        Self {
            name,
            engine,
            samples: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, took: [Took; 3], frames: u64) {
        #[expect(clippy::cast_precision_loss, reason = "not so many frames")]
        let each = |time: std::time::Duration| time.as_secs_f64() * 1e9 / frames as f64;
        self.samples
            .push(took.map(|took| (each(took.wall), each(took.cpu))));
    }

    fn median(&self, pick: impl Fn(&[(f64, f64); 3]) -> f64) -> f64 {
        let mut values: Vec<f64> = self.samples.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

#[derive(Default)]
pub(crate) struct Report(Vec<Line>);

impl Report {
    pub(crate) fn push(&mut self, line: Line) {
        if !line.samples.is_empty() {
            self.0.push(line);
        }
    }

    /// Prints the table, and saves it with the plot if that is asked for.
    pub(crate) fn finish(self) {
        if self.0.is_empty() {
            return;
        }
        let table = self.table();
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
            "Nanoseconds a frame, medians; the ratios are medians of what was measured side by side, above 1 where \
             the device is faster.\n\n\
             | | engine | device | `writev`, `readv` | ratio | io_uring | ratio | device, processor time | ratio to \
             that of the bare loop of its kind |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for line in &self.0 {
            let kind = if line.engine == "sync" { 1 } else { 2 };
            let _ = writeln!(
                table,
                "| {} | {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.2} | {:.0} | {:.2} |",
                line.name,
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
        const LEFT: f64 = 170.0;
        const BAR: usize = 9;
        let height = 40 + self.0.len() * (3 * BAR + 10);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            WIDTH + LEFT + 80.0
        );
        let colours = ["#c0392b", "#7f8c8d", "#2980b9"];
        let labels = ["device", "writev, readv", "io_uring, 32 at once"];
        for (n, (colour, label)) in colours.iter().zip(labels).enumerate() {
            let x = 170 + 150 * n;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"8\" width=\"9\" height=\"9\" fill=\"{colour}\"/><text x=\"{}\" \
                 y=\"16\">{label}</text>",
                x + 14
            );
        }
        for (row, line) in self.0.iter().enumerate() {
            let values = [0, 1, 2].map(|n| line.median(|s| s[n].0));
            // Each line has its own scale: what counts is how its bars compare.
            let longest = values.into_iter().fold(1.0, f64::max);
            let top = 30 + row * (3 * BAR + 10);
            let _ = writeln!(
                svg,
                "<text x=\"4\" y=\"{}\">{} {}</text>",
                top + 2 * BAR,
                line.name,
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
