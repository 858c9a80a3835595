//! A back end dies at every store that it makes, and another one goes on from there.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use virtio::F;
use virtqueue::mock::{Buffer, Driver};
use virtqueue::{Chain, InFlight, RingDescriptor, VirtQueue};
use vm_memory::{Bytes, GuestMemoryMmap, VolatileMemory};

use super::*;

type Map = Arc<GuestMemoryMmap<()>>;

const MEMORY: usize = 0x8000;
const SIZE: u16 = 8;
/// Entries of the record; a ring may have fewer.
const ENTRIES: u16 = 16;
const RECORD: usize = 0x400;

/// What a process leaves behind that dies now.
struct Left {
    memory: Vec<u8>,
    record: Vec<u8>,
    /// Chains that the driver has got back, by their numbers.
    published: Vec<u32>,
    /// How many it had made available.
    available: u32,
}

/// What the hook needs to take a picture.
struct Scene {
    memory: Map,
    mapping: Arc<MmapRegion>,
    published: Arc<Mutex<Vec<u32>>>,
    available: u32,
    left: Vec<Left>,
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

/// Called after each store into a record.
pub(super) fn after_store() {
    SCENE.with_borrow_mut(|scene| {
        if let Some(scene) = scene {
            let left = Left {
                memory: bytes_of(&scene.memory),
                record: record_of(&scene.mapping),
                published: lock(&scene.published).clone(),
                available: scene.available,
            };
            scene.left.push(left);
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bytes_of(memory: &Map) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    memory
        .read_slice(&mut bytes, vm_memory::GuestAddress(0))
        .unwrap();
    bytes
}

fn record_of(mapping: &MmapRegion) -> Vec<u8> {
    let mut bytes = vec![0; RECORD];
    mapping
        .as_volatile_slice()
        .read_slice(&mut bytes, 0)
        .unwrap();
    bytes
}

fn memory() -> Map {
    Arc::new(GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), MEMORY)]).unwrap())
}

fn inflight(record: Option<&[u8]>) -> Inflight {
    let file = memory_file(RECORD as u64).unwrap();
    let passed = VhostUserInflight::new(RECORD as u64, 0, 1, ENTRIES);
    let inflight = Inflight::new(&passed, file).unwrap();
    if let Some(record) = record {
        let slice = inflight.mapping.as_volatile_slice();
        slice.write_slice(record, 0).unwrap();
    }
    inflight
}

/// Notes what the driver has got back at the moment at which it has.
#[derive(Debug)]
struct Noting {
    record: Arc<dyn InFlightRecord>,
    /// By head: the number of the chain.
    numbers: Arc<Mutex<Vec<u32>>>,
    published: Arc<Mutex<Vec<u32>>>,
}

impl InFlightRecord for Noting {
    fn in_flight(&self) -> Vec<InFlight> {
        self.record.in_flight()
    }

    fn taken(&self, head: u16, descriptors: &[RingDescriptor]) {
        self.record.taken(head, descriptors);
    }

    fn undone(&self, head: u16) {
        self.record.undone(head);
    }

    fn publishing(&self, heads: &[u16], next_used: u16) {
        self.record.publishing(heads, next_used);
    }

    fn published(&self, heads: &[u16], next_used: u16) {
        let numbers = heads
            .iter()
            .map(|head| lock(&self.numbers)[usize::from(*head)]);
        lock(&self.published).extend(numbers);
        self.record.published(heads, next_used);
    }
}

/// A chain's number is in its address.
fn number(chain: &Chain<Map>) -> u32 {
    let first = chain.readable().first().unwrap();
    u32::try_from((first.address().0 - 0x4000) / 4).unwrap()
}

/// A ring, and a device that works on it.
struct Rig {
    driver: Driver<Map>,
    queue: VirtQueue<Map>,
    held: Vec<Chain<Map>>,
    numbers: Arc<Mutex<Vec<u32>>>,
    available: u32,
}

fn start(
    inflight: &Inflight,
    config: &QueueConfig,
    features: F,
    memory: &Map,
    note: impl FnOnce(Arc<dyn InFlightRecord>) -> Arc<dyn InFlightRecord>,
) -> Result<VirtQueue<Map>, Refusal> {
    let packed = features.contains(F::RING_PACKED);
    let base = QueueState::initial(features);
    let (record, state) = inflight.record(0, config, packed, base, &**memory)?;
    let queue = VirtQueue::new(config, state, features, memory.clone()).unwrap();
    Ok(queue.with_record(note(record)))
}

impl Rig {
    fn add(&mut self, descriptors: u64) {
        let at = 0x4000 + 4 * u64::from(self.available);
        let mut buffers = vec![Buffer::readable(at, 4)];
        buffers.extend((1..descriptors).map(|_| Buffer::readable(0x7000, 16)));
        if (self.driver.free() as u64) < descriptors {
            return;
        }
        let head = self.driver.add(&buffers);
        lock(&self.numbers)[usize::from(head)] = self.available;
        self.available += 1;
        SCENE.with_borrow_mut(|scene| {
            if let Some(scene) = scene {
                scene.available = self.available;
            }
        });
    }

    fn pop(&mut self) {
        let mut chain = Chain::new();
        if self.queue.pop(&mut chain).unwrap() {
            self.held.push(chain);
        }
    }
}

/// Xorshift: the same numbers in each run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

const FORMATS: [F; 4] = [
    F::VERSION_1,
    F::VERSION_1.union(F::IN_ORDER),
    F::VERSION_1.union(F::RING_PACKED),
    F::VERSION_1.union(F::RING_PACKED).union(F::IN_ORDER),
];

/// A driver and a device do this and that; all that is left behind at each store.
fn story(features: F, seed: u64) -> (QueueConfig, Vec<Left>) {
    let memory = memory();
    let base = vm_memory::GuestAddress(0);
    let driver = Driver::new(memory.clone(), base, SIZE, features);
    let config = driver.config();
    let inflight = inflight(None);
    let (numbers, published) = (Arc::new(Mutex::new(vec![0; SIZE.into()])), Arc::default());
    let noting = |record| -> Arc<dyn InFlightRecord> {
        Arc::new(Noting {
            record,
            numbers: Arc::clone(&numbers),
            published: Arc::clone(&published),
        })
    };
    let queue = start(&inflight, &config, features, &memory, noting).unwrap();
    let mut rig = Rig {
        driver,
        queue,
        held: Vec::new(),
        numbers: Arc::clone(&numbers),
        available: 0,
    };
    SCENE.set(Some(Scene {
        memory,
        mapping: inflight.mapping.clone(),
        published: Arc::clone(&published),
        available: 0,
        left: Vec::new(),
    }));
    let mut state = seed;
    for _ in 0..600 {
        match random(&mut state) % 8 {
            0..3 => rig.add(1 + random(&mut state) % 3),
            3..5 => rig.pop(),
            5 if !rig.held.is_empty() => {
                let at = random(&mut state) % rig.held.len() as u64;
                let chain = rig.held.remove(usize::try_from(at).unwrap());
                rig.queue.push_used(chain.head(), 0).unwrap();
            }
            6 => {
                rig.queue.publish();
                while !random(&mut state).is_multiple_of(4) && rig.driver.take_used().is_some() {}
            }
            7 if random(&mut state).is_multiple_of(4) => {
                if let Some(mut chain) = rig.held.pop()
                    && !rig.queue.undo_pop(&mut chain)
                {
                    rig.held.push(chain);
                }
            }
            _ => {}
        }
    }
    let left = SCENE.take().unwrap().left;
    (config, left)
}

/// Another back end takes what the driver has not got back, in the order in which it was made available. Returns what it
/// leaves behind if it dies at each store of its own, if that is wanted.
fn recover(config: &QueueConfig, features: F, left: &Left, again: bool) -> Vec<Left> {
    let memory = memory();
    memory
        .write_slice(&left.memory, vm_memory::GuestAddress(0))
        .unwrap();
    let inflight = inflight(Some(&left.record));
    if again {
        SCENE.set(Some(Scene {
            memory: memory.clone(),
            mapping: inflight.mapping.clone(),
            published: Arc::new(Mutex::new(left.published.clone())),
            available: left.available,
            left: Vec::new(),
        }));
    }
    let mut queue = start(&inflight, config, features, &memory, |record| record).unwrap();
    let left_again = SCENE.take().map(|scene| scene.left).unwrap_or_default();
    let mut taken = Vec::new();
    let mut chains = Vec::new();
    loop {
        let mut chain = Chain::new();
        if !queue.pop(&mut chain).unwrap() {
            break;
        }
        taken.push(number(&chain));
        chains.push(chain);
    }
    let expected: Vec<u32> = (0..left.available)
        .filter(|number| !left.published.contains(number))
        .collect();
    assert_eq!(
        taken, expected,
        "{features:?}: published {:?}",
        left.published
    );
    let lens: Vec<_> = chains.iter().map(Chain::readable_len).collect();
    // What was taken again can be given back and taken once more.
    while let Some(mut chain) = chains.pop() {
        assert!(queue.undo_pop(&mut chain), "{features:?}");
    }
    // As devices do: into a chain that held another.
    let mut chain = Chain::new();
    for (number_again, len) in expected.iter().zip(lens) {
        assert!(queue.enable_notifications().unwrap());
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(
            (number(&chain), chain.readable_len()),
            (*number_again, len),
            "{features:?}"
        );
        queue.push_used(chain.head(), 0).unwrap();
    }
    assert!(!queue.enable_notifications().unwrap());
    assert_eq!(usize::from(queue.publish()), expected.len());
    // And then nothing is in flight.
    let again = start(&inflight, config, features, &memory, |record| {
        assert_eq!(record.in_flight(), []);
        record
    });
    assert!(!again.unwrap().pop(&mut Chain::new()).unwrap());
    left_again
}

#[test]
fn whenever_a_back_end_dies_the_next_one_takes_what_the_driver_has_not_got_back_once_and_in_order()
{
    let (mut in_flight, mut unsettled) = (0, 0);
    for features in FORMATS {
        for seed in [0x5eed_0001, 0x5eed_1234_5678] {
            let (config, left) = story(features, seed);
            assert!(left.len() > 200, "{features:?}: only {} stores", left.len());
            for (n, left) in left.iter().enumerate() {
                in_flight += usize::from(left.available as usize > left.published.len());
                let again = recover(&config, features, left, n % 5 == 0);
                for left in again {
                    unsettled += 1;
                    recover(&config, features, &left, false);
                }
            }
        }
    }
    assert!(in_flight > 1000, "only {in_flight}");
    assert!(unsettled > 100, "only {unsettled}");
}
