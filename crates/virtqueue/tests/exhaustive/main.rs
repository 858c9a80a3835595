//! All cases of small queues, one after the other, where a proof would be as good: the model checker for
//! Rust and the interpreter that finds undefined behaviour come with tools that not every machine has,
//! and neither goes beyond sizes as small as these.
//!
//! | module | holds |
//! |---|---|
//! | `tape` | a choice at each step, all of them in turn |
//! | `ring` | split rings as bytes in guest memory, and nothing that the device's half also uses |
//! | `packed_ring` | the same for packed rings |
//! | `walks` | every chain that a small descriptor table, or indirect table, can hold |
//! | `indices` | every available index; every distance of an event index |
//! | `packed_walks` | every chain that a small packed ring can hold, in part or in full |
//! | `packed_places` | every offset with wrap counter, of queues and of events |
//! | `wakeups` | every order of a driver's and a device's steps, on rings of either format: neither sleeps while the other waits |
//! | `buffers` | the same for the two stores and two loads of which such a step consists |
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "all numbers here are small"
)]

mod buffers;
mod indices;
mod packed_places;
mod packed_ring;
mod packed_walks;
mod ring;
mod tape;
mod wakeups;
mod walks;
