//! Making the bytes.

use crate::MAGIC;

/// Writes a saved state, section by section.
#[derive(Clone, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
}

/// The fields of a section that is being written.
#[derive(Debug)]
pub struct Fields<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Writer {
    /// A saved state without sections.
    pub fn new() -> Self {
        Self {
            bytes: MAGIC.to_vec(),
        }
    }

    /// Adds the section `name`, at most 255 bytes long and there once, with what `fill` writes. `version` says what
    /// that is: a reader that knows another refuses the section.
    pub fn section(&mut self, name: &str, version: u16, fill: impl FnOnce(&mut Fields<'_>)) {
        debug_assert!(name.len() <= usize::from(u8::MAX), "{name}");
        let name = name.as_bytes();
        let len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        self.bytes.push(len);
        self.bytes.extend(name.iter().take(len.into()));
        self.bytes.extend(version.to_le_bytes());
        let mut body = Vec::new();
        fill(&mut Fields { bytes: &mut body });
        push_counted(&mut self.bytes, &body);
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Fields<'_> {
    /// Adds a number.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Adds a number.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Adds a number.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Adds a number.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Adds a number.
    pub fn u128(&mut self, value: u128) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// Adds a truth value, in a byte.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(value.into());
    }

    /// Adds as many bytes as the reader knows that there are.
    pub fn array<const N: usize>(&mut self, value: &[u8; N]) {
        self.bytes.extend(value);
    }

    /// Adds bytes, with their number in front of them.
    pub fn bytes(&mut self, value: &[u8]) {
        push_counted(self.bytes, value);
    }

    /// Adds whether there is a value, and the value with `write` if there is.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// Adds how many values there are, at most 65535, and each with `write`.
    pub fn list<T>(
        &mut self,
        values: impl IntoIterator<IntoIter: ExactSizeIterator<Item = T>>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        let values = values.into_iter();
        debug_assert!(values.len() <= usize::from(u16::MAX));
        let count = u16::try_from(values.len()).unwrap_or(u16::MAX);
        self.u16(count);
        for value in values.take(count.into()) {
            write(self, value);
        }
    }
}

/// State of a device is far from 4 GiB; what would be longer is cut, and refused by the reader.
fn push_counted(to: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(u32::try_from(bytes.len()).is_ok());
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend(len.to_le_bytes());
    to.extend(bytes);
}
