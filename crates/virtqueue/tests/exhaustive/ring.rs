//! Split rings as bytes in guest memory (virtio 1.4, 2.7), and nothing that the device's half also uses.

use std::sync::Arc;

use virtio::F;
use virtqueue::{QueueConfig, QueueState, VirtQueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

pub(crate) const RAM: u64 = 0x1_0000;
/// Rings end where memory does, so that what is read past them is not there.
const RINGS: u64 = RAM - 0x400;

/// A queue's rings, as a driver sees them.
pub(crate) struct Rings {
    pub(crate) memory: Memory,
    pub(crate) size: u16,
    desc: u64,
    avail: u64,
    used: u64,
}

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

impl Rings {
    pub(crate) fn new(size: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        let entries = u64::from(size);
        // From the end of memory backwards, each as close to the next as it may be.
        let used = (RAM - (6 + 8 * entries)) & !3;
        let avail = used - (6 + 2 * entries);
        let desc = (avail - 16 * entries) & !15;
        assert!(desc >= RINGS);
        Self {
            memory: Arc::new(memory),
            size,
            desc,
            avail,
            used,
        }
    }

    /// The device's half, which goes on at `index`.
    pub(crate) fn queue(&self, features: F, index: u16) -> VirtQueue<Memory> {
        let config = QueueConfig {
            max_size: self.size,
            size: self.size,
            desc: self.desc,
            driver: self.avail,
            device: self.used,
        };
        let state = QueueState {
            next_avail: index,
            next_used: index,
        };
        VirtQueue::new(&config, state, features, self.memory.clone()).unwrap()
    }

    pub(crate) fn set_desc(&self, index: u16, desc: Desc) {
        self.write(self.desc + 16 * u64::from(index), &desc.bytes());
    }

    pub(crate) fn set_desc_at(&self, address: u64, desc: Desc) {
        self.write(address, &desc.bytes());
    }

    pub(crate) fn set_avail_entry(&self, index: u16, head: u16) {
        let slot = u64::from(index % self.size);
        self.write(self.avail + 4 + 2 * slot, &head.to_le_bytes());
    }

    pub(crate) fn set_avail_idx(&self, index: u16) {
        self.write(self.avail + 2, &index.to_le_bytes());
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.size);
        self.write(at, &index.to_le_bytes());
    }

    pub(crate) fn no_notify(&self) -> bool {
        self.read_u16(self.used) & 1 != 0
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.read_u16(self.used + 2)
    }

    pub(crate) fn set_used_idx(&self, index: u16) {
        self.write(self.used + 2, &index.to_le_bytes());
    }

    /// Head and length.
    pub(crate) fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = self.used + 4 + 8 * u64::from(index % self.size);
        let mut bytes = [0; 8];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let [a, b, c, d, e, f, g, h] = bytes;
        (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        )
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.read_u16(self.used + 4 + 8 * u64::from(self.size))
    }

    /// As they were made.
    pub(crate) fn clear(&self) {
        self.write(self.desc, &[0; (RAM - RINGS) as usize][..self.len()]);
    }

    fn len(&self) -> usize {
        (RAM - self.desc) as usize
    }

    /// All that the driver and the device share, but buffers.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.memory
            .read_slice(&mut bytes, GuestAddress(self.desc))
            .unwrap();
        bytes
    }

    fn read_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        u16::from_le_bytes(bytes)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}
