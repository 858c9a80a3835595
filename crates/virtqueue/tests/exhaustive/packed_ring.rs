//! Packed rings as bytes in guest memory (virtio 1.4, 2.8), and nothing that the device's half also uses.

use std::sync::Arc;

use virtio::F;
use virtqueue::{QueueConfig, QueueError, QueueState, VirtQueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ring::{Memory, RAM};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// The ring ends where memory does, so that what is read past it is not there.
const LEN: u64 = 0x100;

/// A descriptor and a lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u16,
    pub(crate) wrap: bool,
}

impl Place {
    pub(crate) const START: Self = Self {
        offset: 0,
        wrap: true,
    };

    pub(crate) fn of(value: u16) -> Self {
        Self {
            offset: value & 0x7fff,
            wrap: value & 0x8000 != 0,
        }
    }

    pub(crate) fn value(self) -> u16 {
        self.offset | if self.wrap { 0x8000 } else { 0 }
    }

    /// By counting.
    pub(crate) fn plus(self, count: u16, size: u16) -> Self {
        (0..count).fold(self, |Self { offset, wrap }, _| {
            if offset + 1 == size {
                Self {
                    offset: 0,
                    wrap: !wrap,
                }
            } else {
                let offset = offset + 1;
                Self { offset, wrap }
            }
        })
    }

    /// "Available: AVAIL is the wrap counter, USED is not" (virtio 1.4, 2.8.1).
    pub(crate) fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    pub(crate) fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// A queue's ring and its two event suppression structures, as a driver sees them.
pub(crate) struct PackedRing {
    pub(crate) memory: Memory,
    pub(crate) size: u16,
    desc: u64,
    driver: u64,
    device: u64,
}

impl PackedRing {
    pub(crate) fn new(size: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        // The ring last; events before it.
        let desc = RAM - 16 * u64::from(size);
        assert!(desc - 8 >= RAM - LEN);
        Self {
            memory: Arc::new(memory),
            size,
            desc,
            driver: desc - 8,
            device: desc - 4,
        }
    }

    pub(crate) fn queue(
        &self,
        features: F,
        next_avail: Place,
        next_used: Place,
    ) -> Result<VirtQueue<Memory>, QueueError> {
        let config = QueueConfig {
            max_size: self.size,
            size: self.size,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
        };
        let state = QueueState {
            next_avail: next_avail.value(),
            next_used: next_used.value(),
        };
        let features = features | F::RING_PACKED;
        VirtQueue::new(&config, state, features, self.memory.clone())
    }

    /// As a driver has it that is at `next` and has nothing in flight: all is used, in this lap or the last.
    pub(crate) fn clear(&self, next: Place) {
        self.write(self.driver, &[0; 8]);
        for offset in 0..self.size {
            let wrap = (offset < next.offset) == next.wrap;
            let place = Place { offset, wrap };
            self.write(self.at(place), &[0; 16]);
            self.set_flags(place, place.used());
        }
    }

    pub(crate) fn set_buffer(&self, place: Place, address: u64, len: u32, id: u16) {
        let at = self.at(place);
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &id.to_le_bytes());
    }

    pub(crate) fn set_flags(&self, place: Place, flags: u16) {
        self.write(self.at(place) + 14, &flags.to_le_bytes());
    }

    pub(crate) fn flags(&self, place: Place) -> u16 {
        self.read_u16(self.at(place) + 14)
    }

    pub(crate) fn id(&self, place: Place) -> u16 {
        self.read_u16(self.at(place) + 12)
    }

    pub(crate) fn set_driver_event(&self, event: u16, flags: u16) {
        self.write(self.driver, &event.to_le_bytes());
        self.write(self.driver + 2, &flags.to_le_bytes());
    }

    /// Offset and flags.
    pub(crate) fn device_event(&self) -> (u16, u16) {
        (self.read_u16(self.device), self.read_u16(self.device + 2))
    }

    /// All that the driver and the device share, but buffers.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; (RAM - self.driver) as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(self.driver))
            .unwrap();
        bytes
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn at(&self, place: Place) -> u64 {
        self.desc + 16 * u64::from(place.offset)
    }

    fn read_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        u16::from_le_bytes(bytes)
    }
}
