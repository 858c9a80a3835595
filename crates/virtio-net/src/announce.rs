//! Asking the driver to announce itself on the link (virtio 1.4, 5.1.9.5.4).

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use iothread::{AioContext, TimerHandler, TimerId};

use crate::shared::{Shared, lock};

/// How often the driver is asked, and when. The default is QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceParameters {
    /// The time before the first round.
    pub initial: Duration,
    /// The longest time before any round.
    pub max: Duration,
    /// Rounds in all.
    pub rounds: u32,
    /// By how much the time before a round is longer than before the last one.
    pub step: Duration,
}

impl Default for AnnounceParameters {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(50),
            max: Duration::from_millis(550),
            rounds: 5,
            step: Duration::from_millis(100),
        }
    }
}

impl AnnounceParameters {
    /// The time before round `round`, counted from 0.
    fn delay(&self, round: u32) -> Duration {
        let longer = self.step.saturating_mul(round);
        self.initial.saturating_add(longer).min(self.max)
    }
}

/// The rounds that go on. Works on the first pair's context.
pub(crate) struct Announcer {
    shared: Arc<Shared>,
    context: Arc<dyn AioContext>,
    timer: TimerId,
    /// A leaf lock, but for the context's.
    rounds: Mutex<Option<Rounds>>,
}

struct Rounds {
    parameters: AnnounceParameters,
    /// The round that is next.
    next: u32,
}

impl Announcer {
    pub(crate) fn new(shared: Arc<Shared>, context: Arc<dyn AioContext>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            timer: context.add_timer(me.clone() as Weak<dyn TimerHandler>),
            shared,
            context,
            rounds: Mutex::new(None),
        })
    }

    /// Begins anew; rounds that go on are forgotten.
    pub(crate) fn begin(&self, parameters: AnnounceParameters) {
        let mut rounds = lock(&self.rounds);
        *rounds = (parameters.rounds > 0).then_some(Rounds {
            parameters,
            next: 0,
        });
        self.arm(rounds.as_ref());
    }

    fn arm(&self, rounds: Option<&Rounds>) {
        match rounds {
            Some(Rounds { parameters, next }) => {
                let delay = parameters.delay(*next);
                let deadline = self.context.now().saturating_add(delay);
                self.context.arm_timer(self.timer, deadline);
            }
            None => self.context.disarm_timer(self.timer),
        }
    }
}

impl TimerHandler for Announcer {
    #[doc(alias = "qemu_announce_timer_once")]
    fn expired(&self) {
        {
            let mut rounds = lock(&self.rounds);
            // None: they were ended when the timer had gone off already.
            let Some(now) = rounds.as_mut() else { return };
            now.next += 1;
            if now.next >= now.parameters.rounds {
                *rounds = None;
            }
            self.arm(rounds.as_ref());
        }
        self.shared.ask_to_announce();
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.context.remove_timer(self.timer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_comes_later_after_the_last_until_the_longest_time() {
        let parameters = AnnounceParameters {
            max: Duration::from_millis(300),
            ..Default::default()
        };
        let delays = [0, 1, 2, 3, u32::MAX].map(|round| parameters.delay(round).as_millis());
        assert_eq!(delays, [50, 150, 250, 300, 300]);
    }
}
