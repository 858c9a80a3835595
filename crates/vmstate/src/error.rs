//! What can be wrong with a saved state.

/// What is wrong with a saved state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes do not begin as a saved state does.
    #[error("this is no saved state, or one of another framing")]
    NotAState,
    /// The bytes end in the middle of the frame of a section.
    #[error("the saved state ends within the head of section {0}")]
    Cut(usize),
    /// A section's name is not text.
    #[error("the name of section {0} is no text")]
    Name(usize),
    /// A section is there twice.
    #[error("section '{0}' is there twice")]
    Twice(String),
    /// A section that is needed is not there.
    #[error("section '{0}' is missing")]
    Missing(String),
    /// A section that nobody knows.
    #[error("section '{0}' is unknown")]
    Unknown(String),
    /// A section of another version than the one that is known.
    #[error("section '{section}' has version {found}, not {known}")]
    Version {
        /// The section.
        section: String,
        /// What it says.
        found: u16,
        /// What the reader knows.
        known: u16,
    },
    /// A section ends before a field does, or a field is longer than what it may be.
    #[error("section '{section}' ends within field '{field}'")]
    Short {
        /// The section.
        section: String,
        /// The field.
        field: String,
    },
    /// A section is longer than its fields.
    #[error("section '{section}' is {bytes} bytes too long")]
    Long {
        /// The section.
        section: String,
        /// Bytes behind the last field.
        bytes: usize,
    },
    /// A field has a value that it cannot have, or not in the device that is restored.
    #[error("section '{section}', field '{field}': {reason}")]
    Refused {
        /// The section.
        section: String,
        /// The field.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
}

impl Error {
    /// [`Error::Refused`], for who restores.
    pub fn refused(section: &str, field: &str, reason: impl Into<String>) -> Self {
        Self::Refused {
            section: section.into(),
            field: field.into(),
            reason: reason.into(),
        }
    }
}
