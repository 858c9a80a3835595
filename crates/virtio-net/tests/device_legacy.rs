//! The tests of `device/` with a legacy driver, which accepts no VERSION_1 and nothing past bit 31: the harness knows by the
//! name of the program.
//!
//! Without `coalesce`, `hash_tunnel`, `ring_reset`, `rsc` with `segments`, `rss`, `stats` and `tunnels`: their features have
//! bits past 31.
//! Without `legacy`: it has legacy drivers in every program.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]
#![allow(
    dead_code,
    reason = "the modules that are not here use the rest of the harness"
)]

#[path = "device/announce.rs"]
mod announce;
#[path = "device/ctrl.rs"]
mod ctrl;
#[path = "device/delayed.rs"]
mod delayed;
#[path = "device/filter.rs"]
mod filter;
#[path = "device/harness.rs"]
mod harness;
#[path = "device/headers.rs"]
mod headers;
#[path = "device/life.rs"]
mod life;
#[path = "device/mtu.rs"]
mod mtu;
#[path = "device/pairs.rs"]
mod pairs;
#[path = "device/policy.rs"]
mod policy;
#[path = "device/rx.rs"]
mod rx;
#[path = "device/rx_turns.rs"]
mod rx_turns;
#[path = "device/tx.rs"]
mod tx;
