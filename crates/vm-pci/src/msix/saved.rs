//! Table and pending bits, read out as a whole and set as a whole.

use vmstate::{Error, Fields, Section};

use super::{ENTRY_SIZE, ENTRY_WRITABLE, Entry, MAX_VECTORS, Msix, readable};

/// What software has set in an MSI-X table, and which vectors are pending. Message control is in configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedMsix {
    /// The entries of the table.
    pub table: Vec<[u8; ENTRY_SIZE]>,
    /// The vectors whose message is due and was not sent.
    pub pending: Vec<u16>,
}

impl SavedMsix {
    pub(crate) fn write(&self, fields: &mut Fields<'_>) {
        fields.list(&self.table, |fields, entry| fields.array(entry));
        fields.list(&self.pending, |fields, vector| fields.u16(*vector));
    }

    pub(crate) fn read(section: &mut Section<'_>) -> Result<Self, Error> {
        let most = MAX_VECTORS.into();
        Ok(Self {
            table: section.list("msix.table", most, |section| section.array("msix.table"))?,
            pending: section.list("msix.pending", most, |section| section.u16("msix.pending"))?,
        })
    }
}

impl Msix {
    /// What software has set, and what is pending.
    pub(crate) fn save(&self) -> SavedMsix {
        // A message that is on its way is due as well: nobody has taken it out of its descriptor.
        let all: Vec<_> = self.vectors.iter().collect();
        let pending = readable(&all).into_iter();
        let mut pending: Vec<u16> = pending.filter_map(|at| at.try_into().ok()).collect();
        pending.sort_unstable();
        SavedMsix {
            table: self.entries.iter().map(|entry| entry.bytes).collect(),
            pending,
        }
    }

    /// Whether `saved` fits.
    pub(crate) fn check(&self, saved: &SavedMsix) -> Result<(), Error> {
        let refused = |field, reason| Err(Error::refused("pci", field, reason));
        let vectors = self.layout.vectors;
        if saved.table.len() != usize::from(vectors) {
            let reason = format!(
                "{} vectors, and the function has {vectors}",
                saved.table.len()
            );
            return refused("msix.table", reason);
        }
        if let Some(vector) = saved.pending.iter().find(|vector| **vector >= vectors) {
            let reason = format!("no vector {vector}: the function has {vectors}");
            return refused("msix.pending", reason);
        }
        Ok(())
    }

    /// Sets the table of one that is off, and makes pending what was.
    pub(crate) fn restore(&mut self, saved: &SavedMsix) {
        let power_on = Entry::default().bytes;
        for (entry, saved) in self.entries.iter_mut().zip(&saved.table) {
            for (byte, to) in entry.bytes.iter_mut().enumerate() {
                let mask = ENTRY_WRITABLE[byte];
                *to = power_on[byte] & !mask | saved[byte] & mask;
            }
        }
        for vector in &saved.pending {
            if let Some(vector) = self.vectors.get(usize::from(*vector)) {
                // It fails only where it is signalled already.
                let _ = vector.event_fd().write(1);
            }
        }
    }
}
