//! A line taken apart, as QEMU's monitor does it.

/// What a command takes, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// A word, or a text in double quotes.
    Word,
    /// One that may be missing.
    OptionalWord,
    /// `on` or `off`.
    OnOff,
    /// All that is left.
    Rest,
    /// All that is left, if there is anything.
    OptionalRest,
    /// A word that may be empty: the command says what it lacks.
    Options,
}

/// The arguments of `command` out of the rest of its line; on failure what is wrong, without a full stop.
pub(super) fn arguments(
    command: &str,
    takes: &[Argument],
    rest: &str,
) -> Result<Vec<String>, String> {
    let mut rest = rest.trim_start();
    let mut found = Vec::new();
    let expected = || format!("{command}: string expected");
    for argument in takes {
        match argument {
            Argument::Word => {
                let (word, after) = word(rest)?.ok_or_else(expected)?;
                found.push(word);
                rest = after;
            }
            Argument::OptionalWord | Argument::Options => match word(rest)? {
                Some((word, after)) => {
                    found.push(word);
                    rest = after;
                }
                None if *argument == Argument::Options => found.push(String::new()),
                None => {}
            },
            Argument::OnOff => {
                let (word, after) = word(rest)?.unwrap_or_default();
                if !matches!(&*word, "on" | "off") {
                    return Err("Expected 'on' or 'off'".into());
                }
                found.push(word);
                rest = after;
            }
            Argument::Rest | Argument::OptionalRest => {
                if rest.is_empty() && *argument == Argument::Rest {
                    return Err(expected());
                }
                found.push(rest.trim_end().to_owned());
                rest = "";
            }
        }
        rest = rest.trim_start();
    }
    if rest.is_empty() {
        Ok(found)
    } else {
        Err(format!(
            "{command}: extraneous characters at the end of line"
        ))
    }
}

/// The next word and what follows it.
fn word(text: &str) -> Result<Option<(String, &str)>, String> {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        return Ok((!word.is_empty()).then(|| (word.to_owned(), rest)));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok(Some((word, quoted.get(at + 1..).unwrap_or_default()))),
            '\\' => match chars.next() {
                Some((_, 'n')) => word.push('\n'),
                Some((_, 'r')) => word.push('\r'),
                Some((_, escaped @ ('\\' | '\'' | '"'))) => word.push(escaped),
                Some((_, other)) => return Err(format!("unsupported escape code: '\\{other}'")),
                None => break,
            },
            char => word.push(char),
        }
    }
    Err("unterminated string".into())
}

#[cfg(test)]
mod tests {
    use super::Argument::{OnOff, OptionalWord, Options, Rest, Word};
    use super::*;

    /// What is taken, what is typed, and what comes of it.
    type Case<'a> = (&'a [Argument], &'a str, Result<&'a [&'a str], &'a str>);

    #[test]
    fn arguments_are_taken_apart_and_missed_as_in_qemu() {
        let set_link: &[Argument] = &[Word, OnOff];
        let table: [Case<'_>; 16] = [
            (set_link, "net0 off", Ok(&["net0", "off"])),
            (set_link, "  \"net0\"   on  ", Ok(&["net0", "on"])),
            (set_link, "", Err("x: string expected")),
            (set_link, "net0", Err("Expected 'on' or 'off'")),
            (set_link, "net0 maybe", Err("Expected 'on' or 'off'")),
            (
                set_link,
                "net0 on y",
                Err("x: extraneous characters at the end of line"),
            ),
            (set_link, "\"net0 on", Err("unterminated string")),
            (set_link, "\"net0 on\\", Err("unterminated string")),
            (
                set_link,
                r#""a\tb" on"#,
                Err(r"unsupported escape code: '\t'"),
            ),
            (&[Word], r#""a b\"c\\\n""#, Ok(&["a b\"c\\\n"])),
            (&[], "", Ok(&[])),
            (&[], "y", Err("x: extraneous characters at the end of line")),
            (&[OptionalWord], "", Ok(&[])),
            (&[Options], "", Ok(&[""])),
            (&[Word, Rest], "a b  c ", Ok(&["a", "b  c"])),
            (&[Word, Rest], "a ", Err("x: string expected")),
        ];
        for (takes, rest, expected) in table {
            let found = arguments("x", takes, rest);
            let found: Result<Vec<&str>, &str> = match &found {
                Ok(words) => Ok(words.iter().map(String::as_str).collect()),
                Err(error) => Err(error),
            };
            assert_eq!(found, expected.map(<[&str]>::to_vec), "{rest:?}");
        }
    }
}
