//! The control queue (virtio 1.4, 5.1.9.5).

mod command;
mod data;
mod notifications;
mod stats;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use iothread::AioContext;
use virtio::net::F as NetF;
use virtio_bus::ActiveQueue;
use virtqueue::{Chain, QueueError, QueueMemory, QueueState, VirtQueue};

use self::command::{Answer, Commands};
use crate::kick::{Watch, again};
use crate::pair::Pair;
use crate::shared::{Shared, lock};
use crate::statistics::CtrlStatistics;

/// Commands done in one turn.
const BURST: usize = 64;
/// `VIRTIO_NET_OK` (virtio 1.4, 5.1.9.5)
const OK: u8 = 0;
/// `VIRTIO_NET_ERR`
const ERR: u8 = 1;

/// The control queue. Works on the first pair's context.
///
/// Its lock is held while backends are set up, which take no lock of the device, and while pairs are taken
/// into use, which takes those of their queues.
pub(crate) struct Ctrl<M: QueueMemory> {
    me: Weak<Self>,
    shared: Arc<Shared>,
    pairs: Vec<Arc<Pair<M>>>,
    context: Arc<dyn AioContext>,
    queue: Mutex<Queue<M>>,
}

struct Queue<M: QueueMemory> {
    active: Option<ActiveCtrl<M>>,
    statistics: CtrlStatistics,
}

struct ActiveCtrl<M: QueueMemory> {
    loan: ActiveQueue,
    queue: VirtQueue<M>,
    features: NetF,
    chain: Chain<M>,
    running: bool,
    watch: Option<Watch>,
}

impl<M: QueueMemory> Ctrl<M> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        pairs: Vec<Arc<Pair<M>>>,
        context: Arc<dyn AioContext>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared,
            pairs,
            context,
            queue: Mutex::new(Queue {
                active: None,
                statistics: CtrlStatistics::default(),
            }),
        })
    }

    /// Runs the queue. On failure it comes back.
    pub(crate) fn start(
        &self,
        loan: ActiveQueue,
        queue: VirtQueue<M>,
        features: NetF,
        running: bool,
    ) -> Result<(), (ActiveQueue, io::Error)> {
        let mut this = lock(&self.queue);
        let watch = match Watch::new(&self.context, &loan.kick, self.me.clone(), Self::turn) {
            Ok(watch) => watch,
            Err(error) => return Err((loan, error)),
        };
        this.active = Some(ActiveCtrl {
            loan,
            queue,
            features,
            chain: Chain::new(),
            running,
            watch: Some(watch),
        });
        Ok(())
    }

    /// Stops the queue and takes it out. A command is done or not begun, never half way.
    pub(crate) fn stop(&self) -> Option<ActiveQueue> {
        let mut active = lock(&self.queue).active.take()?;
        active.loan.state = active.queue.state();
        Some(active.loan)
    }

    /// Where the queue stands, while it rests: between two commands.
    pub(crate) fn state(&self) -> Option<QueueState> {
        let queue = lock(&self.queue);
        queue.active.as_ref().map(|active| active.queue.state())
    }

    /// Stops doing commands, or goes on.
    pub(crate) fn set_running(&self, running: bool) {
        if let Some(active) = &mut lock(&self.queue).active {
            active.running = running;
            if running {
                again(&active.loan.kick);
            }
        }
    }

    pub(crate) fn statistics(&self) -> CtrlStatistics {
        lock(&self.queue).statistics
    }

    /// Goes on counting from there.
    pub(crate) fn set_statistics(&self, statistics: CtrlStatistics) {
        lock(&self.queue).statistics = statistics;
    }

    #[doc(alias = "virtio_net_handle_ctrl")]
    fn turn(&self) {
        let mut this = lock(&self.queue);
        let Queue { active, statistics } = &mut *this;
        let Some(active) = active.as_mut().filter(|active| active.running) else {
            return;
        };
        let result = active.turn(&self.shared, &self.pairs, statistics);
        active.finish();
        match result {
            Ok(()) | Err(QueueError::Broken) => {}
            Err(error) => {
                if let Some(watch) = &active.watch {
                    watch.rest();
                }
                // Under the lock, so that no reset comes between.
                self.shared.needs_reset("control queue", &error);
            }
        }
    }
}

impl<M: QueueMemory> ActiveCtrl<M> {
    fn turn(
        &mut self,
        shared: &Shared,
        pairs: &[Arc<Pair<M>>],
        statistics: &mut CtrlStatistics,
    ) -> Result<(), QueueError> {
        self.queue.disable_notifications();
        for _ in 0..BURST {
            if !self.queue.pop(&mut self.chain)? {
                self.finish();
                if !self.queue.enable_notifications()? {
                    return Ok(());
                }
                self.queue.disable_notifications();
                continue;
            }
            let written = self.command(shared, pairs, statistics);
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            let pushed = self.queue.push_used(self.chain.head(), written);
            debug_assert!(pushed.is_ok(), "{pushed:?}");
        }
        again(&self.loan.kick);
        Ok(())
    }

    /// Does the command in `chain`, and answers it; returns how many bytes the answer has. One that has no room
    /// for the answer is not done.
    fn command(
        &self,
        shared: &Shared,
        pairs: &[Arc<Pair<M>>],
        statistics: &mut CtrlStatistics,
    ) -> usize {
        if self.chain.writable_len() == 0 {
            statistics.unanswered += 1;
            return 0;
        }
        let commands = Commands {
            shared,
            pairs,
            features: self.features,
            counted: *statistics,
        };
        let Answer { ack_at, result } = commands.execute(&self.chain);
        let Some(result) = result else {
            statistics.refused += 1;
            return ack_at + self.chain.write(ack_at, &[ERR]);
        };
        statistics.acknowledged += 1;
        // Behind the answer as much as there is room for.
        let result_at = if ack_at == 0 { 1 } else { 0 };
        let written = result_at + self.chain.write(result_at, &result);
        written.max(ack_at + self.chain.write(ack_at, &[OK]))
    }

    fn finish(&mut self) {
        if self.queue.publish() > 0 && self.queue.needs_notification() {
            self.loan.call.notify();
        }
    }
}

impl<M: QueueMemory> fmt::Debug for Ctrl<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctrl").finish_non_exhaustive()
    }
}
