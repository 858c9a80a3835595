//! A machine of one function for unit tests: registers that remember, and the device's side of a
//! ring, moved by hand.

extern crate std;

use core::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

use virtio::net::F;

use crate::queue::{Descriptor, QueueLayout, SplitRing};
use crate::{DmaMemory, DmaRegion, PciAddress, Platform, VirtQueue, Width};

/// Where the function is.
pub(crate) const FUNCTION: PciAddress = PciAddress::from_devfn(0, 3 << 3);

const MEMORY: u64 = 0x10_0000;
const MEMORY_LEN: u32 = 0x10_0000;

/// A transitional-looking function: I/O BAR 0, MSI-X in BAR 1, all structures in BAR 4.
#[derive(Debug)]
pub(crate) struct Fake {
    config: RefCell<[u8; 256]>,
    config_address: Cell<u32>,
    msix_table: RefCell<[u32; 12]>,
    memory: RefCell<Vec<u8>>,
    common: RefCell<[u8; 0x40]>,
    queues: RefCell<[QueueLayout; 3]>,
    vectors: RefCell<[u16; 3]>,
    pub(crate) enabled: Cell<[bool; 3]>,
    pub(crate) features: Cell<u128>,
    pub(crate) accepted: Cell<u128>,
    pub(crate) refuse_features: Cell<bool>,
    pub(crate) net_config: Cell<[u8; 12]>,
    pub(crate) isr: Cell<u8>,
    pub(crate) notified: RefCell<Vec<(u64, u64)>>,
    pub(crate) mmio_accesses: Cell<u32>,
    pub(crate) sized_while_decoding: Cell<bool>,
}

impl Fake {
    pub(crate) const FIRST_CAPABILITY: u8 = 0x98;
    pub(crate) const COMMON_CAPABILITY: u8 = 0x40;
    const WINDOW: u16 = 0x84;

    pub(crate) fn new() -> Self {
        let mut config = [0; 256];
        let mut put = |offset: usize, bytes: &[u8]| {
            config[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0x00, &[0xf4, 0x1a, 0x41, 0x10]);
        put(0x06, &[0x10, 0]);
        put(0x10, &0xc001_u32.to_le_bytes());
        put(0x14, &0xfebf_0000_u32.to_le_bytes());
        put(0x20, &0x4004_u32.to_le_bytes());
        put(0x24, &0x80_u32.to_le_bytes());
        put(0x34, &[Self::FIRST_CAPABILITY]);
        // Linked so that the last one added is read first.
        put(0x98, &[0x11, 0x84, 2, 0, 1, 0, 0, 0, 1, 8, 0, 0]);
        put(0x84, &[9, 0x70, 20, 5]);
        put(
            0x70,
            &[
                9, 0x60, 20, 2, 4, 0, 0, 0, 0, 0x30, 0, 0, 0, 0x10, 0, 0, 4, 0, 0, 0,
            ],
        );
        put(
            0x60,
            &[9, 0x50, 16, 4, 4, 0, 0, 0, 0, 0x20, 0, 0, 0, 0x10, 0, 0],
        );
        put(
            0x50,
            &[9, 0x40, 16, 3, 4, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 0],
        );
        put(0x40, &[9, 0, 16, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
        let nothing = QueueLayout {
            index: 0,
            size: 256,
            desc: 0,
            driver: 0,
            device: 0,
        };
        Self {
            config: RefCell::new(config),
            config_address: Cell::new(0),
            msix_table: RefCell::new([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]),
            memory: RefCell::new(vec![0xa5; MEMORY_LEN as usize]),
            common: RefCell::new([0; 0x40]),
            queues: RefCell::new([nothing; 3]),
            vectors: RefCell::new([0; 3]),
            enabled: Cell::new([false; 3]),
            features: Cell::new(1 << 32),
            accepted: Cell::new(0),
            refuse_features: Cell::new(false),
            net_config: Cell::new([0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0xdc, 5]),
            isr: Cell::new(0),
            notified: RefCell::new(Vec::new()),
            mmio_accesses: Cell::new(0),
            sized_while_decoding: Cell::new(false),
        }
    }

    /// All of the memory that the device reaches.
    pub(crate) fn memory() -> DmaMemory {
        DmaMemory::new(DmaRegion {
            address: MEMORY,
            len: MEMORY_LEN,
        })
    }

    pub(crate) fn offer(&self, features: F) {
        self.features.set(features.bits().to_ne() | 1 << 32);
    }

    pub(crate) fn set_config(&self, offset: u16, bytes: &[u8]) {
        let offset = usize::from(offset);
        self.config.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn msix_entry(&self, vector: usize) -> [u32; 4] {
        self.msix_table.borrow()[vector * 4..][..4]
            .try_into()
            .unwrap()
    }

    pub(crate) fn msix_control(&self) -> u16 {
        let config = self.config.borrow();
        u16::from_le_bytes([config[0x9a], config[0x9b]])
    }

    pub(crate) fn layout(&self, queue: usize) -> QueueLayout {
        self.queues.borrow()[queue]
    }

    pub(crate) fn vector(&self, queue: usize) -> u16 {
        self.vectors.borrow()[queue]
    }

    // The device's side of a ring.

    pub(crate) fn device_avail_index<const N: usize>(&self, queue: &VirtQueue<N>) -> u16 {
        self.memory_load_u16(queue.layout().driver + 2)
    }

    pub(crate) fn device_head<const N: usize>(&self, queue: &VirtQueue<N>, slot: u16) -> u16 {
        self.head(queue.layout(), slot)
    }

    pub(crate) fn head(&self, layout: QueueLayout, slot: u16) -> u16 {
        self.memory_load_u16(layout.driver + 4 + u64::from(slot % layout.size) * 2)
    }

    /// The descriptors of a chain, with zeros behind it; no indirection.
    pub(crate) fn device_chain<const N: usize>(
        &self,
        queue: &VirtQueue<N>,
        head: u16,
    ) -> [Descriptor; 4] {
        self.chain(queue.layout(), head)
    }

    pub(crate) fn chain(&self, layout: QueueLayout, head: u16) -> [Descriptor; 4] {
        let mut chain = [Descriptor::default(); 4];
        let mut at = head;
        for entry in &mut chain {
            *entry = SplitRing::read_descriptor_at(self, layout.desc, at);
            if entry.flags & SplitRing::NEXT == 0 {
                break;
            }
            at = entry.next;
        }
        chain
    }

    pub(crate) fn device_use<const N: usize>(&self, queue: &VirtQueue<N>, head: u16, len: u32) {
        self.complete(queue.layout(), head, len);
    }

    pub(crate) fn complete(&self, layout: QueueLayout, head: u16, len: u32) {
        let index = self.memory_load_u16(layout.device + 2);
        self.put_used(layout, index, head.into(), len);
        self.memory_store_u16(layout.device + 2, index.wrapping_add(1));
    }

    fn put_used(&self, layout: QueueLayout, slot: u16, id: u32, len: u32) {
        let entry = layout.device + 4 + u64::from(slot % layout.size) * 8;
        self.memory_write(entry, &id.to_le_bytes());
        self.memory_write(entry + 4, &len.to_le_bytes());
    }

    pub(crate) fn device_set_used<const N: usize>(
        &self,
        queue: &VirtQueue<N>,
        slot: u16,
        id: u32,
        len: u32,
    ) {
        self.put_used(queue.layout(), slot, id, len);
    }

    pub(crate) fn device_set_used_index<const N: usize>(&self, queue: &VirtQueue<N>, index: u16) {
        self.memory_store_u16(queue.layout().device + 2, index);
    }

    pub(crate) fn device_set_used_flags<const N: usize>(&self, queue: &VirtQueue<N>, flags: u16) {
        self.memory_store_u16(queue.layout().device, flags);
    }

    pub(crate) fn device_set_avail_event<const N: usize>(&self, queue: &VirtQueue<N>, event: u16) {
        let layout = queue.layout();
        self.memory_store_u16(layout.device + 4 + u64::from(layout.size) * 8, event);
    }

    /// Whether a device that completes one more chain would interrupt.
    pub(crate) fn device_would_interrupt<const N: usize>(
        &self,
        queue: &VirtQueue<N>,
        event_idx: bool,
    ) -> bool {
        let layout = queue.layout();
        if event_idx {
            let event = self.memory_load_u16(layout.driver + 4 + u64::from(layout.size) * 2);
            let index = self.memory_load_u16(layout.device + 2);
            crate::queue::crossed(event, index, index.wrapping_add(1))
        } else {
            self.memory_load_u16(layout.driver) == 0
        }
    }

    fn common_read(&self, offset: usize) -> u64 {
        let select = usize::from(self.common.borrow()[0x16]);
        let queues = self.queues.borrow();
        let queue = queues.get(select);
        match offset {
            0x04 => {
                let word = u32::from(self.common.borrow()[0]) * 32;
                u64::from((self.features.get() >> word) as u32)
            }
            0x18 => queue.map_or(0, |queue| queue.size.into()),
            0x1a => self.vectors.borrow()[select].into(),
            0x1e => select as u64,
            _ => u64::from_le_bytes(self.common.borrow()[offset..][..8].try_into().unwrap()),
        }
    }

    fn common_write(&self, offset: usize, width: Width, value: u64) {
        let bytes = usize::from(width.bytes());
        let mut common = self.common.borrow_mut();
        let select = usize::from(common[0x16]);
        let accept = |value: u64| if value >= 3 { 0xffff } else { value as u16 };
        match offset {
            0x0c => {
                let word = u32::from(common[8]) * 32;
                let kept = self.accepted.get() & !(0xffff_ffff << word);
                self.accepted.set(kept | u128::from(value) << word);
            }
            0x10 => common[0x10..0x12].copy_from_slice(&accept(value).to_le_bytes()),
            0x14 if self.refuse_features.get() => common[0x14] = value as u8 & !8,
            0x18 => self.queues.borrow_mut()[select].size = value as u16,
            0x1a => self.vectors.borrow_mut()[select] = accept(value),
            0x1c => {
                let mut enabled = self.enabled.get();
                enabled[select] = value == 1;
                self.enabled.set(enabled);
            }
            0x20 => self.queues.borrow_mut()[select].desc = value,
            0x28 => self.queues.borrow_mut()[select].driver = value,
            0x30 => self.queues.borrow_mut()[select].device = value,
            _ => common[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]),
        }
    }

    fn bar4_read(&self, offset: u64) -> u64 {
        match offset {
            0..0x38 => self.common_read(offset as usize),
            0x1000 => self.isr.take().into(),
            0x2000..0x200c => self.net_config.get()[(offset - 0x2000) as usize].into(),
            _ => panic!("no register at {offset:#x}"),
        }
    }

    fn bar4_write(&self, offset: u64, width: Width, value: u64) {
        match offset {
            0..0x38 => self.common_write(offset as usize, width, value),
            0x3000.. => self.notified.borrow_mut().push((offset - 0x3000, value)),
            _ => panic!("no register at {offset:#x}"),
        }
    }

    fn config_word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.config.borrow()[offset..][..4].try_into().unwrap())
    }
}

fn masked(value: u64, width: Width) -> u64 {
    value & (u64::MAX >> (64 - u32::from(width.bytes()) * 8))
}

impl Platform for Fake {
    fn mmio_read(&self, address: u64, width: Width) -> u64 {
        self.mmio_accesses.set(self.mmio_accesses.get() + 1);
        let value = match address {
            0xfebf_0000..0xfebf_0030 => {
                self.msix_table.borrow()[(address - 0xfebf_0000) as usize / 4].into()
            }
            0x80_0000_4000..0x80_0000_8000 => self.bar4_read(address - 0x80_0000_4000),
            _ => panic!("nobody is at {address:#x}"),
        };
        masked(value, width)
    }

    fn mmio_write(&self, address: u64, width: Width, value: u64) {
        self.mmio_accesses.set(self.mmio_accesses.get() + 1);
        match address {
            0xfebf_0000..0xfebf_0030 => {
                assert_eq!(
                    self.msix_control() & 0xc000,
                    0xc000,
                    "table written while live"
                );
                self.msix_table.borrow_mut()[(address - 0xfebf_0000) as usize / 4] = value as u32;
            }
            0x80_0000_4000..0x80_0000_8000 => {
                self.bar4_write(address - 0x80_0000_4000, width, value);
            }
            _ => panic!("nobody is at {address:#x}"),
        }
    }

    fn port_read(&self, port: u16, width: Width) -> u32 {
        let address = self.config_address.get();
        if address >> 31 == 0 || address >> 8 & 0xffff != u32::from(FUNCTION.devfn()) {
            return masked(u64::MAX, width) as u32;
        }
        let offset = (address & 0xfc) as u16 + (port - 0xcfc);
        let value = if offset == Self::WINDOW + 16 {
            let at = self.config_word(usize::from(Self::WINDOW) + 8);
            self.bar4_read(at.into())
        } else {
            let mut bytes = [0; 4];
            let config = self.config.borrow();
            for (byte, at) in bytes.iter_mut().zip(usize::from(offset)..256) {
                *byte = config[at];
            }
            u32::from_le_bytes(bytes).into()
        };
        masked(value, width) as u32
    }

    fn port_write(&self, port: u16, width: Width, value: u32) {
        if port == 0xcf8 {
            self.config_address.set(value);
            return;
        }
        let offset = (self.config_address.get() & 0xfc) as u16 + (port - 0xcfc);
        let decoding = self.config.borrow()[4] & 3 != 0;
        let value = match offset {
            0x10 | 0x14 | 0x20 if value == u32::MAX => {
                self.sized_while_decoding
                    .set(self.sized_while_decoding.get() || decoding);
                [0xffff_ffe1, 0, 0, 0, 0xffff_c004][usize::from(offset - 0x10) / 4]
                    | if offset == 0x14 { 0xffff_f000 } else { 0 }
            }
            0x10 => value & !0x1f | 1,
            0x14 => value & !0xfff,
            0x20 => value & !0x3fff | 4,
            0x18 | 0x1c => 0,
            _ if offset == Self::WINDOW + 16 => {
                let at = self.config_word(usize::from(Self::WINDOW) + 8);
                self.bar4_write(at.into(), width, value.into());
                return;
            }
            _ => value,
        };
        self.set_config(offset, &value.to_le_bytes()[..usize::from(width.bytes())]);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        let start = (address - MEMORY) as usize;
        data.copy_from_slice(&self.memory.borrow()[start..start + data.len()]);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        let start = (address - MEMORY) as usize;
        self.memory.borrow_mut()[start..start + data.len()].copy_from_slice(data);
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory_read(address, &mut bytes);
        u16::from_ne_bytes(bytes)
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        self.memory_write(address, &value.to_ne_bytes());
    }

    fn barrier(&self) {}
}
