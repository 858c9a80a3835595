//! Whatever lies in guest memory, the device's half neither panics nor loops, and each head that it takes is
//! one that it has and gives back once.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;
use virtio::F;
use virtqueue::mock::{Descriptor, SplitDriver};
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
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn heads_are_accounted_for_whatever_the_driver_writes(
        steps in prop::collection::vec(step(), 1..120),
        event_idx: bool,
        start: u16,
    ) {
        let mut features = F::VERSION_1 | F::INDIRECT_DESC;
        if event_idx {
            features |= F::EVENT_IDX;
        }
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
        published = published.wrapping_add(queue.publish());
        prop_assert_eq!(published, completed);
        let state = queue.state();
        prop_assert_eq!(state.next_used, start.wrapping_add(completed));
        let out = state.next_avail.wrapping_sub(state.next_used);
        prop_assert_eq!(usize::from(out), held.len());
    }
}
