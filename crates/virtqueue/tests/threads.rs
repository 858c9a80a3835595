//! A driver and a device on two threads, each asleep unless the other wakes it: a wakeup that is lost shows as a
//! thread that never wakes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use virtio::F;
use virtqueue::mock::{Buffer, Driver};
use virtqueue::{Chain, QueueState, VirtQueue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;

const SIZE: u16 = 4;
const CHAINS: u32 = 30_000;

/// Only ends a test that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A bell that rings at least once after it was last waited for, as an eventfd does.
fn bell() -> (SyncSender<()>, Receiver<()>) {
    sync_channel(1)
}

fn wait(bell: &Receiver<()>, who: &str) -> bool {
    match bell.recv_timeout(DEADLINE) {
        Ok(()) => true,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => panic!("{who} sleeps for ever"),
    }
}

#[test]
fn no_wakeup_is_lost_in_either_direction() {
    let one = F::VERSION_1;
    for features in [
        one,
        one | F::EVENT_IDX,
        one | F::RING_PACKED,
        one | F::RING_PACKED | F::EVENT_IDX,
    ] {
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let mut driver = Driver::new(memory.clone(), GuestAddress(0), SIZE, features);
        let mut queue = VirtQueue::new(
            &driver.config(),
            QueueState::initial(features),
            features,
            memory,
        )
        .unwrap();
        let (kick, kicked) = bell();
        let (call, called) = bell();

        let device = thread::spawn(move || {
            let mut chain = Chain::new();
            while wait(&kicked, "the device") {
                loop {
                    queue.disable_notifications();
                    while queue.pop(&mut chain).unwrap() {
                        queue.push_used(chain.head(), 0).unwrap();
                        queue.publish();
                        if queue.needs_notification() {
                            let _ = call.try_send(());
                        }
                    }
                    if !queue.enable_notifications().unwrap() {
                        break;
                    }
                }
            }
        });

        let mut added = 0;
        let mut done = 0;
        while done < CHAINS {
            while added < CHAINS && driver.free() > 0 {
                driver.add(&[Buffer::readable(0x8000, 1)]);
                added += 1;
                if driver.kick_wanted() {
                    let _ = kick.try_send(());
                }
            }
            let before = done;
            while driver.take_used().is_some() {
                done += 1;
            }
            if done == before {
                // Nothing yet: ask to be told of the next, look once more, sleep.
                driver.want_interrupt(0);
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                if !driver.has_used() {
                    assert!(wait(&called, "the driver"), "{features:?}");
                }
            }
        }
        drop(kick);
        device.join().unwrap();
        assert_eq!(done, CHAINS);
    }
}
