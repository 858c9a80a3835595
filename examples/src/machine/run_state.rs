//! Whether the machine runs or is paused: what the user asks for, and what has come of it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::control::{Control, Event};

/// Where a machine is between its power switch and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunPhase {
    /// It has not run yet.
    Prelaunch,
    /// Its processors run, and its devices move data.
    Running,
    /// It has run, and stands still.
    Paused,
    /// It will not run any more.
    Ended,
}

/// Why a machine does not pause or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotPause {
    /// It has no processor.
    #[error("the guest's program runs in the VMM itself, which cannot stop it")]
    InProcess,
    /// It has ended.
    #[error("the machine has ended")]
    Ended,
    /// Its owner does not answer.
    #[error("the machine takes too long to do so")]
    Late,
}

/// Between whoever asks a machine to pause and the owner of its processors.
#[derive(Debug)]
pub struct RunState {
    control: Arc<Control>,
    /// Taken before the control's own; else a leaf lock.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    wants_pause: bool,
    phase: RunPhase,
    can_pause: bool,
}

impl RunState {
    /// Of a machine that has not run, and is to be paused before it does if `paused`.
    pub fn new(control: Arc<Control>, paused: bool) -> Self {
        let state = State {
            wants_pause: paused,
            phase: RunPhase::Prelaunch,
            can_pause: true,
        };
        Self {
            control,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Asks that the machine pause or go on, and waits until it has.
    ///
    /// # Errors
    /// See [`CannotPause`].
    pub fn ask(&self, pause: bool) -> Result<(), CannotPause> {
        let mut state = self.lock();
        if !state.can_pause {
            return Err(CannotPause::InProcess);
        }
        if state.phase == RunPhase::Ended {
            return Err(CannotPause::Ended);
        }
        state.wants_pause = pause;
        self.control.report(Event::RunState);
        let waits = |state: &mut State| {
            state.phase != RunPhase::Ended && (state.phase == RunPhase::Running) == pause
        };
        let (state, waited) = self
            .changed
            .wait_timeout_while(state, PATIENCE, waits)
            .unwrap_or_else(PoisonError::into_inner);
        match state.phase {
            RunPhase::Ended => Err(CannotPause::Ended),
            _ if waited.timed_out() => Err(CannotPause::Late),
            _ => Ok(()),
        }
    }

    /// Whether the owner is to pause the machine, or to leave it paused.
    pub fn wants_pause(&self) -> bool {
        self.lock().wants_pause
    }

    /// Where the machine is.
    pub fn phase(&self) -> RunPhase {
        self.lock().phase
    }

    /// The owner says that the machine runs from here on.
    pub fn runs(&self) {
        self.enter(RunPhase::Running);
    }

    /// The owner says that the machine runs from here on, and that nobody can pause it.
    pub fn runs_for_good(&self) {
        self.lock().can_pause = false;
        self.enter(RunPhase::Running);
    }

    /// The owner says that the machine stands still from here on.
    pub fn is_paused(&self) {
        let ran = self.phase() != RunPhase::Prelaunch;
        self.enter(if ran {
            RunPhase::Paused
        } else {
            RunPhase::Prelaunch
        });
    }

    /// The owner says that the machine has ended: nobody waits for it any more.
    pub fn has_ended(&self) {
        self.enter(RunPhase::Ended);
    }

    fn enter(&self, phase: RunPhase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long whoever asks waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn state(paused: bool) -> (Arc<Control>, RunState) {
        let control = Arc::new(Control::new().unwrap());
        let state = RunState::new(control.clone(), paused);
        (control, state)
    }

    #[test]
    fn who_asks_waits_until_the_owner_has_done_it() {
        let (control, state) = state(false);
        state.runs();
        for pause in [true, false] {
            thread::scope(|scope| {
                let asker = scope.spawn(|| state.ask(pause));
                while control.take() != Some(Event::RunState) {
                    thread::yield_now();
                }
                assert_eq!(state.wants_pause(), pause);
                assert!(!asker.is_finished());
                if pause {
                    state.is_paused();
                } else {
                    state.runs();
                }
                assert_eq!(asker.join().unwrap(), Ok(()));
            });
        }
        // What is so already is done at once.
        assert_eq!(state.ask(false), Ok(()));
    }

    #[test]
    fn nobody_waits_for_a_machine_that_has_ended_or_cannot_pause() {
        let (control, ended) = state(true);
        thread::scope(|scope| {
            let asker = scope.spawn(|| ended.ask(false));
            while control.take() != Some(Event::RunState) {
                thread::yield_now();
            }
            ended.has_ended();
            assert_eq!(asker.join().unwrap(), Err(CannotPause::Ended));
        });
        assert_eq!(ended.ask(true), Err(CannotPause::Ended));
        let (_, embedded) = state(false);
        embedded.runs_for_good();
        assert_eq!(embedded.ask(true), Err(CannotPause::InProcess));
    }

    #[test]
    fn a_machine_that_never_ran_is_not_merely_paused() {
        let (_, state) = state(true);
        state.is_paused();
        assert_eq!(state.phase(), RunPhase::Prelaunch);
        state.runs();
        state.is_paused();
        assert_eq!(state.phase(), RunPhase::Paused);
    }
}
