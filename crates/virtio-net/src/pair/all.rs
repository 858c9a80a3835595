//! What is done to all pairs, or to none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use net_client::Offloads;
use virtio::net::F as NetF;
use virtqueue::QueueMemory;

use super::Pair;
use crate::features::guest_offloads;
use crate::rsc::Families;
use crate::shared::{Shared, lock};

/// Makes the first `count` pairs those that the driver uses (virtio 1.4, 5.1.9.5.6).
///
/// # Errors
/// When a backend cannot take part; the pairs in use are then as they were.
#[doc(alias = "virtio_net_set_queue_pairs")]
pub(crate) fn set_queue_pairs<M: QueueMemory>(
    pairs: &[Arc<Pair<M>>],
    count: usize,
) -> io::Result<()> {
    let (used, unused) = pairs.split_at(count.min(pairs.len()));
    let before = |pair: &&Arc<Pair<M>>| pair.enabled.load(Ordering::Relaxed);
    let added: Vec<_> = used.iter().filter(|pair| !before(pair)).collect();
    for pair in &added {
        if let Err(error) = pair.set_enabled(true) {
            for pair in &added {
                // Always done.
                let _ = pair.set_enabled(false);
            }
            return Err(error);
        }
    }
    unused.iter().try_for_each(|pair| pair.set_enabled(false))
}

/// Tells all backends what the driver copes with, of these features, and has all pairs put together no other packets'
/// segments.
///
/// # Errors
/// When a backend refuses; nothing has changed then.
pub(crate) fn set_guest_offloads<M: QueueMemory>(
    shared: &Shared,
    pairs: &[Arc<Pair<M>>],
    copes_with: NetF,
) -> io::Result<()> {
    set_offloads(pairs, guest_offloads(copes_with))?;
    let families = Families::of(copes_with);
    // Queues that begin meanwhile have it from there.
    *lock(&shared.families) = families;
    for pair in pairs {
        pair.set_families(families);
    }
    Ok(())
}

/// Tells all backends what the driver copes with.
///
/// # Errors
/// When one refuses; those before it are then told again what they were told before.
#[doc(alias = "virtio_net_apply_guest_offloads")]
pub(crate) fn set_offloads<M: QueueMemory>(
    pairs: &[Arc<Pair<M>>],
    offloads: Offloads,
) -> io::Result<()> {
    let mut changed = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let before = *lock(&pair.offloads);
        if let Err(error) = pair.set_offloads(offloads) {
            for (pair, before) in changed.into_iter().rev() {
                if let Err(error) = Pair::set_offloads(pair, before) {
                    tracing::warn!(pair = pair.name, %error, "backend keeps offloads it was to drop");
                }
            }
            return Err(error);
        }
        changed.push((pair, before));
    }
    Ok(())
}
