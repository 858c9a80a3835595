//! The list of pairs: parsing it, and taking from it.
//!
//! What `parse` accepts and how it splits is what QEMU 7.2 does, seen from outside. Parsing never fails: what
//! is wrong with a text shows when options are taken, or at [`Options::finish`].

use crate::help::is_help;
use crate::{Error, scalar};

/// The pairs of one option string, in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    pairs: Vec<(String, String)>,
    short_forms: Vec<ShortForm>,
    help: bool,
}

/// A pair that was written as a bare word.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ShortForm {
    written: String,
    key: String,
    value: &'static str,
}

impl Options {
    /// Splits an option string. `implied` is the key of a first word that stands alone.
    ///
    /// Any text can be split; what it says is judged when it is taken.
    #[must_use]
    pub fn parse(text: &str, implied: Option<&str>) -> Self {
        let mut options = Self::default();
        let mut implied = implied;
        let mut rest = text;
        while !rest.is_empty() {
            let first_key = implied.take();
            // What comes first decides: a key ends at its `=`, a bare word at its comma.
            match rest.find(['=', ',']).map(|at| rest.split_at(at)) {
                Some((key, tail)) if tail.starts_with('=') => {
                    let value;
                    (value, rest) = split_value(tail.get(1..).unwrap_or_default());
                    options.pairs.push((key.to_owned(), value));
                }
                _ => {
                    let word;
                    (word, rest) = split_value(rest);
                    options.push_word(word, first_key);
                }
            }
        }
        options
    }

    fn push_word(&mut self, word: String, implied: Option<&str>) {
        if is_help(&word) {
            self.help = true;
        } else if let Some(key) = implied {
            self.pairs.push((key.to_owned(), word));
        } else {
            let (key, value) = match word.strip_prefix("no") {
                Some(key) => (key, "off"),
                None => (word.as_str(), "on"),
            };
            let key = key.to_owned();
            self.pairs.push((key.clone(), value.to_owned()));
            self.short_forms.push(ShortForm {
                written: word,
                key,
                value,
            });
        }
    }

    /// Whether the word `help`, or `?`, stands in the string: it asks for a listing and is no
    /// option.
    #[must_use]
    pub fn wants_help(&self) -> bool {
        self.help
    }

    /// One warning for each pair that was written as a bare word: QEMU's words, in one line.
    pub fn short_forms(&self) -> impl Iterator<Item = String> {
        self.short_forms.iter().map(
            |ShortForm {
                 written,
                 key,
                 value,
             }| {
                format!(
                    "short-form boolean option '{written}' deprecated: please use {key}={value} instead"
                )
            },
        )
    }

    /// The pairs that were not taken yet, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The last value given for `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .rev()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// Adds a pair at the end.
    pub fn push(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.pairs.push((key.into(), value.into()));
    }

    /// Removes every pair of `key`; the last value counts.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.take_all(key).pop()
    }

    /// Removes every pair of `key` and returns its values in the order in which they were written.
    pub fn take_all(&mut self, key: &str) -> Vec<String> {
        self.pairs
            .extract_if(.., |(k, _)| k == key)
            .map(|(_, value)| value)
            .collect()
    }

    /// Takes the key that was written first of those that are left, as [`take`](Self::take) does, for a consumer
    /// that takes whatever there is.
    pub fn take_next(&mut self) -> Option<(String, String)> {
        let key = self.pairs.first()?.0.clone();
        let value = self.take(&key)?;
        Some((key, value))
    }

    /// As [`take`](Self::take), for an option that must be given.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn take_required(&mut self, key: &str) -> Result<String, Error> {
        self.take(key).ok_or_else(|| Error::Missing(key.to_owned()))
    }

    /// Takes `id`, of which the first value counts.
    ///
    /// # Errors
    /// [`Error::NotAnIdentifier`].
    pub fn take_id(&mut self) -> Result<Option<String>, Error> {
        let Some(id) = self.take_all("id").into_iter().next() else {
            return Ok(None);
        };
        if scalar::is_identifier(&id) {
            Ok(Some(id))
        } else {
            Err(Error::NotAnIdentifier("id".to_owned()))
        }
    }

    /// Takes a switch, see [`scalar::boolean`].
    ///
    /// # Errors
    /// [`Error::NotABool`].
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>, Error> {
        self.take_as(key, |text| {
            scalar::boolean(text).ok_or_else(|| Error::NotABool(key.to_owned()))
        })
    }

    /// Takes one word of a few, such as `on`, `off` or `auto`.
    ///
    /// # Errors
    /// [`Error::NotAChoice`].
    pub fn take_choice(
        &mut self,
        key: &str,
        words: &[&'static str],
    ) -> Result<Option<&'static str>, Error> {
        self.take_as(key, |text| {
            let refused = || Error::NotAChoice {
                key: key.to_owned(),
                value: text.to_owned(),
            };
            words
                .iter()
                .copied()
                .find(|word| *word == text)
                .ok_or_else(refused)
        })
    }

    /// Takes an integer, see [`scalar::integer`].
    ///
    /// # Errors
    /// [`Error::NotAnInteger`], [`Error::OutOfRange`].
    pub fn take_u16(&mut self, key: &str) -> Result<Option<u16>, Error> {
        self.take_integer(key, "uint16_t")
    }

    /// Takes an integer, see [`scalar::integer`].
    ///
    /// # Errors
    /// [`Error::NotAnInteger`], [`Error::OutOfRange`].
    pub fn take_u32(&mut self, key: &str) -> Result<Option<u32>, Error> {
        self.take_integer(key, "uint32_t")
    }

    /// Takes an integer, see [`scalar::integer`].
    ///
    /// # Errors
    /// [`Error::NotAnInteger`].
    pub fn take_u64(&mut self, key: &str) -> Result<Option<u64>, Error> {
        self.take_integer(key, "uint64_t")
    }

    /// Takes a size in bytes, see [`scalar::size`].
    ///
    /// # Errors
    /// [`Error::NotASize`].
    pub fn take_size(&mut self, key: &str) -> Result<Option<u64>, Error> {
        self.take_as(key, |text| {
            scalar::size(text).ok_or_else(|| Error::NotASize(key.to_owned()))
        })
    }

    /// Ends the taking: whatever is left is an option that nobody knows.
    ///
    /// # Errors
    /// [`Error::Unknown`] with the first key left.
    pub fn finish(self) -> Result<(), Error> {
        match self.pairs.into_iter().next() {
            None => Ok(()),
            Some((key, _)) => Err(Error::Unknown(key)),
        }
    }

    fn take_integer<T: TryFrom<u64>>(
        &mut self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<T>, Error> {
        self.take_as(key, |text| {
            // A minus is no part of an unsigned integer, not even before 0.
            let value = scalar::integer(text).filter(|_| !text.contains('-'));
            let value = value.and_then(|value| u64::try_from(value).ok());
            let value = value.ok_or_else(|| Error::NotAnInteger(key.to_owned()))?;
            T::try_from(value).map_err(|_| Error::OutOfRange {
                key: key.to_owned(),
                expected,
            })
        })
    }

    /// Takes every value of `key`, and judges the last: what it takes the place of does not count.
    fn take_as<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.take(key).as_deref().map(read).transpose()
    }
}

/// Splits off a value, which ends at a single comma; two commas stand for one.
fn split_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        value.push_str(before);
        match after.strip_prefix(',') {
            Some(tail) => {
                value.push(',');
                rest = tail;
            }
            None => return (value, after),
        }
    }
    value.push_str(rest);
    (value, "")
}
