//! The PC as the driver's platform.

use core::arch::asm;
use core::fmt::{self, Write};
use core::ptr::{self, with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use payload::Machine;
use virtio_guest::{MsixMessage, Platform, Width};

use crate::{interrupts, paging, port};

/// The machine that this program runs on.
pub(crate) struct Pc {
    /// The last 2 MiB page above 4 GiB that was mapped.
    mapped: AtomicU64,
}

impl Pc {
    /// Starts what the machine needs for the clock and for messages.
    pub(crate) fn start() -> Self {
        interrupts::start();
        Self {
            mapped: AtomicU64::new(0),
        }
    }

    /// The address as a pointer, once it is mapped.
    fn device<T>(&self, address: u64) -> *mut T {
        let page = address >> 21;
        if address >> 32 != 0 && self.mapped.load(Ordering::Relaxed) != page {
            paging::map(address);
            self.mapped.store(page, Ordering::Relaxed);
        }
        with_exposed_provenance_mut(address as usize)
    }
}

impl Platform for Pc {
    fn mmio_read(&self, address: u64, width: Width) -> u64 {
        // SAFETY: the driver reads within BARs, which hold no memory of Rust's.
        unsafe {
            match width {
                Width::U8 => ptr::read_volatile(self.device::<u8>(address)).into(),
                Width::U16 => ptr::read_volatile(self.device::<u16>(address)).into(),
                Width::U32 => ptr::read_volatile(self.device::<u32>(address)).into(),
                Width::U64 => ptr::read_volatile(self.device::<u64>(address)),
            }
        }
    }

    fn mmio_write(&self, address: u64, width: Width, value: u64) {
        // SAFETY: as for reads; what a device does to memory it does to memory that the driver
        // has given it.
        unsafe {
            match width {
                Width::U8 => ptr::write_volatile(self.device(address), value as u8),
                Width::U16 => ptr::write_volatile(self.device(address), value as u16),
                Width::U32 => ptr::write_volatile(self.device(address), value as u32),
                Width::U64 => ptr::write_volatile(self.device(address), value),
            }
        }
    }

    fn port_read(&self, port: u16, width: Width) -> u32 {
        match width {
            Width::U8 => port::read_u8(port).into(),
            Width::U16 => port::read_u16(port).into(),
            Width::U32 | Width::U64 => port::read_u32(port),
        }
    }

    fn port_write(&self, port: u16, width: Width, value: u32) {
        match width {
            Width::U8 => port::write_u8(port, value as u8),
            Width::U16 => port::write_u16(port, value as u16),
            Width::U32 | Width::U64 => port::write_u32(port, value),
        }
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        let from = with_exposed_provenance(address as usize);
        // SAFETY: the driver reads within the memory of `BootInfo`, which is mapped to itself,
        // outside of the image, and read by nothing but copies; `data` is in the image.
        unsafe { ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len()) };
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        let to = with_exposed_provenance_mut(address as usize);
        // SAFETY: as in `memory_read`.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        let from = with_exposed_provenance_mut(address as usize);
        // SAFETY: as in `memory_read`; the address is even.
        unsafe { AtomicU16::from_ptr(from) }.load(Ordering::Acquire)
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        let to = with_exposed_provenance_mut(address as usize);
        // SAFETY: as in `memory_read`; the address is even.
        unsafe { AtomicU16::from_ptr(to) }.store(value, Ordering::Release);
    }

    fn barrier(&self) {
        // Any locked instruction is a full barrier, and the emulator knows no other.
        // SAFETY: adds nothing to the word on top of the stack.
        unsafe { asm!("lock or dword ptr [rsp], 0") };
    }
}

impl Machine for Pc {
    fn now(&self) -> u64 {
        interrupts::ticks() * interrupts::TICK
    }

    fn sleep(&self) {
        interrupts::wait();
    }

    fn messages(&self) -> &[MsixMessage] {
        &interrupts::MESSAGES
    }

    fn messages_received(&self) -> u32 {
        interrupts::messages_received()
    }

    fn print(&self, line: fmt::Arguments<'_>) {
        print_line(line);
    }
}

/// Writes a line to the serial port.
pub(crate) fn print_line(line: fmt::Arguments<'_>) {
    // The port takes everything.
    let _ = writeln!(Serial, "{line}");
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            port::write_u8(SERIAL, byte);
        }
        Ok(())
    }
}

/// The first serial port's transmit register.
const SERIAL: u16 = 0x3f8;
