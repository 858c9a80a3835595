//! A list of chains that keeps its room.

use std::mem;

use virtqueue::{Chain, QueueMemory};

/// Chains in order, with the sum of their room.
///
/// A ring of slots, each with a chain that is used again for what is popped next: a chain goes into the list and out of
/// it without being moved, and from one list to another by a swap of pointers.
pub(crate) struct Chains<M: QueueMemory> {
    /// As many as a power of two says, or none. What is in a slot that is not of the list is of no account.
    slots: Vec<Box<Chain<M>>>,
    /// The slot of the first; perhaps one past the slots, which is slot 0.
    first: usize,
    count: usize,
    len: usize,
}

impl<M: QueueMemory> Chains<M> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            first: 0,
            count: 0,
            len: 0,
        }
    }

    /// What is behind the last: to be popped into, and then [`keep_next`](Self::keep_next)ed perhaps.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> &mut Chain<M> {
        self.next_slot()
    }

    /// What was popped into [`next`](Self::next) is the last from now on.
    #[inline(always)]
    pub(crate) fn keep_next(&mut self) {
        // Chains of one queue, each of at most 2^42 bytes.
        self.len += self.next_slot().writable_len();
        self.count += 1;
    }

    /// Takes the first out of the list. It is there until a chain is put into one.
    #[inline(always)]
    pub(crate) fn pop_front(&mut self) -> Option<&mut Chain<M>> {
        self.count = self.count.checked_sub(1)?;
        let at = self.first & self.mask();
        // The slot that was used last is the one that is at hand.
        self.first = if self.count == 0 { 0 } else { at + 1 };
        let chain = &mut self.slots[at];
        self.len -= chain.writable_len();
        Some(chain)
    }

    /// Moves the first to the end of `to`. `false`: there is none.
    #[inline]
    pub(crate) fn move_first(&mut self, to: &mut Self) -> bool {
        if self.count == 0 {
            return false;
        }
        let at = self.first & self.mask();
        mem::swap(&mut self.slots[at], to.next_slot());
        to.keep_next();
        self.len -= to.last_len();
        self.count -= 1;
        self.first = at + 1;
        true
    }

    /// Moves the last to the start of `to`. `false`: there is none.
    #[inline]
    pub(crate) fn move_last(&mut self, to: &mut Self) -> bool {
        let Some(before) = self.count.checked_sub(1) else {
            return false;
        };
        let at = (self.first + before) & self.mask();
        if to.count == to.slots.len() {
            to.grow();
        }
        to.first = to.first.wrapping_sub(1) & to.mask();
        mem::swap(&mut self.slots[at], &mut to.slots[to.first]);
        let len = to.slots[to.first].writable_len();
        to.count += 1;
        to.len += len;
        self.count = before;
        self.len -= len;
        true
    }

    /// Puts them in the order of `key`.
    pub(crate) fn sort_by_key(&mut self, key: impl Fn(&Chain<M>) -> u16) {
        self.straighten();
        if let Some(list) = self.slots.get_mut(..self.count) {
            list.sort_by_key(|chain| key(chain));
        }
    }

    #[inline(always)]
    pub(crate) fn front(&self) -> Option<&Chain<M>> {
        (self.count > 0).then(|| &*self.slots[self.first & self.mask()])
    }

    /// From the first on.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Chain<M>> {
        let first = self.first & self.mask();
        let end = first + self.count;
        let until = end.min(self.slots.len());
        let before = self.slots.get(first..until).unwrap_or_default();
        let behind = self.slots.get(..end - until).unwrap_or_default();
        before.iter().chain(behind).map(|chain| &**chain)
    }

    /// How many.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the device may write.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies what was written from `offset` on, across chains, as far as there is.
    pub(crate) fn read_back(&self, mut offset: usize, mut buf: &mut [u8]) {
        for chain in self.iter() {
            let read = chain.read_back(offset, buf);
            buf = buf.get_mut(read..).unwrap_or_default();
            if buf.is_empty() {
                return;
            }
            offset = offset.saturating_sub(chain.writable_len());
        }
    }

    /// Marks the first `len` bytes dirty, across chains: a frame was read into them.
    pub(crate) fn mark_written(&self, mut len: usize) {
        for chain in self.iter() {
            chain.mark_written(len.min(chain.writable_len()));
            len = len.saturating_sub(chain.writable_len());
            if len == 0 {
                return;
            }
        }
    }

    /// Writes `data` from `offset` on, across chains.
    pub(crate) fn write(&self, mut offset: usize, mut data: &[u8]) {
        for chain in self.iter() {
            let written = chain.write(offset, data);
            data = data.get(written..).unwrap_or_default();
            if data.is_empty() {
                return;
            }
            offset = offset.saturating_sub(chain.writable_len());
        }
    }

    #[inline(always)]
    fn next_slot(&mut self) -> &mut Box<Chain<M>> {
        if self.count == self.slots.len() {
            self.grow();
        }
        let at = (self.first + self.count) & self.mask();
        &mut self.slots[at]
    }

    /// Room of the last.
    #[inline]
    fn last_len(&self) -> usize {
        let last = (self.first + self.count).wrapping_sub(1) & self.mask();
        self.slots.get(last).map_or(0, |last| last.writable_len())
    }

    /// Where slots wrap.
    #[inline(always)]
    fn mask(&self) -> usize {
        self.slots.len().wrapping_sub(1)
    }

    /// Twice as many slots, of which the list has the first ones.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        self.straighten();
        let more = (2 * self.slots.len()).max(1);
        self.slots.resize_with(more, Box::default);
    }

    /// Puts the first in the first slot.
    fn straighten(&mut self) {
        let first = self.first & self.mask();
        self.slots.rotate_left(first);
        self.first = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtqueue::mock::{Buffer, SplitDriver};
    use virtqueue::{QueueState, VirtQueue};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    type Memory = Arc<GuestMemoryMmap<()>>;

    const CHAINS: u16 = 16;

    /// A queue with chains of 1, 2 and so on bytes.
    fn queue() -> VirtQueue<Memory> {
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
        let features = virtio::F::VERSION_1;
        let mut driver = SplitDriver::new(memory.clone(), GuestAddress(0), CHAINS, features);
        for len in 1..=u32::from(CHAINS) {
            driver.add(&[Buffer::writable(0x8000, len)]);
        }
        VirtQueue::new(&driver.config(), QueueState::default(), features, memory).unwrap()
    }

    fn lens(chains: &Chains<Memory>) -> Vec<usize> {
        let lens: Vec<_> = chains.iter().map(Chain::writable_len).collect();
        assert_eq!(chains.len(), lens.iter().sum::<usize>());
        assert_eq!(chains.count(), lens.len());
        assert_eq!(chains.is_empty(), lens.is_empty());
        assert_eq!(
            chains.front().map(Chain::writable_len),
            lens.first().copied()
        );
        lens
    }

    fn gather(queue: &mut VirtQueue<Memory>, chains: &mut Chains<Memory>, count: usize) {
        for _ in 0..count {
            assert!(queue.pop(chains.next()).unwrap());
            chains.keep_next();
        }
    }

    #[test]
    fn what_goes_in_comes_out_in_order_wherever_the_slots_wrap() {
        let (mut queue, mut chains) = (queue(), Chains::new());
        gather(&mut queue, &mut chains, 3);
        assert_eq!(lens(&chains), [1, 2, 3]);
        let first = |chains: &mut Chains<Memory>| chains.pop_front().unwrap().writable_len();
        assert_eq!((first(&mut chains), first(&mut chains)), (1, 2));
        gather(&mut queue, &mut chains, 3);
        assert_eq!(lens(&chains), [3, 4, 5, 6], "around the end of four slots");
        gather(&mut queue, &mut chains, 2);
        assert_eq!(
            lens(&chains),
            [3, 4, 5, 6, 7, 8],
            "with slots that were added"
        );
        for len in 3..=8 {
            assert_eq!(first(&mut chains), len);
        }
        assert!(chains.pop_front().is_none());
        assert!(lens(&chains).is_empty());
    }

    #[test]
    fn what_was_popped_and_not_kept_is_not_of_the_list() {
        let (mut queue, mut chains) = (queue(), Chains::new());
        gather(&mut queue, &mut chains, 1);
        assert!(queue.pop(chains.next()).unwrap());
        assert_eq!(lens(&chains), [1]);
        gather(&mut queue, &mut chains, 1);
        assert_eq!(lens(&chains), [1, 3]);
    }

    #[test]
    fn chains_move_from_one_list_to_the_end_or_the_start_of_another() {
        let (mut queue, mut from, mut to) = (queue(), Chains::new(), Chains::new());
        gather(&mut queue, &mut from, 7);
        for _ in 0..3 {
            assert!(from.move_first(&mut to));
        }
        assert_eq!((lens(&from), lens(&to)), (vec![4, 5, 6, 7], vec![1, 2, 3]));
        for _ in 0..3 {
            assert!(from.move_last(&mut to));
        }
        assert_eq!((lens(&from), lens(&to)), (vec![4], vec![5, 6, 7, 1, 2, 3]));
        while to.move_last(&mut from) {}
        assert!(!to.move_first(&mut from));
        assert_eq!(
            (lens(&from), lens(&to)),
            (vec![5, 6, 7, 1, 2, 3, 4], vec![])
        );
        from.sort_by_key(|chain| u16::MAX - chain.position());
        assert_eq!(lens(&from), [7, 6, 5, 4, 3, 2, 1]);
    }
}
