//! The bytes of a packed ring.

use virtio::RingEventFlags;
use virtio::virtq::DescF;

use super::{QueueLayout, SplitRing};
use crate::{DmaMemory, Error, Platform};

/// One descriptor of a packed ring or of an indirect table of one, as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes; of a used one, how many bytes were written.
    pub len: u32,
    /// What the chain is called.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
}

/// Reads and writes the three areas of a packed ring, entry by entry (virtio 1.4, 2.8).
///
/// Knows nothing of what is free or in flight, and checks nothing: any descriptor and flags can be
/// written, by a [`VirtQueue`](super::VirtQueue) or by a test of how a device takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedRing {
    layout: QueueLayout,
}

impl PackedRing {
    /// Bytes in a descriptor.
    pub const DESCRIPTOR_LEN: u32 = SplitRing::DESCRIPTOR_LEN;
    /// The most entries that a ring may have; any number up to it will do.
    pub const MAX_SIZE: u16 = 1 << 15;
    /// `VIRTQ_DESC_F_AVAIL`.
    pub const AVAIL: u16 = DescF::AVAIL.bits().to_ne();
    /// `VIRTQ_DESC_F_USED`.
    pub const USED: u16 = DescF::USED.bits().to_ne();
    /// `RING_EVENT_FLAGS_ENABLE`.
    pub const ENABLE: u16 = RingEventFlags::Enable as u16;
    /// `RING_EVENT_FLAGS_DISABLE`.
    pub const DISABLE: u16 = RingEventFlags::Disable as u16;
    /// `RING_EVENT_FLAGS_DESC`.
    pub const DESC: u16 = RingEventFlags::Desc as u16;

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
        let desc = memory.take(u32::from(size) * Self::DESCRIPTOR_LEN, 16)?;
        let driver = memory.take(EVENT_LEN, EVENT_LEN)?;
        let device = memory.take(EVENT_LEN, EVENT_LEN)?;
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

    /// Writes descriptor `slot` of the ring, the flags last: all that was written before is seen
    /// before them.
    pub fn write_descriptor<P: Platform>(
        self,
        platform: &P,
        slot: u16,
        descriptor: PackedDescriptor,
    ) {
        self.write_body(platform, slot, descriptor);
        self.set_flags(platform, slot, descriptor.flags);
    }

    /// Writes descriptor `slot` of the ring but for the flags.
    pub fn write_body<P: Platform>(self, platform: &P, slot: u16, descriptor: PackedDescriptor) {
        let bytes = bytes(descriptor);
        let body = bytes.get(..FLAGS).unwrap_or_default();
        platform.memory_write(address(self.layout.desc, slot), body);
    }

    /// Writes the flags of descriptor `slot`. All that was written before is seen before them.
    pub fn set_flags<P: Platform>(self, platform: &P, slot: u16, flags: u16) {
        let at = address(self.layout.desc, slot).wrapping_add(FLAGS as u64);
        platform.memory_store_u16(at, flags.to_le());
    }

    /// Writes descriptor `entry` of an indirect table at `table`.
    pub fn write_descriptor_at<P: Platform>(
        platform: &P,
        table: u64,
        entry: u16,
        descriptor: PackedDescriptor,
    ) {
        platform.memory_write(address(table, entry), &bytes(descriptor));
    }

    /// Reads descriptor `slot` of the ring.
    pub fn descriptor<P: Platform>(self, platform: &P, slot: u16) -> PackedDescriptor {
        Self::read_descriptor_at(platform, self.layout.desc, slot)
    }

    /// Reads descriptor `entry` of a table.
    pub fn read_descriptor_at<P: Platform>(
        platform: &P,
        table: u64,
        entry: u16,
    ) -> PackedDescriptor {
        // The fields are as wide and lie in the same places; the last two have other names.
        let split = SplitRing::read_descriptor_at(platform, table, entry);
        PackedDescriptor {
            address: split.address,
            len: split.len,
            id: split.flags,
            flags: split.next,
        }
    }

    /// Whether the device has used the descriptor at `place`. All that it wrote before is seen after.
    pub(super) fn is_used<P: Platform>(self, platform: &P, place: Place) -> bool {
        let at = address(self.layout.desc, place.offset()).wrapping_add(FLAGS as u64);
        let flags = u16::from_le(platform.memory_load_u16(at));
        flags & (Self::AVAIL | Self::USED) == place.used()
    }

    /// Writes the driver's event suppression: when to interrupt. `event` is the offset of a descriptor with its
    /// wrap counter in the highest bit, which `DESC` in `flags` refers to.
    pub fn set_driver_event<P: Platform>(self, platform: &P, event: u16, flags: u16) {
        platform.memory_store_u16(self.layout.driver, event.to_le());
        platform.memory_store_u16(self.layout.driver.wrapping_add(2), flags.to_le());
    }

    /// The device's event suppression: when it wants to be notified. As above.
    pub fn device_event<P: Platform>(self, platform: &P) -> (u16, u16) {
        let flags = platform.memory_load_u16(self.layout.device.wrapping_add(2));
        let event = platform.memory_load_u16(self.layout.device);
        (u16::from_le(event), u16::from_le(flags))
    }
}

/// A descriptor of the ring, and which of two alternating laps it is: the wrap counter in the highest bit (virtio 1.4,
/// 2.8.1, 2.8.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u16);

impl Place {
    /// The first descriptor, with a wrap counter of 1.
    pub(super) const START: Self = Self(WRAP);

    pub(super) const fn of(value: u16) -> Self {
        Self(value)
    }

    pub(super) const fn value(self) -> u16 {
        self.0
    }

    pub(super) const fn offset(self) -> u16 {
        self.0 & !WRAP
    }

    /// `count` descriptors on, at most a lap of `size`.
    pub(super) const fn plus(self, count: u16, size: u16) -> Self {
        let offset = self.offset() + count;
        if offset < size {
            Self(self.0 + count)
        } else {
            Self((offset - size) | (self.0 ^ WRAP) & WRAP)
        }
    }

    /// How many descriptors lie from `from` to `to`, which two laps later is the same place. More than there
    /// can be for a place that the ring does not have.
    pub(super) const fn since(to: Self, from: Self, size: u16) -> u16 {
        if to.offset() >= size {
            return u16::MAX;
        }
        let lap = if (to.0 ^ from.0) & WRAP == 0 { 0 } else { size };
        match (to.offset() + lap).checked_sub(from.offset()) {
            Some(count) => count,
            // Before `from` in its lap: two laps less that.
            None => size - (from.offset() - to.offset()) + size,
        }
    }

    /// The two flags of a descriptor that is available here.
    pub(super) const fn available(self) -> u16 {
        if self.0 & WRAP == 0 {
            PackedRing::USED
        } else {
            PackedRing::AVAIL
        }
    }

    /// The two flags of a descriptor that is used here.
    pub(super) const fn used(self) -> u16 {
        if self.0 & WRAP == 0 {
            0
        } else {
            PackedRing::AVAIL | PackedRing::USED
        }
    }
}

/// The wrap counter in a [`Place`].
const WRAP: u16 = 1 << 15;
/// Where the flags of a descriptor are.
const FLAGS: usize = 14;
/// Bytes in an event suppression structure, which is aligned to as many.
const EVENT_LEN: u32 = 4;

const _: () = {
    assert!(size_of::<virtio::pvirtq::Desc>() == PackedRing::DESCRIPTOR_LEN as usize);
    assert!(core::mem::offset_of!(virtio::pvirtq::Desc, flags) == FLAGS);
    assert!(size_of::<virtio::pvirtq::EventSuppress>() == EVENT_LEN as usize);
};

fn address(table: u64, entry: u16) -> u64 {
    table.wrapping_add(u64::from(entry) * u64::from(PackedRing::DESCRIPTOR_LEN))
}

fn bytes(descriptor: PackedDescriptor) -> [u8; PackedRing::DESCRIPTOR_LEN as usize] {
    let mut bytes = [0; PackedRing::DESCRIPTOR_LEN as usize];
    bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&descriptor.id.to_le_bytes());
    bytes[14..].copy_from_slice(&descriptor.flags.to_le_bytes());
    bytes
}
