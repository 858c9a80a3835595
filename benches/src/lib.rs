//! What the benches share: a NIC at work with a driver that writes rings into memory, and a peer that
//! costs next to nothing.
//!
//! The driver's work is done outside of the timed part, so what is timed is the device: from the kick to
//! the interrupt for frames that are sent, from the offer to the interrupt for those that are received.
//! Each batch is checked afterwards, frame by frame, so a device that does nothing does not look fast.
//!
//! | module | holds |
//! |---|---|
//! | `frame`, `layout` | the frames: sizes, contents, headers; how they lie in memory |
//! | `nic` | [`Nic`]: the model, activated, with the driver's half of its queues |
//! | `transmit`, `receive` | the two directions, batch by batch |
//! | `peer` | [`InstantPeer`]: takes frames at once, offers frames from memory |
//! | `rig`, `rings` | [`Rig`]: a device on a tap, on a processor of its own, with a fast driver |
//! | `raw` | [`RawTap`]: the bare loop on a tap |
//! | `processor` | processors, the time of threads, and memory |
//! | `ping` | requests and answers, one at a time |
//! | `packets` | [`PacketSocket`]: the host's side of a tap |
//! | `pace` | [`timed`]: frames in batches, of which the device's part is timed |
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a bench ends where its set-up or one of its checks fails"
)]

mod frame;
mod layout;
mod nic;
mod pace;
mod packets;
mod peer;
mod ping;
mod processor;
mod raw;
mod receive;
mod rig;
mod rings;
mod transmit;

pub use frame::{FrameSize, HEADER_LEN, MAC};
pub use layout::Layout;
pub use nic::{Buffers, Nic};
pub use pace::{Round, timed, warmed_up};
pub use packets::PacketSocket;
pub use peer::InstantPeer;
pub use ping::{two_wake_ups, wait_for};
pub use processor::{ThreadClock, allocated, pin};
pub use raw::{RawEngine, RawTap};
pub use receive::Receiver;
pub use rig::{DEVICE_CPU, DRIVER_CPU, Rig, Took, open_netdev};
pub use rings::Format;
pub use transmit::Transmitter;
