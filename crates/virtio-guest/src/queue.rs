//! The driver's half of a virtqueue.

mod buffer;
mod in_order;
mod packed;
mod split;
#[cfg(test)]
mod tests;

pub use packed::{PackedDescriptor, PackedRing};
pub use split::SplitRing;

use virtio::F;

use crate::{DmaMemory, DmaRegion, Error, Platform, Width};
use buffer::Buffer;
use in_order::InOrder;
use packed::Place;

/// Where a queue lies, in the words of the device's registers (virtio 1.4, 4.1.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// Which queue of the device.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the descriptor area (split: the descriptor table; packed: the ring).
    pub desc: u64,
    /// Guest-physical address of the driver area (split: the available ring; packed: the driver's
    /// event suppression).
    pub driver: u64,
    /// Guest-physical address of the device area (split: the used ring; packed: the device's event
    /// suppression).
    pub device: u64,
}

/// One descriptor of a split ring, as numbers.
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

/// The bytes of a queue's rings, in the format that was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Without `VIRTIO_F_RING_PACKED`.
    Split(SplitRing),
    /// With it.
    Packed(PackedRing),
}

/// The driver's half of one queue of at most `N` entries, with split or packed rings.
///
/// The device gets a chain in three steps: [`add`](Self::add) writes descriptors,
/// [`publish`](Self::publish) makes all chains added so far available at once and tells whether
/// the device wants to know, and
/// [`VirtioPciTransport::kick`](crate::VirtioPciTransport::kick) tells it. Chains come back from
/// [`pop`](Self::pop) in the order in which the device used them.
///
/// What is in flight is kept here and not read back from shared memory; the device can lie about
/// completions only in ways that [`pop`](Self::pop) finds.
#[derive(Debug)]
pub struct VirtQueue<const N: usize> {
    ring: Ring,
    /// The entry after the last chain added (published or not). Split: counting on past the size.
    /// Packed: a [`Place`].
    next_avail: u16,
    /// The same of what the device was last told.
    published: u16,
    /// The entry of the used ring to look at next, counting likewise.
    next_used: u16,
    /// Packed: what makes all chains available that were added and not published.
    unpublished: Option<Unpublished>,
    /// For each head, the next one of the free list. Split: or of its chain in flight.
    next: [u16; N],
    /// What each head in flight stands for.
    in_flight: [Option<Flight>; N],
    free_head: u16,
    free: u16,
    /// With `VIRTIO_F_IN_ORDER`.
    in_order: Option<InOrder<N>>,
    event_idx: bool,
    notification_data: bool,
    /// One indirect table for each head, and how many entries each has.
    indirect: Option<(DmaRegion, u16)>,
    notify_offset: u32,
}

/// A chain in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    /// How many entries of the table or ring it holds.
    entries: u16,
    token: u16,
    /// Bytes that the device may write.
    writable: u32,
}

/// The flags that the first descriptor of a batch still lacks.
#[derive(Clone, Copy, Debug)]
struct Unpublished {
    slot: u16,
    flags: u16,
    /// Descriptors of the batch.
    count: u16,
}

impl<const N: usize> VirtQueue<N> {
    /// Lays queue `index` out with `size` entries in memory taken from `memory`.
    ///
    /// `features` are those that were negotiated. With `VIRTIO_F_RING_PACKED` the queue has packed
    /// rings, else split ones. With `VIRTIO_F_EVENT_IDX` notifications are suppressed by index, else
    /// by flag. With `VIRTIO_F_INDIRECT_DESC`, and `indirect` not 0, a chain of 2 up to `indirect`
    /// buffers goes into an indirect table and takes one descriptor. With `VIRTIO_F_IN_ORDER` a device
    /// may complete several chains by naming the last. Without `VIRTIO_F_VERSION_1` it lies as a legacy
    /// device expects.
    ///
    /// # Errors
    ///
    /// [`Error::QueueSize`] if `size` is 0, above `N`, no power of two (split) or above 2^15 (packed);
    /// [`Error::OutOfMemory`].
    pub fn new<P: Platform>(
        platform: &P,
        memory: &mut DmaMemory,
        index: u16,
        size: u16,
        features: F,
        indirect: u16,
    ) -> Result<Self, Error> {
        let packed = features.contains(F::RING_PACKED);
        let is_legal = if packed {
            (1..=PackedRing::MAX_SIZE).contains(&size)
        } else {
            size.is_power_of_two()
        };
        if !is_legal || usize::from(size) > N {
            return Err(Error::QueueSize(size));
        }
        let (ring, start) = if packed {
            let ring = PackedRing::allocate(platform, memory, index, size)?;
            (Ring::Packed(ring), Place::START.value())
        } else {
            let ring = if features.contains(F::VERSION_1) {
                SplitRing::allocate(platform, memory, index, size)?
            } else {
                SplitRing::allocate_legacy(platform, memory, index, size)?
            };
            (Ring::Split(ring), 0)
        };
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
            next_avail: start,
            published: start,
            next_used: start,
            unpublished: None,
            next,
            in_flight: [None; N],
            free_head: 0,
            free: size,
            in_order: features.contains(F::IN_ORDER).then(InOrder::new),
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
        let table = match table {
            Some((tables, most)) => Some(
                tables
                    .piece(head, u32::from(most) * SplitRing::DESCRIPTOR_LEN)
                    .ok_or(Error::QueueFull)?,
            ),
            None => None,
        };
        let buffers = readable
            .iter()
            .map(|buffer| (buffer, 0))
            .chain(writable.iter().map(|buffer| (buffer, SplitRing::WRITE)))
            .zip(0..)
            .map(|((buffer, write), i)| Buffer {
                address: buffer.address,
                len: buffer.len,
                write,
                more: i + 1 < count,
            });
        match self.ring {
            Ring::Split(ring) => self.write_split(platform, ring, buffers, table),
            Ring::Packed(ring) => self.write_packed(platform, ring, buffers, table),
        }
        self.free -= needed;
        if let Some(slot) = self.in_flight.get_mut(usize::from(head)) {
            *slot = Some(Flight {
                entries: needed,
                token,
                writable: writable
                    .iter()
                    .fold(0, |sum: u32, buffer| sum.saturating_add(buffer.len)),
            });
        }
        if let Some(in_order) = &mut self.in_order {
            in_order.added(head);
        }
        Ok(())
    }

    /// Makes the chains added since the last time available, and returns whether the device wants
    /// to be notified of them (virtio 1.4, 2.7.13.4, 2.8.21.2).
    pub fn publish<P: Platform>(&mut self, platform: &P) -> bool {
        let (old, new) = (self.published, self.next_avail);
        self.published = new;
        match self.ring {
            Ring::Split(ring) => {
                if old == new {
                    return false;
                }
                ring.set_available_index(platform, new);
                // The device must see the index before its wish is read, or both sides may go to sleep.
                platform.barrier();
                if self.event_idx {
                    crossed(ring.available_event(platform), old, new)
                } else {
                    ring.used_flags(platform) & SplitRing::NO_NOTIFY == 0
                }
            }
            Ring::Packed(ring) => {
                let Some(batch) = self.unpublished.take() else {
                    return false;
                };
                ring.set_flags(platform, batch.slot, batch.flags);
                // As above.
                platform.barrier();
                let (event, flags) = ring.device_event(platform);
                match flags {
                    PackedRing::DISABLE => false,
                    PackedRing::DESC => {
                        let size = ring.layout().size;
                        Place::since(Place::of(event), Place::of(old), size) < batch.count
                    }
                    _ => true,
                }
            }
        }
    }

    /// Takes the next chain that the device is done with.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenRing`] if the device completes what it was not given, or more than it was
    /// given; the same entry is looked at again the next time.
    pub fn pop<P: Platform>(&mut self, platform: &P) -> Result<Option<Used>, Error> {
        let broken = Error::BrokenRing(self.layout().index);
        let Some((head, len)) = self.next_completion(platform)? else {
            return Ok(None);
        };
        let slot = self.in_flight.get_mut(usize::from(head)).ok_or(broken)?;
        let flight = slot.take().ok_or(broken)?;
        // The whole chain goes to the front of the free list.
        let mut last = head;
        match self.ring {
            Ring::Split(_) => {
                for _ in 1..flight.entries {
                    last = self.following(last);
                }
                self.next_used = self.next_used.wrapping_add(1);
            }
            Ring::Packed(ring) => {
                let next = Place::of(self.next_used).plus(flight.entries, ring.layout().size);
                self.next_used = next.value();
            }
        }
        if let Some(next) = self.next.get_mut(usize::from(last)) {
            *next = self.free_head;
        }
        self.free_head = head;
        self.free += flight.entries;
        Ok(Some(Used {
            token: flight.token,
            len: len.unwrap_or(flight.writable),
        }))
    }

    /// Which chain is completed next, and how many bytes were written: unknown, so all, for one that the
    /// device has skipped.
    fn next_completion<P: Platform>(
        &mut self,
        platform: &P,
    ) -> Result<Option<(u16, Option<u32>)>, Error> {
        if let Some(next) = self.in_order.as_mut().and_then(InOrder::next_of_batch) {
            return Ok(Some(next));
        }
        let broken = Error::BrokenRing(self.layout().index);
        let Some((id, len, most)) = self.next_used(platform)? else {
            return Ok(None);
        };
        let head = u16::try_from(id).map_err(|_| broken)?;
        let in_flight = self.in_flight.get(usize::from(head)).ok_or(broken)?;
        if in_flight.is_none() {
            return Err(broken);
        }
        let Some(in_order) = &mut self.in_order else {
            return Ok(Some((head, Some(len))));
        };
        // Those before it are done with too (virtio 1.4, 2.7.9, 2.8.8).
        in_order.begin_batch(head, len, most).ok_or(broken)?;
        Ok(in_order.next_of_batch())
    }

    /// The next entry that the device has written: id, length, and how many chains it may stand for.
    fn next_used<P: Platform>(&self, platform: &P) -> Result<Option<(u32, u32, u16)>, Error> {
        let QueueLayout { index, size, .. } = self.layout();
        match self.ring {
            Ring::Split(ring) => {
                let ahead = ring.used_index(platform).wrapping_sub(self.next_used);
                if ahead == 0 {
                    return Ok(None);
                }
                if ahead > size {
                    return Err(Error::BrokenRing(index));
                }
                let (id, len) = ring.used(platform, self.next_used);
                Ok(Some((id, len, ahead)))
            }
            Ring::Packed(ring) => {
                let place = Place::of(self.next_used);
                if self.free == size || !ring.is_used(platform, place) {
                    return Ok(None);
                }
                let used = ring.descriptor(platform, place.offset());
                Ok(Some((used.id.into(), used.len, size)))
            }
        }
    }

    /// Whether the device is done with chains that were not popped yet.
    pub fn has_used<P: Platform>(&self, platform: &P) -> bool {
        let in_batch = self.in_order.as_ref().is_some_and(InOrder::is_in_batch);
        in_batch
            || match self.ring {
                Ring::Split(ring) => ring.used_index(platform) != self.next_used,
                Ring::Packed(ring) => {
                    self.free != ring.layout().size
                        && ring.is_used(platform, Place::of(self.next_used))
                }
            }
    }

    /// Asks for an interrupt at the next completion. Returns true if there are completions
    /// already, for which none will come: pop again before going to sleep.
    pub fn enable_interrupts<P: Platform>(&mut self, platform: &P) -> bool {
        match self.ring {
            Ring::Split(ring) if self.event_idx => ring.set_used_event(platform, self.next_used),
            Ring::Split(ring) => ring.set_available_flags(platform, 0),
            Ring::Packed(ring) if self.event_idx => {
                ring.set_driver_event(platform, self.next_used, PackedRing::DESC);
            }
            Ring::Packed(ring) => ring.set_driver_event(platform, 0, PackedRing::ENABLE),
        }
        platform.barrier();
        self.has_used(platform)
    }

    /// Says that no interrupts are wanted for now. A hint: some may come none the less.
    pub fn disable_interrupts<P: Platform>(&mut self, platform: &P) {
        match self.ring {
            // The entry before the next one: as far away as an index can be.
            Ring::Split(ring) if self.event_idx => {
                ring.set_used_event(platform, self.next_used.wrapping_sub(1));
            }
            Ring::Split(ring) => ring.set_available_flags(platform, SplitRing::NO_INTERRUPT),
            Ring::Packed(ring) => ring.set_driver_event(platform, 0, PackedRing::DISABLE),
        }
    }

    /// What to write to the notification register, and how wide (virtio 1.4, 4.1.5.2): with
    /// `VIRTIO_F_NOTIFICATION_DATA` also where the next chain will be made available (2.9): split, the
    /// available index; packed, the offset of the descriptor with the wrap counter in the highest bit.
    #[must_use]
    pub fn notification(&self) -> (Width, u32) {
        let index = u32::from(self.layout().index);
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
        match self.ring {
            Ring::Split(ring) => ring.layout(),
            Ring::Packed(ring) => ring.layout(),
        }
    }

    /// How many descriptors are free.
    #[must_use]
    pub const fn free(&self) -> u16 {
        self.free
    }

    /// The bare ring, for a test that writes into it what this type would not.
    #[must_use]
    pub const fn ring(&self) -> Ring {
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
