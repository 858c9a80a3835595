//! The embedded guest's program run in this process, where no processor can be had for it: the
//! same driver on the same machine, through the same ports, BARs and messages.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use payload::{BootInfo, ExitStatus, Machine as _};
use virtio_guest::{MsixMessage, Platform, Width};

use crate::machine::{DriverView, Event, Machine, ManualInterrupts};
use crate::output::say;

/// Starts the program on `machine`, whose interrupts are `interrupts`. It prints to standard output,
/// and ends with an [`Event::GuestExit`].
///
/// # Errors
/// When there is no thread to be had.
pub(super) fn start(
    machine: &Arc<Machine>,
    interrupts: &Arc<ManualInterrupts>,
    info: BootInfo,
) -> io::Result<()> {
    let guest = InProcessGuest {
        view: DriverView::new(machine.clone()),
        interrupts: interrupts.clone(),
        started: Instant::now(),
        received: AtomicU32::new(0),
    };
    let control = machine.control().clone();
    // Nobody joins it: it ends by itself, and the process does not wait for one that does not.
    thread::Builder::new().name("guest".into()).spawn(move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&guest, &info)));
        control.report(match ended {
            Ok(status) => Event::GuestExit(status as u8),
            Err(_) => Event::Failed("the guest program has panicked".into()),
        });
    })?;
    Ok(())
}

fn run(guest: &InProcessGuest, info: &BootInfo) -> ExitStatus {
    match payload::run(guest, info) {
        Ok(summary) => summary.status(),
        Err(None) => {
            guest.print(format_args!("no virtio-net device on bus 0"));
            ExitStatus::NoDevice
        }
        Err(Some(error)) => {
            guest.print(format_args!("the device cannot be driven: {error}"));
            ExitStatus::NoDevice
        }
    }
}

#[derive(Debug)]
struct InProcessGuest {
    view: DriverView,
    interrupts: Arc<ManualInterrupts>,
    started: Instant,
    received: AtomicU32,
}

impl payload::Machine for InProcessGuest {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn sleep(&self) {
        let messages = self.interrupts.wait(TICK).len();
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        self.received.fetch_add(messages, Ordering::Relaxed);
    }

    fn messages(&self) -> &[MsixMessage] {
        &MESSAGES
    }

    fn messages_received(&self) -> u32 {
        self.received.load(Ordering::Relaxed)
    }

    fn print(&self, line: fmt::Arguments<'_>) {
        say(line);
    }
}

/// As the view has it.
impl Platform for InProcessGuest {
    fn mmio_read(&self, address: u64, width: Width) -> u64 {
        self.view.mmio_read(address, width)
    }

    fn mmio_write(&self, address: u64, width: Width, value: u64) {
        self.view.mmio_write(address, width, value);
    }

    fn port_read(&self, port: u16, width: Width) -> u32 {
        self.view.port_read(port, width)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) {
        self.view.port_write(port, width, value);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.view.memory_read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.view.memory_write(address, data);
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        self.view.memory_load_u16(address)
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        self.view.memory_store_u16(address, value);
    }

    fn barrier(&self) {
        self.view.barrier();
    }
}

/// How long the program sleeps at most.
const TICK: Duration = Duration::from_millis(10);

/// Messages as a guest on a processor would choose them: to the first processor, one vector each.
const MESSAGES: [MsixMessage; 4] = [message(0x40), message(0x41), message(0x42), message(0x43)];

const fn message(vector: u32) -> MsixMessage {
    MsixMessage {
        address: 0xfee0_0000,
        data: vector,
    }
}
