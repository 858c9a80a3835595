//! The driver's half of a packed queue.

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use virtio::F;
use virtio::RingEventFlags;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{AVAIL, Buffer, INDIRECT, NEXT, USED};
use crate::{QueueConfig, QueueMemory, QueueState};

/// A descriptor of a packed ring or of an indirect table of one (virtio 1.4, 2.8.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Where the buffer begins.
    pub address: u64,
    /// How long it is; in a used one, how much of it was written.
    pub len: u32,
    /// What names the chain, in the last of its descriptors and in a used one.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
}

/// A descriptor of the ring and a lap: the offset, and the wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self {
        offset: 0,
        wrap: true,
    };

    fn of(value: u16) -> Self {
        Self {
            offset: value & 0x7fff,
            wrap: value & 0x8000 != 0,
        }
    }

    fn value(self) -> u16 {
        self.offset | if self.wrap { 0x8000 } else { 0 }
    }

    fn step(self, size: u16) -> Self {
        if self.offset + 1 == size {
            Self {
                offset: 0,
                wrap: !self.wrap,
            }
        } else {
            Self {
                offset: self.offset + 1,
                ..self
            }
        }
    }

    fn plus(self, count: u16, size: u16) -> Self {
        (0..count).fold(self, |place, _| place.step(size))
    }

    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// The driver's half of one packed queue in guest memory.
pub struct PackedDriver<M: QueueMemory> {
    memory: M,
    config: QueueConfig,
    event_idx: bool,
    free_ids: Vec<u16>,
    /// By id: how many descriptors its chain has.
    chains: Vec<u16>,
    free: u16,
    next_avail: Place,
    next_used: Place,
    /// Descriptors made available since [`kick_wanted`](Self::kick_wanted) was last asked, each at its place.
    unasked: Vec<u16>,
}

impl<M: QueueMemory> PackedDriver<M> {
    /// Lays an empty queue of `size` entries out at `base`, in [`len`](Self::len) bytes.
    pub fn new(memory: M, base: GuestAddress, size: u16, features: F) -> Self {
        let driver = base.0 + 16 * u64::from(size);
        let config = QueueConfig {
            max_size: size,
            size,
            desc: base.0,
            driver,
            device: driver + 4,
        };
        let zeroes = vec![0; Self::len(size)];
        memory
            .memory()
            .write_slice(&zeroes, base)
            .expect("the rings are in guest memory");
        Self {
            memory,
            config,
            event_idx: features.contains(F::EVENT_IDX),
            free_ids: (0..size).rev().collect(),
            chains: vec![0; usize::from(size)],
            free: size,
            next_avail: Place::START,
            next_used: Place::START,
            unasked: Vec::new(),
        }
    }

    /// Bytes that the ring of `size` entries and both event suppression structures take.
    pub fn len(size: u16) -> usize {
        16 * usize::from(size) + 8
    }

    /// Makes a chain of `buffers` available and returns its buffer id.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        self.add_descriptors(&mut direct(buffers))
    }

    /// Makes a chain of `buffers` available through an indirect table at `table`, and returns its buffer id.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (i, buffer) in (0..).zip(buffers) {
            let descriptor = PackedDescriptor {
                address: buffer.address,
                len: buffer.len,
                id: 0xdead,
                flags: buffer.flags(),
            };
            self.set_indirect(table, i, descriptor);
        }
        let len = u32::try_from(16 * buffers.len()).expect("a table is small");
        self.add_descriptors(&mut [PackedDescriptor {
            address: table,
            len,
            id: 0,
            flags: INDIRECT,
        }])
    }

    /// Makes a chain of `descriptors` available: the id in the last of them, and the flags that say so in
    /// all, the first last (virtio 1.4, 2.8.21.1).
    fn add_descriptors(&mut self, descriptors: &mut [PackedDescriptor]) -> u16 {
        let (slot, head, id) = self.prepare_descriptors(descriptors);
        self.publish_descriptor(slot, head);
        id
    }

    /// Writes a chain of `buffers` without making it available: that is the value of two bytes at an address, which is
    /// the answer.
    pub(super) fn prepare(&mut self, buffers: &[Buffer]) -> (u64, u16) {
        let mut descriptors = direct(buffers);
        let (slot, head, _) = self.prepare_descriptors(&mut descriptors);
        self.write_body(slot, head);
        (self.slot(slot) + FLAGS, head.flags)
    }

    /// Makes a descriptor available of which nothing else makes sense.
    pub(super) fn offer_nonsense(&mut self) {
        let descriptor = PackedDescriptor {
            address: u64::MAX,
            len: 1,
            id: u16::MAX,
            flags: self.next_avail.available(),
        };
        self.unasked.push(self.next_avail.value());
        self.publish_descriptor(self.next_avail.offset, descriptor);
    }

    /// All of [`add_descriptors`](Self::add_descriptors) but the first descriptor: slot and descriptor of that,
    /// and the id.
    fn prepare_descriptors(
        &mut self,
        descriptors: &mut [PackedDescriptor],
    ) -> (u16, PackedDescriptor, u16) {
        let count = u16::try_from(descriptors.len()).expect("a chain is short");
        self.free = self.free.checked_sub(count).expect("descriptors are free");
        let id = self.free_ids.pop().expect("an id is free");
        self.chains[usize::from(id)] = count;
        descriptors.last_mut().expect("a chain has a buffer").id = id;
        let first = self.next_avail;
        for descriptor in descriptors.iter_mut() {
            let place = self.next_avail;
            self.unasked.push(place.value());
            descriptor.flags |= place.available();
            if place != first {
                self.set_descriptor(place.offset, *descriptor);
            }
            self.next_avail = place.step(self.config.size);
        }
        let head = descriptors.first().expect("a chain has a buffer");
        (first.offset, *head, id)
    }

    /// Writes descriptor `slot` of the ring as it is, in no order.
    pub fn set_descriptor(&mut self, slot: u16, descriptor: PackedDescriptor) {
        self.write_descriptor(self.slot(slot), descriptor);
    }

    /// Writes descriptor `index` of an indirect table at `table` as it is.
    pub fn set_indirect(&mut self, table: u64, index: u16, descriptor: PackedDescriptor) {
        self.write_descriptor(table + 16 * u64::from(index), descriptor);
    }

    /// Writes descriptor `slot` of the ring as it is, the flags last and behind all else.
    pub fn publish_descriptor(&mut self, slot: u16, descriptor: PackedDescriptor) {
        self.write_body(slot, descriptor);
        let at = GuestAddress(self.slot(slot) + FLAGS);
        self.memory
            .memory()
            .store(descriptor.flags.to_le(), at, Ordering::Release)
            .expect("the ring is in guest memory");
    }

    fn write_body(&self, slot: u16, descriptor: PackedDescriptor) {
        let at = self.slot(slot);
        self.write(at, descriptor.address.to_le());
        self.write(at + 8, descriptor.len.to_le());
        self.write(at + 12, descriptor.id.to_le());
    }

    /// Descriptor `slot` of the ring as it is.
    pub fn descriptor(&self, slot: u16) -> PackedDescriptor {
        let at = self.slot(slot);
        // The flags first, and nothing before them.
        let flags = self.load_flags(slot);
        PackedDescriptor {
            address: u64::from_le(self.read(at)),
            len: u32::from_le(self.read(at + 8)),
            id: u16::from_le(self.read(at + 12)),
            flags,
        }
    }

    /// The flags of a descriptor that is available next.
    pub fn available_flags(&self) -> u16 {
        self.next_avail.available()
    }

    /// Whether the device wants a kick for what was made available since the last call.
    pub fn kick_wanted(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let added = std::mem::take(&mut self.unasked);
        let (event, flags) = self.device_event();
        if added.is_empty() || flags == RingEventFlags::Disable as u16 {
            false
        } else if flags == RingEventFlags::Desc as u16 {
            added.contains(&event)
        } else {
            true
        }
    }

    /// Whether the device has published a used descriptor that was not taken.
    pub fn has_used(&self) -> bool {
        let flags = self.load_flags(self.next_used.offset);
        self.free < self.config.size && flags & (AVAIL | USED) == self.next_used.used()
    }

    /// Takes the next used descriptor: buffer id and length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if !self.has_used() {
            return None;
        }
        let used = self.descriptor(self.next_used.offset);
        let size = self.config.size;
        let count = self
            .chains
            .get_mut(usize::from(used.id))
            .map_or(0, std::mem::take);
        if count != 0 {
            self.free += count;
            self.free_ids.push(used.id);
            self.next_used = self.next_used.plus(count, size);
        }
        Some((used.id.into(), used.len))
    }

    /// Asks to be notified when the next descriptor is used, or that `after` as many more: of that one alone with
    /// an event index, else of each.
    pub fn want_interrupt(&mut self, after: u16) {
        if self.event_idx {
            let event = self.next_used.plus(after, self.config.size).value();
            self.set_driver_event(event, RingEventFlags::Desc as u16);
        } else {
            self.set_no_interrupt(false);
        }
    }

    /// Asks not to be notified, or to be of each used descriptor.
    pub fn set_no_interrupt(&mut self, no_interrupt: bool) {
        let flags = if no_interrupt {
            RingEventFlags::Disable
        } else {
            RingEventFlags::Enable
        };
        self.set_driver_event(0, flags as u16);
    }

    /// Writes the driver's event suppression as it is: offset with wrap counter, flags.
    pub fn set_driver_event(&mut self, event: u16, flags: u16) {
        let at = self.config.driver;
        self.write(at, event.to_le());
        fence(Ordering::Release);
        self.write(at + 2, flags.to_le());
    }

    /// The device's event suppression: offset with wrap counter, flags.
    pub fn device_event(&self) -> (u16, u16) {
        let at = self.config.device;
        let flags = u16::from_le(self.read(at + 2));
        fence(Ordering::Acquire);
        (u16::from_le(self.read(at)), flags)
    }

    /// Descriptors that are in no chain.
    pub fn free(&self) -> usize {
        self.free.into()
    }

    /// Goes on at `state`, of which both halves are the same, as if all that was made available before had
    /// been used: with the flags that a lap has left behind in each descriptor.
    pub fn begin_at(&mut self, state: QueueState) {
        self.next_avail = Place::of(state.next_avail);
        self.next_used = Place::of(state.next_used);
        self.unasked.clear();
        for slot in 0..self.config.size {
            // Behind the place, those of this lap; from it on, those of the one before.
            let wrap = self.next_used.wrap == (slot < self.next_used.offset);
            let descriptor = PackedDescriptor {
                flags: Place { offset: slot, wrap }.used(),
                ..PackedDescriptor::default()
            };
            self.set_descriptor(slot, descriptor);
        }
    }

    /// Where the driver stands: offsets with wrap counters.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail.value(),
            next_used: self.next_used.value(),
        }
    }

    /// The memory that the ring is in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// What the driver would tell the transport.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    fn slot(&self, slot: u16) -> u64 {
        self.config.desc + 16 * u64::from(slot)
    }

    fn load_flags(&self, slot: u16) -> u16 {
        let at = GuestAddress(self.slot(slot) + FLAGS);
        u16::from_le(
            self.memory
                .memory()
                .load(at, Ordering::Acquire)
                .expect("the ring is in guest memory"),
        )
    }

    fn write_descriptor(&self, at: u64, descriptor: PackedDescriptor) {
        self.write(at, descriptor.address.to_le());
        let rest = u64::from(descriptor.len)
            | u64::from(descriptor.id) << 32
            | u64::from(descriptor.flags) << 48;
        self.write(at + 8, rest.to_le());
    }

    fn write<T: ByteValued>(&self, address: u64, value: T) {
        super::write(&self.memory, address, value);
    }

    fn read<T: ByteValued>(&self, address: u64) -> T {
        super::read(&self.memory, address)
    }
}

/// Where the flags of a descriptor are.
const FLAGS: u64 = 14;

fn direct(buffers: &[Buffer]) -> Vec<PackedDescriptor> {
    let mut descriptors: Vec<PackedDescriptor> = buffers
        .iter()
        .map(|buffer| PackedDescriptor {
            address: buffer.address,
            len: buffer.len,
            // Only the last one's means something.
            id: 0xdead,
            flags: buffer.flags() | NEXT,
        })
        .collect();
    if let Some(last) = descriptors.last_mut() {
        last.flags &= !NEXT;
    }
    descriptors
}

impl<M: QueueMemory> fmt::Debug for PackedDriver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedDriver")
            .field("config", &self.config)
            .field("next_avail", &self.next_avail)
            .field("next_used", &self.next_used)
            .finish_non_exhaustive()
    }
}
