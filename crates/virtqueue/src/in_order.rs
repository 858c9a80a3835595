//! Completions that wait for those before them (`VIRTIO_F_IN_ORDER`; virtio 1.4, 2.7.9, 2.8.8).

/// Chains in the order in which they were popped, which is that in which they were made available, from the oldest
/// that is not on the used ring on. "If VIRTIO_F_IN_ORDER has been negotiated, a device MUST use buffers in the
/// same order in which they have been available" (virtio 1.4, 6.1).
pub(crate) struct InOrder {
    /// By position, modulo the length: a power of two that no queue has more chains than.
    waiting: Box<[Waiting]>,
    /// By head: where it is in `waiting`, while it is in flight.
    positions: Box<[u16]>,
    /// Position of the oldest.
    first: u16,
}

/// A chain that was popped.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) head: u16,
    /// What was written into it.
    pub(crate) len: u32,
    /// The device is done with it.
    done: bool,
}

impl InOrder {
    pub(crate) fn new(size: u16, first: u16) -> Self {
        let none = Waiting {
            head: 0,
            len: 0,
            done: false,
        };
        // Sizes are at most 2^15.
        let len = usize::from(size).next_power_of_two();
        Self {
            waiting: vec![none; len].into_boxed_slice(),
            positions: vec![0; usize::from(size)].into_boxed_slice(),
            first,
        }
    }

    /// `head` was popped, at `position`.
    pub(crate) fn popped(&mut self, head: u16, position: u16) {
        if let Some(place) = self.positions.get_mut(usize::from(head)) {
            *place = position;
        }
        *self.at(position) = Waiting {
            head,
            len: 0,
            done: false,
        };
    }

    /// Whether the device is done with `head`, which is in flight.
    pub(crate) fn is_done(&self, head: u16) -> bool {
        let position = self.position(head);
        let index = usize::from(position) & (self.waiting.len() - 1);
        self.waiting.get(index).is_some_and(|waiting| waiting.done)
    }

    /// The device is done with `head`, which is in flight.
    pub(crate) fn complete(&mut self, head: u16, len: u32) {
        *self.at(self.position(head)) = Waiting {
            head,
            len,
            done: true,
        };
    }

    /// The next chain whose turn it is to be used, unless the device is not done with it.
    pub(crate) fn next(&mut self) -> Option<Waiting> {
        let oldest = self.at(self.first);
        if !oldest.done {
            return None;
        }
        oldest.done = false;
        let oldest = *oldest;
        self.first = self.first.wrapping_add(1);
        Some(oldest)
    }

    fn position(&self, head: u16) -> u16 {
        self.positions
            .get(usize::from(head))
            .copied()
            .unwrap_or_default()
    }

    fn at(&mut self, position: u16) -> &mut Waiting {
        let mask = self.waiting.len() - 1;
        &mut self.waiting[usize::from(position) & mask]
    }
}
