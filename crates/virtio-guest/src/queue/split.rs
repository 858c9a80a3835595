//! The bytes of a split ring.

use virtio::virtq::{AvailF, DescF, UsedF};

use super::{Descriptor, QueueLayout};
use crate::{DmaMemory, Error, Platform};

/// Reads and writes the three areas of a split ring, entry by entry (virtio 1.4, 2.7).
///
/// Knows nothing of what is free or in flight, and checks nothing: any slot, descriptor or index
/// can be written, by a [`VirtQueue`](super::VirtQueue) or by a test of how a device takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitRing {
    layout: QueueLayout,
}

impl SplitRing {
    /// Bytes in a descriptor.
    pub const DESCRIPTOR_LEN: u32 = 16;
    /// `VIRTQ_DESC_F_NEXT`.
    pub const NEXT: u16 = DescF::NEXT.bits().to_ne();
    /// `VIRTQ_DESC_F_WRITE`.
    pub const WRITE: u16 = DescF::WRITE.bits().to_ne();
    /// `VIRTQ_DESC_F_INDIRECT`.
    pub const INDIRECT: u16 = DescF::INDIRECT.bits().to_ne();
    /// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
    pub const NO_INTERRUPT: u16 = AvailF::NO_INTERRUPT.bits().to_ne();
    /// `VIRTQ_USED_F_NO_NOTIFY`.
    pub const NO_NOTIFY: u16 = UsedF::NO_NOTIFY.bits().to_ne();

    /// Takes zeroed memory for the three areas of queue `index`, aligned as they must be.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate<P: Platform>(
        platform: &P,
        memory: &mut DmaMemory,
        index: u16,
        size: u16,
    ) -> Result<Self, Error> {
        let entries = u32::from(size);
        // Both rings have flags and an index before, and an event after their entries.
        let desc = memory.take(entries * Self::DESCRIPTOR_LEN, 16)?;
        let driver = memory.take(4 + entries * 2 + 2, 2)?;
        let device = memory.take(4 + entries * USED_ELEM_LEN + 2, 4)?;
        for area in [desc, driver, device] {
            area.clear(platform);
        }
        Ok(Self {
            layout: QueueLayout {
                index,
                size,
                desc: desc.address,
                driver: driver.address,
                device: device.address,
            },
        })
    }

    /// Takes zeroed memory for queue `index` in one piece, as the legacy interface has it: it begins with
    /// a page, and so does the device area in it (virtio 1.4, 2.7.2).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_legacy<P: Platform>(
        platform: &P,
        memory: &mut DmaMemory,
        index: u16,
        size: u16,
    ) -> Result<Self, Error> {
        const PAGE: u32 = 4096;
        let entries = u32::from(size);
        let driver = entries * Self::DESCRIPTOR_LEN;
        let device = (driver + 4 + entries * 2 + 2).next_multiple_of(PAGE);
        let piece = memory.take(device + 4 + entries * USED_ELEM_LEN + 2, PAGE)?;
        piece.clear(platform);
        Ok(Self {
            layout: QueueLayout {
                index,
                size,
                desc: piece.address,
                driver: piece.address.wrapping_add(driver.into()),
                device: piece.address.wrapping_add(device.into()),
            },
        })
    }

    /// A ring that lies where `layout` says.
    #[must_use]
    pub const fn at(layout: QueueLayout) -> Self {
        Self { layout }
    }

    /// Where it lies.
    #[must_use]
    pub const fn layout(self) -> QueueLayout {
        self.layout
    }

    /// Writes descriptor `entry` of the table.
    pub fn write_descriptor<P: Platform>(self, platform: &P, entry: u16, descriptor: Descriptor) {
        Self::write_descriptor_at(platform, self.layout.desc, entry, descriptor);
    }

    /// Writes descriptor `entry` of a table at `table`, which may be an indirect one.
    pub fn write_descriptor_at<P: Platform>(
        platform: &P,
        table: u64,
        entry: u16,
        descriptor: Descriptor,
    ) {
        let mut bytes = [0; Self::DESCRIPTOR_LEN as usize];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        platform.memory_write(descriptor_address(table, entry), &bytes);
    }

    /// Reads descriptor `entry` of a table.
    pub fn read_descriptor_at<P: Platform>(platform: &P, table: u64, entry: u16) -> Descriptor {
        let mut bytes = [0; Self::DESCRIPTOR_LEN as usize];
        platform.memory_read(descriptor_address(table, entry), &mut bytes);
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = bytes;
        Descriptor {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Puts the head of a chain into the available ring; `slot` is taken modulo the size.
    pub fn set_available<P: Platform>(self, platform: &P, slot: u16, head: u16) {
        let offset = 4 + u64::from(self.slot(slot)) * 2;
        platform.memory_write(self.layout.driver.wrapping_add(offset), &head.to_le_bytes());
    }

    /// Publishes the available index. All that was written before is seen before it.
    pub fn set_available_index<P: Platform>(self, platform: &P, index: u16) {
        store(platform, self.layout.driver.wrapping_add(2), index);
    }

    /// Writes the flags of the available ring.
    pub fn set_available_flags<P: Platform>(self, platform: &P, flags: u16) {
        store(platform, self.layout.driver, flags);
    }

    /// Writes `used_event`: interrupt me once the used index passes it.
    pub fn set_used_event<P: Platform>(self, platform: &P, event: u16) {
        let offset = 4 + u64::from(self.layout.size) * 2;
        store(platform, self.layout.driver.wrapping_add(offset), event);
    }

    /// The used index. All that the device wrote before it is seen after it.
    pub fn used_index<P: Platform>(self, platform: &P) -> u16 {
        load(platform, self.layout.device.wrapping_add(2))
    }

    /// The flags of the used ring.
    pub fn used_flags<P: Platform>(self, platform: &P) -> u16 {
        load(platform, self.layout.device)
    }

    /// `avail_event`: the device wants to know once the available index passes it.
    pub fn available_event<P: Platform>(self, platform: &P) -> u16 {
        let offset = 4 + u64::from(self.layout.size) * u64::from(USED_ELEM_LEN);
        load(platform, self.layout.device.wrapping_add(offset))
    }

    /// Id and length in the used ring; `slot` is taken modulo the size.
    pub fn used<P: Platform>(self, platform: &P, slot: u16) -> (u32, u32) {
        let offset = 4 + u64::from(self.slot(slot)) * u64::from(USED_ELEM_LEN);
        let mut bytes = [0; USED_ELEM_LEN as usize];
        platform.memory_read(self.layout.device.wrapping_add(offset), &mut bytes);
        let [i0, i1, i2, i3, l0, l1, l2, l3] = bytes;
        (
            u32::from_le_bytes([i0, i1, i2, i3]),
            u32::from_le_bytes([l0, l1, l2, l3]),
        )
    }

    /// The size is a power of two; with size 0, which no queue has, slot 0.
    const fn slot(self, slot: u16) -> u16 {
        slot & self.layout.size.saturating_sub(1)
    }
}

/// Bytes in an entry of the used ring.
const USED_ELEM_LEN: u32 = 8;

const _: () = {
    assert!(size_of::<virtio::virtq::Desc>() == SplitRing::DESCRIPTOR_LEN as usize);
    assert!(size_of::<virtio::virtq::UsedElem>() == USED_ELEM_LEN as usize);
};

fn descriptor_address(table: u64, entry: u16) -> u64 {
    table.wrapping_add(u64::from(entry) * u64::from(SplitRing::DESCRIPTOR_LEN))
}

fn load<P: Platform>(platform: &P, address: u64) -> u16 {
    u16::from_le(platform.memory_load_u16(address))
}

fn store<P: Platform>(platform: &P, address: u64, value: u16) {
    platform.memory_store_u16(address, value.to_le());
}
