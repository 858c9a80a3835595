//! What is asked of guest memory, and where in this process it is.
#![expect(unsafe_code, reason = "descriptors are read in place in guest memory")]

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryRegion,
    Permissions,
};

use crate::QueueError;
use crate::error::{Fault, fault};

/// Guest memory that a queue can work on: any [`GuestAddressSpace`] that, with its snapshots, may
/// move to the thread of the data path.
///
/// Implemented for whatever qualifies, so nobody implements it by hand; it gives a name to the bounds.
/// `Arc<GuestMemoryMmap>` and `GuestMemoryAtomic<GuestMemoryMmap>` qualify.
pub trait QueueMemory: GuestAddressSpace<T: Send + Sync> + Send + Sync + 'static {}

impl<M> QueueMemory for M
where
    M: GuestAddressSpace + Send + Sync + 'static,
    M::T: Send + Sync,
{
}

/// The region of guest memory that an address was last found in, and where it is mapped: most
/// addresses of a queue lie in one region, so most are translated by a subtraction and two comparisons.
///
/// Holds for one snapshot of guest memory and is forgotten with it. Memory behind an IOMMU has no
/// regions in this sense; there nothing is ever found, and each address is translated anew.
pub(crate) struct Translation {
    start: u64,
    /// 0: none.
    len: u64,
    host: *mut u8,
}

// SAFETY: an address and a length; nothing is done through the pointer here.
unsafe impl Send for Translation {}
// SAFETY: as above.
unsafe impl Sync for Translation {}

impl Translation {
    pub(crate) const NONE: Self = Self {
        start: 0,
        len: 0,
        host: ptr::null_mut(),
    };

    /// The host's address of `len` bytes of guest memory if all of them lie in one region.
    /// `map` is the same each time, until all is forgotten.
    #[inline(always)]
    pub(crate) fn find<G: GuestMemory>(
        &mut self,
        map: &G,
        address: u64,
        len: u32,
    ) -> Option<*mut u8> {
        self.known(address, len).or_else(|| {
            self.learn(map, address);
            self.known(address, len)
        })
    }

    /// As [`find`](Self::find), in the region that the last address was in.
    #[inline(always)]
    pub(crate) fn known(&self, address: u64, len: u32) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.start);
        // An address below the region gives an offset past any region's end, as no region is so long
        // that both could be: `start + len` does not overflow.
        let fits = offset < self.len && u64::from(len) <= self.len - offset;
        // Within one mapping of this process, so within its address space.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "less than a mapping's length"
        )]
        fits.then(|| self.host.wrapping_add(offset as usize))
    }

    #[cold]
    #[inline(never)]
    fn learn<G: GuestMemory>(&mut self, map: &G, address: u64) {
        let found = map.physical_memory().and_then(|memory| {
            let region = memory.find_region(GuestAddress(address))?;
            // All of it is one piece of this process, or it is not looked at here.
            let host = region.as_volatile_slice().ok()?.ptr_guard_mut().as_ptr();
            Some((region.start_addr().0, region.len(), host))
        });
        if let Some((start, len, host)) = found {
            *self = Self { start, len, host };
        }
    }
}

/// One descriptor of any kind: its two halves, each read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    /// The address of the buffer.
    pub(crate) address: u64,
    /// The rest, the field at the lowest address lowest.
    pub(crate) rest: u64,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of a word"
)]
impl Raw {
    pub(crate) const SIZE: usize = 16;

    /// Reads the descriptor at `at`, the half without the address first, and with `order`.
    ///
    /// # Safety
    /// `at` is aligned to 8, and 16 bytes of memory are mapped there that this process only ever
    /// accesses atomically or not through references.
    #[inline]
    pub(crate) unsafe fn load(at: *const u8, order: Ordering) -> Self {
        // The atomics have no need of a mutable place, but of its address.
        let address = at.cast_mut().cast::<u64>();
        // SAFETY: the second of two words, both of which the caller vouches for.
        let rest = unsafe { address.add(1) };
        // SAFETY: as the caller says.
        let rest = u64::from_le(unsafe { AtomicU64::from_ptr(rest) }.load(order));
        // SAFETY: as the caller says.
        let address = unsafe { AtomicU64::from_ptr(address) }.load(Ordering::Relaxed);
        Self {
            address: u64::from_le(address),
            rest,
        }
    }

    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        self.rest as u32
    }

    /// Split: flags. Packed: buffer id.
    #[inline(always)]
    pub(crate) fn third(self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// Split: next. Packed: flags.
    #[inline(always)]
    pub(crate) fn fourth(self) -> u16 {
        (self.rest >> 48) as u16
    }
}

/// A table of descriptors that a descriptor refers to.
pub(crate) struct Table<'a, G> {
    map: &'a G,
    address: u64,
    entries: u32,
    /// Where it is, if it is in one piece and aligned.
    host: Option<*const u8>,
}

impl<'a, G: GuestMemory> Table<'a, G> {
    /// The table of `len` bytes at `address`.
    ///
    /// # Errors
    /// [`QueueError::IndirectLength`] when it is empty or has a part of a descriptor.
    #[inline]
    pub(crate) fn new(
        map: &'a G,
        translation: &mut Translation,
        address: u64,
        len: u32,
    ) -> Result<Self, Fault> {
        if len == 0 || !len.is_multiple_of(16) {
            return Err(fault(QueueError::IndirectLength(len)));
        }
        let host = translation
            .find(map, address, len)
            .filter(|host| host.addr().is_multiple_of(align_of::<u64>()));
        Ok(Self {
            map,
            address,
            entries: len / 16,
            host: host.map(<*mut u8>::cast_const),
        })
    }

    #[inline]
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Descriptor `index`, which is one of the table.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> Result<Raw, Fault> {
        debug_assert!(index < self.entries);
        let offset = u64::from(index) * Raw::SIZE as u64;
        match self.host {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "less than a mapping's length"
            )]
            Some(host) if index < self.entries => {
                let at = host.wrapping_add(offset as usize);
                // SAFETY: the table was found to be all in one mapping, aligned to 8, and the snapshot
                // that keeps it mapped is borrowed. Nothing in this process has a reference into it. The
                // driver wrote it before it made the chain available, which was acquired.
                Ok(unsafe { Raw::load(at, Ordering::Relaxed) })
            }
            _ => self.entry_anywhere(offset),
        }
    }

    /// As [`entry`](Self::entry) for a table that lies anywhere and across regions.
    #[cold]
    fn entry_anywhere(&self, offset: u64) -> Result<Raw, Fault> {
        let unmapped = || {
            fault(QueueError::Memory {
                address: GuestAddress(self.address),
                len: self.entries.saturating_mul(16),
            })
        };
        let address = self.address.checked_add(offset).ok_or_else(unmapped)?;
        if !has_an_end(address, Raw::SIZE) {
            return Err(unmapped());
        }
        let [address, rest] = self
            .map
            .read_obj::<[u64; 2]>(GuestAddress(address))
            .map_err(|_| unmapped())?;
        Ok(Raw {
            address: u64::from_le(address),
            rest: u64::from_le(rest),
        })
    }
}

/// Whether the byte behind `len` bytes at `address` has an address. No memory is so high that it had none, and an
/// IOMMU's look-up reckons with that address: `vm_memory::Iotlb` adds without a look.
#[inline]
pub(crate) fn has_an_end(address: u64, len: usize) -> bool {
    address.checked_add(len as u64).is_some()
}

/// Finds the host's address of `len` bytes of a ring that must lie in one piece, aligned to `align`.
pub(crate) fn ring_memory<G: GuestMemory>(
    map: &G,
    ring: &'static str,
    address: u64,
    (len, align): (usize, usize),
    access: Permissions,
) -> Result<*mut u8, QueueError> {
    let ptr =
        one_piece(map, address, len, access).ok_or(QueueError::RingMemory { ring, address })?;
    // A region could be mapped at an odd address, so a guest's alignment is not the host's.
    if ptr.addr().is_multiple_of(align) {
        Ok(ptr)
    } else {
        Err(QueueError::Alignment { ring, address })
    }
}

fn one_piece<G: GuestMemory>(
    map: &G,
    address: u64,
    len: usize,
    access: Permissions,
) -> Option<*mut u8> {
    if !has_an_end(address, len) {
        return None;
    }
    let mut slices = map.get_slices(GuestAddress(address), len, access).ok()?;
    let slice = slices.next()?.ok()?;
    (slice.len() == len).then(|| slice.ptr_guard_mut().as_ptr())
}

/// Marks memory dirty that was written through a pointer. Costs nothing where nothing is tracked.
#[inline]
pub(crate) fn mark_dirty<G: GuestMemory>(map: &G, address: GuestAddress, len: usize) {
    if size_of::<G::Bitmap>() == 0 {
        return;
    }
    let Ok(slices) = map.get_slices(address, len, Permissions::Write) else {
        return;
    };
    // An address that was translated once in this map translates again, so nothing is missed.
    for slice in slices.flatten() {
        slice.bitmap().mark_dirty(0, slice.len());
    }
}
