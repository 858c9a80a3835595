//! The local APIC, and the one place where interrupts come in.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use payload::ExitStatus;
use virtio_guest::MsixMessage;

use crate::{exit, machine, port};

/// How long a tick of the timer is, in milliseconds.
pub(crate) const TICK: u64 = 10;

/// Where the device's messages go: one vector each, to the first processor (Intel SDM 3, 11.11).
pub(crate) const MESSAGES: [MsixMessage; 4] = [
    MsixMessage {
        address: APIC,
        data: FIRST_MESSAGE,
    },
    MsixMessage {
        address: APIC,
        data: FIRST_MESSAGE + 1,
    },
    MsixMessage {
        address: APIC,
        data: FIRST_MESSAGE + 2,
    },
    MsixMessage {
        address: APIC,
        data: FIRST_MESSAGE + 3,
    },
];

/// Fills the interrupt descriptor table, and starts the APIC and its timer.
pub(crate) fn start() {
    let code_selector: u16;
    // SAFETY: reading a segment register changes nothing.
    unsafe { asm!("mov {0:x}, cs", out(reg) code_selector, options(nomem, nostack)) };
    let gate = |address: usize| {
        let address = address as u64;
        // An interrupt gate of privilege 0, present; interrupts go off when it is entered.
        let low = address & 0xffff
            | u64::from(code_selector) << 16
            | 0x8e00 << 32
            | (address >> 16 & 0xffff) << 48;
        [low, address >> 32]
    };
    // SAFETY: interrupts are off and this is called once, so nobody else reads or writes it.
    let table = unsafe { &mut *TABLE.0.get() };
    for (vector, entry) in table.iter_mut().enumerate() {
        // Each of the stubs is 16 bytes long.
        *entry = gate(interrupt_stubs as *const () as usize + vector * 16);
    }
    let pointer = TablePointer {
        limit: size_of::<Table>() as u16 - 1,
        base: TABLE.0.get(),
    };
    // SAFETY: the table is complete, static, and from here on read only by the processor.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) };

    // The legacy interrupt controllers have vectors that are exceptions' by now.
    for data_port in [0x21, 0xa1] {
        port::write_u8(data_port, 0xff);
    }
    write_apic(SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
    write_apic(TIMER_DIVIDE, DIVIDE_BY_1);
    write_apic(TIMER, TIMER_PERIODIC | TIMER_VECTOR);
    write_apic(TIMER_INITIAL, TICK as u32 * APIC_HZ_PER_MS);
}

/// How many ticks have passed; one that comes while another waits is lost.
pub(crate) fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed).into()
}

/// How many messages have come.
pub(crate) fn messages_received() -> u32 {
    MESSAGES_RECEIVED.load(Ordering::Relaxed)
}

/// Waits for one interrupt. One that is pending already is taken at once.
pub(crate) fn wait() {
    // SAFETY: as any function by the C calling convention, however it comes to its return.
    unsafe { wait_for_interrupt() };
}

/// Never returns.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing happens any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

// Interrupts are on only at the `hlt` of this function, so whoever called it expects no register
// to survive but those that the C convention preserves, and those nobody has touched. The handler
// therefore needs neither to save anything nor to return by `iretq`: it takes the stack pointer
// out of the interrupt's frame (SS, RSP, RFLAGS, CS, RIP from the top), drops the frame, and
// returns to the caller of this function, with interrupts off as the gate has left them.
//
// The first 32 vectors are exceptions, some of which push an error code; they end the program, and
// only print what is on the stack.
global_asm!(
    r#"
    .section .text, "ax"
    .globl wait_for_interrupt
wait_for_interrupt:
    sti
    hlt
    cli
    ret

    .balign 16
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    mov edi, vector
    .if vector < 32
    jmp 2f
    .else
    jmp 3f
    .endif
    .set vector, vector + 1
    .endr

2:  mov rsi, rsp
    and rsp, -16
    call {on_exception}
    ud2

3:  mov rsp, [rsp + 24]
    jmp {on_interrupt}
    "#,
    on_exception = sym on_exception,
    on_interrupt = sym on_interrupt,
);

unsafe extern "C" {
    fn wait_for_interrupt();
    fn interrupt_stubs();
}

/// Called instead of the rest of [`wait_for_interrupt`].
extern "C" fn on_interrupt(vector: u32) {
    match vector {
        TIMER_VECTOR => increment(&TICKS),
        FIRST_MESSAGE..LAST_MESSAGE => increment(&MESSAGES_RECEIVED),
        // A spurious interrupt is not to be acknowledged.
        SPURIOUS_VECTOR => return,
        _ => {}
    }
    write_apic(END_OF_INTERRUPT, 0);
}

/// Prints an exception and ends. `frame` is where the stack stood: error code, if there is one,
/// RIP, CS, RFLAGS, RSP, SS.
extern "C" fn on_exception(vector: u32, frame: *const [u64; 6]) -> ! {
    // SAFETY: the processor has just pushed five or six words there, onto our stack or what was
    // taken for it; the stack's page is mapped in either case.
    let frame = unsafe { frame.read() };
    let fault: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { asm!("mov {}, cr2", out(reg) fault, options(nomem, nostack, preserves_flags)) };
    // Not by `Debug`: `core` has vector instructions in how it prints a list.
    let [a, b, c, d, e, f] = frame;
    machine::print_line(format_args!(
        "exception {vector}, cr2 {fault:#x}, stack {a:#x} {b:#x} {c:#x} {d:#x} {e:#x} {f:#x}"
    ));
    exit(ExitStatus::Exception)
}

/// Not an atomic addition: there is one processor, and the handler is not interrupted.
fn increment(counter: &AtomicU32) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

fn write_apic(register: u64, value: u32) {
    let address = core::ptr::with_exposed_provenance_mut((APIC + register) as usize);
    // SAFETY: the APIC's registers are mapped to themselves, and no memory of Rust's.
    unsafe { core::ptr::write_volatile(address, value) };
}

static TICKS: AtomicU32 = AtomicU32::new(0);
static MESSAGES_RECEIVED: AtomicU32 = AtomicU32::new(0);

type Table = [[u64; 2]; 256];

#[repr(align(16))]
struct TableCell(UnsafeCell<Table>);

// SAFETY: written once by `start`, on the only processor, before it is in use.
unsafe impl Sync for TableCell {}

static TABLE: TableCell = TableCell(UnsafeCell::new([[0; 2]; 256]));

/// What LIDT reads.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: *const Table,
}

const FIRST_MESSAGE: u32 = 0x30;
const LAST_MESSAGE: u32 = FIRST_MESSAGE + MESSAGES.len() as u32;
const TIMER_VECTOR: u32 = 0x40;
const SPURIOUS_VECTOR: u32 = 0xff;

/// Where the APIC is after reset, and where messages to it go.
const APIC: u64 = 0xfee0_0000;
// Registers (Intel SDM 3, 11.4.1).
const END_OF_INTERRUPT: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;
const APIC_ENABLE: u32 = 1 << 8;
const TIMER_PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
/// KVM's timer counts nanoseconds.
const APIC_HZ_PER_MS: u32 = 1_000_000;
