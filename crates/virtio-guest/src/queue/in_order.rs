//! Completions of a device that uses chains in the order in which it got them (`VIRTIO_F_IN_ORDER`).

/// The heads in flight in the order in which they were added, and how many of them the device has completed by
/// naming the last (virtio 1.4, 2.7.9, 2.8.8).
#[derive(Debug)]
pub(super) struct InOrder<const N: usize> {
    heads: [u16; N],
    /// Where the oldest is.
    first: usize,
    /// How many there are.
    len: usize,
    /// How many of them are completed and were not taken.
    batch: usize,
    /// Bytes written into the last of those.
    written: u32,
}

impl<const N: usize> InOrder<N> {
    pub(super) fn new() -> Self {
        Self {
            heads: [0; N],
            first: 0,
            len: 0,
            batch: 0,
            written: 0,
        }
    }

    /// `head` was added; there are never more than `N`.
    pub(super) fn added(&mut self, head: u16) {
        let at = (self.first + self.len) % N.max(1);
        if let Some(slot) = self.heads.get_mut(at) {
            *slot = head;
            self.len += 1;
        }
    }

    /// The device has completed all chains up to that of `head`, into which it wrote `len` bytes. `None` if it is
    /// not among the oldest `most`.
    pub(super) fn begin_batch(&mut self, head: u16, len: u32, most: u16) -> Option<()> {
        let before = (0..self.len.min(usize::from(most))).find(|i| self.nth(*i) == Some(head))?;
        self.batch = before + 1;
        self.written = len;
        Some(())
    }

    /// The next chain of those, and how many bytes were written into it: "the skipped buffers [...] are assumed
    /// to have been used (read or written) by the device completely", for which this is `None`.
    pub(super) fn next_of_batch(&mut self) -> Option<(u16, Option<u32>)> {
        self.batch = self.batch.checked_sub(1)?;
        let head = self.nth(0)?;
        self.first = (self.first + 1) % N.max(1);
        self.len -= 1;
        Some((head, (self.batch == 0).then_some(self.written)))
    }

    /// Whether there are such chains left.
    pub(super) const fn is_in_batch(&self) -> bool {
        self.batch != 0
    }

    fn nth(&self, i: usize) -> Option<u16> {
        self.heads.get((self.first + i) % N.max(1)).copied()
    }
}
