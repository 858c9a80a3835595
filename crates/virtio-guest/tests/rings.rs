//! The driver's half of a queue against the device's, in both formats and with all that can be negotiated of rings.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use virtio::F;
use virtio_guest::{DmaMemory, DmaRegion, Error, Platform, Width};
use virtqueue::{Chain, QueueConfig, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;
type Driver = virtio_guest::VirtQueue<16>;
type Device = virtqueue::VirtQueue<Memory>;

const DATA: u64 = 0x8000;

/// Memory, and no device in sight.
#[derive(Clone)]
struct Ram(Memory);

impl Platform for Ram {
    fn mmio_read(&self, _: u64, _: Width) -> u64 {
        u64::MAX
    }

    fn mmio_write(&self, _: u64, _: Width, _: u64) {}

    fn port_read(&self, _: u16, _: Width) -> u32 {
        u32::MAX
    }

    fn port_write(&self, _: u16, _: Width, _: u32) {}

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.0.read_slice(data, GuestAddress(address)).unwrap();
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.0.write_slice(data, GuestAddress(address)).unwrap();
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        self.0
            .load(GuestAddress(address), Ordering::Acquire)
            .unwrap()
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        self.0
            .store(value, GuestAddress(address), Ordering::Release)
            .unwrap();
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

fn queue(size: u16, features: F) -> (Ram, Driver, Device) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
    let ram = Ram(memory.clone());
    let mut dma = DmaMemory::new(DmaRegion {
        address: 0x10,
        len: 0x4000,
    });
    let driver = Driver::new(&ram, &mut dma, 3, size, features, 3).unwrap();
    let layout = driver.layout();
    let config = QueueConfig {
        max_size: 16,
        size: layout.size,
        desc: layout.desc,
        driver: layout.driver,
        device: layout.device,
    };
    let state = QueueState::initial(features);
    let device = Device::new(&config, state, features, memory).unwrap();
    (ram, driver, device)
}

/// All that can be negotiated of rings, with a size that only packed ones can have.
fn kinds() -> impl Iterator<Item = (u16, F)> {
    let bits = [F::RING_PACKED, F::EVENT_IDX, F::INDIRECT_DESC, F::IN_ORDER];
    (0..1 << bits.len()).flat_map(move |mask: u32| {
        let mut features = F::VERSION_1;
        for (i, bit) in bits.into_iter().enumerate() {
            if mask >> i & 1 != 0 {
                features |= bit;
            }
        }
        let sizes: &[u16] = if features.contains(F::RING_PACKED) {
            &[1, 5, 8]
        } else {
            &[1, 8]
        };
        sizes.iter().map(move |size| (*size, features))
    })
}

fn buffer(n: u16, len: u32) -> DmaRegion {
    DmaRegion {
        address: DATA + u64::from(n) * 0x100,
        len,
    }
}

/// Numbers that look random enough and are the same each time.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 16) as usize % end
    }
}

#[test]
fn chains_come_back_with_what_the_device_wrote_whatever_was_negotiated() {
    for (size, features) in kinds() {
        let (ram, mut driver, mut device) = queue(size, features);
        let mut numbers = Numbers(7);
        // By token: what is to come back.
        let mut out: HashMap<u16, (u32, u8)> = HashMap::new();
        let mut held: Vec<Chain<Memory>> = Vec::new();
        let mut done = 0_u16;
        let mut seen = Vec::new();
        let mut token = 0_u16;
        while done < 1000 {
            match numbers.below(4) {
                0 => {
                    let readable = [buffer(token % 16, 8), buffer(token % 16, 4)];
                    let writable = [buffer(16 + token % 16, 4), buffer(32 + token % 16, 60)];
                    let readable = &readable[..numbers.below(3)];
                    let writable = &writable[..numbers.below(3)];
                    let few = readable.len() + writable.len();
                    match driver.add(&ram, readable, writable, token) {
                        Ok(()) => {
                            out.insert(token, (0, 0));
                            seen.push((readable.len(), writable.len(), token));
                            token = token.wrapping_add(1);
                        }
                        Err(error) => {
                            assert_eq!(error, Error::QueueFull);
                            let one = features.contains(F::INDIRECT_DESC) && few <= 3;
                            let needed = if one && few > 1 { 1 } else { few };
                            assert!(few == 0 || usize::from(driver.free()) < needed);
                        }
                    }
                }
                1 => {
                    driver.publish(&ram);
                    let mut chain = Chain::new();
                    while device.pop(&mut chain).unwrap() {
                        let (readable, writable, token) = seen.remove(0);
                        assert_eq!(chain.readable_len(), [0, 8, 12][readable], "{features:?}");
                        assert_eq!(chain.writable_len(), [0, 4, 64][writable]);
                        chain.write(0, &token.to_le_bytes());
                        held.push(std::mem::take(&mut chain));
                    }
                }
                2 if !held.is_empty() => {
                    let chain = held.remove(numbers.below(held.len()));
                    let len = u32::try_from(chain.writable_len()).unwrap();
                    device.push_used(chain.head(), len).unwrap();
                    if numbers.below(2) == 0 {
                        device.publish();
                    }
                }
                _ => {
                    device.publish();
                    let mut before = None;
                    while let Some(used) = driver.pop(&ram).unwrap() {
                        assert!(out.remove(&used.token).is_some(), "{features:?}");
                        assert!([0, 4, 64].contains(&used.len));
                        if features.contains(F::IN_ORDER) {
                            assert!(before.is_none_or(|before| before < used.token));
                            assert_eq!(used.token, done, "{features:?}");
                        }
                        before = Some(used.token);
                        done += 1;
                    }
                }
            }
        }
        driver.publish(&ram);
        let mut chain = Chain::new();
        while device.pop(&mut chain).unwrap() {
            held.push(std::mem::take(&mut chain));
        }
        for chain in held {
            device.push_used(chain.head(), 0).unwrap();
        }
        device.publish();
        while driver.pop(&ram).unwrap().is_some() {}
        assert_eq!(driver.free(), size, "{features:?}");
        assert_eq!(device.state().next_avail, device.state().next_used);
    }
}

#[test]
fn each_half_notifies_the_other_exactly_when_it_wants_to_hear() {
    for (size, features) in kinds() {
        let (ram, mut driver, mut device) = queue(size, features);
        let mut chain = Chain::new();
        // The device's first answer is always to notify: where the driver stood is not known to it.
        let mut turn = |kick: bool, interrupt: bool, first: bool| {
            if kick {
                assert!(!device.enable_notifications().unwrap());
            } else {
                device.disable_notifications();
            }
            if interrupt {
                assert!(!driver.enable_interrupts(&ram));
            } else {
                driver.disable_interrupts(&ram);
            }
            driver.add(&ram, &[buffer(0, 4)], &[], 9).unwrap();
            assert_eq!(driver.publish(&ram), kick, "{size} {features:?}");
            assert!(device.pop(&mut chain).unwrap());
            device.push_used(chain.head(), 0).unwrap();
            assert!(!driver.has_used(&ram));
            device.publish();
            assert_eq!(device.needs_notification(), interrupt || first);
            assert!(driver.has_used(&ram));
            assert!(driver.enable_interrupts(&ram), "one is there");
            assert_eq!(driver.pop(&ram).unwrap().unwrap().token, 9);
        };
        turn(true, true, true);
        for i in 0..100_u8 {
            turn(i & 1 != 0, i & 2 != 0, false);
        }
    }
}

/// A bell that rings at least once after it was last waited for, as an eventfd does.
fn bell() -> (SyncSender<()>, Receiver<()>) {
    sync_channel(1)
}

fn wait(bell: &Receiver<()>, who: &str) -> bool {
    // The deadline only ends a test that hangs.
    match bell.recv_timeout(Duration::from_secs(60)) {
        Ok(()) => true,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => panic!("{who} sleeps for ever"),
    }
}

#[test]
fn no_wakeup_is_lost_between_two_threads() {
    let one = F::VERSION_1;
    for features in [
        one,
        one | F::EVENT_IDX,
        one | F::RING_PACKED,
        one | F::RING_PACKED | F::EVENT_IDX | F::IN_ORDER,
    ] {
        let (ram, mut driver, mut device) = queue(4, features);
        let (kick, kicked) = bell();
        let (call, called) = bell();
        let device = thread::spawn(move || {
            let mut chain = Chain::new();
            while wait(&kicked, "the device") {
                loop {
                    device.disable_notifications();
                    while device.pop(&mut chain).unwrap() {
                        device.push_used(chain.head(), 0).unwrap();
                        device.publish();
                        if device.needs_notification() {
                            let _ = call.try_send(());
                        }
                    }
                    if !device.enable_notifications().unwrap() {
                        break;
                    }
                }
            }
        });
        let (mut added, mut done) = (0, 0);
        while done < 10_000 {
            while added < 10_000 && driver.add(&ram, &[buffer(0, 1)], &[], 0).is_ok() {
                added += 1;
                if driver.publish(&ram) {
                    let _ = kick.try_send(());
                }
            }
            let before = done;
            while driver.pop(&ram).unwrap().is_some() {
                done += 1;
            }
            if done == before && !driver.enable_interrupts(&ram) {
                assert!(wait(&called, "the driver"), "{features:?}");
            }
        }
        drop(kick);
        device.join().unwrap();
    }
}

/// Virtio 1.4, 2.9: the offset "where the next available descriptor will be written", and its wrap counter.
#[test]
fn notification_data_says_where_the_device_will_look_next() {
    for packed in [F::empty(), F::RING_PACKED] {
        let features = F::VERSION_1 | F::NOTIFICATION_DATA | packed;
        let (ram, mut driver, mut device) = queue(4, features);
        for _ in 0..20 {
            for _ in 0..3 {
                driver.add(&ram, &[buffer(0, 1)], &[], 0).unwrap();
            }
            driver.publish(&ram);
            let mut chain = Chain::new();
            while device.pop(&mut chain).unwrap() {
                device.push_used(chain.head(), 0).unwrap();
            }
            device.publish();
            while driver.pop(&ram).unwrap().is_some() {}
            let next = u32::from(device.state().next_avail);
            assert_eq!(driver.notification(), (Width::U32, next << 16 | 3));
        }
    }
}
