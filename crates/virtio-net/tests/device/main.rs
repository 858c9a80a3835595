//! The model alone: no transport, a driver that writes rings into memory, and a peer that does as told. The rings are
//! split; `device_packed.rs` names the same modules, for packed ones.
#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod announce;
mod coalesce;
mod ctrl;
mod delayed;
mod filter;
mod harness;
mod headers;
mod legacy;
mod life;
mod mtu;
mod pairs;
mod policy;
mod rss;
mod rx;
mod stats;
mod tunnels;
mod tx;
