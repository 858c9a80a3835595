//! Drivers for tests, benches and fuzzers: they write rings into guest memory as a guest does, and,
//! where asked to, as no guest should.
//!
//! [`Driver`] is one of either format, as the features say; a test that uses what both have runs on both.
//! [`SplitDriver`] and [`PackedDriver`] have besides what only their format has.
//!
//! Panics on what is a mistake in the test that uses it: memory that is not there, no free descriptor.
#![expect(clippy::expect_used, reason = "a test's own mistakes end the test")]

mod packed;
mod split;

use std::sync::atomic::Ordering;

use virtio::F;
pub use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, Bytes, GuestAddress};

pub use packed::{PackedDescriptor, PackedDriver};
pub use split::SplitDriver;

use crate::{QueueConfig, QueueMemory, QueueState};

/// `VIRTQ_DESC_F_NEXT`
pub const NEXT: u16 = virtio::virtq::DescF::NEXT.bits().to_ne();
/// `VIRTQ_DESC_F_WRITE`
pub const WRITE: u16 = virtio::virtq::DescF::WRITE.bits().to_ne();
/// `VIRTQ_DESC_F_INDIRECT`
pub const INDIRECT: u16 = virtio::virtq::DescF::INDIRECT.bits().to_ne();
/// `VIRTQ_DESC_F_AVAIL`, of packed rings.
pub const AVAIL: u16 = virtio::virtq::DescF::AVAIL.bits().to_ne();
/// `VIRTQ_DESC_F_USED`, of packed rings.
pub const USED: u16 = virtio::virtq::DescF::USED.bits().to_ne();

/// One buffer of a chain to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it begins in guest memory.
    pub address: u64,
    /// How long it is.
    pub len: u32,
    /// Whether the device writes it, rather than reads it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub const fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    pub const fn writable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: true,
        }
    }

    fn flags(self) -> u16 {
        if self.writable { WRITE } else { 0 }
    }
}

/// The driver's half of one queue in guest memory, in the format that was negotiated.
#[derive(Debug)]
pub enum Driver<M: QueueMemory> {
    /// Without `VIRTIO_F_RING_PACKED`.
    Split(SplitDriver<M>),
    /// With it.
    Packed(PackedDriver<M>),
}

impl<M: QueueMemory> Driver<M> {
    /// Lays an empty queue of `size` entries out at `base`, in [`len`](Self::len) bytes.
    pub fn new(memory: M, base: GuestAddress, size: u16, features: F) -> Self {
        if features.contains(F::RING_PACKED) {
            Self::Packed(PackedDriver::new(memory, base, size, features))
        } else {
            Self::Split(SplitDriver::new(memory, base, size, features))
        }
    }

    /// Bytes that the rings of `size` entries take in either format.
    pub fn len(size: u16) -> usize {
        SplitDriver::<M>::len(size).max(PackedDriver::<M>::len(size))
    }

    /// Makes a chain of `buffers` available and returns what names it on the used ring: its head, or
    /// its buffer id.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        match self {
            Self::Split(driver) => driver.add(buffers),
            Self::Packed(driver) => driver.add(buffers),
        }
    }

    /// Makes a chain of `buffers` available through an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        match self {
            Self::Split(driver) => driver.add_indirect(table, buffers),
            Self::Packed(driver) => driver.add_indirect(table, buffers),
        }
    }

    /// Writes a chain of `buffers`, and returns what makes it available: for another thread, or for a moment when
    /// the driver is not at hand.
    pub fn later(&mut self, buffers: &[Buffer]) -> impl FnOnce() + Send + 'static + use<M> {
        let (at, value) = match self {
            Self::Split(driver) => {
                let head = driver.prepare(buffers);
                driver.offer_quietly(head);
                (driver.config().driver + 2, driver.avail_idx())
            }
            Self::Packed(driver) => driver.prepare(buffers),
        };
        let memory = self.memory().clone();
        move || {
            memory
                .memory()
                .store(value.to_le(), GuestAddress(at), Ordering::Release)
                .expect("the ring is in guest memory");
        }
    }

    /// Makes something available that no driver may: it breaks the queue.
    pub fn offer_nonsense(&mut self) {
        match self {
            Self::Split(driver) => driver.offer(u16::MAX),
            Self::Packed(driver) => driver.offer_nonsense(),
        }
    }

    /// Whether the device wants a kick for what was made available since the last call.
    pub fn kick_wanted(&mut self) -> bool {
        match self {
            Self::Split(driver) => driver.kick_wanted(),
            Self::Packed(driver) => driver.kick_wanted(),
        }
    }

    /// Takes the next element that the device has published: what names the chain, and the length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        match self {
            Self::Split(driver) => driver.take_used(),
            Self::Packed(driver) => driver.take_used(),
        }
    }

    /// Whether the device has published an element that was not taken.
    pub fn has_used(&self) -> bool {
        match self {
            Self::Split(driver) => driver.published() != driver.taken(),
            Self::Packed(driver) => driver.has_used(),
        }
    }

    /// Asks to be notified of the next element, or of that `after` as many more entries of the ring: by an
    /// event index where there is one, else of each.
    pub fn want_interrupt(&mut self, after: u16) {
        match self {
            Self::Split(driver) => {
                driver.set_no_interrupt(false);
                driver.set_used_event(driver.taken().wrapping_add(after));
            }
            Self::Packed(driver) => driver.want_interrupt(after),
        }
    }

    /// Asks not to be notified, or to be of the next element. A split ring with an event index has no flag for it,
    /// but an index that is far away.
    pub fn set_no_interrupt(&mut self, no_interrupt: bool) {
        match self {
            Self::Split(driver) => {
                driver.set_no_interrupt(no_interrupt);
                let far = u16::from(no_interrupt);
                driver.set_used_event(driver.taken().wrapping_sub(far));
            }
            Self::Packed(driver) => driver.set_no_interrupt(no_interrupt),
        }
    }

    /// Descriptors that are in no chain.
    pub fn free(&self) -> usize {
        match self {
            Self::Split(driver) => driver.free(),
            Self::Packed(driver) => driver.free(),
        }
    }

    /// Goes on at `state`, of which both halves are the same, as if all that was made available before had
    /// been used.
    pub fn begin_at(&mut self, state: QueueState) {
        match self {
            Self::Split(driver) => driver.begin_at(state.next_avail),
            Self::Packed(driver) => driver.begin_at(state),
        }
    }

    /// Where the driver stands: what the device's state is when all is settled.
    pub fn state(&self) -> QueueState {
        match self {
            Self::Split(driver) => QueueState {
                next_avail: driver.avail_idx(),
                next_used: driver.taken(),
            },
            Self::Packed(driver) => driver.state(),
        }
    }

    /// The memory that the rings are in.
    pub fn memory(&self) -> &M {
        match self {
            Self::Split(driver) => driver.memory(),
            Self::Packed(driver) => driver.memory(),
        }
    }

    /// What the driver would tell the transport.
    pub fn config(&self) -> QueueConfig {
        match self {
            Self::Split(driver) => driver.config(),
            Self::Packed(driver) => driver.config(),
        }
    }

    /// The split driver.
    ///
    /// # Panics
    /// If it is a packed one.
    pub fn split(&mut self) -> &mut SplitDriver<M> {
        match self {
            Self::Split(driver) => driver,
            Self::Packed(driver) => panic!("{driver:?} is not split"),
        }
    }

    /// The packed driver.
    ///
    /// # Panics
    /// If it is a split one.
    pub fn packed(&mut self) -> &mut PackedDriver<M> {
        match self {
            Self::Packed(driver) => driver,
            Self::Split(driver) => panic!("{driver:?} is not packed"),
        }
    }
}

fn write<M: QueueMemory, T: ByteValued>(memory: &M, address: u64, value: T) {
    memory
        .memory()
        .write_obj(value, GuestAddress(address))
        .expect("the address is in guest memory");
}

fn read<M: QueueMemory, T: ByteValued>(memory: &M, address: u64) -> T {
    memory
        .memory()
        .read_obj(GuestAddress(address))
        .expect("the address is in guest memory")
}
