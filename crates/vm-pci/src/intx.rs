//! Interrupt pins: a function's side of its line, and the lines of a bus with their sharing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::address::DevFn;
use crate::irq::{IntxLine, IntxPin, IrqLines};
use crate::lock::Locked;

/// A function's interrupt pin: asserted while something is pending and nothing forbids it.
///
/// It has a lock of its own, so that the path that raises an interrupt needs no other. Lock
/// order: the function's lock, then this one, then the shared line's.
#[derive(Debug, Default)]
pub struct Intx {
    state: Mutex<IntxState>,
}

#[derive(Debug, Default)]
struct IntxState {
    line: Option<Arc<dyn IntxLine>>,
    pending: bool,
    /// The command register's INTX_DISABLE, or MSI-X is on (PCI 3.0, 6.8.2).
    suppressed: bool,
}

impl Intx {
    /// Runs `pending`, which changes the model's own interrupt status and returns whether
    /// an interrupt is pending after that, and sets the pin to match. Two updates never interleave,
    /// so the pin always fits the status. `pending` must not call into the function's bus.
    pub fn update(&self, pending: impl FnOnce() -> bool) {
        self.change(|state| state.pending = pending());
    }

    /// What the last [`update`](Self::update) returned: the status register's interrupt bit.
    pub fn pending(&self) -> bool {
        self.state.locked().pending
    }

    pub(crate) fn connect(&self, line: Arc<dyn IntxLine>) {
        self.change(|state| state.line = Some(line));
    }

    pub(crate) fn disconnect(&self) {
        let line = self.state.locked().line.take();
        if let Some(line) = line {
            line.set_level(false);
        }
    }

    pub(crate) fn suppress(&self, suppressed: bool) {
        self.change(|state| state.suppressed = suppressed);
    }

    fn change(&self, change: impl FnOnce(&mut IntxState)) {
        let mut state = self.state.locked();
        change(&mut state);
        if let Some(line) = &state.line {
            line.set_level(state.pending && !state.suppressed);
        }
    }
}

/// The four lines that the pins of all functions on one bus end in.
#[derive(Debug)]
pub(crate) struct IntxRouter {
    lines: [Arc<SharedLine>; 4],
}

impl IntxRouter {
    pub(crate) fn new(gsis: [u32; 4], irqs: &Arc<dyn IrqLines>) -> Self {
        let lines = gsis.map(|gsi| Arc::new(SharedLine::new(gsi, irqs.clone())));
        Self { lines }
    }

    /// The line of `pin` of `devfn`, rotated by device number so that INTA# of neighbours ends in
    /// different lines.
    pub(crate) fn share(&self, devfn: DevFn, pin: IntxPin) -> Arc<LineShare> {
        Arc::new(LineShare {
            line: self.line(devfn, pin).clone(),
            asserted: AtomicBool::new(false),
            connected: AtomicBool::new(true),
        })
    }

    pub(crate) fn gsi(&self, devfn: DevFn, pin: IntxPin) -> u32 {
        self.line(devfn, pin).gsi
    }

    fn line(&self, devfn: DevFn, pin: IntxPin) -> &Arc<SharedLine> {
        let [a, b, c, d] = &self.lines;
        match swizzle(devfn, pin) {
            IntxPin::A => a,
            IntxPin::B => b,
            IntxPin::C => c,
            IntxPin::D => d,
        }
    }
}

/// Which line of the bus `pin` of `devfn` ends in (PCI-to-PCI bridge 1.2, 9.1).
pub(crate) fn swizzle(devfn: DevFn, pin: IntxPin) -> IntxPin {
    match (devfn.device() + pin.index()) & 3 {
        0 => IntxPin::A,
        1 => IntxPin::B,
        2 => IntxPin::C,
        _ => IntxPin::D,
    }
}

/// A line of the machine, asserted while any function that shares it asserts it.
#[derive(Debug)]
struct SharedLine {
    gsi: u32,
    irqs: Arc<dyn IrqLines>,
    /// How many functions assert the line. The lock is held while the machine is told, so that
    /// it hears of changes in their order; it is the last in the lock order.
    asserting: Mutex<u32>,
}

impl SharedLine {
    fn new(gsi: u32, irqs: Arc<dyn IrqLines>) -> Self {
        Self {
            gsi,
            irqs,
            asserting: Mutex::new(0),
        }
    }
}

/// One function's share of a line.
#[derive(Debug)]
pub(crate) struct LineShare {
    line: Arc<SharedLine>,
    asserted: AtomicBool,
    connected: AtomicBool,
}

impl LineShare {
    /// Releases the line for good: the function may keep the share, to no effect.
    pub(crate) fn disconnect(&self) {
        self.connected.store(false, Ordering::Release);
        self.apply(false);
    }

    fn apply(&self, asserted: bool) {
        let mut asserting = self.line.asserting.locked();
        // Under the line's lock, so that a late assertion cannot follow the disconnection.
        let asserted = asserted && self.connected.load(Ordering::Acquire);
        if self.asserted.swap(asserted, Ordering::AcqRel) == asserted {
            return;
        }
        let before = *asserting;
        *asserting = if asserted {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        if (before == 0) != (*asserting == 0) {
            self.line.irqs.set(self.line.gsi, asserted);
        }
    }
}

impl IntxLine for LineShare {
    fn set_level(&self, asserted: bool) {
        if self.asserted.load(Ordering::Acquire) != asserted {
            self.apply(asserted);
        }
    }
}

impl Drop for LineShare {
    fn drop(&mut self) {
        self.apply(false);
    }
}
