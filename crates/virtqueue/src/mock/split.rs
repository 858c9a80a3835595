//! The driver's half of a split queue.

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use virtio::F;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{Buffer, Descriptor, INDIRECT, NEXT};
use crate::event::need_event;
use crate::{QueueConfig, QueueMemory};

/// The driver's half of one split queue in guest memory.
pub struct SplitDriver<M: QueueMemory> {
    memory: M,
    config: QueueConfig,
    event_idx: bool,
    free: Vec<u16>,
    /// By head: the descriptors of its chain.
    chains: Vec<Vec<u16>>,
    avail_idx: u16,
    /// `avail_idx` when [`kick_wanted`](Self::kick_wanted) was last asked.
    kick_asked: u16,
    used_idx: u16,
}

impl<M: QueueMemory> SplitDriver<M> {
    /// Lays an empty queue of `size` entries out at `base`, in [`len`](Self::len) bytes.
    pub fn new(memory: M, base: GuestAddress, size: u16, features: F) -> Self {
        let entries = u64::from(size);
        let driver = base.0 + 16 * entries;
        let device = (driver + 6 + 2 * entries).next_multiple_of(4);
        let config = QueueConfig {
            max_size: size,
            size,
            desc: base.0,
            driver,
            device,
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
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            avail_idx: 0,
            kick_asked: 0,
            used_idx: 0,
        }
    }

    /// Bytes that the rings of `size` entries take.
    pub fn len(size: u16) -> usize {
        let entries = usize::from(size);
        (16 * entries + 6 + 2 * entries).next_multiple_of(4) + 6 + 8 * entries
    }

    /// Makes a chain of `buffers` available and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.prepare(buffers);
        self.offer(head);
        head
    }

    /// Writes a chain of `buffers` without making it available, and returns its head.
    pub fn prepare(&mut self, buffers: &[Buffer]) -> u16 {
        let chain: Vec<u16> = buffers
            .iter()
            .map(|_| self.free.pop().expect("a descriptor is free"))
            .collect();
        for (i, buffer) in buffers.iter().enumerate() {
            let (next_flag, next) = match chain.get(i + 1) {
                Some(next) => (NEXT, *next),
                None => (0, 0),
            };
            let flags = buffer.flags() | next_flag;
            self.set_descriptor(
                chain[i],
                Descriptor::new(buffer.address, buffer.len, flags, next),
            );
        }
        let head = *chain.first().expect("a chain has a buffer");
        self.chains[usize::from(head)] = chain;
        head
    }

    /// Makes a chain of `buffers` available through an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let mut address = table;
        for (i, buffer) in (1..).zip(buffers) {
            let more = usize::from(i) < buffers.len();
            let flags = buffer.flags() | if more { NEXT } else { 0 };
            self.write(
                address,
                Descriptor::new(buffer.address, buffer.len, flags, i),
            );
            address += 16;
        }
        let head = self.free.pop().expect("a descriptor is free");
        let len = u32::try_from(address - table).expect("a table is small");
        self.set_descriptor(head, Descriptor::new(table, len, INDIRECT, 0));
        self.chains[usize::from(head)] = vec![head];
        self.offer(head);
        head
    }

    /// Writes descriptor `index` of the table as it is.
    pub fn set_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        self.write(self.config.desc + 16 * u64::from(index), descriptor);
    }

    /// Writes descriptor `index` of an indirect table at `table` as it is.
    pub fn set_indirect(&mut self, table: u64, index: u16, descriptor: Descriptor) {
        self.write(table + 16 * u64::from(index), descriptor);
    }

    /// Appends `head`, whatever it is, to the available ring, and moves the index.
    pub fn offer(&mut self, head: u16) {
        self.offer_quietly(head);
        self.set_avail_idx(self.avail_idx);
    }

    /// Appends `head` to the available ring; [`set_avail_idx`](Self::set_avail_idx) publishes it.
    pub fn offer_quietly(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.config.size);
        self.write(self.config.driver + 4 + 2 * slot, head.to_le());
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Stores `index`, whatever it is, as the available index.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.memory
            .memory()
            .store(
                index.to_le(),
                GuestAddress(self.config.driver + 2),
                Ordering::Release,
            )
            .expect("the ring is in guest memory");
    }

    /// What the driver has made available so far.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Whether the device wants a kick for what was made available since the last call.
    pub fn kick_wanted(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kick_asked, self.avail_idx);
        self.kick_asked = new;
        if self.event_idx {
            need_event(self.avail_event(), new, old)
        } else {
            old != new && self.used_flags() & 1 == 0
        }
    }

    /// Takes the next element that the device has published: head and length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.published() == self.used_idx {
            return None;
        }
        let slot = u64::from(self.used_idx % self.config.size);
        let at = self.config.device + 4 + 8 * slot;
        let (head, len) = (u32::from_le(self.read(at)), u32::from_le(self.read(at + 4)));
        self.used_idx = self.used_idx.wrapping_add(1);
        if let Some(chain) = usize::try_from(head)
            .ok()
            .and_then(|head| self.chains.get_mut(head))
        {
            self.free.append(chain);
        }
        Some((head, len))
    }

    /// The device's used index.
    pub fn published(&self) -> u16 {
        let at = GuestAddress(self.config.device + 2);
        u16::from_le(
            self.memory
                .memory()
                .load(at, Ordering::Acquire)
                .expect("the ring is in guest memory"),
        )
    }

    /// How many elements of the used ring the driver has taken.
    pub fn taken(&self) -> u16 {
        self.used_idx
    }

    /// Asks to be notified when used element `index` is passed (with an event index).
    pub fn set_used_event(&mut self, index: u16) {
        let at = self.config.driver + 4 + 2 * u64::from(self.config.size);
        self.write(at, index.to_le());
    }

    /// Asks not to be notified, or to be (without an event index).
    pub fn set_no_interrupt(&mut self, no_interrupt: bool) {
        self.write(self.config.driver, u16::from(no_interrupt).to_le());
    }

    /// The available index that the device wants a kick for.
    pub fn avail_event(&self) -> u16 {
        u16::from_le(self.read(self.config.device + 4 + 8 * u64::from(self.config.size)))
    }

    /// The flags of the used ring: 1 is `VIRTQ_USED_F_NO_NOTIFY`.
    pub fn used_flags(&self) -> u16 {
        u16::from_le(self.read(self.config.device))
    }

    /// Descriptors that are in no chain.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Goes on at `index`, as if so many chains had been made available and used before.
    pub fn begin_at(&mut self, index: u16) {
        self.avail_idx = index;
        self.kick_asked = index;
        self.used_idx = index;
        self.set_avail_idx(index);
        self.write(self.config.device + 2, index.to_le());
    }

    /// The memory that the rings are in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// What the driver would tell the transport.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    fn write<T: ByteValued>(&self, address: u64, value: T) {
        super::write(&self.memory, address, value);
    }

    fn read<T: ByteValued>(&self, address: u64) -> T {
        super::read(&self.memory, address)
    }
}

impl<M: QueueMemory> fmt::Debug for SplitDriver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitDriver")
            .field("config", &self.config)
            .field("avail_idx", &self.avail_idx)
            .field("used_idx", &self.used_idx)
            .finish_non_exhaustive()
    }
}
