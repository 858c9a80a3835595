//! Which function decodes an address: the windows of all functions, kept sorted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use crate::address::DevFn;
use crate::aperture::Aperture;
use crate::bar::{BarIndex, BarSpace, BarWindow};
use crate::function::PciFunction;
use crate::lock::Shared;

/// The windows of all functions behind one host, on whichever bus they are.
///
/// A window counts if it lies wholly within an aperture of the host, as a host bridge forwards
/// nothing else: no BAR can shadow RAM, ECAM or another device of the machine. Where windows
/// overlap (one is then within the other, as all are aligned to their size) the smaller wins, and
/// of equal ones that with the lowest bus, device, function and BAR number.
///
/// The lock is held for lookups and updates alone, never while a function is called.
#[derive(Debug)]
pub(crate) struct WindowMap {
    memory_apertures: Vec<Aperture>,
    io_aperture: Aperture,
    tickets: AtomicU64,
    state: RwLock<State>,
}

/// A function on its bus, as the map knows it; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner(u64);

/// What is at an address.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) function: Arc<dyn PciFunction>,
    pub(crate) bar: BarIndex,
    /// Where in the BAR the address is.
    pub(crate) offset: u64,
    /// How many bytes from the address on are the same function's and BAR's, at least one.
    pub(crate) len: u64,
}

#[derive(Debug, Default)]
struct State {
    owners: BTreeMap<Owner, Entry>,
    memory: Vec<Segment>,
    io: Vec<Segment>,
}

#[derive(Debug)]
struct Entry {
    place: (u8, DevFn),
    function: Arc<dyn PciFunction>,
    /// The ticket of the last update that was taken over.
    ticket: u64,
    windows: Vec<BarWindow>,
}

/// Addresses `first..=last` belong to a window that starts at `base`. Segments do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    first: u64,
    last: u64,
    base: u64,
    bar: BarIndex,
    owner: Owner,
}

impl WindowMap {
    pub(crate) fn new(memory_apertures: Vec<Aperture>, io_aperture: Aperture) -> Self {
        Self {
            memory_apertures,
            io_aperture,
            tickets: AtomicU64::new(1),
            state: RwLock::default(),
        }
    }

    /// Takes up a function and its windows.
    pub(crate) fn add(&self, place: (u8, DevFn), function: Arc<dyn PciFunction>) -> Owner {
        let owner = Owner(self.ticket());
        self.state.writing().owners.insert(
            owner,
            Entry {
                place,
                function: function.clone(),
                ticket: 0,
                windows: Vec::new(),
            },
        );
        self.update(owner, function.as_ref());
        owner
    }

    /// Asks a function for its windows after they changed. Of updates that run at the same time,
    /// the one with the highest ticket asks after all changes, and it is the one that stays.
    pub(crate) fn update(&self, owner: Owner, function: &dyn PciFunction) {
        let ticket = self.ticket();
        let windows = function.windows();
        let mut state = self.state.writing();
        let Some(entry) = state.owners.get_mut(&owner) else {
            return;
        };
        if ticket < entry.ticket {
            return;
        }
        entry.ticket = ticket;
        if entry.windows != windows {
            entry.windows = windows;
            self.rebuild(&mut state);
        }
    }

    /// Forgets a function.
    pub(crate) fn remove(&self, owner: Owner) {
        let mut state = self.state.writing();
        if state.owners.remove(&owner).is_some() {
            self.rebuild(&mut state);
        }
    }

    /// What is at `address`.
    pub(crate) fn lookup(&self, space: BarSpace, address: u64) -> Option<Hit> {
        let state = self.state.reading();
        let segments = match space {
            BarSpace::Io => &state.io,
            BarSpace::Memory => &state.memory,
        };
        let behind = segments.partition_point(|segment| segment.first <= address);
        let segment = segments.get(behind.checked_sub(1)?)?;
        if address > segment.last {
            return None;
        }
        Some(Hit {
            function: state.owners.get(&segment.owner)?.function.clone(),
            bar: segment.bar,
            offset: address - segment.base,
            len: (segment.last - address).saturating_add(1),
        })
    }

    fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::AcqRel)
    }

    fn rebuild(&self, state: &mut State) {
        let mut memory = Vec::new();
        let mut io = Vec::new();
        for (owner, entry) in &state.owners {
            for window in &entry.windows {
                let (candidates, apertures) = match window.space {
                    BarSpace::Memory => (&mut memory, &self.memory_apertures[..]),
                    BarSpace::Io => (&mut io, std::slice::from_ref(&self.io_aperture)),
                };
                let aligned = window.size.is_power_of_two() && window.base & (window.size - 1) == 0;
                let inside = |aperture: &Aperture| aperture.holds(window.base, window.size);
                if aligned && apertures.iter().any(inside) {
                    candidates.push((entry.place, window.size, segment(*owner, window)));
                } else {
                    tracing::debug!(place = ?entry.place, ?window, "window is not forwarded");
                }
            }
        }
        state.memory = flatten(memory);
        state.io = flatten(io);
    }
}

type Candidate = ((u8, DevFn), u64, Segment);

fn segment(owner: Owner, window: &BarWindow) -> Segment {
    Segment {
        first: window.base,
        last: window.base + (window.size - 1),
        base: window.base,
        bar: window.bar,
        owner,
    }
}

/// Makes segments that do not overlap of windows that are aligned to their power-of-two sizes,
/// so that any two are apart or one is within the other.
fn flatten(mut windows: Vec<Candidate>) -> Vec<Segment> {
    // By start; of those with one start, the larger first; of equal ones, the winner last.
    windows.sort_by(|(place_a, size_a, a), (place_b, size_b, b)| {
        (a.first, size_b, place_b, b.bar).cmp(&(b.first, size_a, place_a, a.bar))
    });
    let mut flat = Vec::new();
    // Windows that contain the point reached, the innermost last, each cut down to what of it is
    // not emitted yet.
    let mut open: Vec<Segment> = Vec::new();
    for (_, _, window) in windows {
        while let Some(outer) = open.pop_if(|outer| outer.last < window.first) {
            close(outer, &mut open, &mut flat);
        }
        if let Some(outer) = open.last_mut() {
            if outer.first < window.first {
                flat.push(Segment {
                    last: window.first - 1,
                    ..*outer
                });
            }
            outer.first = window.first;
        }
        open.push(window);
    }
    while let Some(inner) = open.pop() {
        close(inner, &mut open, &mut flat);
    }
    flat
}

/// Emits what is left of `inner`, and lets the window around it go on behind it.
fn close(inner: Segment, open: &mut [Segment], flat: &mut Vec<Segment>) {
    if inner.first <= inner.last {
        flat.push(inner);
    }
    if let Some(outer) = open.last_mut() {
        // An address above the last one of the space ends every window around it as well; those
        // lie within an aperture, which ends below.
        outer.first = inner.last.saturating_add(1);
    }
}
