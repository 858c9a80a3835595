//! What tests of functions need of a machine: an MSI sink, interrupt lines and a function that
//! record what they are asked.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::address::DevFn;
use crate::bar::{BarIndex, BarWindow};
use crate::function::{Attachment, ConfigEffect, PciFunction};
use crate::function_state::FunctionState;
use crate::irq::{IrqLines, MsiMessage, MsiSink, MsiVector};
use crate::lock::Locked;

/// Makes vectors that remember their routes, and delivers what is signalled when asked to.
#[derive(Debug)]
pub struct RecordingMsiSink {
    vectors: Mutex<Vec<Arc<RecordingMsiVector>>>,
    limit: AtomicUsize,
}

impl RecordingMsiSink {
    /// A sink that makes any number of vectors.
    pub fn new() -> Arc<Self> {
        Self::with_limit(usize::MAX)
    }

    /// A sink that refuses to make more than `limit` vectors.
    pub fn with_limit(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            vectors: Mutex::default(),
            limit: AtomicUsize::new(limit),
        })
    }

    /// All vectors made, in that order, whether or not the function still has them.
    pub fn vectors(&self) -> Vec<Arc<RecordingMsiVector>> {
        self.vectors.locked().clone()
    }

    /// How many vectors are held by others than the sink.
    pub fn held(&self) -> usize {
        let vectors = self.vectors.locked();
        vectors.iter().filter(|v| Arc::strong_count(v) > 1).count()
    }

    /// Takes the signal of each routed vector that has one, and returns the messages sent, in the
    /// order of vectors.
    pub fn deliver(&self) -> Vec<MsiMessage> {
        let vectors = self.vectors();
        vectors.iter().filter_map(|v| v.deliver()).collect()
    }
}

impl MsiSink for RecordingMsiSink {
    fn vector(&self, requester: DevFn) -> io::Result<Arc<dyn MsiVector>> {
        let mut vectors = self.vectors.locked();
        if vectors.len() >= self.limit.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        let vector = Arc::new(RecordingMsiVector {
            requester,
            event_fd: EventFd::new(EFD_NONBLOCK)?,
            routes: Mutex::default(),
            refuse: AtomicBool::new(false),
        });
        vectors.push(vector.clone());
        Ok(vector)
    }
}

/// A vector of [`RecordingMsiSink`].
#[derive(Debug)]
pub struct RecordingMsiVector {
    requester: DevFn,
    event_fd: EventFd,
    routes: Mutex<Vec<Option<MsiMessage>>>,
    refuse: AtomicBool,
}

impl RecordingMsiVector {
    /// Whose vector it is.
    pub fn requester(&self) -> DevFn {
        self.requester
    }

    /// Every route asked for and granted, in order.
    pub fn routes(&self) -> Vec<Option<MsiMessage>> {
        self.routes.locked().clone()
    }

    /// The route now.
    pub fn routed(&self) -> Option<MsiMessage> {
        self.routes.locked().last().copied().flatten()
    }

    /// Lets the following routes fail, or not.
    pub fn refuse_routes(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }

    /// Takes the signal, if there is one and a message is routed.
    pub fn deliver(&self) -> Option<MsiMessage> {
        let message = self.routed()?;
        self.event_fd.read().ok().map(|_| message)
    }
}

impl MsiVector for RecordingMsiVector {
    fn event_fd(&self) -> &EventFd {
        &self.event_fd
    }

    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let refused = message.is_some() && self.refuse.load(Ordering::Relaxed);
        let mut routes = self.routes.locked();
        routes.push(message.filter(|_| !refused));
        if refused {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        Ok(())
    }
}

/// Interrupt lines that remember their levels and every change.
#[derive(Debug, Default)]
pub struct RecordingIrqLines {
    changes: Mutex<Vec<(u32, bool)>>,
}

impl RecordingIrqLines {
    /// Lines that are all released.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Every change, in order.
    pub fn changes(&self) -> Vec<(u32, bool)> {
        self.changes.locked().clone()
    }

    /// Whether line `gsi` is asserted.
    pub fn level(&self, gsi: u32) -> bool {
        let levels: BTreeMap<_, _> = self.changes().into_iter().collect();
        levels.get(&gsi).copied().unwrap_or(false)
    }
}

impl IrqLines for RecordingIrqLines {
    fn set(&self, gsi: u32, asserted: bool) {
        self.changes.locked().push((gsi, asserted));
    }
}

/// An access to a BAR of a [`RecordingFunction`] that was not to its MSI-X structures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BarAccess {
    /// BAR, offset, length.
    Read(u8, u64, usize),
    /// BAR, offset, bytes.
    Write(u8, u64, Vec<u8>),
}

/// A function around a [`FunctionState`] that keeps the accesses to its BARs. Each byte of a BAR
/// reads as the low byte of its offset.
#[derive(Debug)]
pub struct RecordingFunction {
    state: Mutex<FunctionState>,
    sink: Arc<RecordingMsiSink>,
    accesses: Mutex<Vec<BarAccess>>,
}

impl RecordingFunction {
    /// A function that is what `state` says, with vectors from `sink`.
    pub fn new(state: FunctionState, sink: Arc<RecordingMsiSink>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            sink,
            accesses: Mutex::default(),
        })
    }

    /// Looks into the state, under the function's lock.
    pub fn with<R>(&self, look: impl FnOnce(&mut FunctionState) -> R) -> R {
        look(&mut self.state.locked())
    }

    /// The accesses since the last call.
    pub fn take_accesses(&self) -> Vec<BarAccess> {
        std::mem::take(&mut self.accesses.locked())
    }
}

impl PciFunction for RecordingFunction {
    fn attached(&self, attachment: Attachment) -> Result<(), crate::Error> {
        let mut state = self.state.locked();
        state.connect(&attachment, self.sink.as_ref())
    }

    fn detached(&self) {
        self.state.locked().disconnect();
    }

    fn interrupt_pin(&self) -> crate::IntxPin {
        let pin = self.state.locked().interrupt_pin();
        pin.unwrap_or(crate::IntxPin::A)
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.state.locked().config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.state.locked().config_write(offset, data).effect
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.state.locked().windows()
    }

    fn bar_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        if self.state.locked().msix_read(bar, offset, data) {
            return;
        }
        let access = BarAccess::Read(bar.get(), offset, data.len());
        self.accesses.locked().push(access);
        for (at, byte) in (offset..).zip(data) {
            [*byte, ..] = at.to_le_bytes();
        }
    }

    fn bar_write(&self, bar: BarIndex, offset: u64, data: &[u8]) {
        if self.state.locked().msix_write(bar, offset, data) {
            return;
        }
        let access = BarAccess::Write(bar.get(), offset, data.to_vec());
        self.accesses.locked().push(access);
    }

    fn reset(&self) {
        self.state.locked().reset();
    }
}
