//! MSI-X: the table, the pending bits, and what the masks let through (PCI 3.0, 6.8.2).

mod saved;

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::Error;
use crate::address::DevFn;
use crate::bar::BarIndex;
use crate::irq::{MsiMessage, MsiSink, MsiVector};

pub use saved::SavedMsix;

/// Bytes of one table entry.
const ENTRY_SIZE: usize = 16;
/// The most vectors that the capability's size field can say.
const MAX_VECTORS: u16 = 2048;
/// Message control: MSI-X is on.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Vector control, in byte 12 of an entry: this vector is masked.
const VECTOR_MASKED: u8 = 1;
/// The bits of an entry that software may write: all of the message, whose address is a dword's,
/// and the mask.
const ENTRY_WRITABLE: [u8; ENTRY_SIZE] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
];

/// How many vectors a function has, and where in its BARs the structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR with the table.
    pub table_bar: BarIndex,
    /// Where the table starts in it, a multiple of 8.
    pub table_offset: u32,
    /// The BAR with the pending bits.
    pub pba_bar: BarIndex,
    /// Where the pending bits start in it, a multiple of 8.
    pub pba_offset: u32,
}

impl MsixLayout {
    /// Where the table is in its BAR.
    pub fn table(&self) -> Range<u64> {
        let start = u64::from(self.table_offset);
        start..start + u64::from(self.vectors) * 16
    }

    /// Where the pending bits are in their BAR: one bit a vector, in whole quadwords.
    pub fn pba(&self) -> Range<u64> {
        let start = u64::from(self.pba_offset);
        start..start + u64::from(self.vectors.div_ceil(64)) * 8
    }
}

/// The MSI-X state of one function.
///
/// A vector's message is routed while MSI-X is on, the function is a bus master, and neither the
/// function nor the vector is masked; what is signalled meanwhile stays in the vector's
/// descriptor, which is its pending bit, and is delivered when the last of these is over.
#[derive(Debug)]
pub struct Msix {
    layout: MsixLayout,
    entries: Vec<Entry>,
    vectors: Vec<Arc<dyn MsiVector>>,
    enabled: bool,
    function_masked: bool,
    bus_master: bool,
    /// A refused route has been reported; a guest can repeat it without end.
    warned: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    bytes: [u8; ENTRY_SIZE],
    routed: Option<MsiMessage>,
}

impl Msix {
    /// MSI-X with no vectors made yet, off, everything masked.
    ///
    /// # Errors
    /// [`Error::VectorCount`] or [`Error::MsixPlace`].
    pub fn new(layout: MsixLayout) -> Result<Self, Error> {
        if !(1..=MAX_VECTORS).contains(&layout.vectors) {
            return Err(Error::VectorCount(layout.vectors));
        }
        let (table, pba) = (layout.table(), layout.pba());
        if !layout.table_offset.is_multiple_of(8) {
            return Err(Error::MsixPlace(layout.table_bar));
        }
        let same_bar = layout.table_bar == layout.pba_bar;
        let overlap = table.start < pba.end && pba.start < table.end;
        if !layout.pba_offset.is_multiple_of(8) || same_bar && overlap {
            return Err(Error::MsixPlace(layout.pba_bar));
        }
        Ok(Self {
            entries: vec![Entry::default(); layout.vectors.into()],
            layout,
            vectors: Vec::new(),
            enabled: false,
            function_masked: false,
            bus_master: false,
            warned: false,
        })
    }

    /// The capability behind its two-byte header: message control, table, PBA.
    pub fn capability_body(&self) -> [u8; 10] {
        let mut body = [0; 10];
        let table = self.layout.table_offset | u32::from(self.layout.table_bar.get());
        let pba = self.layout.pba_offset | u32::from(self.layout.pba_bar.get());
        body[..2].copy_from_slice(&(self.layout.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pba.to_le_bytes());
        body
    }

    /// The write mask of message control, the first two bytes of the capability's body.
    pub const CONTROL_WRITABLE: [u8; 2] = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes();

    /// Where table and pending bits are.
    pub fn layout(&self) -> &MsixLayout {
        &self.layout
    }

    /// Makes all vectors, for the function `requester`: when it goes on its bus.
    ///
    /// # Errors
    /// [`Error::Vector`] when the machine refuses one; none is kept then.
    pub fn connect(&mut self, sink: &dyn MsiSink, requester: DevFn) -> Result<(), Error> {
        let vectors = (0..self.layout.vectors).map(|vector| {
            sink.vector(requester).map_err(|source| Error::Vector {
                vector,
                devfn: requester,
                source,
            })
        });
        self.vectors = vectors.collect::<Result<_, _>>()?;
        self.apply_all();
        Ok(())
    }

    /// Gives all vectors back: when the function leaves its bus.
    pub fn disconnect(&mut self) {
        self.silence();
        self.vectors.clear();
    }

    /// Whether MSI-X is on; the function then does not use its interrupt pin.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// How many vectors the function has.
    pub fn vectors(&self) -> u16 {
        self.layout.vectors
    }

    /// Vector `index`, to be signalled through its descriptor without asking here again; `None`
    /// if there is no such vector or the function is on no bus.
    pub fn vector(&self, index: u16) -> Option<Arc<dyn MsiVector>> {
        self.vectors.get(usize::from(index)).cloned()
    }

    /// Takes over a new value of the message control register.
    pub fn set_control(&mut self, control: u16) {
        let enabled = control & CONTROL_ENABLE != 0;
        let function_masked = control & CONTROL_FUNCTION_MASK != 0;
        if (enabled, function_masked) != (self.enabled, self.function_masked) {
            self.enabled = enabled;
            self.function_masked = function_masked;
            self.apply_all();
        }
    }

    /// Takes over the command register's bus master bit: a message is a write to memory.
    pub fn set_bus_master(&mut self, bus_master: bool) {
        if bus_master != self.bus_master {
            self.bus_master = bus_master;
            self.apply_all();
        }
    }

    /// Reads from `bar` if the access touches the table or the pending bits, and says so. Any
    /// width and alignment reads the bytes that are there; bytes outside of both are zero.
    pub fn read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) -> bool {
        if !self.touches(bar, offset, data.len()) {
            return false;
        }
        let table = (bar == self.layout.table_bar).then(|| self.layout.table());
        let pba = (bar == self.layout.pba_bar).then(|| self.layout.pba());
        let mut pending = None;
        for (at, byte) in (offset..).zip(data) {
            *byte = if let Some((index, byte)) = place(&table, at, ENTRY_SIZE) {
                self.entries.get(index).map_or(0, |entry| entry.bytes[byte])
            } else if let Some((word, byte)) = place(&pba, at, 8) {
                let bits = match pending {
                    Some((known, bits)) if known == word => bits,
                    _ => self.pending_word(word),
                };
                pending = Some((word, bits));
                bits.to_le_bytes()[byte]
            } else {
                0
            };
        }
        true
    }

    /// Writes to `bar` if the access touches the table or the pending bits, and says so.
    ///
    /// Aligned dwords and quadwords are what the specification defines. Other widths and
    /// alignments merge their bytes into the entries. Each touched entry takes effect once, after
    /// all its bytes. Pending bits and bytes outside are not written.
    pub fn write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) -> bool {
        if !self.touches(bar, offset, data.len()) {
            return false;
        }
        let table = (bar == self.layout.table_bar).then(|| self.layout.table());
        let mut touched = None;
        for (at, value) in (offset..).zip(data) {
            let Some((index, byte)) = place(&table, at, ENTRY_SIZE) else {
                continue;
            };
            if let Some(before) = touched.replace(index).filter(|before| *before != index) {
                self.apply(before);
            }
            if let Some(entry) = self.entries.get_mut(index) {
                let mask = ENTRY_WRITABLE[byte];
                entry.bytes[byte] = entry.bytes[byte] & !mask | value & mask;
            }
        }
        if let Some(index) = touched {
            self.apply(index);
        }
        true
    }

    /// Back to the state after power-on: off, masked, nothing pending. The vectors stay.
    pub fn reset(&mut self) {
        self.enabled = false;
        self.function_masked = false;
        self.bus_master = false;
        self.silence();
        self.entries.fill(Entry::default());
    }

    /// Takes all routes away and drops what is pending.
    fn silence(&mut self) {
        for (entry, vector) in self.entries.iter_mut().zip(&self.vectors) {
            if entry.routed.take().is_some() {
                route(vector.as_ref(), None, &mut self.warned);
            }
        }
        let all: Vec<_> = self.vectors.iter().collect();
        for index in readable(&all) {
            // An unrouted descriptor has no reader but this one; its value is of no interest.
            let _ = all.get(index).map(|vector| vector.event_fd().read());
        }
    }

    fn touches(&self, bar: BarIndex, offset: u64, len: usize) -> bool {
        let end = offset.saturating_add(len as u64);
        let within = |range: Range<u64>| offset < range.end && range.start < end;
        bar == self.layout.table_bar && within(self.layout.table())
            || bar == self.layout.pba_bar && within(self.layout.pba())
    }

    fn apply_all(&mut self) {
        for index in 0..self.entries.len() {
            self.apply(index);
        }
    }

    fn apply(&mut self, index: usize) {
        let open = self.enabled && !self.function_masked && self.bus_master;
        let (Some(entry), Some(vector)) = (self.entries.get_mut(index), self.vectors.get(index))
        else {
            return;
        };
        let message = (open && !entry.masked()).then(|| entry.message());
        if message != entry.routed {
            let routed = route(vector.as_ref(), message, &mut self.warned);
            entry.routed = message.filter(|_| routed);
        }
    }

    /// 64 pending bits, those of vectors from `64 * word` on.
    fn pending_word(&self, word: usize) -> u64 {
        let first = word.saturating_mul(64);
        let unrouted: Vec<_> = self
            .entries
            .iter()
            .zip(&self.vectors)
            .enumerate()
            .skip(first)
            .take(64)
            .filter(|(_, (entry, _))| entry.routed.is_none())
            .map(|(index, (_, vector))| (index - first, vector))
            .collect();
        let vectors: Vec<_> = unrouted.iter().map(|(_, vector)| *vector).collect();
        readable(&vectors)
            .into_iter()
            .filter_map(|at| unrouted.get(at))
            .fold(0, |bits, (bit, _)| bits | 1 << bit)
    }
}

impl Entry {
    fn masked(&self) -> bool {
        self.bytes[12] & VECTOR_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = self.bytes;
        MsiMessage {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        }
    }
}

impl Default for Entry {
    /// Masked, as after power-on.
    fn default() -> Self {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[12] = VECTOR_MASKED;
        Self {
            bytes,
            routed: None,
        }
    }
}

/// Which element of `size` bytes of the array at `range` has the byte at `at`, and where in it.
fn place(range: &Option<Range<u64>>, at: u64, size: usize) -> Option<(usize, usize)> {
    let range = range.as_ref().filter(|range| range.contains(&at))?;
    let offset = usize::try_from(at - range.start).ok()?;
    Some((offset / size, offset % size))
}

fn route(vector: &dyn MsiVector, message: Option<MsiMessage>, warned: &mut bool) -> bool {
    match vector.route(message) {
        Ok(()) => true,
        Err(error) => {
            if !std::mem::replace(warned, true) {
                tracing::warn!(%error, ?message, "the machine refuses an MSI-X route");
            }
            false
        }
    }
}

/// Which of `vectors` have a signal waiting. What cannot be asked has none.
fn readable(vectors: &[&Arc<dyn MsiVector>]) -> Vec<usize> {
    poll(vectors).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot ask for pending MSI-X vectors");
        Vec::new()
    })
}

fn poll(vectors: &[&Arc<dyn MsiVector>]) -> io::Result<Vec<usize>> {
    if vectors.is_empty() {
        return Ok(Vec::new());
    }
    let epoll = Epoll::new()?;
    for (index, vector) in (0..).zip(vectors) {
        let event = EpollEvent::new(EventSet::IN, index);
        epoll.ctl(ControlOperation::Add, vector.event_fd().as_raw_fd(), event)?;
    }
    let mut events = vec![EpollEvent::default(); vectors.len()];
    let count = epoll.wait(0, &mut events)?;
    let ready = events.iter().take(count);
    Ok(ready
        .filter_map(|event| usize::try_from(event.data()).ok())
        .collect())
}
