//! A split queue (virtio 1.4, 2.7): where the device stands in its rings.

mod rings;

use std::sync::atomic::{Ordering, fence};

use virtio::F;
use virtio::virtq::DescF;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemory};

use crate::error::{Fault, fault};
use crate::event::need_event;
use crate::memory::{Raw, Table, Translation};
use crate::queue::Taking;
use crate::short::Pieces;
use crate::{Chain, NOTIFY_ON_EMPTY, QueueConfig, QueueError, QueueMemory, QueueState};
use rings::SplitRings;

pub(crate) struct SplitQueue {
    rings: SplitRings,
    size: u16,
    event_idx: bool,
    notify_on_empty: bool,
    /// Next entry of the available ring to take.
    next_avail: u16,
    /// The driver's available index when it was last looked at.
    seen_avail: u16,
    /// Next element of the used ring to publish.
    next_used: u16,
    /// Elements written after it, not published yet.
    staged: u16,
    /// `next_used` when the driver was last told, or decided not to be; unknown at first, since
    /// another data plane may have run the queue before.
    signalled_used: Option<u16>,
}

impl SplitQueue {
    pub(crate) fn new<G: GuestMemory>(
        config: &QueueConfig,
        state: QueueState,
        features: F,
        map: &G,
    ) -> Result<Self, QueueError> {
        check_set_up(config)?;
        if state.next_avail.wrapping_sub(state.next_used) > config.size {
            return Err(QueueError::State {
                next_avail: state.next_avail,
                next_used: state.next_used,
                size: config.size,
            });
        }
        Ok(Self {
            rings: SplitRings::new(config, map)?,
            size: config.size,
            event_idx: features.contains(F::EVENT_IDX),
            notify_on_empty: features.contains(NOTIFY_ON_EMPTY),
            next_avail: state.next_avail,
            seen_avail: state.next_avail,
            next_used: state.next_used,
            staged: 0,
            signalled_used: None,
        })
    }

    /// Finds the rings in another snapshot of guest memory.
    pub(crate) fn follow<G: GuestMemory>(
        &mut self,
        config: &QueueConfig,
        map: &G,
    ) -> Result<(), QueueError> {
        self.rings = SplitRings::new(config, map)?;
        Ok(())
    }

    /// Whether all is taken that was seen to be available.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        self.next_avail == self.seen_avail
    }

    /// Takes the next chain; there is one, as the last look has shown. The answer is its head.
    #[inline(always)]
    pub(crate) fn pop<M: QueueMemory>(
        &mut self,
        taking: Taking<'_, M>,
        chain: &mut Chain<M>,
    ) -> Result<u16, Fault> {
        let head = self.rings.avail_entry(self.next_avail);
        self.take(taking, head, chain)?;
        Ok(head)
    }

    /// Takes the chain of `head`, which is in flight by a record, in the place of an entry of the available ring.
    pub(crate) fn take_again<M: QueueMemory>(
        &mut self,
        taking: Taking<'_, M>,
        head: u16,
        chain: &mut Chain<M>,
    ) -> Result<u16, Fault> {
        self.take(taking, head, chain)?;
        self.set_drained();
        Ok(head)
    }

    #[inline(always)]
    fn take<M: QueueMemory>(
        &mut self,
        taking: Taking<'_, M>,
        head: u16,
        chain: &mut Chain<M>,
    ) -> Result<(), Fault> {
        let size = self.size;
        let Some(taken) = taking.in_flight.get_mut(usize::from(head)) else {
            return Err(fault(QueueError::Head { head, size }));
        };
        if *taken != 0 {
            return Err(fault(QueueError::HeadInFlight(head)));
        }
        chain.begin(head, self.next_avail, taking.map);
        let descriptor = self.rings.descriptor(head);
        let flags = descriptor.third();
        let map = &**taking.map;
        if flags & (NEXT | INDIRECT) == 0 {
            // What most chains of small frames are.
            let (address, len) = (descriptor.address, descriptor.len());
            chain.set_one(map, taking.translation, address, len, flags & WRITE != 0)?;
        } else {
            chain.clear();
            let walk = Walk {
                map,
                translation: taking.translation,
                indirect: taking.indirect,
            };
            walk.ring(&self.rings, size, descriptor, chain)?;
        }
        *taken = 1;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    pub(crate) fn set_drained(&mut self) {
        self.seen_avail = self.next_avail;
    }

    /// The next chain, if the last look has shown it and it is a short one.
    #[inline(always)]
    pub(crate) fn peek(&self, in_flight: &[u16], translation: &Translation) -> Option<Pieces> {
        if self.is_drained() {
            return None;
        }
        let head = self.rings.avail_entry(self.next_avail);
        if *in_flight.get(usize::from(head))? != 0 {
            return None;
        }
        let first = self.rings.descriptor(head);
        let flags = first.third();
        let writable = flags & WRITE != 0;
        if flags & (NEXT | INDIRECT) == 0 {
            return Pieces::one(head, writable, first, translation);
        } else if flags & INDIRECT != 0 || first.fourth() >= self.size {
            return None;
        }
        let second = self.rings.descriptor(first.fourth());
        if second.third() & (NEXT | INDIRECT | WRITE) != flags & WRITE {
            return None;
        }
        Pieces::two(head, writable, (first, second), translation)
    }

    /// The chain that a peek has shown is taken.
    #[inline(always)]
    pub(crate) fn take_next(&mut self) {
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    pub(crate) fn undo_pop(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    /// Writes an element. Cannot overtake the driver, which has at most `size` heads, each in flight once.
    #[inline]
    pub(crate) fn write_used(&mut self, head: u16, len: u32) {
        let index = self.next_used.wrapping_add(self.staged);
        self.rings.write_used(index, head, len);
        self.staged = self.staged.wrapping_add(1);
    }

    #[inline]
    pub(crate) fn publish<G: GuestMemory>(&mut self, map: &G) -> u16 {
        let staged = std::mem::take(&mut self.staged);
        if staged != 0 {
            let first = self.next_used;
            self.next_used = first.wrapping_add(staged);
            self.rings.set_used_idx(self.next_used);
            self.rings.mark_used(map, first, staged);
        }
        staged
    }

    /// Whether the driver wants to hear of what was published (virtio 1.4, 2.7.7).
    pub(crate) fn needs_notification(&mut self) -> bool {
        let new = self.next_used;
        let old = self.signalled_used.replace(new);
        if old == Some(new) {
            return false;
        }
        // The used index was stored; used_event or the flags are loaded. The driver does the converse:
        // it stores those, fences, and loads the used index. With both fences at least one sees the
        // other's store; without, both could read the old value and the driver would wait for ever.
        fence(Ordering::SeqCst);
        if self.notify_on_empty && self.is_empty() {
            return true;
        }
        if self.event_idx {
            let event = self.rings.used_event();
            old.is_none_or(|old| need_event(event, new, old))
        } else {
            !self.rings.no_interrupt()
        }
    }

    /// Whether the driver has given nothing that it has not got back.
    fn is_empty(&self) -> bool {
        self.next_avail == self.next_used && self.rings.avail_idx() == self.next_avail
    }

    pub(crate) fn disable_notifications<G: GuestMemory>(&mut self, map: &G) {
        // With an event index there is nothing to write: the last event is passed, and no entry
        // passes it again for 2^16 more.
        if !self.event_idx {
            self.rings.set_no_notify(true);
            self.rings.mark_suppression(map);
        }
    }

    pub(crate) fn enable_notifications<G: GuestMemory>(&mut self, map: &G) -> Result<bool, Fault> {
        if self.event_idx {
            self.rings.set_avail_event(self.next_avail);
        } else {
            self.rings.set_no_notify(false);
        }
        self.rings.mark_suppression(map);
        // avail_event or the flags were stored; the available index is loaded. The driver stores the
        // index, fences, and loads those: at least one of the two sees the other's store.
        fence(Ordering::SeqCst);
        self.look()
    }

    pub(crate) fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail,
            next_used: self.next_used,
        }
    }

    /// The position of the chain that is popped next: the index of its entry.
    #[inline]
    pub(crate) fn next_position(&self) -> u16 {
        self.next_avail
    }

    pub(crate) fn staged(&self) -> u16 {
        self.staged
    }

    /// Where the used ring stands once what is staged is published.
    pub(crate) fn next_used_then(&self) -> u16 {
        self.next_used.wrapping_add(self.staged)
    }

    /// Loads the driver's index. Whether there is something to take.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<bool, Fault> {
        let index = self.rings.avail_idx();
        if index.wrapping_sub(self.next_avail) > self.size {
            return Err(fault(QueueError::AvailIndex {
                from: self.next_avail,
                to: index,
                size: self.size,
            }));
        }
        self.seen_avail = index;
        Ok(index != self.next_avail)
    }
}

/// Follows the descriptors of a chain of more than one (virtio 1.4, 2.7.5).
struct Walk<'a, G> {
    map: &'a G,
    translation: &'a mut Translation,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    indirect: bool,
}

impl<G: GuestMemory> Walk<'_, G> {
    /// Begins with a descriptor of the ring's table of `size`. Such a chain may end with one that refers to an
    /// indirect table (2.7.5.3.2).
    #[inline]
    fn ring<M: QueueMemory<M = G>>(
        mut self,
        rings: &SplitRings,
        size: u16,
        head: Raw,
        chain: &mut Chain<M>,
    ) -> Result<(), Fault> {
        let mut descriptor = head;
        // The table has this many descriptors, so a longer way through it is a loop.
        for _ in 0..size {
            if descriptor.third() & INDIRECT != 0 {
                return self.table(descriptor, chain);
            }
            let Some(next) = self.step(descriptor, size.into(), chain)? else {
                return Ok(());
            };
            descriptor = rings.descriptor(next);
        }
        Err(fault(QueueError::TooLong(chain.head())))
    }

    /// Goes on in the table that a descriptor refers to.
    fn table<M: QueueMemory<M = G>>(
        &mut self,
        referring: Raw,
        chain: &mut Chain<M>,
    ) -> Result<(), Fault> {
        if !self.indirect {
            return Err(fault(QueueError::IndirectNotNegotiated));
        } else if referring.third() & NEXT != 0 {
            return Err(fault(QueueError::IndirectNext));
        }
        let table = Table::new(
            self.map,
            self.translation,
            referring.address,
            referring.len(),
        )?;
        let mut index = 0;
        // As above; of a loop in a huge table each turn adds a segment, of which there can be `MAX_SEGMENTS`.
        for _ in 0..table.entries() {
            let descriptor = table.entry(index)?;
            if descriptor.third() & INDIRECT != 0 {
                return Err(fault(QueueError::IndirectNested));
            }
            let Some(next) = self.step(descriptor, table.entries(), chain)? else {
                return Ok(());
            };
            index = next.into();
        }
        Err(fault(QueueError::TooLong(chain.head())))
    }

    /// Adds a descriptor's buffer; the answer is the next one in its table of so many entries.
    #[inline(always)]
    fn step<M: QueueMemory<M = G>>(
        &mut self,
        descriptor: Raw,
        entries: u32,
        chain: &mut Chain<M>,
    ) -> Result<Option<u16>, Fault> {
        let flags = descriptor.third();
        chain.add(
            self.map,
            self.translation,
            descriptor.address,
            descriptor.len(),
            flags & WRITE != 0,
        )?;
        if flags & NEXT == 0 {
            return Ok(None);
        }
        let next = descriptor.fourth();
        if u32::from(next) >= entries {
            return Err(fault(QueueError::Next { next, entries }));
        }
        Ok(Some(next))
    }
}

/// What `virtio_queue` knows of a legal set-up: the size, and the rings' alignment.
fn check_set_up(config: &QueueConfig) -> Result<(), QueueError> {
    let bad_size = |_| QueueError::Size {
        size: config.size,
        max_size: config.max_size,
    };
    let unaligned = |ring, address| move |_| QueueError::Alignment { ring, address };
    let mut queue = virtio_queue::Queue::new(config.max_size).map_err(bad_size)?;
    queue.try_set_size(config.size).map_err(bad_size)?;
    queue
        .try_set_desc_table_address(GuestAddress(config.desc))
        .map_err(unaligned("descriptor", config.desc))?;
    queue
        .try_set_avail_ring_address(GuestAddress(config.driver))
        .map_err(unaligned("available", config.driver))?;
    queue
        .try_set_used_ring_address(GuestAddress(config.device))
        .map_err(unaligned("used", config.device))
}

const NEXT: u16 = DescF::NEXT.bits().to_ne();
const WRITE: u16 = DescF::WRITE.bits().to_ne();
const INDIRECT: u16 = DescF::INDIRECT.bits().to_ne();
