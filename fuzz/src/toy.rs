//! A virtio device of two queues that fills whatever it gets, and never fails the fuzzer by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use virtio::{F, Id};
use virtio_bus::{
    ActivateError, Activation, ActiveQueue, FeaturesRefused, NotActivated, Transport, VirtioDevice,
};
use virtqueue::{Chain, QueueIndex, VirtQueue};

use crate::rig::Memory;

/// Chains that are served in one turn. A guest may lay its rings over one another, so that serving a
/// chain makes another one available, for ever.
const BUDGET: usize = 64;

/// The device.
#[derive(Debug, Default)]
pub struct Toy {
    lent: Mutex<Vec<Lent>>,
    paused: AtomicBool,
    transport: Mutex<Option<Weak<dyn Transport>>>,
}

#[derive(Debug)]
struct Lent {
    queue: ActiveQueue,
    ring: VirtQueue<Memory>,
}

impl Toy {
    /// Serves what is there.
    pub fn turn(&self) {
        if self.paused.load(Ordering::Relaxed) {
            return;
        }
        let mut broken = None;
        for lent in self.lent.lock().unwrap().iter_mut() {
            let _ = lent.queue.kick.read();
            if let Err(error) = serve(lent) {
                broken = Some(error.to_string());
            }
        }
        if let (Some(reason), Some(transport)) = (broken, self.transport()) {
            transport.needs_reset(&reason);
        }
    }

    /// How many queues it has.
    pub fn lent(&self) -> usize {
        self.lent.lock().unwrap().len()
    }

    /// Where it reports, while it is plugged.
    pub fn transport(&self) -> Option<Arc<dyn Transport>> {
        let transport = self.transport.lock();
        transport
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()?
            .upgrade()
    }
}

fn serve(lent: &mut Lent) -> Result<(), virtqueue::QueueError> {
    let mut chain = Chain::new();
    for _ in 0..BUDGET {
        if lent.ring.is_broken() || !lent.ring.pop(&mut chain)? {
            break;
        }
        let mut byte = [0; 1];
        chain.read(0, &mut byte);
        let written = chain.write(0, &[byte[0]; 64]);
        lent.ring
            .push_used(chain.head(), written as u32)
            .expect("it was popped");
    }
    lent.ring.publish();
    if lent.ring.needs_notification() {
        lent.queue.call.notify();
    }
    Ok(())
}

impl VirtioDevice<Memory> for Toy {
    fn device_type(&self) -> Id {
        Id::Rng
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        vec![64, 16]
    }

    fn offered_features(&self) -> F {
        F::EVENT_IDX | F::INDIRECT_DESC | F::RING_RESET
    }

    fn plugged(&self, transport: Weak<dyn Transport>) {
        *self.transport.lock().unwrap() = Some(transport);
    }

    fn unplugged(&self) {
        assert_eq!(self.lent(), 0, "reset comes first");
        *self.transport.lock().unwrap() = None;
    }

    fn config_len(&self) -> usize {
        5
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        assert!(offset + data.len() <= self.config_len());
        data.fill(0x5a);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.config_len());
    }

    fn negotiate(&self, _features: F) -> Result<(), FeaturesRefused> {
        Ok(())
    }

    fn activate(&self, activation: Activation<Memory>) -> Result<(), NotActivated> {
        assert_eq!(self.lent(), 0, "queues are lent once");
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
        let lent = activation.queues.into_iter().zip(rings);
        *self.lent.lock().unwrap() = lent.map(|(queue, ring)| Lent { queue, ring }).collect();
        Ok(())
    }

    fn start_queue(&self, queue: ActiveQueue) -> Result<(), NotActivated> {
        let error = ActivateError::QueueMissing(queue.index);
        Err(NotActivated {
            queues: vec![queue],
            error,
        })
    }

    fn stop_queue(&self, index: QueueIndex) -> Option<ActiveQueue> {
        let mut lent = self.lent.lock().unwrap();
        let at = lent.iter().position(|lent| lent.queue.index == index)?;
        Some(lent.remove(at).queue)
    }

    fn reset(&self) -> Vec<ActiveQueue> {
        let lent = std::mem::take(&mut *self.lent.lock().unwrap());
        lent.into_iter().map(|lent| lent.queue).collect()
    }

    fn pause(&self) {
        assert!(!self.paused.swap(true, Ordering::Relaxed), "paused twice");
    }

    fn resume(&self) {
        assert!(self.paused.swap(false, Ordering::Relaxed), "not paused");
    }
}
