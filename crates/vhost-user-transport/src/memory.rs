//! The front end's memory, as it was passed: regions that are guest memory, and where the front end has
//! them in its own address space.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

use crate::error::Refusal;

/// Guest memory as it is mapped here; replaced as a whole when the front end changes it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// Regions that a front end may have at once, as GET_MAX_MEM_SLOTS says. A hot-pluggable guest of QEMU's
/// has up to 256.
pub(crate) const MAX_REGIONS: usize = 256;

/// One region, and where it is for the front end.
#[derive(Debug)]
struct Region {
    guest: u64,
    user: u64,
    size: u64,
    /// Its file's device and inode, and where in the file it begins.
    file: (u64, u64, u64),
    /// How often it was added: QEMU 7.2 does so for each queue pair, and takes it away as often.
    times: usize,
    mapping: Arc<GuestRegionMmap<()>>,
}

/// The regions of one front end.
#[derive(Debug)]
pub(crate) struct Regions {
    memory: Memory,
    list: Vec<Region>,
}

impl Regions {
    pub(crate) fn new(memory: Memory) -> Self {
        Self {
            memory,
            list: Vec::new(),
        }
    }

    /// SET_MEM_TABLE: these and no others.
    pub(crate) fn set(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<(), Refusal> {
        if regions.len() != files.len() {
            return Err(Refusal::Unsupported(
                "a memory table with other than one descriptor a region",
            ));
        }
        let list = (regions.iter().zip(files))
            .map(|(region, file)| map(region, file))
            .collect::<Result<Vec<_>, _>>()?;
        self.replace(list)
    }

    /// ADD_MEM_REG.
    pub(crate) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<(), Refusal> {
        let metadata = file.metadata().map_err(|error| refusal(region, &error))?;
        let id = (metadata.dev(), metadata.ino(), region.mmap_offset);
        if let Some(same) =
            (self.list.iter_mut()).find(|other| other.is(region) && other.file == id)
        {
            same.times = same.times.saturating_add(1);
            return Ok(());
        }
        if self.list.len() >= MAX_REGIONS {
            return Err(refusal(region, "there are as many regions as there can be"));
        }
        let mut list: Vec<_> = self.list.iter().map(Region::share).collect();
        list.push(map(region, file)?);
        self.replace(list)
    }

    /// REM_MEM_REG.
    pub(crate) fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), Refusal> {
        let Some(there) = self.list.iter_mut().find(|other| other.is(region)) else {
            return Err(refusal(region, "there is no such region"));
        };
        if there.times > 1 {
            there.times -= 1;
            return Ok(());
        }
        let rest = self.list.iter().filter(|other| !other.is(region));
        let list = rest.map(Region::share).collect();
        self.replace(list)
    }

    /// The front end is gone.
    pub(crate) fn clear(&mut self) {
        // An empty list overlaps nothing.
        let _ = self.replace(Vec::new());
    }

    /// The guest's address of what is `address` to the front end.
    pub(crate) fn guest_address(&self, address: u64) -> Option<u64> {
        self.list.iter().find_map(|region| {
            let offset = address.checked_sub(region.user)?;
            (offset < region.size).then(|| region.guest + offset)
        })
    }

    fn replace(&mut self, mut list: Vec<Region>) -> Result<(), Refusal> {
        list.sort_by_key(|region| region.guest);
        let mappings = list.iter().map(|region| region.mapping.clone()).collect();
        let map = if list.is_empty() {
            GuestMemoryMmap::new()
        } else {
            GuestMemoryMmap::from_arc_regions(mappings).map_err(|error| Refusal::Memory {
                guest_address: list.first().map_or(0, |region| region.guest),
                size: list
                    .iter()
                    .map(|region| region.size)
                    .fold(0, u64::saturating_add),
                reason: error.to_string(),
            })?
        };
        match self.memory.lock() {
            Ok(guard) => guard.replace(map),
            Err(poisoned) => poisoned.into_inner().replace(map),
        }
        self.list = list;
        Ok(())
    }
}

impl Region {
    fn is(&self, other: &VhostUserMemoryRegion) -> bool {
        let (guest, user) = (other.guest_phys_addr, other.user_addr);
        self.guest == guest && self.user == user && self.size == other.memory_size
    }

    fn share(&self) -> Self {
        Self {
            mapping: self.mapping.clone(),
            ..*self
        }
    }
}

/// Maps a region. That its file is as long as it says is checked here; a front end that shortens it later
/// takes its own guest's memory away, and this process with it.
fn map(region: &VhostUserMemoryRegion, file: File) -> Result<Region, Refusal> {
    let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
    let len = usize::try_from(size).map_err(|error| refusal(region, &error))?;
    let metadata = file.metadata().map_err(|error| refusal(region, &error))?;
    let end = region.mmap_offset.checked_add(size);
    if end.is_none_or(|end| end > metadata.len()) {
        return Err(refusal(region, "its file is shorter"));
    }
    let mapping = MmapRegion::from_file(FileOffset::new(file, region.mmap_offset), len)
        .map_err(|error| refusal(region, &error))?;
    let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest))
        .ok_or_else(|| refusal(region, "it ends past the last address"))?;
    Ok(Region {
        guest,
        user,
        size,
        file: (metadata.dev(), metadata.ino(), region.mmap_offset),
        times: 1,
        mapping: Arc::new(mapping),
    })
}

fn refusal(region: &VhostUserMemoryRegion, reason: &(impl ToString + ?Sized)) -> Refusal {
    Refusal::Memory {
        guest_address: region.guest_phys_addr,
        size: region.memory_size,
        reason: reason.to_string(),
    }
}
