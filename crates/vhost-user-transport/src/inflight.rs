//! In-flight tracking: the memory in which a back end writes down what it has taken, and which its front end keeps for
//! the next one (vhost-user, "Inflight I/O tracking").
//!
//! One region for each queue, one behind the other, laid out by the rings' format. The front end only keeps it, but it is its
//! memory: whatever is found there when a ring starts is copied and checked, and nothing is read from it
//! afterwards.
#![expect(unsafe_code, reason = "a file in memory is made and sealed")]

mod packed;
mod shared;
mod split;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserInflight;
use virtqueue::{InFlightRecord, QueueConfig, QueueState};
use vm_memory::{FileOffset, GuestMemory, MmapRegion};

use crate::error::Refusal;
use packed::PackedRecord;
use shared::Shared;
use split::SplitRecord;

/// The memory that a front end passed.
#[derive(Debug)]
pub(crate) struct Inflight {
    mapping: Arc<MmapRegion>,
    queues: u16,
    queue_size: u16,
}

/// GET_INFLIGHT_FD: makes the memory for so many queues of such a size, all of it zeros: not in use yet.
pub(crate) fn make(asked: &VhostUserInflight) -> Result<(VhostUserInflight, File), Refusal> {
    // Rings may turn out to be of either format; that of packed ones is the longer.
    let size = region_len(asked.queue_size, true) * u64::from(asked.num_queues);
    let file = memory_file(size).map_err(|source| Refusal::Host {
        what: "memory for the in-flight record",
        source,
    })?;
    let made = VhostUserInflight::new(size, 0, asked.num_queues, asked.queue_size);
    Ok((made, file))
}

impl Inflight {
    /// SET_INFLIGHT_FD.
    pub(crate) fn new(passed: &VhostUserInflight, file: File) -> Result<Self, Refusal> {
        let refused = |reason: String| Refusal::Inflight(reason);
        let (size, offset) = (passed.mmap_size, passed.mmap_offset);
        let end = offset.checked_add(size);
        let len = file
            .metadata()
            .map_err(|error| refused(error.to_string()))?
            .len();
        if end.is_none_or(|end| end > len) {
            return Err(refused(format!(
                "{size:#x} bytes at {offset:#x} are not in a file of {len:#x}"
            )));
        }
        // At least what split rings need; whether it is enough shows when a ring starts.
        let least = region_len(passed.queue_size, false) * u64::from(passed.num_queues);
        if passed.queue_size == 0 || passed.num_queues == 0 || size < least {
            return Err(refused(format!(
                "{size:#x} bytes do not hold {} queues of {} entries",
                passed.num_queues, passed.queue_size
            )));
        }
        let size = usize::try_from(size).map_err(|error| refused(error.to_string()))?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), size)
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self {
            mapping: Arc::new(mapping),
            queues: passed.num_queues,
            queue_size: passed.queue_size,
        })
    }

    /// The record of ring `index`, and where that ring goes on by it: what is in flight is taken again first. A
    /// ring that has none yet goes on from `base`.
    pub(crate) fn record<G: GuestMemory>(
        &self,
        index: u16,
        config: &QueueConfig,
        packed: bool,
        base: QueueState,
        map: &G,
    ) -> Result<(Arc<dyn InFlightRecord>, QueueState), Refusal> {
        if index >= self.queues || config.size > self.queue_size {
            return Err(Refusal::Inflight(format!(
                "ring {index} of {} entries has no place in one of {} queues of {}",
                config.size, self.queues, self.queue_size
            )));
        }
        let shared = self.region(index, packed).ok_or_else(|| {
            Refusal::Inflight(format!("it ends before the region of ring {index}"))
        })?;
        let refused = |reason| Refusal::Inflight(format!("ring {index}: {reason}"));
        if packed {
            let (record, state) =
                PackedRecord::open(shared, self.queue_size, config, base, map).map_err(refused)?;
            Ok((Arc::new(record), state))
        } else {
            let (record, state) =
                SplitRecord::open(shared, self.queue_size, config, base, map).map_err(refused)?;
            Ok((Arc::new(record), state))
        }
    }

    /// Ring `index` was stopped, and its front end told where. With nothing in flight that is all there is to know, and
    /// what comes next may be another driver's ring: it begins a record of its own.
    pub(crate) fn stopped(&self, index: u16, packed: bool) {
        let Some(shared) = self.region(index, packed) else {
            return;
        };
        let mut in_flight = (0..self.queue_size).map(|entry| match packed {
            true => packed::is_in_flight(&shared, entry),
            false => split::is_in_flight(&shared, entry),
        });
        if !in_flight.any(|in_flight| in_flight) {
            shared.store(VERSION, 0_u16);
        }
    }

    /// The device was reset: nothing is in flight on any ring.
    pub(crate) fn forget(&self, packed: bool) {
        for index in 0..self.queues {
            if let Some(shared) = self.region(index, packed) {
                shared.store(VERSION, 0_u16);
            }
        }
    }

    fn region(&self, index: u16, packed: bool) -> Option<Shared> {
        if index >= self.queues {
            return None;
        }
        let len = usize::try_from(region_len(self.queue_size, packed)).ok()?;
        let at = usize::from(index).checked_mul(len)?;
        Shared::new(self.mapping.clone(), at, len)
    }
}

/// Where a region of either format says which version it is; 0 says that it is not in use.
const VERSION: usize = 8;

/// What is wrong with a queue's region.
type Reason = String;

/// The bytes of one queue's region. Back ends agree on the alignment, of which the protocol does not speak.
fn region_len(queue_size: u16, packed: bool) -> u64 {
    let (head, entry) = if packed {
        (packed::HEAD, packed::ENTRY)
    } else {
        (split::HEAD, split::ENTRY)
    };
    (head as u64 + entry as u64 * u64::from(queue_size)).next_multiple_of(64)
}

/// A file of zeros that lies in memory, and that nobody can make shorter while it is mapped here.
fn memory_file(size: u64) -> io::Result<File> {
    const NAME: &CStr = c"vhost-user-inflight";
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(NAME.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open, and the call takes no pointer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
