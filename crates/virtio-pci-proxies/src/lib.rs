//! The PCI proxies under the names that `-device` takes: each a virtio model behind a virtio-pci transport.
//!
//! A proxy does nothing itself. When it is made, it makes its model as the child `virtio-backend` and has
//! aliases for the model's properties; when it is realized, it realizes the model on the bus that its
//! transport has made.
//!
//! ```
//! use std::sync::Arc;
//!
//! use iothread::{AioContext, EventLoop};
//! use keyval::Options;
//! use net_client::{Loopback, NetClients};
//! use qdev::Machine;
//! use qom::TypeRegistry;
//! use virtio_bus::{KickBinder, NoKickBinder};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//! # use vm_pci::test_utils::{RecordingIrqLines, RecordingMsiSink};
//! use vm_pci::{DevFn, MsiSink, PciHost, PciHostConfig};
//!
//! type Memory = Arc<GuestMemoryMmap<()>>;
//!
//! let mut registry = TypeRegistry::new();
//! virtio_pci_proxies::object::register_all::<Memory>(&mut registry)?;
//! let machine = Machine::new(registry.share())?;
//!
//! // What the machine has: memory, interrupts, an event loop, a PCI bus, and a netdev.
//! let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)])?);
//! machine.provide(Arc::new(memory));
//! # let msi_sink = RecordingMsiSink::new();
//! # let irq_lines = RecordingIrqLines::new();
//! machine.provide::<dyn MsiSink>(msi_sink);
//! machine.provide::<dyn KickBinder>(Arc::new(NoKickBinder));
//! machine.provide::<dyn AioContext>(EventLoop::new()?);
//! let host = PciHost::new(PciHostConfig::default(), irq_lines)?;
//! vm_pci::object::add_bus(&machine, machine.object(), "pci.0", host.bus().clone())?;
//! let netdevs = Arc::new(NetClients::new());
//! netdevs.register("loopback", Box::new(|_| Ok(Box::new(|id| Ok(Loopback::new(id))))));
//! netdevs.add("loopback,id=net0")?;
//! machine.provide(netdevs);
//!
//! machine.device_add(Options::parse("virtio-net-pci,netdev=net0,addr=3", Some("driver")))?;
//!
//! let mut id = [0; 4];
//! host.config_read(0, DevFn::new(3, 0)?, 0, &mut id);
//! assert_eq!(u32::from_le_bytes(id), 0x1000_1af4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | name | is |
//! |---|---|
//! | `virtio-net-pci`, or `virtio-net` | `virtio-net-device`; transitional in a conventional slot, unless `disable-legacy` or `disable-modern` say otherwise |
//! | `virtio-net-pci-non-transitional` | the same, with the modern interface alone |
//! | `virtio-net-pci-transitional` | the same, with both interfaces |

pub mod object;

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
