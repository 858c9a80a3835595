//! The toy: fills each buffer of queue 0 with a byte that queue 1's last buffer named.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

use virtio::{F, Id};
use virtio_bus::{
    ActivateError, Activation, ActiveQueue, FeaturesRefused, GuestNotifier, NotActivated,
    Transport, VirtioDevice,
};
use virtqueue::{Chain, QueueIndex, VirtQueue};
use vmm_sys_util::eventfd::EventFd;

use crate::driver::format;
use crate::machine::Memory;

#[derive(Debug)]
struct Lent {
    queue: ActiveQueue,
    ring: VirtQueue<Memory>,
}

#[derive(Debug, Default)]
pub(crate) struct Toy {
    lent: Mutex<Vec<Lent>>,
    /// What the last activation came with.
    given: Mutex<Option<(F, Memory)>>,
    fill: AtomicU8,
    paused: AtomicBool,
    /// Queues whose call has changed.
    changed: Mutex<Vec<u16>>,
    pub(crate) config: Mutex<[u8; 5]>,
    pub(crate) transport: Mutex<Option<Weak<dyn Transport>>>,
}

impl Toy {
    /// One turn: takes the kicks, serves what is there. Returns how many buffers were used.
    pub(crate) fn turn(&self) -> usize {
        if self.paused.load(Ordering::Relaxed) {
            return 0;
        }
        let mut served = 0;
        for lent in self.lent.lock().unwrap().iter_mut() {
            if lent.queue.kick.read().is_err() {
                continue;
            }
            let mut chain = Chain::new();
            let mut used = 0;
            loop {
                match lent.ring.pop(&mut chain) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        self.transport().needs_reset(&error.to_string());
                        break;
                    }
                }
                let len = chain.writable_len();
                if lent.queue.index.0 == 1 {
                    let mut byte = [0];
                    chain.read(0, &mut byte);
                    self.fill.store(byte[0], Ordering::Relaxed);
                } else {
                    chain.write(0, &vec![self.fill.load(Ordering::Relaxed); len]);
                }
                let len = u32::try_from(len).unwrap();
                lent.ring.push_used(chain.head(), len).unwrap();
                used += 1;
            }
            if used > 0 {
                lent.ring.publish();
                if lent.ring.needs_notification() {
                    lent.queue.call.notify();
                }
            }
            served += used;
        }
        served
    }

    pub(crate) fn lent(&self) -> usize {
        self.lent.lock().unwrap().len()
    }

    pub(crate) fn call(&self, queue: u16) -> Arc<dyn GuestNotifier> {
        let lent = self.lent.lock().unwrap();
        Arc::clone(
            &(lent.iter().find(|lent| lent.queue.index.0 == queue))
                .unwrap()
                .queue
                .call,
        )
    }

    pub(crate) fn kick(&self, queue: u16) -> Arc<EventFd> {
        let lent = self.lent.lock().unwrap();
        Arc::clone(
            &(lent.iter().find(|lent| lent.queue.index.0 == queue))
                .unwrap()
                .queue
                .kick,
        )
    }

    pub(crate) fn take_changed(&self) -> Vec<u16> {
        std::mem::take(&mut *self.changed.lock().unwrap())
    }

    /// What was negotiated for the device that runs.
    pub(crate) fn features(&self) -> Option<F> {
        self.given
            .lock()
            .unwrap()
            .as_ref()
            .map(|(features, _)| *features)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        let transport = self.transport.lock().unwrap();
        transport.as_ref().unwrap().upgrade().unwrap()
    }
}

impl VirtioDevice<Memory> for Toy {
    fn device_type(&self) -> Id {
        Id::Rng
    }
    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![64, 16]
    }
    fn offered_features(&self) -> F {
        let rings = F::EVENT_IDX | F::INDIRECT_DESC | F::RING_RESET | format();
        rings | F::NOTIFICATION_DATA | F::SR_IOV
    }
    fn plugged(&self, transport: Weak<dyn Transport>) {
        *self.transport.lock().unwrap() = Some(transport);
    }
    fn unplugged(&self) {
        *self.transport.lock().unwrap() = None;
    }
    fn config_len(&self) -> usize {
        5
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.config.lock().unwrap()[offset..offset + data.len()]);
    }
    fn write_config(&self, offset: usize, data: &[u8]) {
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }
    fn negotiate(&self, _features: F) -> Result<(), FeaturesRefused> {
        Ok(())
    }
    fn activate(&self, activation: Activation<Memory>) -> Result<(), NotActivated> {
        let mut rings = Vec::new();
        for queue in &activation.queues {
            let memory = activation.memory.clone();
            match VirtQueue::new(&queue.config, queue.state, activation.features, memory) {
                Ok(ring) => rings.push(ring),
                Err(source) => {
                    let index = queue.index;
                    return Err(NotActivated {
                        queues: activation.queues,
                        error: ActivateError::Queue {
                            index,
                            source: Box::new(source),
                        },
                    });
                }
            }
        }
        *self.given.lock().unwrap() = Some((activation.features, activation.memory));
        let lent = activation.queues.into_iter().zip(rings);
        *self.lent.lock().unwrap() = lent.map(|(queue, ring)| Lent { queue, ring }).collect();
        Ok(())
    }
    fn start_queue(&self, queue: ActiveQueue) -> Result<(), NotActivated> {
        let (features, memory) = self.given.lock().unwrap().clone().unwrap();
        match VirtQueue::new(&queue.config, queue.state, features, memory) {
            Ok(ring) => {
                self.lent.lock().unwrap().push(Lent { queue, ring });
                Ok(())
            }
            Err(source) => {
                let error = ActivateError::Queue {
                    index: queue.index,
                    source: Box::new(source),
                };
                Err(NotActivated {
                    queues: vec![queue],
                    error,
                })
            }
        }
    }
    fn stop_queue(&self, index: QueueIndex) -> Option<ActiveQueue> {
        let mut lent = self.lent.lock().unwrap();
        let at = lent.iter().position(|lent| lent.queue.index == index)?;
        Some(lent.remove(at).queue)
    }
    fn call_changed(&self, queue: QueueIndex) {
        self.changed.lock().unwrap().push(queue.0);
    }
    fn reset(&self) -> Vec<ActiveQueue> {
        *self.given.lock().unwrap() = None;
        let lent = std::mem::take(&mut *self.lent.lock().unwrap());
        lent.into_iter().map(|lent| lent.queue).collect()
    }
    fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }
    fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }
}
