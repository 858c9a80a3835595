//! Files that were made for a machine which then never ran.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The files that have come to be for a machine. They go with this value, unless they were [kept](Self::keep).
#[derive(Debug, Default)]
pub(super) struct NewFiles(Mutex<Vec<PathBuf>>);

impl NewFiles {
    /// What `make` makes, which may make the file at `path`: one that was there before is somebody's, and stays.
    pub(super) fn made_by<T, E>(
        &self,
        path: Option<&Path>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let absent = path.filter(|path| !path.exists());
        let made = make()?;
        // A link is not the file.
        if let Some(file) = absent.and_then(|path| fs::canonicalize(path).ok()) {
            self.lock().push(file);
        }
        Ok(made)
    }

    /// The machine runs: what is in the files is wanted.
    pub(super) fn keep(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        for file in self.lock().drain(..) {
            // Who has removed it meanwhile has done the same.
            let _ = fs::remove_file(file);
        }
    }
}
