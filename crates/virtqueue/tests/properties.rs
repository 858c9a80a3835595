//! Whatever lies in guest memory, the device's half neither panics nor loops, and each head that it takes is
//! one that it has and gives back once.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;
use virtio::F;
use virtqueue::mock::{Descriptor, PackedDescriptor, PackedDriver, SplitDriver};
use virtqueue::{Chain, QueueState, VirtQueue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 8;
const TABLE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const END: u64 = 0x4000;

#[derive(Clone, Debug)]
enum Step {
    Describe(u16, (u64, u32, u16, u16)),
    DescribeIndirect(u16, (u64, u32, u16, u16)),
    Offer(u16),
    Index(u16),
    Pop,
    Complete(usize),
    Undo,
    Publish,
    Notify,
    Enable,
    Disable,
    UsedEvent(u16),
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        6 => DATA..END,
        2 => Just(TABLE),
        1 => Just(0_u64),
        1 => END - 8..END + 8,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        4 => 1..64_u32,
        2 => (1..8_u32).prop_map(|n| n * 16),
        1 => Just(0_u32),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (address, len, flags, next)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SIZE, descriptor()).prop_map(|(i, d)| Step::Describe(i, d)),
        3 => (0..SIZE, descriptor()).prop_map(|(i, d)| Step::DescribeIndirect(i, d)),
        6 => prop_oneof![8 => 0..SIZE, 1 => any::<u16>()].prop_map(Step::Offer),
        1 => any::<u16>().prop_map(Step::Index),
        8 => Just(Step::Pop),
        4 => any::<usize>().prop_map(Step::Complete),
        1 => Just(Step::Undo),
        3 => Just(Step::Publish),
        2 => Just(Step::Notify),
        2 => Just(Step::Enable),
        1 => Just(Step::Disable),
        1 => any::<u16>().prop_map(Step::UsedEvent),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn heads_are_accounted_for_whatever_the_driver_writes(
        steps in prop::collection::vec(step(), 1..120),
        event_idx: bool,
        in_order: bool,
        start: u16,
    ) {
        let features = features(event_idx, in_order);
        let memory: Arc<GuestMemoryMmap<()>> = Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap(),
        );
        let mut driver = SplitDriver::new(memory.clone(), GuestAddress(0), SIZE, features);
        driver.begin_at(start);
        let state = QueueState { next_avail: start, next_used: start };
        let mut queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
        let mut held: Vec<Chain<_>> = Vec::new();
        let mut completed = 0_u16;
        let mut published = 0_u16;
        for step in steps {
            match step {
                Step::Describe(i, (a, l, f, n)) => {
                    driver.set_descriptor(i, Descriptor::new(a, l, f, n));
                }
                Step::DescribeIndirect(i, (a, l, f, n)) => {
                    driver.set_indirect(TABLE, i, Descriptor::new(a, l, f, n));
                }
                Step::Offer(head) => driver.offer(head),
                Step::Index(index) => driver.set_avail_idx(index),
                Step::Pop => {
                    let was_broken = queue.is_broken();
                    let mut chain = Chain::new();
                    match queue.pop(&mut chain) {
                        Ok(true) => {
                            prop_assert!(!was_broken);
                            prop_assert!(chain.head() < SIZE);
                            let parts = chain.readable().iter().chain(chain.writable());
                            for part in parts {
                                prop_assert!(part.len() > 0);
                                prop_assert!(part.address().0 + part.len() as u64 <= END);
                            }
                            held.push(chain);
                        }
                        Ok(false) => {}
                        Err(_) => prop_assert!(queue.is_broken()),
                    }
                }
                Step::Complete(i) if !held.is_empty() => {
                    let chain = held.swap_remove(i % held.len());
                    chain.write(0, &[0xa5; 100]);
                    queue.push_used(chain.head(), 1).unwrap();
                    prop_assert!(queue.push_used(chain.head(), 1).is_err());
                    completed = completed.wrapping_add(1);
                }
                Step::Complete(_) => {}
                Step::Undo => {
                    if let Some(mut chain) = held.pop() && !queue.undo_pop(&mut chain) {
                        held.push(chain);
                    }
                }
                Step::Publish => published = published.wrapping_add(queue.publish()),
                Step::Notify => {
                    queue.needs_notification();
                }
                Step::Enable => {
                    let _ = queue.enable_notifications();
                }
                Step::Disable => queue.disable_notifications(),
                Step::UsedEvent(event) => driver.set_used_event(event),
            }
            let heads: HashSet<u16> = held.iter().map(Chain::head).collect();
            prop_assert_eq!(heads.len(), held.len(), "no head is out twice");
            prop_assert_eq!(usize::from(queue.in_flight()), held.len());
        }
        for chain in held.drain(..) {
            // In order, what was completed before its turn has it now.
            queue.push_used(chain.head(), 0).unwrap();
            completed = completed.wrapping_add(1);
        }
        published = published.wrapping_add(queue.publish());
        prop_assert_eq!(published, completed);
        let state = queue.state();
        prop_assert_eq!(state.next_used, start.wrapping_add(completed));
        prop_assert_eq!(state.next_avail, state.next_used);
    }

    #[test]
    fn ids_are_accounted_for_whatever_the_driver_writes_into_a_packed_ring(
        steps in prop::collection::vec(packed_step(), 1..120),
        event_idx: bool,
        in_order: bool,
        size in 1..=SIZE,
        start: (u16, bool),
    ) {
        let features = features(event_idx, in_order) | F::RING_PACKED;
        let memory: Arc<GuestMemoryMmap<()>> = Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap(),
        );
        let place = (start.0 % size) | if start.1 { 0x8000 } else { 0 };
        let state = QueueState { next_avail: place, next_used: place };
        let mut driver = PackedDriver::new(memory.clone(), GuestAddress(0), size, features);
        driver.begin_at(state);
        let mut queue = VirtQueue::new(&driver.config(), state, features, memory).unwrap();
        let mut held: Vec<Chain<_>> = Vec::new();
        let (mut completed, mut published) = (0, 0);
        for step in steps {
            match step {
                PackedStep::Describe(slot, (a, l, i, f)) => {
                    // Most are of this lap, or the ring would seem to be empty.
                    let next = queue.state().next_avail;
                    let slot = if slot == SIZE { next & 0x7fff } else { slot % size };
                    let flags = match f & 0x8080 {
                        0x80 if next & 0x8000 == 0 => f ^ 0x8080,
                        _ => f,
                    };
                    driver.publish_descriptor(slot, packed(a, l, i, flags));
                }
                PackedStep::DescribeIndirect(i, (a, l, id, f)) => {
                    driver.set_indirect(TABLE, i, packed(a, l, id, f));
                }
                PackedStep::Event(event, flags) => driver.set_driver_event(event, flags),
                PackedStep::Pop => {
                    let mut chain = Chain::new();
                    match queue.pop(&mut chain) {
                        Ok(true) => {
                            prop_assert!(chain.head() < size);
                            for part in chain.readable().iter().chain(chain.writable()) {
                                prop_assert!(part.len() > 0);
                                prop_assert!(part.address().0 + part.len() as u64 <= END);
                            }
                            held.push(chain);
                        }
                        Ok(false) => {}
                        Err(_) => prop_assert!(queue.is_broken()),
                    }
                }
                PackedStep::Complete(i) if !held.is_empty() => {
                    let chain = held.swap_remove(i % held.len());
                    chain.write(0, &[0xa5; 100]);
                    queue.push_used(chain.head(), 1).unwrap();
                    prop_assert!(queue.push_used(chain.head(), 1).is_err());
                    completed += 1;
                }
                PackedStep::Complete(_) => {}
                PackedStep::Undo => {
                    if let Some(mut chain) = held.pop() && !queue.undo_pop(&mut chain) {
                        held.push(chain);
                    }
                }
                PackedStep::Publish => published += u32::from(queue.publish()),
                PackedStep::Notify => {
                    queue.needs_notification();
                }
                PackedStep::Enable => {
                    let _ = queue.enable_notifications();
                }
                PackedStep::Disable => queue.disable_notifications(),
            }
            let heads: HashSet<u16> = held.iter().map(Chain::head).collect();
            prop_assert_eq!(heads.len(), held.len(), "no id is out twice");
            prop_assert_eq!(usize::from(queue.in_flight()), held.len());
            let state = queue.state();
            prop_assert!(state.next_avail & 0x7fff < size && state.next_used & 0x7fff < size);
        }
        for chain in held.drain(..) {
            queue.push_used(chain.head(), 0).unwrap();
            completed += 1;
        }
        published += u32::from(queue.publish());
        prop_assert_eq!(published, completed);
        prop_assert_eq!(queue.state().next_avail, queue.state().next_used);
    }
}

fn features(event_idx: bool, in_order: bool) -> F {
    let mut features = F::VERSION_1 | F::INDIRECT_DESC;
    if event_idx {
        features |= F::EVENT_IDX;
    }
    if in_order {
        features |= F::IN_ORDER;
    }
    features
}

#[derive(Clone, Debug)]
enum PackedStep {
    /// `SIZE`: the slot that the device looks at next.
    Describe(u16, (u64, u32, u16, u16)),
    DescribeIndirect(u16, (u64, u32, u16, u16)),
    Event(u16, u16),
    Pop,
    Complete(usize),
    Undo,
    Publish,
    Notify,
    Enable,
    Disable,
}

fn packed(address: u64, len: u32, id: u16, flags: u16) -> PackedDescriptor {
    PackedDescriptor {
        address,
        len,
        id,
        flags,
    }
}

/// Address, length, id, flags; most are available in the lap whose counter is 1.
fn packed_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let lap = prop_oneof![8 => Just(0x80_u16), 1 => Just(0x8000_u16), 1 => Just(0x8080_u16)];
    (descriptor(), lap)
        .prop_map(|((address, len, flags, id), lap)| (address, len, id, flags & !0x8080 | lap))
}

fn packed_step() -> impl Strategy<Value = PackedStep> {
    prop_oneof![
        8 => (0..=2 * SIZE, packed_descriptor())
            .prop_map(|(i, d)| PackedStep::Describe(i.min(SIZE), d)),
        3 => (0..SIZE, packed_descriptor()).prop_map(|(i, d)| PackedStep::DescribeIndirect(i, d)),
        1 => (any::<u16>(), 0..4_u16).prop_map(|(e, f)| PackedStep::Event(e, f)),
        8 => Just(PackedStep::Pop),
        4 => any::<usize>().prop_map(PackedStep::Complete),
        1 => Just(PackedStep::Undo),
        3 => Just(PackedStep::Publish),
        2 => Just(PackedStep::Notify),
        2 => Just(PackedStep::Enable),
        1 => Just(PackedStep::Disable),
    ]
}
