//! The driver's half of virtio: finds a virtio function through PCI configuration space,
//! negotiates, sets up queues and MSI-X, and drives a network device.
//!
//! The same code runs as the kernel of a small freestanding guest and, in tests, in the process of
//! the device that it drives. It knows neither: all that it wants of the machine is [`Platform`],
//! and all memory that it shares with the device comes from one [`DmaRegion`]. It does not
//! allocate, has no unsafe code, and never waits on its own account except for a reset to end.
//!
//! | module | holds |
//! |---|---|
//! | [`platform`] | [`Platform`]: configuration space, ports, BARs and memory of the machine |
//! | [`memory`] | [`DmaMemory`]: hands out the memory that driver and device share |
//! | [`pci`] | functions, capabilities, BARs and MSI-X, and [`VirtioPciTransport`] over them |
//! | [`queue`] | [`VirtQueue`]: the driver's half of a queue, with split or packed rings |
//! | [`net`] | [`NetDriver`]: sends and receives frames, runs control commands |
//! | `phy` | the network driver as a `smoltcp` device (feature `smoltcp`) |
//!
//! A driver from nothing to its first frame:
//!
//! ```
//! use virtio_guest::{DmaMemory, Error, NetConfig, NetDriver, Platform, VirtioPciTransport, pci};
//!
//! fn first_frame<P: Platform>(platform: P, memory: DmaMemory) -> Result<(), Error> {
//!     let address = pci::functions(&platform, 0).find(|f| pci::is_virtio_net(&platform, *f));
//!     let Some(address) = address else { return Ok(()) };
//!     let transport = VirtioPciTransport::probe(platform, address)?;
//!     let mut driver = NetDriver::<_, 64>::new(transport, memory, &NetConfig::default())?;
//!     driver.transmit(b"\xff\xff\xff\xff\xff\xff\x52\x54\x00\x12\x34\x56\x88\xb5hello")?;
//!     let mut frame = [0; 1514];
//!     driver.poll_receive(&mut frame, |frame| assert!(frame.len() >= 14))?;
//!     Ok(())
//! }
//! ```
//!
//! Rings are packed, and used in order, where `NetConfig::features` ask for it and the device agrees.
//! Every step is a method of its own on a lower level, and the rings lie in plain sight
//! ([`VirtQueue::ring`](queue::VirtQueue::ring)): a test that wants to be a bad guest does
//! not need another driver.
//!
//! Not here: more than one pair of queues.

#![no_std]
#![forbid(unsafe_code)]

pub mod error;
pub mod memory;
pub mod net;
pub mod pci;
#[cfg(feature = "smoltcp")]
pub mod phy;
pub mod platform;
pub mod queue;

pub use error::Error;
pub use memory::{DmaMemory, DmaRegion};
pub use net::{Interrupts, NetConfig, NetDriver};
pub use pci::{MsixMessage, VirtioPciTransport};
pub use platform::{ConfigMechanism, PciAddress, Platform, Width};
pub use queue::VirtQueue;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "registers are cut to their widths"
)]
mod fake;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
