//! What is asked of guest memory.

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, Permissions};

use crate::QueueError;

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

/// Finds the host's address of `len` bytes that must lie in one piece.
pub(crate) fn one_piece<G: GuestMemory>(
    map: &G,
    address: u64,
    len: usize,
    access: Permissions,
) -> Option<*mut u8> {
    let mut slices = map.get_slices(GuestAddress(address), len, access).ok()?;
    let slice = slices.next()?.ok()?;
    (slice.len() == len).then(|| slice.ptr_guard_mut().as_ptr())
}

/// Marks memory dirty that was written through a pointer. Costs nothing where nothing is tracked.
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

/// Reads one descriptor of an indirect table, which may lie anywhere and across regions.
pub(crate) fn read_descriptor<G: GuestMemory>(
    map: &G,
    address: GuestAddress,
) -> Result<virtio_queue::desc::split::Descriptor, QueueError> {
    map.read_obj(address)
        .map_err(|_| QueueError::Memory { address, len: 16 })
}
