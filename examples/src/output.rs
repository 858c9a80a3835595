//! What the program says to whoever started it. Nobody may be listening, or stop listening in the
//! middle: that is no reason to stop working.

use std::fmt::Display;
use std::io::{self, Write};

/// Says a line on standard output.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints text that ends its own lines on standard output.
pub fn print(text: &str) {
    let mut stdout = io::stdout();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

/// Says a line about what went wrong, or may, on standard error.
pub fn complain(line: impl Display) {
    let _ = writeln!(io::stderr(), "vmm: {line}");
}
