//! A packed queue (virtio 1.4, 2.8): where the device stands in its ring.

mod ring;

use std::sync::atomic::{Ordering, fence};

use virtio::F;
use virtio::virtq::DescF;
use vm_memory::GuestMemory;

use crate::error::{Fault, fault};
use crate::in_flight::RingDescriptor;
use crate::memory::{Raw, Table, Translation};
use crate::queue::Taking;
use crate::short::Pieces;
use crate::{Chain, QueueConfig, QueueError, QueueMemory, QueueState};
use ring::PackedRing;

/// A descriptor of the ring, and which of two alternating laps it is: the offset in bits 0 to 14, the wrap counter
/// in bit 15, as event suppression structures have it too (virtio 1.4, 2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u16);

impl Place {
    #[inline]
    fn offset(self) -> u16 {
        self.0 & !WRAP
    }

    /// `count` descriptors on, at most a lap. Offset and count are at most 2^15 each.
    #[inline]
    fn plus(self, count: u16, size: u16) -> Self {
        let offset = self.offset() + count;
        if offset < size {
            Self(self.0 + count)
        } else {
            Self((offset - size) | (self.0 ^ WRAP) & WRAP)
        }
    }

    /// `count` descriptors back, at most a lap.
    fn minus(self, count: u16, size: u16) -> Self {
        self.plus(size - count, size).other_lap()
    }

    fn other_lap(self) -> Self {
        Self(self.0 ^ WRAP)
    }

    /// How many descriptors lie from `from` to here, which two laps later is the same place.
    fn since(self, from: Self, size: u16) -> u32 {
        let number = |place: Self| {
            // A fresh queue's lap comes first.
            let lap = if place.0 & WRAP == 0 { size } else { 0 };
            u32::from(place.offset()) + u32::from(lap)
        };
        let laps = 2 * u32::from(size);
        (number(self) + laps - number(from)) % laps
    }

    /// The two flags of a descriptor that is available here (virtio 1.4, 2.8.1).
    #[inline]
    fn available(self) -> u16 {
        if self.0 & WRAP != 0 { AVAIL } else { USED }
    }

    /// The two flags of a descriptor that is used here.
    #[inline]
    fn used(self) -> u16 {
        if self.0 & WRAP != 0 { AVAIL | USED } else { 0 }
    }
}

pub(crate) struct PackedQueue {
    ring: PackedRing,
    size: u16,
    event_idx: bool,
    /// Next descriptor to take.
    next_avail: Place,
    /// Next descriptor to publish as used.
    next_used: Place,
    /// Next descriptor to write as used: after `next_used` by what is staged.
    next_staged: Place,
    /// What is to be written at `next_used` to publish all that is staged.
    first_staged: u64,
    /// Chains that are staged.
    staged: u16,
    /// Descriptors of theirs: the way from `next_used` to `next_staged`.
    staged_descriptors: u16,
    /// Descriptors that the driver may have made available beyond `next_avail`: all but those of chains that
    /// were taken and are not published as used.
    room: u16,
    /// How many descriptors were used since the driver was last told, or decided not to be; unknown at first, since
    /// another data plane may have run the queue before.
    unsignalled: Option<u32>,
    /// Chains popped so far.
    popped: u16,
    /// The last look found nothing, or a batch has ended.
    drained: bool,
}

impl PackedQueue {
    pub(crate) fn new<G: GuestMemory>(
        config: &QueueConfig,
        state: QueueState,
        features: F,
        map: &G,
    ) -> Result<Self, QueueError> {
        check_set_up(config)?;
        let size = config.size;
        let (next_avail, next_used) = (Place(state.next_avail), Place(state.next_used));
        // Only places of the ring have a distance.
        let are_places = next_avail.offset() < size && next_used.offset() < size;
        let taken = are_places.then(|| next_avail.since(next_used, size));
        let room = taken.and_then(|taken| u32::from(size).checked_sub(taken));
        let Some(Ok(room)) = room.map(u16::try_from) else {
            return Err(QueueError::State {
                next_avail: state.next_avail,
                next_used: state.next_used,
                size,
            });
        };
        Ok(Self {
            ring: PackedRing::new(config, map)?,
            size,
            event_idx: features.contains(F::EVENT_IDX),
            next_avail,
            next_used,
            next_staged: next_used,
            first_staged: 0,
            staged: 0,
            staged_descriptors: 0,
            room,
            unsignalled: None,
            popped: 0,
            drained: true,
        })
    }

    /// Finds the ring in another snapshot of guest memory.
    pub(crate) fn follow<G: GuestMemory>(
        &mut self,
        config: &QueueConfig,
        map: &G,
    ) -> Result<(), QueueError> {
        self.ring = PackedRing::new(config, map)?;
        Ok(())
    }

    /// Whether a batch begins: the last look found nothing, or what was taken is published.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Takes the next chain. The answer is its buffer id.
    #[inline(always)]
    pub(crate) fn pop<M: QueueMemory>(
        &mut self,
        mut taking: Taking<'_, M>,
        chain: &mut Chain<M>,
    ) -> Result<Option<u16>, Fault> {
        let first = self.ring.descriptor(self.next_avail.offset());
        self.drained = first.fourth() & (AVAIL | USED) != self.next_avail.available();
        if self.drained {
            return Ok(None);
        }
        if self.room == 0 {
            return Err(fault(QueueError::Overrun(self.next_avail.offset())));
        }
        // Until the buffer id is known, at the end of the chain, it goes by its first descriptor.
        chain.begin(self.next_avail.offset(), self.popped, taking.map);
        let flags = first.fourth();
        let (id, count) = if flags & (NEXT | INDIRECT) == 0 {
            // What most chains of small frames are.
            let (address, len) = (first.address, first.len());
            let writable = flags & WRITE != 0;
            chain.set_one(taking.map, taking.translation, address, len, writable)?;
            (first.third(), 1)
        } else if flags & INDIRECT != 0 {
            chain.clear();
            (self.take_indirect(&mut taking, first, chain)?, 1)
        } else {
            chain.clear();
            self.take_direct(taking.map, taking.translation, first, chain)?
        };
        self.took(taking.in_flight, id, count)?;
        chain.set_head(id);
        Ok(Some(id))
    }

    /// Takes a chain that is in flight by a record, which has its `descriptors`, in the place that they had in the ring.
    pub(crate) fn take_again<M: QueueMemory>(
        &mut self,
        mut taking: Taking<'_, M>,
        descriptors: &[RingDescriptor],
        chain: &mut Chain<M>,
    ) -> Result<u16, Fault> {
        let offset = self.next_avail.offset();
        chain.begin(offset, self.popped, taking.map);
        chain.clear();
        let count = u16::try_from(descriptors.len()).unwrap_or(u16::MAX);
        let [first, rest @ ..] = descriptors else {
            return Err(fault(QueueError::NotAvailable(offset)));
        };
        if count > self.room {
            return Err(fault(QueueError::Overrun(offset)));
        }
        let id = if first.flags & INDIRECT != 0 && rest.is_empty() {
            self.take_indirect(&mut taking, first.to_raw(), chain)?
        } else {
            for descriptor in descriptors {
                if descriptor.flags & INDIRECT != 0 {
                    return Err(fault(QueueError::IndirectNext));
                }
                chain.add(
                    taking.map,
                    taking.translation,
                    descriptor.address,
                    descriptor.len,
                    descriptor.flags & WRITE != 0,
                )?;
            }
            rest.last().unwrap_or(first).id
        };
        self.took(taking.in_flight, id, count)?;
        chain.set_head(id);
        self.set_drained();
        Ok(id)
    }

    /// A chain of `count` descriptors is the device's.
    #[inline(always)]
    fn took(&mut self, in_flight: &mut [u16], id: u16, count: u16) -> Result<(), Fault> {
        let size = self.size;
        let Some(taken) = in_flight.get_mut(usize::from(id)) else {
            return Err(fault(QueueError::Head { head: id, size }));
        };
        if *taken != 0 {
            return Err(fault(QueueError::HeadInFlight(id)));
        }
        *taken = count;
        self.next_avail = self.next_avail.plus(count, size);
        self.room -= count;
        self.popped = self.popped.wrapping_add(1);
        Ok(())
    }

    /// The descriptors of the chain that was taken last, of which there are `count`, into `list`.
    pub(crate) fn taken_last(&self, count: u16, list: &mut Vec<RingDescriptor>) {
        let first = self.next_avail.minus(count, self.size);
        list.clear();
        list.extend((0..count).map(|i| {
            let place = first.plus(i, self.size);
            RingDescriptor::from_raw(self.ring.descriptor(place.offset()))
        }));
    }

    pub(crate) fn set_drained(&mut self) {
        self.drained = true;
    }

    /// The next chain, if it is available in a batch that goes on, and a short one.
    #[inline(always)]
    pub(crate) fn peek(&self, in_flight: &[u16], translation: &Translation) -> Option<Pieces> {
        if self.drained {
            return None;
        }
        let first = self.ring.descriptor(self.next_avail.offset());
        let flags = first.fourth();
        if flags & (AVAIL | USED | INDIRECT) != self.next_avail.available() {
            return None;
        }
        let writable = flags & WRITE != 0;
        let is_free = |id: u16| in_flight.get(usize::from(id)) == Some(&0);
        if flags & NEXT == 0 {
            let id = first.third();
            let ours = self.room >= 1 && is_free(id);
            return ours
                .then(|| Pieces::one(id, writable, first, translation))
                .flatten();
        }
        let next = self.next_avail.plus(1, self.size);
        let second = self.ring.descriptor(next.offset());
        let expected = next.available() | flags & WRITE;
        if second.fourth() & (AVAIL | USED | INDIRECT | NEXT | WRITE) != expected {
            return None;
        }
        let id = second.third();
        let ours = self.room >= 2 && is_free(id);
        ours.then(|| Pieces::two(id, writable, (first, second), translation))
            .flatten()
    }

    /// The chain of so many descriptors that a peek has shown is taken.
    #[inline(always)]
    pub(crate) fn take_next(&mut self, count: u16) {
        self.next_avail = self.next_avail.plus(count, self.size);
        self.room -= count;
        self.popped = self.popped.wrapping_add(1);
    }

    pub(crate) fn undo_pop(&mut self, count: u16) {
        self.next_avail = self.next_avail.minus(count, self.size);
        self.room += count;
        self.popped = self.popped.wrapping_sub(1);
    }

    /// Writes a used descriptor for a chain of `count` descriptors. It goes where the first of them that are
    /// neither used nor staged was, so it is one that the device has taken.
    #[inline]
    pub(crate) fn write_used(&mut self, id: u16, len: u32, count: u16) {
        let write = if len == 0 { 0 } else { WRITE };
        let flags = self.next_staged.used() | write;
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        // The driver looks for the first of a batch and for none behind it before it has seen that one, so
        // all others can be written at once, and the first publishes them all (virtio 1.4, 2.8.9).
        if self.staged == 0 {
            self.first_staged = rest;
        } else {
            self.ring.write_used(self.next_staged.offset(), rest);
        }
        self.next_staged = self.next_staged.plus(count, self.size);
        self.staged += 1;
        self.staged_descriptors += count;
    }

    #[inline]
    pub(crate) fn publish<G: GuestMemory>(&mut self, map: &G) -> u16 {
        let staged = std::mem::take(&mut self.staged);
        if staged != 0 {
            let first = self.next_used;
            self.ring.publish_used(first.offset(), self.first_staged);
            self.next_used = self.next_staged;
            let count = std::mem::take(&mut self.staged_descriptors);
            self.room += count;
            self.unsignalled = (self.unsignalled).map(|sum| sum.saturating_add(count.into()));
            self.ring.mark_used(map, first.offset(), count);
            self.drained = true;
        }
        staged
    }

    /// Whether the driver wants to hear of what was published (virtio 1.4, 2.8.10, 2.8.14).
    pub(crate) fn needs_notification(&mut self) -> bool {
        let used = self.unsignalled.replace(0);
        if used == Some(0) {
            return false;
        }
        // Used descriptors were stored; the driver's event suppression is loaded. The driver does the
        // converse: it stores that, fences, and looks at the descriptor. With both fences at least one sees
        // the other's store; without, both could read the old value and the driver would wait for ever.
        fence(Ordering::SeqCst);
        let (event, flags) = self.ring.driver_event();
        match flags & 3 {
            DISABLE => false,
            DESC if self.event_idx && Place(event).offset() < self.size => {
                used.is_none_or(|used| self.was_used(Place(event), used))
            }
            // Enabled. What no driver may write is taken for it, and so is an offset that the ring does not
            // have: too many interrupts do less harm than none.
            _ => true,
        }
    }

    /// Whether `event` is one of the last `count` descriptors that were used.
    fn was_used(&self, event: Place, count: u32) -> bool {
        let ago = self.next_used.since(event, self.size);
        // Right before `next_used` is 1 ago, at it is not yet (or two laps ago).
        let ago = if ago == 0 {
            2 * u32::from(self.size)
        } else {
            ago
        };
        ago <= count
    }

    pub(crate) fn disable_notifications<G: GuestMemory>(&mut self, map: &G) {
        self.ring.set_device_event(0, DISABLE);
        self.ring.mark_suppression(map);
    }

    pub(crate) fn enable_notifications<G: GuestMemory>(&mut self, map: &G) -> bool {
        if self.event_idx {
            self.ring.set_device_event(self.next_avail.0, DESC);
        } else {
            self.ring.set_device_event(0, ENABLE);
        }
        self.ring.mark_suppression(map);
        // Event suppression was stored; the next descriptor is loaded. The driver stores that, fences, and
        // loads the suppression: at least one of the two sees the other's store.
        fence(Ordering::SeqCst);
        let flags = self.ring.descriptor(self.next_avail.offset()).fourth();
        flags & (AVAIL | USED) == self.next_avail.available()
    }

    pub(crate) fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail.0,
            next_used: self.next_used.0,
        }
    }

    /// The position of the chain that is popped next.
    #[inline]
    pub(crate) fn next_position(&self) -> u16 {
        self.popped
    }

    pub(crate) fn staged(&self) -> u16 {
        self.staged
    }

    /// Where the device stands in the ring once what is staged is published.
    pub(crate) fn next_used_then(&self) -> u16 {
        self.next_staged.0
    }

    /// Follows a chain of the ring's own descriptors, in consecutive slots (virtio 1.4, 2.8.6). The answer is its
    /// buffer id, which the last of them has, and how many they are.
    #[inline]
    fn take_direct<M: QueueMemory>(
        &self,
        map: &M::T,
        translation: &mut Translation,
        first: Raw,
        chain: &mut Chain<M>,
    ) -> Result<(u16, u16), Fault> {
        let mut place = self.next_avail;
        let mut descriptor = first;
        let mut count = 0;
        loop {
            let flags = descriptor.fourth();
            // All of the list must be in what the driver may write to, and it was made available last to first.
            if count == self.room {
                return Err(fault(QueueError::Overrun(place.offset())));
            } else if flags & (AVAIL | USED) != place.available() {
                return Err(fault(QueueError::NotAvailable(place.offset())));
            } else if flags & INDIRECT != 0 {
                return Err(fault(QueueError::IndirectNext));
            }
            count += 1;
            chain.add(
                &**map,
                translation,
                descriptor.address,
                descriptor.len(),
                flags & WRITE != 0,
            )?;
            if flags & NEXT == 0 {
                return Ok((descriptor.third(), count));
            }
            place = place.plus(1, self.size);
            descriptor = self.ring.descriptor(place.offset());
        }
    }

    /// Follows a descriptor that refers to a table, all of whose entries are the chain (virtio 1.4, 2.8.7). The
    /// answer is its buffer id.
    #[inline]
    fn take_indirect<M: QueueMemory>(
        &self,
        taking: &mut Taking<'_, M>,
        descriptor: Raw,
        chain: &mut Chain<M>,
    ) -> Result<u16, Fault> {
        if !taking.indirect {
            return Err(fault(QueueError::IndirectNotNegotiated));
        } else if descriptor.fourth() & NEXT != 0 {
            return Err(fault(QueueError::IndirectNext));
        }
        let map = &**taking.map;
        let table = Table::new(
            map,
            taking.translation,
            descriptor.address,
            descriptor.len(),
        )?;
        // However long it is, each entry adds a segment, of which there can be `MAX_SEGMENTS`.
        for index in 0..table.entries() {
            let entry = table.entry(index)?;
            // "VIRTQ_DESC_F_WRITE is the only valid flag"; others are ignored.
            let writable = entry.fourth() & WRITE != 0;
            chain.add(
                map,
                taking.translation,
                entry.address,
                entry.len(),
                writable,
            )?;
        }
        Ok(descriptor.third())
    }
}

/// What the specification says of the size (virtio 1.4, 2.8) and the alignment of the areas (2.8.10.1).
fn check_set_up(config: &QueueConfig) -> Result<(), QueueError> {
    let &QueueConfig { size, max_size, .. } = config;
    if size == 0 || size > max_size || size > MAX_SIZE {
        return Err(QueueError::Size { size, max_size });
    }
    for (ring, address, align) in [
        ("descriptor", config.desc, 16),
        ("driver event", config.driver, 4),
        ("device event", config.device, 4),
    ] {
        if !address.is_multiple_of(align) {
            return Err(QueueError::Alignment { ring, address });
        }
    }
    Ok(())
}

/// "Packed virtqueues support up to 2^15 entries each" (virtio 1.4, 2.8).
const MAX_SIZE: u16 = 1 << 15;
/// The wrap counter in a [`Place`].
const WRAP: u16 = 1 << 15;

const NEXT: u16 = DescF::NEXT.bits().to_ne();
const WRITE: u16 = DescF::WRITE.bits().to_ne();
const INDIRECT: u16 = DescF::INDIRECT.bits().to_ne();
const AVAIL: u16 = DescF::AVAIL.bits().to_ne();
const USED: u16 = DescF::USED.bits().to_ne();

const ENABLE: u16 = virtio::RingEventFlags::Enable as u16;
const DISABLE: u16 = virtio::RingEventFlags::Disable as u16;
const DESC: u16 = virtio::RingEventFlags::Desc as u16;
