//! Which function decodes an address: the windows of all functions, kept sorted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, Weak};

use crate::address::DevFn;
use crate::aperture::Aperture;
use crate::bar::{BarIndex, BarSpace, BarWindow};
use crate::function::{Forwarding, PciFunction};
use crate::lock::Shared;

/// The windows of all functions behind one host, on whichever bus they are.
///
/// A window counts if it lies wholly within an aperture of the host, as a host bridge forwards
/// nothing else: no BAR can shadow RAM, ECAM or another device of the machine. A function asks for
/// the same answer ([`Forwarding::forwards`]) before it has the machine watch addresses in a window.
/// Where windows overlap (one is then within the other, as all are aligned to their size) the smaller
/// wins, and of equal ones that with the lowest bus, device, function and BAR number.
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

    /// The name of a function to come.
    pub(crate) fn owner(&self) -> Owner {
        Owner(self.ticket())
    }

    /// Takes up a function and its windows.
    pub(crate) fn add(&self, owner: Owner, place: (u8, DevFn), function: Arc<dyn PciFunction>) {
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

    /// Whether a window counts.
    fn forwards(&self, window: &BarWindow) -> bool {
        let apertures = match window.space {
            BarSpace::Memory => &self.memory_apertures[..],
            BarSpace::Io => std::slice::from_ref(&self.io_aperture),
        };
        let aligned = window.size.is_power_of_two() && window.base & (window.size - 1) == 0;
        let inside = |aperture: &Aperture| aperture.holds(window.base, window.size);
        aligned && apertures.iter().any(inside)
    }

    fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::AcqRel)
    }

    fn rebuild(&self, state: &mut State) {
        let mut memory = Vec::new();
        let mut io = Vec::new();
        for (owner, entry) in &state.owners {
            for window in &entry.windows {
                let candidates = match window.space {
                    BarSpace::Memory => &mut memory,
                    BarSpace::Io => &mut io,
                };
                if self.forwards(window) {
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

/// One function's way to the map.
#[derive(Debug)]
pub(crate) struct FunctionWindows {
    pub(crate) map: Weak<WindowMap>,
    pub(crate) owner: Owner,
}

impl Forwarding for FunctionWindows {
    fn forwards(&self, window: &BarWindow) -> bool {
        (self.map.upgrade()).is_some_and(|map| map.forwards(window))
    }

    fn windows_changed(&self, function: &dyn PciFunction) {
        if let Some(map) = self.map.upgrade() {
            map.update(self.owner, function);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::function::{Attachment, ConfigEffect};

    const APERTURE: Aperture = Aperture::new(0, 64);
    const NO_PORTS: Aperture = Aperture::new(0, 0);

    /// Answers with one list of windows after the other, and lets a change happen in between.
    #[derive(Debug, Default)]
    struct Scripted {
        answers: Mutex<Vec<Vec<BarWindow>>>,
        meanwhile: Mutex<Option<(Arc<WindowMap>, Owner)>>,
    }

    impl PciFunction for Scripted {
        fn attached(&self, _: Attachment) -> Result<(), crate::Error> {
            Ok(())
        }

        fn detached(&self) {}

        fn config_read(&self, _: u16, _: &mut [u8]) {}

        fn config_write(&self, _: u16, _: &[u8]) -> ConfigEffect {
            ConfigEffect::default()
        }

        fn windows(&self) -> Vec<BarWindow> {
            let answer = self.answers.lock().unwrap().pop().unwrap_or_default();
            if let Some((map, owner)) = self.meanwhile.lock().unwrap().take() {
                // As another thread would whose write came after this answer was made.
                let later = Self::answering(self.answers.lock().unwrap().pop());
                map.update(owner, &later);
            }
            answer
        }

        fn bar_read(&self, _: BarIndex, _: u64, _: &mut [u8]) {}

        fn bar_write(&self, _: BarIndex, _: u64, _: &[u8]) {}

        fn reset(&self) {}
    }

    impl Scripted {
        fn answering(answers: impl IntoIterator<Item = Vec<BarWindow>>) -> Self {
            Self {
                answers: Mutex::new(answers.into_iter().collect()),
                meanwhile: Mutex::default(),
            }
        }
    }

    fn window(bar: u8, base: u64, size: u64) -> BarWindow {
        BarWindow {
            bar: BarIndex::new(bar).unwrap(),
            space: BarSpace::Memory,
            base,
            size,
        }
    }

    fn map_of(windows: &[BarWindow]) -> WindowMap {
        let map = WindowMap::new(vec![APERTURE], NO_PORTS);
        for (device, window) in (0..).zip(windows) {
            let devfn = DevFn::new(device, 0).unwrap();
            let function = Scripted::answering([vec![*window]]);
            map.add(map.owner(), (0, devfn), Arc::new(function));
        }
        map
    }

    fn hit(map: &WindowMap, address: u64) -> Option<(u8, u64, u64)> {
        let hit = map.lookup(BarSpace::Memory, address)?;
        Some((hit.bar.get(), hit.offset, hit.len))
    }

    #[test]
    fn every_three_windows_are_found_as_a_search_of_all_finds_them() {
        let mut places = Vec::new();
        for size in [1, 2, 4, 8] {
            places.extend((0..8 / size).map(|index| (index * size, size)));
        }
        for a in &places {
            for b in &places {
                for c in &places {
                    let windows = [
                        window(0, a.0, a.1),
                        window(1, b.0, b.1),
                        window(2, c.0, c.1),
                    ];
                    let map = map_of(&windows);
                    let winner = |address: u64| {
                        let holds = |w: &&BarWindow| (w.base..w.base + w.size).contains(&address);
                        windows.iter().filter(holds).min_by_key(|w| (w.size, w.bar))
                    };
                    for address in 0..10 {
                        let run = (address..)
                            .take_while(|next| winner(*next) == winner(address))
                            .take(16);
                        let expected = winner(address)
                            .map(|w| (w.bar.get(), address - w.base, run.count() as u64));
                        assert_eq!(hit(&map, address), expected, "{windows:?} {address}");
                    }
                }
            }
        }
    }

    #[test]
    fn windows_that_are_misaligned_or_leave_the_aperture_are_not_decoded() {
        for (base, size) in [(4, 8), (3, 3), (32, 64), (64, 8), (u64::MAX, 1), (0, 0)] {
            let map = map_of(&[window(0, base, size)]);
            assert!((0..128).all(|address| hit(&map, address).is_none()));
            assert_eq!(hit(&map, u64::MAX), None);
        }
    }

    #[test]
    fn an_answer_that_was_overtaken_by_a_later_one_is_dropped() {
        let map = Arc::new(WindowMap::new(vec![APERTURE], NO_PORTS));
        let older = vec![window(0, 0, 8)];
        let newer = vec![window(0, 16, 8)];
        let function = Arc::new(Scripted::answering([newer, older, vec![]]));
        let owner = map.owner();
        map.add(owner, (0, DevFn::from_byte(0)), function.clone());
        *function.meanwhile.lock().unwrap() = Some((map.clone(), owner));
        map.update(owner, function.as_ref());
        assert_eq!(hit(&map, 0), None);
        assert_eq!(hit(&map, 16), Some((0, 0, 8)));
    }

    #[test]
    fn an_answer_that_comes_after_the_function_left_is_dropped() {
        let map = WindowMap::new(vec![APERTURE], NO_PORTS);
        let answer = || vec![window(0, 0, 8)];
        let function = Arc::new(Scripted::answering([answer(), answer()]));
        let owner = map.owner();
        map.add(owner, (0, DevFn::from_byte(0)), function.clone());
        assert!(hit(&map, 0).is_some());
        map.remove(owner);
        map.update(owner, function.as_ref());
        assert_eq!(hit(&map, 0), None);
        assert_eq!(Arc::strong_count(&function), 1);
    }
}
