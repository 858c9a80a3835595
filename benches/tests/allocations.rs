//! No frame costs an allocation, either way, whatever its buffers.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use benches::{Buffers, FrameSize, Receiver, Round, Transmitter, warmed_up};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations in the device's part of so many batches, after some have gone before.
fn allocations<R: Round>(round: R) -> u64 {
    let mut round = warmed_up(round);
    let mut allocations = 0;
    for batch in 0..40 {
        let frames = round.batch();
        round.prepare(frames);
        let before = COUNT.with(Cell::get);
        round.work();
        // Until each list has its room.
        if batch >= 20 {
            allocations += COUNT.with(Cell::get) - before;
        }
        round.conclude(frames);
    }
    allocations
}

#[test]
fn a_frame_that_is_sent_costs_no_allocation() {
    for size in FrameSize::ALL {
        for buffers in [Buffers::Direct, Buffers::Indirect, Buffers::Mergeable] {
            let made = allocations(Transmitter::new(size, buffers));
            assert_eq!(made, 0, "{size:?} {buffers:?}");
        }
    }
}

#[test]
fn a_frame_that_is_received_costs_no_allocation() {
    for size in FrameSize::ALL {
        for buffers in [Buffers::Direct, Buffers::Indirect, Buffers::Mergeable] {
            let made = allocations(Receiver::new(size, buffers));
            assert_eq!(made, 0, "{size:?} {buffers:?}");
        }
    }
}
