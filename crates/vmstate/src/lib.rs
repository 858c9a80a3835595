//! The saved state of a device as named, versioned sections of bytes.
//!
//! A [`Writer`] makes the bytes, a [`Reader`] takes them apart again. What is read is never trusted: whatever the bytes
//! are, a look at them ends in a value or in an [`Error`] that names section and field, and nothing is allocated that
//! the bytes themselves do not fill.
//!
//! Nothing here knows what is saved. Each crate writes sections of its own, and says with a section's version when it
//! writes something else there: a reader that knows another version refuses it.
//!
//! | module | holds |
//! |---|---|
//! | `writer` | [`Writer`], [`Fields`] |
//! | `reader` | [`Reader`], [`Section`] |
//! | `error` | [`Error`] |

mod error;
mod reader;
mod writer;

pub use error::Error;
pub use reader::{Reader, Section};
pub use writer::{Fields, Writer};

/// What a saved state begins with: a name, and the version of the framing.
const MAGIC: [u8; 8] = *b"VMSTATE\x01";

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
