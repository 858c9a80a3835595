//! The virtio-pci transport: a PCI function through which a driver reaches one virtio device.
//!
//! A [`VirtioPci`] has a bus for a device ([`VirtioPci::bus`]) and is a
//! [`PciFunction`](vm_pci::PciFunction) for its PCI bus. It looks as QEMU's virtio-pci
//! functions do: BAR 1 has the MSI-X table, BAR 4 the four structures of virtio 1.4, 4.1.4, and five
//! vendor capabilities say so, the one for access through configuration space included; a transitional function
//! has the legacy registers in BAR 0 as well, and a legacy one nothing else.
//!
//! Of the machine it needs guest memory to hand on, an [`MsiSink`](vm_pci::MsiSink) that makes messages
//! into interrupts, and a [`KickBinder`](virtio_bus::KickBinder) that may turn notify registers into
//! descriptors. It does not know what its device does.
//!
//! A used buffer notification takes no lock while MSI-X is on, and only the pin's while it is off; a
//! configuration change takes the pin's in any case. Registers are under one lock.
//!
//! A function may leave its bus and go on another, and is then as after power-on; its device stays
//! plugged.
//!
//! A paused function is read out as a [`SavedPci`], which has bytes of its own, and goes on in a fresh function
//! ([`VirtioPci::save`], [`VirtioPci::restore`]).
//!
//! Not built: administration queues, virtual functions, shared memory regions.
//!
//! | module | holds |
//! |---|---|
//! | `function` | [`VirtioPci`]: the function, and its device's coming and going |
//! | `plugged` | what each register does |
//! | `legacy` | what each register of the legacy interface does |
//! | `registers` | the table of registers, and the splitting of accesses |
//! | `layout` | identity, BARs, capabilities |
//! | `window` | access through configuration space |
//! | `interrupts` | ISR, pin and vectors, for the data path |
//! | `saved` | [`SavedPci`]: a paused function as bytes, and back |
//! | `kicks` | which notify registers are bound |
//! | [`object`] | the types `virtio-pci` and `virtio-pci-bus` |

mod function;
mod interrupts;
mod kicks;
mod layout;
mod legacy;
pub mod object;
mod plugged;
mod registers;
mod saved;
mod window;

pub use function::{Error, VirtioPci, VirtioPciConfig};
pub use interrupts::SavedInterrupts;
pub use saved::{SaveError, SavedPci};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
