//! What the guest says on its serial port, taken apart: the commands' output stands between
//! markers that carry a word of this run alone; everything else is console noise.
//!
//! ```text
//! [    0.52] Run /init as init process        noise
//! @@guest:5f3a:begin@@                        the commands start (again after a reboot)
//! 2: eth0: <BROADCAST,...                     output
//! @@guest:5f3a:alive@@                        every few seconds, anywhere: user space still runs
//! @@guest:5f3a:doing: sh(do_wait) ping(0)@@    now and then: what its processes wait for, which is noise
//! @@guest:5f3a:reboot@@                       the commands asked for a reboot: noise follows
//! @@guest:5f3a:end:0@@                        their exit status: noise follows
//! ```

/// One thing the guest said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The commands start.
    Begin,
    /// Bytes that the commands printed.
    Output(Vec<u8>),
    /// User space still runs.
    Alive,
    /// The commands asked for a reboot.
    Reboot,
    /// The commands ended with this status.
    End(u8),
    /// Bytes of kernel, init or VMM.
    Noise(Vec<u8>),
}

/// Splits a stream of console bytes, which may be cut anywhere.
#[derive(Debug)]
pub(crate) struct Splitter {
    prefix: Vec<u8>,
    held: Vec<u8>,
    in_output: bool,
}

impl Splitter {
    /// A splitter for the run whose markers carry `word`.
    pub(crate) fn new(word: &str) -> Self {
        Self {
            prefix: format!("@@guest:{word}:").into_bytes(),
            held: Vec::new(),
            in_output: false,
        }
    }

    /// Takes the next bytes and returns what they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Said> {
        self.held.extend_from_slice(bytes);
        let mut said = Vec::new();
        while let Some((before, marker, after)) = self.next_marker() {
            self.push_text(&mut said, before);
            match marker.as_str() {
                "begin" => {
                    self.in_output = true;
                    said.push(Said::Begin);
                }
                "alive" => said.push(Said::Alive),
                "reboot" => {
                    self.in_output = false;
                    said.push(Said::Reboot);
                }
                other => {
                    if let Some(processes) = other.strip_prefix("doing:") {
                        said.push(Said::Noise(format!("waiting:{processes}\n").into_bytes()));
                    } else if let Some(status) =
                        other.strip_prefix("end:").and_then(|n| n.parse().ok())
                    {
                        self.in_output = false;
                        said.push(Said::End(status));
                    } else {
                        self.push_text(&mut said, other.as_bytes().to_vec());
                    }
                }
            }
            self.held = after;
        }
        let keep = self.undecided();
        let text = self.held.drain(..self.held.len() - keep).collect();
        self.push_text(&mut said, text);
        said
    }

    /// The text before the first whole marker, the marker's name, and what follows its line.
    fn next_marker(&self) -> Option<(Vec<u8>, String, Vec<u8>)> {
        let start = find(&self.held, &self.prefix)?;
        let (before, rest) = self.held.split_at(start);
        let rest = rest.get(self.prefix.len()..)?;
        let end = find(rest, b"@@\n")?;
        let (name, after) = rest.split_at(end);
        let name = String::from_utf8_lossy(name).into_owned();
        Some((before.to_vec(), name, after.get(3..)?.to_vec()))
    }

    /// How many of the last held bytes may be the start of a marker.
    fn undecided(&self) -> usize {
        if let Some(start) = find(&self.held, &self.prefix) {
            return self.held.len() - start;
        }
        (1..self.prefix.len())
            .rev()
            .find(|&n| {
                self.prefix
                    .get(..n)
                    .is_some_and(|head| self.held.ends_with(head))
            })
            .unwrap_or(0)
    }

    fn push_text(&self, said: &mut Vec<Said>, text: Vec<u8>) {
        if !text.is_empty() {
            said.push(if self.in_output {
                Said::Output(text)
            } else {
                Said::Noise(text)
            });
        }
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|w| w == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &[u8] = b"boot\r\n@@guest:w:begin@@\none\n@@gu@@guest:w:alive@@\nest two\
        @@guest:w:doing: sh(0)@@\n@@guest:w:reboot@@\nagain\n@@guest:w:begin@@\nthree@@guest:w:end:7@@\ndown\n";

    fn joined(pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>, Vec<Said>) {
        let mut splitter = Splitter::new("w");
        let (mut output, mut noise, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        for piece in pieces {
            for said in splitter.feed(piece) {
                match said {
                    Said::Output(text) => output.extend(text),
                    Said::Noise(text) => noise.extend(text),
                    mark => marks.push(mark),
                }
            }
        }
        (output, noise, marks)
    }

    #[test]
    fn output_and_noise_are_told_apart_wherever_the_stream_is_cut() {
        for cut in 0..SESSION.len() {
            let (head, tail) = SESSION.split_at(cut);
            let (output, noise, marks) = joined(&[head, tail]);
            assert_eq!(output, b"one\n@@guest twothree", "cut at {cut}");
            assert_eq!(
                noise, b"boot\r\nwaiting: sh(0)\nagain\ndown\n",
                "cut at {cut}"
            );
            let expected = [
                Said::Begin,
                Said::Alive,
                Said::Reboot,
                Said::Begin,
                Said::End(7),
            ];
            assert_eq!(marks, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_marker_of_another_run_is_plain_text() {
        let (output, noise, marks) = joined(&[b"@@guest:v:begin@@\nx"]);
        assert_eq!((output.as_slice(), marks.as_slice()), (&b""[..], &[][..]));
        assert_eq!(noise, b"@@guest:v:begin@@\nx");
    }
}
