//! PCI as a device model and a machine need it: functions with configuration space, BARs,
//! capabilities and interrupts, the bus that they are on, and the host bridge in front of it.
//!
//! A model keeps a [`FunctionState`] under its lock, forwards its [`PciFunction`] methods to it,
//! and goes on a [`PciBus`]. A machine makes a [`PciHost`], forwards ports and memory to it, and
//! gives its functions interrupts through [`MsiSink`] and [`IrqLines`]. Nothing here knows a
//! hypervisor: vectors are descriptors that the machine listens to.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use vm_pci::{
//!     Attachment, BarIndex, BarKind, BarWindow, ConfigEffect, DevFn, Error, FunctionState, IrqLines,
//!     PciFunction, PciHost, PciHostConfig, PciIdentity,
//! };
//!
//! /// A page of memory as a PCI function.
//! #[derive(Debug)]
//! struct Page {
//!     state: Mutex<FunctionState>,
//!     bytes: Mutex<[u8; 4096]>,
//! }
//!
//! impl PciFunction for Page {
//!     fn attached(&self, _: Attachment) -> Result<(), Error> {
//!         Ok(()) // No interrupts: nothing to connect.
//!     }
//!     fn detached(&self) {}
//!     fn config_read(&self, offset: u16, data: &mut [u8]) {
//!         self.state.lock().unwrap().config_read(offset, data);
//!     }
//!     fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffect {
//!         self.state.lock().unwrap().config_write(offset, data).effect
//!     }
//!     fn windows(&self) -> Vec<BarWindow> {
//!         self.state.lock().unwrap().windows()
//!     }
//!     fn bar_read(&self, _: BarIndex, offset: u64, data: &mut [u8]) {
//!         let at = offset as usize;
//!         data.copy_from_slice(&self.bytes.lock().unwrap()[at..at + data.len()]);
//!     }
//!     fn bar_write(&self, _: BarIndex, offset: u64, data: &[u8]) {
//!         let at = offset as usize;
//!         self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
//!     }
//!     fn reset(&self) {
//!         self.state.lock().unwrap().reset();
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct NoLines;
//!
//! impl IrqLines for NoLines {
//!     fn set(&self, _gsi: u32, _asserted: bool) {}
//! }
//!
//! let identity = PciIdentity { vendor: 0x1234, device: 1, class: 0x05_00_00, ..Default::default() };
//! let mut state = FunctionState::new(&identity);
//! state.add_bar(BarIndex::new(0)?, BarKind::Memory32 { prefetchable: false }, 4096)?;
//! let page = Page { state: Mutex::new(state), bytes: Mutex::new([0; 4096]) };
//!
//! let host = PciHost::new(PciHostConfig::default(), Arc::new(NoLines))?;
//! host.bus().attach(DevFn::new(3, 0)?, Arc::new(page))?;
//! host.assign_resources()?;
//!
//! // What a vCPU does: find the function through ports 0xcf8 and 0xcfc, then use its BAR.
//! host.port_write(0xcf8, &0x8000_1810_u32.to_le_bytes());
//! let mut bar = [0; 4];
//! host.port_read(0xcfc, &mut bar);
//! let address = u64::from(u32::from_le_bytes(bar));
//! assert!(host.mmio_write(address + 8, &[1, 2, 3, 4]));
//! let mut read = [0; 2];
//! assert!(host.mmio_read(address + 9, &mut read));
//! assert_eq!(read, [2, 3]);
//! # Ok::<(), Error>(())
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `function`, `function_state` | a function as its bus sees it, and what each one keeps |
//! | `config`, [`registers`] | configuration space, its masks and capability lists |
//! | `express` | PCI Express form: function-level reset, power states, error reporting |
//! | `bar`, `bars` | base address registers and the windows that they decode |
//! | `irq`, `intx`, `msix` | interrupts: the machine's side, pins, and MSI-X |
//! | `bus`, `address` | the places for functions |
//! | `host`, `bridge`, `aperture`, `windows` | ports and memory to functions |
//! | `assign` | what firmware would do |
//! | `test_utils` (feature) | a sink, lines and a function that record |
//!
//! Locks, in their order: a function's own, its [`Intx`], the shared line, the machine's. The
//! bus and the window map hold theirs only while they look something up.
//!
//! What software has set in a function is read out as a [`SavedFunction`] and set in a fresh one.
//!
//! Not here yet: bridges and root ports (bus numbers other than 0 are empty), MSI without X, expansion ROMs.

mod address;
mod aperture;
mod assign;
mod bar;
mod bars;
mod bridge;
mod bus;
mod config;
mod error;
mod express;
mod function;
mod function_state;
mod host;
mod intx;
mod irq;
mod lock;
mod msix;
pub mod object;
pub mod registers;
#[cfg(feature = "test-utils")]
pub mod test_utils;
mod windows;

pub use address::DevFn;
pub use aperture::Aperture;
pub use bar::{BarIndex, BarSpace, BarWindow};
pub use bars::{BarKind, Bars};
pub use bus::PciBus;
pub use config::{ConfigSpace, ConfigWritten, PciIdentity};
pub use error::Error;
pub use express::Express;
pub use function::{Attachment, ConfigEffect, Forwarding, PciFunction};
pub use function_state::{ConfigChange, FunctionState, SavedFunction};
pub use host::{PciHost, PciHostConfig};
pub use intx::Intx;
pub use irq::{IntxLine, IntxPin, IrqLines, MsiMessage, MsiSink, MsiVector};
pub use msix::{Msix, MsixLayout, SavedMsix};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
