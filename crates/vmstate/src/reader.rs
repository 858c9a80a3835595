//! Taking the bytes apart.

use crate::{Error, MAGIC};

/// The sections of a saved state, to be taken by those who know them.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    sections: Vec<Raw<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Raw<'a> {
    name: &'a str,
    version: u16,
    body: &'a [u8],
}

/// The fields of one section. They are read in the order in which they were written; each names itself for the error
/// that it may come to.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    name: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Finds the sections.
    ///
    /// # Errors
    /// When the bytes are no saved state, or not a whole one.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(Error::NotAState)?;
        let mut sections: Vec<Raw<'a>> = Vec::new();
        while !rest.is_empty() {
            let number = sections.len();
            let section = take_section(&mut rest, number)?;
            if sections.iter().any(|other| other.name == section.name) {
                return Err(Error::Twice(section.name.into()));
            }
            sections.push(section);
        }
        Ok(Self { sections })
    }

    /// Takes the section `name`, which must be of this version.
    ///
    /// # Errors
    /// [`Error::Missing`], also when it was taken before, or [`Error::Version`].
    pub fn section(&mut self, name: &str, version: u16) -> Result<Section<'a>, Error> {
        let at = self.sections.iter().position(|raw| raw.name == name);
        let raw = at.map(|at| self.sections.remove(at));
        let raw = raw.ok_or_else(|| Error::Missing(name.into()))?;
        if raw.version != version {
            return Err(Error::Version {
                section: name.into(),
                found: raw.version,
                known: version,
            });
        }
        Ok(Section {
            name: raw.name,
            rest: raw.body,
        })
    }

    /// Whether there is a section `name` that was not taken.
    pub fn has(&self, name: &str) -> bool {
        self.sections.iter().any(|raw| raw.name == name)
    }

    /// Nobody takes more.
    ///
    /// # Errors
    /// [`Error::Unknown`], for the first section that was not taken.
    pub fn finish(self) -> Result<(), Error> {
        match self.sections.first() {
            Some(raw) => Err(Error::Unknown(raw.name.into())),
            None => Ok(()),
        }
    }
}

fn take_section<'a>(rest: &mut &'a [u8], number: usize) -> Result<Raw<'a>, Error> {
    let cut = || Error::Cut(number);
    let [len] = take(rest).ok_or_else(cut)?;
    let name = take_slice(rest, len.into()).ok_or_else(cut)?;
    let name = std::str::from_utf8(name).map_err(|_| Error::Name(number))?;
    let version = u16::from_le_bytes(take(rest).ok_or_else(cut)?);
    let len = u32::from_le_bytes(take(rest).ok_or_else(cut)?);
    let body = usize::try_from(len).ok();
    let body = body.and_then(|len| take_slice(rest, len)).ok_or_else(cut)?;
    Ok(Raw {
        name,
        version,
        body,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (array, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*array)
}

fn take_slice<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (slice, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    Some(slice)
}

/// Each of these is an [`Error`] when the section ends before the field does.
impl<'a> Section<'a> {
    /// The section's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Takes as many bytes.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], Error> {
        take(&mut self.rest).ok_or_else(|| self.short(field))
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u8(&mut self, field: &str) -> Result<u8, Error> {
        self.array(field).map(u8::from_le_bytes)
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u16(&mut self, field: &str) -> Result<u16, Error> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u32(&mut self, field: &str) -> Result<u32, Error> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u64(&mut self, field: &str) -> Result<u64, Error> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn u128(&mut self, field: &str) -> Result<u128, Error> {
        self.array(field).map(u128::from_le_bytes)
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// [`Error::Short`], or [`Error::Refused`] for a byte that is neither 0 nor 1.
    pub fn bool(&mut self, field: &str) -> Result<bool, Error> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.refused(field, format!("{other} is neither 0 nor 1"))),
        }
    }

    /// Takes bytes that have their number in front of them.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn bytes(&mut self, field: &str) -> Result<&'a [u8], Error> {
        let len = self.u32(field)?;
        let bytes = usize::try_from(len).ok();
        let bytes = bytes.and_then(|len| take_slice(&mut self.rest, len));
        bytes.ok_or_else(|| self.short(field))
    }

    /// Takes whether there is a value, and the value with `read` if there is.
    ///
    /// # Errors
    /// As [`bool`](Self::bool), and those of `read`.
    pub fn option<T>(
        &mut self,
        field: &str,
        read: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.bool(field)?.then(|| read(self)).transpose()
    }

    /// Takes how many values there are, at most `most`, and each with `read`.
    ///
    /// # Errors
    /// [`Error::Short`], [`Error::Refused`] for more values, and those of `read`.
    pub fn list<T>(
        &mut self,
        field: &str,
        most: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let count = usize::from(self.u16(field)?);
        if count > most {
            return Err(self.refused(field, format!("{count} of them, more than {most}")));
        }
        (0..count).map(|_| read(self)).collect()
    }

    /// The section has no more fields.
    ///
    /// # Errors
    /// [`Error::Long`].
    pub fn finish(self) -> Result<(), Error> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::Long {
            section: self.name.into(),
            bytes: self.rest.len(),
        })
    }

    /// That a field has a value that it cannot have.
    pub fn refused(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::refused(self.name, field, reason)
    }

    fn short(&self, field: &str) -> Error {
        Error::Short {
            section: self.name.into(),
            field: field.into(),
        }
    }
}
