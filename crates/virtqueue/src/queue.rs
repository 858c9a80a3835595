//! The queue as its one holder uses it.

use std::fmt;
use std::ptr;

use virtio::F;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use crate::event::need_event;
use crate::memory::read_descriptor;
use crate::split::SplitRings;
use crate::{Chain, QueueConfig, QueueError, QueueMemory, QueueState};

/// The most segments that a chain may have in one direction, whatever the size of the queue or of an
/// indirect table. Also what Linux takes in one `readv`. [QEMU: VIRTQUEUE_MAX_SIZE]
pub const MAX_SEGMENTS: usize = 1024;

/// The device's half of one queue. See the crate's text for how it is used.
///
/// Keeps a snapshot of guest memory, looked at anew whenever the available ring is, so that a change
/// of the map is seen at the next batch.
pub struct VirtQueue<M: QueueMemory> {
    config: QueueConfig,
    memory: M,
    /// What `rings` points into.
    map: M::T,
    rings: SplitRings,
    event_idx: bool,
    indirect: bool,
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
    /// By head: taken and not yet on the used ring.
    in_flight: Box<[bool]>,
    in_flight_count: u16,
    broken: bool,
}

impl<M: QueueMemory> VirtQueue<M> {
    /// Makes the queue that a driver has set up, to go on from `state`.
    ///
    /// # Errors
    /// When the size, the addresses or the state cannot be, or the rings are not in guest memory, or
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub fn new(
        config: &QueueConfig,
        state: QueueState,
        features: F,
        memory: M,
    ) -> Result<Self, QueueError> {
        if features.contains(F::RING_PACKED) {
            return Err(QueueError::Unsupported("VIRTIO_F_RING_PACKED"));
        }
        check_set_up(config)?;
        if state.next_avail.wrapping_sub(state.next_used) > config.size {
            return Err(QueueError::State {
                next_avail: state.next_avail,
                next_used: state.next_used,
                size: config.size,
            });
        }
        // Cloned: the first may be a guard that is meant to be short-lived.
        let map = memory.memory().clone();
        let rings = SplitRings::new(config, &*map)?;
        Ok(Self {
            config: *config,
            memory,
            map,
            rings,
            event_idx: features.contains(F::EVENT_IDX),
            indirect: features.contains(F::INDIRECT_DESC),
            next_avail: state.next_avail,
            seen_avail: state.next_avail,
            next_used: state.next_used,
            staged: 0,
            signalled_used: None,
            in_flight: vec![false; usize::from(config.size)].into_boxed_slice(),
            in_flight_count: 0,
            broken: false,
        })
    }

    /// Takes the next available chain into `chain`, replacing what it held. `false` when there is none.
    ///
    /// # Errors
    /// When what the driver wrote makes no sense. The queue is broken from then on: each further
    /// call is [`QueueError::Broken`], and the device asks for a reset.
    #[doc(alias = "virtqueue_pop")]
    pub fn pop(&mut self, chain: &mut Chain<M>) -> Result<bool, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        let popped = self.try_pop(chain);
        if popped.is_err() {
            self.broken = true;
            chain.clear();
        }
        popped
    }

    /// Gives back the chain that was popped last, as if it had not been. `false`, and nothing done,
    /// when another one was popped after it or it is not in flight.
    #[doc(alias = "virtqueue_unpop")]
    pub fn undo_pop(&mut self, chain: &mut Chain<M>) -> bool {
        let position = self.next_avail.wrapping_sub(1);
        if chain.position() != position || !self.clear_in_flight(chain.head()) {
            return false;
        }
        self.next_avail = position;
        chain.clear();
        true
    }

    /// Writes an element of the used ring: the chain of `head` is done with, and `len` bytes were
    /// written into it, from its first on. The driver sees it after [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`QueueError::NotInFlight`] when `head` was not popped or was completed before.
    #[doc(alias = "virtqueue_fill")]
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        if !self.clear_in_flight(head) {
            return Err(QueueError::NotInFlight(head));
        }
        // Cannot overtake the driver: it has at most `size` heads, each in flight once.
        let index = self.next_used.wrapping_add(self.staged);
        self.rings.write_used(index, head, len);
        self.staged = self.staged.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was staged, and says how many elements that was.
    #[doc(alias = "virtqueue_flush")]
    pub fn publish(&mut self) -> u16 {
        let staged = std::mem::take(&mut self.staged);
        if staged != 0 {
            let first = self.next_used;
            self.next_used = first.wrapping_add(staged);
            self.rings.set_used_idx(self.next_used);
            self.rings.mark_used(&*self.map, first, staged);
        }
        staged
    }

    /// Whether the driver wants to hear of what was published since the last call (virtio 1.4, 2.7.7).
    /// Asked once after each [`publish`](Self::publish).
    #[doc(alias = "virtio_should_notify")]
    pub fn needs_notification(&mut self) -> bool {
        let new = self.next_used;
        let old = self.signalled_used.replace(new);
        if old == Some(new) {
            return false;
        }
        // The used index was stored; used_event or the flags are loaded. The driver does the converse:
        // it stores those, fences, and loads the used index. With both fences at least one sees the
        // other's store; without, both could read the old value and the driver would wait for ever.
        SplitRings::full_fence();
        if self.event_idx {
            let event = self.rings.used_event();
            old.is_none_or(|old| need_event(event, new, old))
        } else {
            !self.rings.no_interrupt()
        }
    }

    /// Tells the driver that the device need not be notified. Advice: it may be all the same.
    pub fn disable_notifications(&mut self) {
        // With an event index there is nothing to write: the last event is passed, and no entry
        // passes it again for 2^16 more.
        if !self.event_idx {
            self.rings.set_no_notify(true);
            self.rings.mark_suppression(&*self.map);
        }
    }

    /// Asks for a notification when more chains become available, then looks once more: `true` when some
    /// already are, for which none may come.
    ///
    /// # Errors
    /// As [`pop`](Self::pop).
    #[doc(alias = "virtio_queue_set_notification")]
    pub fn enable_notifications(&mut self) -> Result<bool, QueueError> {
        if self.broken {
            return Err(QueueError::Broken);
        }
        if self.event_idx {
            self.rings.set_avail_event(self.next_avail);
        } else {
            self.rings.set_no_notify(false);
        }
        self.rings.mark_suppression(&*self.map);
        // avail_event or the flags were stored; the available index is loaded. The driver stores the
        // index, fences, and loads those: at least one of the two sees the other's store.
        SplitRings::full_fence();
        let more = self.look();
        self.broken |= more.is_err();
        more
    }

    /// Where the queue stands: what it takes to go on elsewhere. Staged elements are not in it, and
    /// chains in flight are lost to it, so both are settled first.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail,
            next_used: self.next_used,
        }
    }

    /// Size and addresses.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Chains that were popped and not completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight_count
    }

    /// Whether an error has stopped the queue.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn try_pop(&mut self, chain: &mut Chain<M>) -> Result<bool, QueueError> {
        if self.next_avail == self.seen_avail {
            self.follow_map()?;
            if !self.look()? {
                return Ok(false);
            }
        }
        let head = self.rings.avail_entry(self.next_avail);
        let size = self.config.size;
        let Some(taken) = self.in_flight.get_mut(usize::from(head)) else {
            return Err(QueueError::Head { head, size });
        };
        if *taken {
            return Err(QueueError::HeadInFlight(head));
        }
        chain.begin(head, self.next_avail, &self.map);
        walk(&self.rings, size, self.indirect, &*self.map, chain)?;
        *taken = true;
        // At most `size` heads are in flight.
        self.in_flight_count += 1;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Loads the driver's index. Whether there is something to take.
    fn look(&mut self) -> Result<bool, QueueError> {
        let index = self.rings.avail_idx();
        if index.wrapping_sub(self.next_avail) > self.config.size {
            return Err(QueueError::AvailIndex {
                from: self.next_avail,
                to: index,
                size: self.config.size,
            });
        }
        self.seen_avail = index;
        Ok(index != self.next_avail)
    }

    /// Takes a new snapshot if the map of guest memory has changed.
    fn follow_map(&mut self) -> Result<(), QueueError> {
        let now = self.memory.memory();
        // `self.map` is alive, so a new snapshot cannot have its address.
        if !ptr::eq(&*now, &*self.map) {
            let now = now.clone();
            self.rings = SplitRings::new(&self.config, &*now)?;
            self.map = now;
        }
        Ok(())
    }

    fn clear_in_flight(&mut self, head: u16) -> bool {
        match self.in_flight.get_mut(usize::from(head)) {
            Some(taken) if *taken => {
                *taken = false;
                self.in_flight_count -= 1;
                true
            }
            _ => false,
        }
    }
}

impl<M: QueueMemory> fmt::Debug for VirtQueue<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtQueue")
            .field("config", &self.config)
            .field("state", &self.state())
            .field("staged", &self.staged)
            .field("in_flight", &self.in_flight_count)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// Follows the descriptors of `chain`'s head (virtio 1.4, 2.7.5). A chain may begin with descriptors
/// of the ring's table and end with one that refers to an indirect table (2.7.5.3.2).
fn walk<M: QueueMemory>(
    rings: &SplitRings,
    size: u16,
    indirect: bool,
    map: &M::M,
    chain: &mut Chain<M>,
) -> Result<(), QueueError> {
    let head = chain.head();
    let mut table: Option<GuestAddress> = None;
    let mut entries = u32::from(size);
    let mut index = head;
    let mut steps = 0;
    loop {
        // The table has this many descriptors, so a longer way through it is a loop. (Of one in a huge
        // indirect table each turn adds a segment, of which there can be `MAX_SEGMENTS`.)
        if steps == entries {
            return Err(QueueError::TooLong(head));
        }
        steps += 1;
        let descriptor = match table {
            None => rings.descriptor(index),
            Some(table) => {
                let address = table
                    .0
                    .checked_add(16 * u64::from(index))
                    .map(GuestAddress)
                    .ok_or(QueueError::Memory {
                        address: table,
                        len: 16 * entries,
                    })?;
                read_descriptor(map, address)?
            }
        };
        if descriptor.refers_to_indirect_table() {
            let len = descriptor.len();
            if table.is_some() {
                return Err(QueueError::IndirectNested);
            } else if !indirect {
                return Err(QueueError::IndirectNotNegotiated);
            } else if descriptor.has_next() {
                return Err(QueueError::IndirectNext);
            } else if len == 0 || !len.is_multiple_of(16) {
                return Err(QueueError::IndirectLength(len));
            }
            table = Some(descriptor.addr());
            entries = len / 16;
            index = 0;
            steps = 0;
            continue;
        }
        chain.add(
            descriptor.addr(),
            descriptor.len(),
            descriptor.is_write_only(),
        )?;
        if !descriptor.has_next() {
            return Ok(());
        }
        index = descriptor.next();
        if u32::from(index) >= entries {
            return Err(QueueError::Next {
                next: index,
                entries,
            });
        }
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
