//! What the driver asks of its platform: memory that the device reaches.
//!
//! The driver's own buffers are in this process's memory and not in the guest's, so each is copied to
//! the guest's when it is shared, and back when it is unshared, as under a hypervisor that protects its
//! guests' memory.
#![expect(
    unsafe_code,
    reason = "the driver reaches shared memory through pointers"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only what is marked as a test for one"
)]

use std::cell::RefCell;
use std::ptr::NonNull;

use examples::machine::Memory;
use examples::machine::layout::MIB;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Pages of the guest's memory, handed out to the driver that runs on this thread.
pub(crate) struct GuestPages {
    memory: Memory,
    taken: [bool; PAGES],
}

impl GuestPages {
    /// From now on, and until the next call, the driver on this thread has its pages in `memory`.
    pub(crate) fn provide(memory: &Memory) {
        let pages = Self {
            memory: memory.clone(),
            taken: [false; PAGES],
        };
        PROVIDED.with_borrow_mut(|provided| *provided = Some(pages));
    }

    /// How many pages the driver has.
    pub(crate) fn taken() -> usize {
        Self::with(|pages| pages.taken.iter().filter(|taken| **taken).count())
    }

    fn with<T>(use_them: impl FnOnce(&mut Self) -> T) -> T {
        PROVIDED
            .with_borrow_mut(|pages| use_them(pages.as_mut().expect("pages are provided first")))
    }

    /// The first of `count` adjacent pages, filled with `byte`.
    fn take(&mut self, count: usize, byte: u8) -> GuestAddress {
        let first = self
            .taken
            .windows(count)
            .position(|window| !window.contains(&true))
            .expect("the driver has more pages than it can need");
        self.taken[first..first + count].fill(true);
        let address = GuestAddress(FIRST_PAGE + (first * PAGE_SIZE) as u64);
        let content = vec![byte; count * PAGE_SIZE];
        self.memory.write_slice(&content, address).unwrap();
        address
    }

    fn give_back(&mut self, address: PhysAddr, count: usize) {
        let first = usize::try_from(address - FIRST_PAGE).unwrap() / PAGE_SIZE;
        let pages = &mut self.taken[first..first + count];
        assert!(!pages.contains(&false), "given back twice: {address:#x}");
        pages.fill(false);
    }
}

/// As [`GuestPages`] has it.
pub(crate) struct GuestHal;

// SAFETY: pages are adjacent in one mapping of guest memory that lives as long as it is provided,
// aligned as the mapping is, zeroed, and handed out once until they are given back.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        GuestPages::with(|guest| {
            let address = guest.take(pages, 0);
            let pointer = guest.memory.get_host_address(address).unwrap();
            (address.0, NonNull::new(pointer).unwrap())
        })
    }

    unsafe fn dma_dealloc(address: PhysAddr, _pointer: NonNull<u8>, pages: usize) -> i32 {
        GuestPages::with(|guest| guest.give_back(address, pages));
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("our transport makes no pointer to a register: {address:#x}")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        GuestPages::with(|guest| {
            // What the device does not write stays recognizable.
            let address = guest.take(buffer.len().div_ceil(PAGE_SIZE), 0xa5);
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller's buffer is valid, and nobody else touches it during the call.
                let bytes = unsafe { buffer.as_ref() };
                guest.memory.write_slice(bytes, address).unwrap();
            }
            address.0
        })
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        GuestPages::with(|guest| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's buffer is valid, and nobody else touches it during the call.
                let bytes = unsafe { buffer.as_mut() };
                guest
                    .memory
                    .read_slice(bytes, GuestAddress(address))
                    .unwrap();
            }
            guest.give_back(address, buffer.len().div_ceil(PAGE_SIZE));
        });
    }
}

thread_local! {
    static PROVIDED: RefCell<Option<GuestPages>> = const { RefCell::new(None) };
}

const FIRST_PAGE: u64 = 4 * MIB;
const PAGES: usize = 1024;
