//! The model alone: no transport, a driver that writes rings into memory, and a peer that does as told. The rings are
//! split and the driver is modern; `device_packed.rs` names the same modules for packed rings, `device_legacy.rs` those
//! that a driver of the legacy interface has features for.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod announce;
mod coalesce;
mod ctrl;
mod delayed;
mod filter;
mod harness;
mod hash_tunnel;
mod headers;
mod legacy;
mod life;
mod mtu;
mod pairs;
mod policy;
mod ring_reset;
mod rsc;
mod rss;
mod rx;
mod rx_turns;
mod segments;
mod stats;
mod tunnels;
mod tx;
