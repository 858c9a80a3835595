//! The buffers of a chain on their way into the rings.

use super::packed::Place;
use super::{Descriptor, PackedDescriptor, PackedRing, SplitRing, Unpublished, VirtQueue};
use crate::{DmaRegion, Platform};

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) len: u32,
    /// `SplitRing::WRITE`, or 0.
    pub(super) write: u16,
    /// It is not the last.
    pub(super) more: bool,
}

impl Buffer {
    pub(super) fn next(self) -> u16 {
        if self.more { SplitRing::NEXT } else { 0 }
    }

    pub(super) fn split(self, next: u16) -> Descriptor {
        Descriptor {
            address: self.address,
            len: self.len,
            flags: self.write | self.next(),
            next: if self.more { next } else { 0 },
        }
    }
}

impl<const N: usize> VirtQueue<N> {
    /// Writes the descriptors of a chain and its entry of the available ring.
    pub(super) fn write_split<P: Platform>(
        &mut self,
        platform: &P,
        ring: SplitRing,
        buffers: impl Iterator<Item = Buffer>,
        table: Option<DmaRegion>,
    ) {
        let head = self.free_head;
        if let Some(table) = table {
            let mut count = 0;
            for (buffer, i) in buffers.zip(0..) {
                count = i + 1;
                let descriptor = buffer.split(count);
                SplitRing::write_descriptor_at(platform, table.address, i, descriptor);
            }
            let descriptor = Descriptor {
                address: table.address,
                len: u32::from(count) * SplitRing::DESCRIPTOR_LEN,
                flags: SplitRing::INDIRECT,
                next: 0,
            };
            ring.write_descriptor(platform, head, descriptor);
            self.free_head = self.following(head);
        } else {
            for buffer in buffers {
                let entry = self.free_head;
                let next = self.following(entry);
                ring.write_descriptor(platform, entry, buffer.split(next));
                self.free_head = next;
            }
        }
        ring.set_available(platform, self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Writes the descriptors of a chain, the flags of the first last (virtio 1.4, 2.8.21.1); of the first
    /// chain of a batch they are left for [`publish`](Self::publish). A device looks at no chain before it has
    /// seen the one before it, so the others may have theirs.
    pub(super) fn write_packed<P: Platform>(
        &mut self,
        platform: &P,
        ring: PackedRing,
        buffers: impl Iterator<Item = Buffer>,
        table: Option<DmaRegion>,
    ) {
        let id = self.free_head;
        let size = ring.layout().size;
        let first = Place::of(self.next_avail);
        let mut place = first;
        let mut first_flags = 0;
        let mut write = |descriptor: PackedDescriptor| {
            let flags = descriptor.flags | place.available();
            if place == first {
                first_flags = flags;
                // Not available: the flags are those that the slot has had.
                ring.write_body(platform, place.offset(), descriptor);
            } else {
                let descriptor = PackedDescriptor {
                    flags,
                    ..descriptor
                };
                ring.write_descriptor(platform, place.offset(), descriptor);
            }
            place = place.plus(1, size);
        };
        if let Some(table) = table {
            let mut len = 0;
            for (buffer, i) in buffers.zip(0..) {
                let descriptor = PackedDescriptor {
                    address: buffer.address,
                    len: buffer.len,
                    id: 0,
                    flags: buffer.write,
                };
                PackedRing::write_descriptor_at(platform, table.address, i, descriptor);
                len += PackedRing::DESCRIPTOR_LEN;
            }
            write(PackedDescriptor {
                address: table.address,
                len,
                id,
                flags: SplitRing::INDIRECT,
            });
        } else {
            for buffer in buffers {
                write(PackedDescriptor {
                    address: buffer.address,
                    len: buffer.len,
                    id,
                    flags: buffer.write | buffer.next(),
                });
            }
        }
        let count = Place::since(place, first, size);
        self.next_avail = place.value();
        self.free_head = self.following(id);
        match &mut self.unpublished {
            Some(batch) => {
                batch.count += count;
                ring.set_flags(platform, first.offset(), first_flags);
            }
            None => {
                self.unpublished = Some(Unpublished {
                    slot: first.offset(),
                    flags: first_flags,
                    count,
                });
            }
        }
    }
}
