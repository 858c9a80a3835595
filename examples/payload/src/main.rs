//! The guest program on bare hardware: a PC with one processor in 64-bit mode and no firmware.
//!
//! # How it starts
//!
//! The VMM loads the ELF's `PT_LOAD` segments, with zeros where a segment is longer than its part
//! of the file, and starts the first processor at the entry address so:
//!
//! - 64-bit mode, flat segments from a descriptor table outside of the image, interrupts off, no
//!   need for SSE to be enabled;
//! - paging on; at least the first 4 GiB are mapped to themselves, page tables included. Device
//!   memory above is mapped by the program, in 2 MiB pages, into those tables;
//! - RDI holds the address of [`BootInfo`]'s bytes; its `dma` memory lies outside of the image. The
//!   stack is the program's own.
//!
//! # What it uses
//!
//! Serial port 0x3f8 for text, always ready; configuration mechanism 1; BARs that have addresses
//! already; the local APIC at 0xfee00000, whose timer runs at KVM's 1 GHz and stands for a clock;
//! messages of MSI-X to it.
//!
//! # How it ends
//!
//! With a byte written to port 0xf4: an [`ExitStatus`].
//!
//! # What it is built for
//!
//! Some hosts run it in KVM's instruction emulator, which has no SSE, no fences and no `iretq`, and
//! does about a million instructions a second. So the build forbids the first two (`build.rs` of
//! the examples looks), and interrupts are let in at one place only, which needs no return.

#![no_std]
#![no_main]

mod interrupts;
mod machine;
mod memory_functions;
mod paging;
mod port;

use core::arch::global_asm;
use core::panic::PanicInfo;

use payload::{BootInfo, EXIT_PORT, ExitStatus, Machine as _};

use machine::Pc;

global_asm!(
    r#"
    .section .text._start, "ax"
    .globl _start
_start:
    cld
    lea rsp, [rip + {stack} + {stack_len}]
    xor ebp, ebp
    call {start}
    ud2
    "#,
    stack = sym STACK,
    stack_len = const size_of::<Stack>(),
    start = sym start,
);

/// Where the stack is; its top is aligned as a call wants it.
#[repr(align(4096))]
struct Stack(#[expect(dead_code, reason = "used by its address")] [u8; 512 << 10]);
static mut STACK: Stack = Stack([0; 512 << 10]);

/// Called once, on the empty stack, with what RDI held.
extern "C" fn start(info: *const [u8; BootInfo::LEN]) -> ! {
    // SAFETY: the VMM promises that RDI points at this many bytes, which nobody writes.
    let info = unsafe { info.as_ref() };
    let Some(info) = info.and_then(BootInfo::from_bytes) else {
        exit(ExitStatus::NoBootInfo);
    };
    let pc = Pc::start();
    let status = match payload::run(&pc, &info) {
        Ok(summary) => summary.status(),
        Err(None) => {
            pc.print(format_args!("no virtio-net device on bus 0"));
            ExitStatus::NoDevice
        }
        Err(Some(error)) => {
            pc.print(format_args!("the device cannot be driven: {error}"));
            ExitStatus::NoDevice
        }
    };
    exit(status)
}

/// Tells the VMM, which never returns from it; nor does this if it does.
fn exit(status: ExitStatus) -> ! {
    port::write_u8(EXIT_PORT, status as u8);
    interrupts::halt()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    machine::print_line(format_args!("{info}"));
    exit(ExitStatus::Panic)
}

/// `core` was compiled to unwind and names this; with `panic = "abort"` nobody calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
