//! The driver's half of a virtqueue.

mod split;

pub use split::SplitRing;

use virtio::F;

use crate::{DmaMemory, DmaRegion, Error, Platform, Width};

/// Where a queue lies, in the words of the device's registers (virtio 1.4, 4.1.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// Which queue of the device.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the descriptor area (split: the descriptor table).
    pub desc: u64,
    /// Guest-physical address of the driver area (split: the available ring).
    pub driver: u64,
    /// Guest-physical address of the device area (split: the used ring).
    pub device: u64,
}

/// One descriptor, as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// The next descriptor of the chain, if `flags` say that there is one.
    pub next: u16,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What the chain was added with.
    pub token: u16,
    /// How many bytes the device says it wrote.
    pub len: u32,
}

/// The driver's half of one queue of at most `N` entries.
///
/// The device gets a chain in three steps: [`add`](Self::add) writes descriptors,
/// [`publish`](Self::publish) makes all chains added so far available at once and tells whether
/// the device wants to know, and
/// [`VirtioPciTransport::kick`](crate::VirtioPciTransport::kick) tells it. Chains come back from
/// [`pop`](Self::pop) in the order in which the device used them.
///
/// What is in flight is kept here and not read back from shared memory; the device can lie about
/// completions only in ways that [`pop`](Self::pop) finds. Split rings are the one format so far;
/// a packed ring fits behind the same methods.
#[derive(Debug)]
pub struct VirtQueue<const N: usize> {
    ring: SplitRing,
    /// The entry after the last chain added (published or not), counting on past the size.
    next_avail: u16,
    /// The index that the device was last told.
    published: u16,
    /// The entry of the used ring to look at next, counting likewise.
    next_used: u16,
    /// For each descriptor, the next one: of its chain in flight, or of the free list.
    next: [u16; N],
    /// For each head in flight, how many descriptors of the table it holds, and its token.
    in_flight: [Option<(u16, u16)>; N],
    free_head: u16,
    free: u16,
    event_idx: bool,
    notification_data: bool,
    /// One indirect table for each head, and how many entries each has.
    indirect: Option<(DmaRegion, u16)>,
    notify_offset: u32,
}

impl<const N: usize> VirtQueue<N> {
    /// Lays queue `index` out with `size` entries in memory taken from `memory`.
    ///
    /// With `VIRTIO_F_EVENT_IDX` in `features` notifications are suppressed by index, else by
    /// flag. With `VIRTIO_F_INDIRECT_DESC`, and `indirect` not 0, a chain of 2 up to `indirect`
    /// buffers goes into an indirect table and takes one descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::QueueSize`] if `size` is 0, no power of two, or above `N`;
    /// [`Error::OutOfMemory`].
    pub fn new<P: Platform>(
        platform: &P,
        memory: &mut DmaMemory,
        index: u16,
        size: u16,
        features: F,
        indirect: u16,
    ) -> Result<Self, Error> {
        if !size.is_power_of_two() || usize::from(size) > N {
            return Err(Error::QueueSize(size));
        }
        let ring = SplitRing::allocate(platform, memory, index, size)?;
        let indirect = if features.contains(F::INDIRECT_DESC) && indirect != 0 {
            let len = u32::from(size)
                .checked_mul(u32::from(indirect) * SplitRing::DESCRIPTOR_LEN)
                .ok_or(Error::OutOfMemory { len: u32::MAX })?;
            Some((memory.take(len, SplitRing::DESCRIPTOR_LEN)?, indirect))
        } else {
            None
        };
        let mut next = [0; N];
        for (entry, following) in next.iter_mut().zip(1..) {
            *entry = following;
        }
        Ok(Self {
            ring,
            next_avail: 0,
            published: 0,
            next_used: 0,
            next,
            in_flight: [None; N],
            free_head: 0,
            free: size,
            event_idx: features.contains(F::EVENT_IDX),
            notification_data: features.contains(F::NOTIFICATION_DATA),
            indirect,
            notify_offset: 0,
        })
    }

    /// Writes a chain of buffers, first those that the device reads, then those that it writes.
    /// `token` comes back with the completion. The device does not see the chain before
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// [`Error::QueueFull`] without enough free descriptors, and for a chain without buffers.
    pub fn add<P: Platform>(
        &mut self,
        platform: &P,
        readable: &[DmaRegion],
        writable: &[DmaRegion],
        token: u16,
    ) -> Result<(), Error> {
        let count = u16::try_from(readable.len() + writable.len()).map_err(|_| Error::QueueFull)?;
        let table = self
            .indirect
            .filter(|(_, most)| (2..=*most).contains(&count));
        let needed = if table.is_some() { 1 } else { count };
        if count == 0 || needed > self.free {
            return Err(Error::QueueFull);
        }

        let head = self.free_head;
        let buffers = readable
            .iter()
            .map(|buffer| (buffer, 0))
            .chain(writable.iter().map(|buffer| (buffer, SplitRing::WRITE)));
        if let Some((tables, most)) = table {
            let table = tables
                .piece(head, u32::from(most) * SplitRing::DESCRIPTOR_LEN)
                .ok_or(Error::QueueFull)?;
            for (i, (buffer, write)) in (0..count).zip(buffers) {
                let more = if i + 1 < count { SplitRing::NEXT } else { 0 };
                let descriptor = Descriptor {
                    address: buffer.address,
                    len: buffer.len,
                    flags: write | more,
                    next: if more == 0 { 0 } else { i + 1 },
                };
                SplitRing::write_descriptor_at(platform, table.address, i, descriptor);
            }
            let descriptor = Descriptor {
                address: table.address,
                len: u32::from(count) * SplitRing::DESCRIPTOR_LEN,
                flags: SplitRing::INDIRECT,
                next: 0,
            };
            self.ring.write_descriptor(platform, head, descriptor);
            self.free_head = self.following(head);
        } else {
            for (i, (buffer, write)) in (0..count).zip(buffers) {
                let entry = self.free_head;
                let next = self.following(entry);
                let more = if i + 1 < count { SplitRing::NEXT } else { 0 };
                let descriptor = Descriptor {
                    address: buffer.address,
                    len: buffer.len,
                    flags: write | more,
                    next: if more == 0 { 0 } else { next },
                };
                self.ring.write_descriptor(platform, entry, descriptor);
                self.free_head = next;
            }
        }
        self.free -= needed;
        if let Some(slot) = self.in_flight.get_mut(usize::from(head)) {
            *slot = Some((needed, token));
        }
        self.ring.set_available(platform, self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    /// Makes the chains added since the last time available, and returns whether the device wants
    /// to be notified of them (virtio 1.4, 2.7.13.4).
    pub fn publish<P: Platform>(&mut self, platform: &P) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.ring.set_available_index(platform, new);
        self.published = new;
        // The device must see the index before its wish is read, or both sides may go to sleep.
        platform.barrier();
        if self.event_idx {
            crossed(self.ring.available_event(platform), old, new)
        } else {
            self.ring.used_flags(platform) & SplitRing::NO_NOTIFY == 0
        }
    }

    /// Takes the next chain that the device is done with.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`] if the device completes what it was not given, or more than it was
    /// given; the same entry is looked at again the next time.
    pub fn pop<P: Platform>(&mut self, platform: &P) -> Result<Option<Used>, Error> {
        let broken = Error::BrokenRing(self.ring.layout().index);
        let ahead = self.ring.used_index(platform).wrapping_sub(self.next_used);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.ring.layout().size {
            return Err(broken);
        }
        let (id, len) = self.ring.used(platform, self.next_used);
        let head = u16::try_from(id).map_err(|_| broken)?;
        let slot = self.in_flight.get_mut(usize::from(head)).ok_or(broken)?;
        let (count, token) = slot.take().ok_or(broken)?;

        // The whole chain goes to the front of the free list.
        let mut last = head;
        for _ in 1..count {
            last = self.following(last);
        }
        if let Some(next) = self.next.get_mut(usize::from(last)) {
            *next = self.free_head;
        }
        self.free_head = head;
        self.free += count;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used { token, len }))
    }

    /// Whether the device is done with chains that were not popped yet.
    pub fn has_used<P: Platform>(&self, platform: &P) -> bool {
        self.ring.used_index(platform) != self.next_used
    }

    /// Asks for an interrupt at the next completion. Returns true if there are completions
    /// already, for which none will come: pop again before going to sleep.
    pub fn enable_interrupts<P: Platform>(&mut self, platform: &P) -> bool {
        if self.event_idx {
            self.ring.set_used_event(platform, self.next_used);
        } else {
            self.ring.set_available_flags(platform, 0);
        }
        platform.barrier();
        self.has_used(platform)
    }

    /// Says that no interrupts are wanted for now. A hint: some may come none the less.
    pub fn disable_interrupts<P: Platform>(&mut self, platform: &P) {
        if self.event_idx {
            // The entry before the next one: as far away as an index can be.
            self.ring
                .set_used_event(platform, self.next_used.wrapping_sub(1));
        } else {
            self.ring
                .set_available_flags(platform, SplitRing::NO_INTERRUPT);
        }
    }

    /// What to write to the notification register, and how wide (virtio 1.4, 4.1.5.2).
    #[must_use]
    pub fn notification(&self) -> (Width, u32) {
        let index = u32::from(self.ring.layout().index);
        if self.notification_data {
            (Width::U32, index | u32::from(self.published) << 16)
        } else {
            (Width::U16, index)
        }
    }

    pub(crate) fn set_notify_offset(&mut self, offset: u32) {
        self.notify_offset = offset;
    }

    /// Where the queue's register lies in the notification structure; known once the transport
    /// has enabled the queue.
    #[must_use]
    pub const fn notify_offset(&self) -> u32 {
        self.notify_offset
    }

    /// Index, size and addresses.
    #[must_use]
    pub const fn layout(&self) -> QueueLayout {
        self.ring.layout()
    }

    /// How many descriptors are free.
    #[must_use]
    pub const fn free(&self) -> u16 {
        self.free
    }

    /// The bare ring, for a test that writes into it what this type would not.
    #[must_use]
    pub const fn ring(&self) -> SplitRing {
        self.ring
    }

    fn following(&self, entry: u16) -> u16 {
        self.next.get(usize::from(entry)).copied().unwrap_or(0)
    }
}

/// Whether an index that moved from `old` to `new` passed `event` (virtio 1.4, 2.7.7.2).
#[doc(alias = "vring_need_event")]
#[must_use]
pub const fn crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn queue(fake: &Fake, size: u16, features: F, indirect: u16) -> VirtQueue<16> {
        let mut memory = Fake::memory();
        VirtQueue::new(fake, &mut memory, 0, size, features, indirect).unwrap()
    }

    fn buffer(n: u16) -> DmaRegion {
        DmaRegion {
            address: 0x10_0000 + u64::from(n) * 0x1000,
            len: 0x100 + u32::from(n),
        }
    }

    #[test]
    fn a_size_that_no_queue_can_have_is_refused() {
        let fake = Fake::new();
        for size in [0, 3, 32, 0x8000] {
            let queue = VirtQueue::<16>::new(&fake, &mut Fake::memory(), 0, size, F::empty(), 0);
            assert_eq!(queue.err(), Some(Error::QueueSize(size)));
        }
    }

    #[test]
    fn a_chain_is_invisible_until_it_is_published() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 8, F::empty(), 0);
        queue
            .add(&fake, &[buffer(0), buffer(1)], &[buffer(2)], 7)
            .unwrap();
        assert_eq!(fake.device_avail_index(&queue), 0);
        assert!(queue.publish(&fake));
        assert_eq!(fake.device_avail_index(&queue), 1);
        let chain = fake.device_chain(&queue, 0);
        assert_eq!([chain[0].flags, chain[1].flags, chain[2].flags], [1, 1, 2]);
        assert_eq!(chain[2].len, 0x102);
        assert!(!queue.publish(&fake), "nothing is there to publish");
    }

    #[test]
    fn a_full_queue_takes_more_only_after_a_completion() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 4, F::empty(), 0);
        queue
            .add(&fake, &[buffer(0), buffer(1), buffer(2)], &[], 1)
            .unwrap();
        assert_eq!(
            queue.add(&fake, &[buffer(0); 2], &[], 2),
            Err(Error::QueueFull)
        );
        queue.publish(&fake);
        fake.device_use(&queue, 0, 0);
        assert_eq!(queue.pop(&fake), Ok(Some(Used { token: 1, len: 0 })));
        assert_eq!(queue.pop(&fake), Ok(None));
        assert_eq!(queue.add(&fake, &[buffer(0); 4], &[], 2), Ok(()));
    }

    #[test]
    fn completions_out_of_order_free_what_they_held() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 8, F::empty(), 0);
        // More rounds than the indices count to, so that they wrap.
        for round in 0..70_000_u32 / 3 {
            for token in 0..3 {
                queue.add(&fake, &[buffer(0)], &[buffer(1)], token).unwrap();
            }
            queue.publish(&fake);
            let start = u16::try_from(round * 3 % 0x1_0000).unwrap();
            for (place, token) in [(2, 2), (0, 0), (1, 1)] {
                let head = fake.device_head(&queue, start.wrapping_add(place));
                fake.device_use(&queue, head, 9);
                assert_eq!(
                    queue.pop(&fake),
                    Ok(Some(Used { token, len: 9 })),
                    "{round}"
                );
            }
            assert_eq!(queue.free(), 8);
        }
    }

    #[test]
    fn a_device_that_completes_what_it_has_not_is_found_out() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 4, F::empty(), 0);
        queue.add(&fake, &[buffer(0)], &[], 1).unwrap();
        queue.publish(&fake);
        for id in [1, 3, 4, 0x1_0000, u32::MAX] {
            fake.device_set_used(&queue, 0, id, 0);
            fake.device_set_used_index(&queue, 1);
            assert_eq!(queue.pop(&fake), Err(Error::BrokenRing(0)), "id {id}");
        }
        fake.device_set_used_index(&queue, 5);
        assert_eq!(queue.pop(&fake), Err(Error::BrokenRing(0)), "five of four");
    }

    #[test]
    fn a_long_chain_takes_one_descriptor_when_it_is_indirect() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 4, F::INDIRECT_DESC, 4);
        for _ in 0..4 {
            queue
                .add(&fake, &[buffer(0), buffer(1), buffer(2)], &[buffer(3)], 0)
                .unwrap();
        }
        assert_eq!(queue.free(), 0);
        let head = fake.device_head(&queue, 3);
        let [table, ..] = fake.device_chain(&queue, head);
        assert_eq!((table.flags, table.len), (SplitRing::INDIRECT, 64));
        let last = SplitRing::read_descriptor_at(&fake, table.address, 3);
        let third = SplitRing::read_descriptor_at(&fake, table.address, 2);
        assert_eq!((third.flags, third.next), (SplitRing::NEXT, 3));
        assert_eq!(
            (last.flags, last.address),
            (SplitRing::WRITE, buffer(3).address)
        );
    }

    #[test]
    fn a_chain_longer_than_its_indirect_table_is_direct() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 4, F::INDIRECT_DESC, 2);
        queue.add(&fake, &[buffer(0); 3], &[], 0).unwrap();
        assert_eq!(queue.free(), 1);
        queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
        assert_eq!(queue.free(), 0, "one buffer needs no table");
    }

    #[test]
    fn the_device_is_notified_when_it_wants_to_be() {
        let fake = Fake::new();
        let mut by_flag = queue(&fake, 4, F::empty(), 0);
        fake.device_set_used_flags(&by_flag, SplitRing::NO_NOTIFY);
        by_flag.add(&fake, &[buffer(0)], &[], 0).unwrap();
        assert!(!by_flag.publish(&fake));

        let fake = Fake::new();
        let mut by_event = queue(&fake, 4, F::EVENT_IDX, 0);
        // The flag is to be ignored when there is an index.
        fake.device_set_used_flags(&by_event, SplitRing::NO_NOTIFY);
        for (event, wanted) in [(0, true), (0, false), (2, true), (9, false)] {
            fake.device_set_avail_event(&by_event, event);
            by_event.add(&fake, &[buffer(0)], &[], 0).unwrap();
            assert_eq!(by_event.publish(&fake), wanted, "event {event}");
        }
    }

    #[test]
    fn enabling_interrupts_looks_again() {
        for features in [F::empty(), F::EVENT_IDX] {
            let fake = Fake::new();
            let mut queue = queue(&fake, 4, features, 0);
            let event_idx = features.contains(F::EVENT_IDX);
            assert!(!queue.enable_interrupts(&fake));
            assert!(fake.device_would_interrupt(&queue, event_idx));
            queue.disable_interrupts(&fake);
            assert!(!fake.device_would_interrupt(&queue, event_idx));
            queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
            queue.publish(&fake);
            fake.device_use(&queue, 0, 0);
            assert!(queue.enable_interrupts(&fake), "one is there already");
            queue.pop(&fake).unwrap();
            assert!(!queue.enable_interrupts(&fake));
            assert!(fake.device_would_interrupt(&queue, event_idx));
        }
    }

    #[test]
    fn an_event_is_crossed_only_by_passing_it() {
        let cases = [
            (0, 0, 1, true),
            (1, 0, 1, false),
            (0, 1, 2, false),
            (5, 3, 6, true),
            (6, 3, 6, false),
            (0xffff, 0xfffe, 1, true),
            (1, 0xfffe, 1, false),
        ];
        for (event, old, new, expected) in cases {
            assert_eq!(crossed(event, old, new), expected, "{event} {old} {new}");
        }
    }

    #[test]
    fn notification_data_tells_where_the_driver_stands() {
        let fake = Fake::new();
        let mut queue = queue(&fake, 4, F::NOTIFICATION_DATA, 0);
        queue.add(&fake, &[buffer(0)], &[], 0).unwrap();
        queue.publish(&fake);
        assert_eq!(queue.notification(), (Width::U32, 1 << 16));
    }
}
