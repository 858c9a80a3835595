//! State that the control queue changes and receive queues look at, for each frame perhaps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::shared::lock;

/// The state, as it is now. Each receive queue looks at it through a [`View`] of its own, which takes the lock
/// only when there was a change.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    /// Moved on with each change, within the lock.
    generation: AtomicU64,
    /// A leaf lock.
    state: Mutex<Arc<T>>,
}

impl<T: Clone> Watched<T> {
    pub(crate) fn new(state: T) -> Arc<Self> {
        Arc::new(Self {
            generation: AtomicU64::new(0),
            state: Mutex::new(Arc::new(state)),
        })
    }

    /// Changes the state. Each frame that is looked at after this returns meets it changed.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut state = lock(&self.state);
        let result = change(Arc::make_mut(&mut state));
        self.generation.fetch_add(1, Ordering::Release);
        result
    }

    pub(crate) fn now(&self) -> Arc<T> {
        lock(&self.state).clone()
    }
}

/// A receive queue's look at the state.
#[derive(Debug)]
pub(crate) struct View<T> {
    watched: Arc<Watched<T>>,
    generation: u64,
    state: Arc<T>,
}

impl<T: Clone> View<T> {
    pub(crate) fn new(watched: Arc<Watched<T>>) -> Self {
        // Read first: what is then too old is looked at once more than needed.
        let generation = watched.generation.load(Ordering::Acquire);
        let state = watched.now();
        Self {
            watched,
            generation,
            state,
        }
    }

    /// The state as it is now. Takes no lock where nothing has changed since the last call.
    #[inline]
    pub(crate) fn look(&mut self) -> &T {
        let generation = self.watched.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.follow(generation);
        }
        &self.state
    }

    #[cold]
    fn follow(&mut self, generation: u64) {
        self.generation = generation;
        self.state = self.watched.now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_sees_each_change_and_keeps_what_has_not_changed() {
        let watched = Watched::new(1);
        let mut view = View::new(watched.clone());
        let first = view.look() as *const i32;
        assert_eq!(view.look() as *const i32, first);
        watched.change(|state| *state = 2);
        assert_eq!(*view.look(), 2);
        assert_eq!(*watched.now(), 2);
        assert_eq!(*View::new(watched).look(), 2);
    }
}
