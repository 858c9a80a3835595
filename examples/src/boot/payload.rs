//! The embedded guest program.

use super::{BootError, Entry};
use crate::machine::Memory;

/// The embedded guest program.
#[derive(Clone, Copy, Debug)]
pub struct Payload;

impl Payload {
    pub(super) fn load(&self, memory: &Memory) -> Result<Entry, BootError> {
        super::paging::write_tables(memory)
    }
}
