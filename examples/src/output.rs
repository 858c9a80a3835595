//! What the program says to whoever started it. Nobody may be listening, or stop listening in the
//! middle: that is no reason to stop working.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};

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

/// Says a line about what went wrong, or may, on standard error: one line, whatever is in it.
pub fn complain(line: impl Display) {
    let mut text = OneLine(String::from("vmm: "));
    // Writing to it does not fail; what a `Display` does is its own.
    let _ = write!(text, "{line}");
    let _ = writeln!(io::stderr(), "{}", text.0);
}

/// Text with control characters as Rust writes them: names of the user's and of the host's stand in it, and the
/// terminal is to show them, not to obey them.
struct OneLine(String);

impl fmt::Write for OneLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character.is_control() {
                self.0.extend(character.escape_debug());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        let table = [
            (
                "-device a: plain, \"quoted\" \\ and ü",
                "-device a: plain, \"quoted\" \\ and ü",
            ),
            ("no\nsuch\r\t", "no\\nsuch\\r\\t"),
            ("\x1b[31mred\x07\0", "\\u{1b}[31mred\\u{7}\\0"),
            ("\u{9b}31m\x7f", "\\u{9b}31m\\u{7f}"),
        ];
        for (text, expected) in table {
            let mut line = OneLine(String::new());
            write!(line, "{text}").unwrap();
            assert_eq!(line.0, expected);
        }
    }
}
