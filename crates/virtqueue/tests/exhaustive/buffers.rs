//! The two stores and two loads of which a handshake consists, on processors that delay stores.
//!
//! Twice the same: the device stores its event index (or clears its flag) and loads the available index,
//! while the driver stores the available index and loads the event index; and the driver stores its
//! event index and loads the used index, while the device stores the used index and loads the event
//! index. Each side must see the other's store, or be seen. Stores wait in a buffer until some later moment;
//! a full fence empties it. Whether the device's half has the fences is for its own text to say; here
//! it is whether they are enough, and whether one of them would do.

use std::collections::HashSet;

/// One side: store, perhaps fence, load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Side {
    at: u8,
    /// Its store is in its buffer.
    buffered: bool,
    /// What it loaded.
    saw: Option<bool>,
}

/// Both, and what has reached memory of each one's store.
type State = ([Side; 2], [bool; 2]);

/// How the two can end: what each saw of the other's store.
fn ends(fenced: [bool; 2]) -> HashSet<[bool; 2]> {
    let mut known = HashSet::new();
    let mut ends = HashSet::new();
    let mut open: Vec<State> = vec![Default::default()];
    while let Some(state) = open.pop() {
        if !known.insert(state) {
            continue;
        }
        let ([a, b], _) = state;
        if let (Some(a), Some(b)) = (a.saw, b.saw) {
            ends.insert([a, b]);
        }
        for me in [0, 1] {
            let (mut sides, mut memory) = state;
            let side = &mut sides[me];
            // Memory takes a store whenever it likes.
            if side.buffered {
                let (mut sides, mut memory) = state;
                sides[me].buffered = false;
                memory[me] = true;
                open.push((sides, memory));
            }
            match side.at {
                0 => side.buffered = true,
                1 if fenced[me] => {
                    memory[me] |= side.buffered;
                    side.buffered = false;
                }
                1 => {}
                2 => side.saw = Some(memory[1 - me]),
                _ => continue,
            }
            side.at += 1;
            open.push((sides, memory));
        }
    }
    ends
}

#[test]
fn with_both_fences_one_side_at_least_sees_the_other() {
    let ends = ends([true, true]);
    assert!(!ends.contains(&[false, false]));
    assert_eq!(ends.len(), 3, "each else may happen");
}

#[test]
fn one_fence_is_not_enough() {
    for fenced in [[true, false], [false, true], [false, false]] {
        assert!(ends(fenced).contains(&[false, false]), "{fenced:?}");
    }
}
