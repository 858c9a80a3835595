//! The one who holds a queue: takes chains, gives them back in any order, and keeps books on it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use virtio::F;
use virtqueue::{Chain, MAX_SEGMENTS, QueueState, Segment, VirtQueue};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest memory of the rings.
pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// A queue and what is known of it.
pub(crate) struct Holder<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) queue: VirtQueue<Memory>,
    features: F,
    pub(crate) chain: Chain<Memory>,
    /// What names the chains that were taken and not given back.
    pub(crate) in_flight: BTreeSet<u16>,
    /// Those that were taken and are not on the used ring, oldest first, and whether they were given back.
    order: VecDeque<(u16, bool)>,
    /// What was put on the used ring and is not published.
    staged: Vec<(u16, u32)>,
    /// By name: what was said to be written.
    lens: Vec<u32>,
    /// What came next before the last chain was taken.
    before_last: u16,
}

impl<'a> Holder<'a> {
    pub(crate) fn new(memory: &'a Memory, queue: VirtQueue<Memory>, features: F) -> Self {
        let config = *queue.config();
        assert!(config.size > 0 && config.size <= config.max_size);
        assert_eq!(queue.is_packed(), features.contains(F::RING_PACKED));
        Self {
            memory,
            before_last: queue.state().next_avail,
            queue,
            features,
            chain: Chain::new(),
            in_flight: BTreeSet::new(),
            order: VecDeque::new(),
            staged: Vec::new(),
            lens: vec![0; config.size.into()],
        }
    }

    /// Takes a chain, reads it and fills it.
    pub(crate) fn pop_and_use(&mut self) {
        if self.pop() {
            let mut bytes = [0; 16];
            let read = self.chain.read(3, &mut bytes);
            assert_eq!(read, self.chain.readable_len().saturating_sub(3).min(16));
            let written = self.chain.write(3, &bytes);
            assert_eq!(written, self.chain.writable_len().saturating_sub(3).min(16));
        }
    }

    /// Takes a chain, and checks what came. Whether something did.
    pub(crate) fn pop(&mut self) -> bool {
        let was_broken = self.queue.is_broken();
        let before = self.queue.state();
        match self.queue.pop(&mut self.chain) {
            Ok(true) => {}
            Ok(false) => {
                assert!(!was_broken);
                return false;
            }
            Err(_) => {
                assert!(self.queue.is_broken());
                assert_eq!(self.queue.state(), before);
                return false;
            }
        }
        assert!(!was_broken);
        self.before_last = before.next_avail;
        let head = self.chain.head();
        assert!(head < self.queue.size());
        assert!(
            self.order.iter().all(|(taken, _)| *taken != head),
            "{head} is not used yet"
        );
        self.in_flight.insert(head);
        self.order.push_back((head, false));
        let directions = [
            (self.chain.readable(), self.chain.readable_len()),
            (self.chain.writable(), self.chain.writable_len()),
        ];
        for (segments, len) in directions {
            assert!(segments.len() <= MAX_SEGMENTS);
            assert_eq!(segments.iter().map(Segment::len).sum::<usize>(), len);
            for segment in segments {
                check_segment(self.memory, segment);
            }
        }
        true
    }

    /// Takes all. Nothing is written meanwhile, so at most `size` chains are there to take.
    pub(crate) fn drain(&mut self) {
        let size = self.queue.size();
        let taken = (0..=size).take_while(|_| self.pop()).count();
        assert!(taken <= size.into(), "no end");
    }

    pub(crate) fn undo_pop(&mut self) {
        let head = self.chain.head();
        let next_used = self.queue.state().next_used;
        if self.queue.undo_pop(&mut self.chain) {
            assert!(self.in_flight.remove(&head), "{head} was not in flight");
            assert_eq!(self.order.pop_back(), Some((head, false)), "the last");
            let next_avail = self.before_last;
            let state = QueueState {
                next_avail,
                next_used,
            };
            assert_eq!(self.queue.state(), state);
        }
    }

    /// Gives one back, of those that were taken.
    pub(crate) fn push_nth(&mut self, nth: u8, len: u32) {
        let count = self.in_flight.len();
        if let Some(&head) = self.in_flight.iter().nth(usize::from(nth) % count.max(1)) {
            self.push(head, len);
        }
    }

    /// Gives one back, if it was taken.
    pub(crate) fn push(&mut self, head: u16, len: u32) {
        let pushed = self.queue.push_used(head, len).is_ok();
        assert_eq!(pushed, self.in_flight.remove(&head), "{head}");
        if !pushed {
            return;
        }
        self.lens[usize::from(head)] = len;
        let at = self.order.iter().position(|(taken, _)| *taken == head);
        let at = at.expect("it was taken");
        if !self.features.contains(F::IN_ORDER) {
            self.order.remove(at);
            self.staged.push((head, len));
            return;
        }
        self.order[at].1 = true;
        while let Some(&(next, true)) = self.order.front() {
            self.order.pop_front();
            self.staged.push((next, self.lens[usize::from(next)]));
        }
    }

    /// Publishes what is staged: by name, how much was written.
    pub(crate) fn publish(&mut self) -> Vec<(u16, u32)> {
        let staged = std::mem::take(&mut self.staged);
        assert_eq!(usize::from(self.queue.publish()), staged.len());
        staged
    }

    pub(crate) fn ask_whether_to_notify(&mut self) {
        self.queue.needs_notification();
        assert!(!self.queue.needs_notification(), "told twice");
    }

    pub(crate) fn enable(&mut self) {
        match self.queue.enable_notifications() {
            Ok(_) => assert!(!self.queue.is_broken()),
            Err(_) => assert!(self.queue.is_broken()),
        }
    }

    /// Another holder goes on, if nothing is on its way; what is in flight would be lost to it.
    pub(crate) fn remake(&mut self) {
        if self.staged.is_empty() && self.order.is_empty() {
            let (config, state) = (*self.queue.config(), self.queue.state());
            self.queue = VirtQueue::new(&config, state, self.features, self.memory.clone())
                .expect("the state of a queue fits it");
            self.chain = Chain::new();
        }
    }

    /// What holds after each step.
    pub(crate) fn check(&self) {
        assert_eq!(usize::from(self.queue.in_flight()), self.in_flight.len());
    }
}

/// A segment lies in one region, and its pointer is that region's.
fn check_segment(memory: &Memory, segment: &Segment) {
    let address = segment.address();
    let region = memory.find_region(address).expect("mapped");
    let last = segment.len() as u64 - 1;
    let last = address.0.checked_add(last).expect("ends");
    assert!(
        last <= region.last_addr().0,
        "{segment:?} leaves its region"
    );
    let host = memory.get_host_address(address).expect("mapped");
    assert_eq!(host, segment.ptr());
}
