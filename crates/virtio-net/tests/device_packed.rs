//! The tests of `device/` with packed rings: the harness knows by the name of the program.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

#[path = "device/announce.rs"]
mod announce;
#[path = "device/coalesce.rs"]
mod coalesce;
#[path = "device/ctrl.rs"]
mod ctrl;
#[path = "device/delayed.rs"]
mod delayed;
#[path = "device/filter.rs"]
mod filter;
#[path = "device/harness.rs"]
mod harness;
#[path = "device/hash_tunnel.rs"]
mod hash_tunnel;
#[path = "device/headers.rs"]
mod headers;
#[path = "device/legacy.rs"]
mod legacy;
#[path = "device/life.rs"]
mod life;
#[path = "device/mtu.rs"]
mod mtu;
#[path = "device/pairs.rs"]
mod pairs;
#[path = "device/policy.rs"]
mod policy;
#[path = "device/ring_reset.rs"]
mod ring_reset;
#[path = "device/rsc.rs"]
mod rsc;
#[path = "device/rss.rs"]
mod rss;
#[path = "device/rx.rs"]
mod rx;
#[path = "device/rx_turns.rs"]
mod rx_turns;
#[path = "device/segments.rs"]
mod segments;
#[path = "device/stats.rs"]
mod stats;
#[path = "device/tunnels.rs"]
mod tunnels;
#[path = "device/tx.rs"]
mod tx;
