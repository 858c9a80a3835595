//! What a virtio device is, seen from any transport, and the bus where one device meets one
//! transport.
//!
//! A device model implements [`VirtioDevice`] and knows no bus. A transport (virtio-pci) keeps a
//! [`VirtioCore`], which has everything that its registers share with those of other transports: the
//! status protocol, feature negotiation and the queues' registers. [`VirtioBus::plug`] brings the two
//! together. What the device then needs of its transport is behind [`Transport`] and, one for each
//! queue, [`GuestNotifier`]; neither takes a lock of the transport.
//!
//! A queue's registers are frozen from `queue_enable` on, and the queue itself, an [`ActiveQueue`], is on
//! loan to the device from DRIVER_OK until reset. It takes with it where it starts
//! ([`VirtioCore::set_queue_state`]) and brings back where it stopped
//! ([`VirtioCore::returned_state`]).
//!
//! What a driver has set, and where its queues stand, is read out of a paused device as a [`SavedCore`] and set in a
//! fresh one, which goes on with the queues in guest memory. What else the driver has told the device is the device's to
//! save ([`VirtioDevice::save`]).
//!
//! Nothing here knows an interrupt controller, an address space or a hypervisor: kicks are descriptors that a
//! [`KickBinder`] may bind to the guest's writes.
//!
//! | module | holds |
//! |---|---|
//! | `device` | [`VirtioDevice`], and what it gets and gives back |
//! | `core` | [`VirtioCore`], with the registers of both interfaces |
//! | `status`, `features`, `slot` | its three parts, each a table of what a driver may do |
//! | `health` | [`Health`]: what the data path may change of it |
//! | `bus` | [`VirtioBus`], [`BusTransport`] |
//! | `kick` | [`KickBinder`] |
//! | [`object`] | the types `virtio-device` and `virtio-bus` |

mod bus;
mod core;
mod device;
mod features;
mod health;
mod kick;
pub mod object;
mod slot;
mod status;

pub use self::core::{
    ANY_LAYOUT, Half, Hold, Interface, QueueArea, QueuePhase, SavedCore, SavedQueue, StatusEffect,
    VirtioCore, signal,
};
pub use bus::{BusTransport, PlugError, VirtioBus};
pub use device::{
    ActivateError, Activation, ActiveQueue, DeviceRef, FeaturesRefused, GuestNotifier,
    NotActivated, Transport, VirtioDevice,
};
pub use features::TransportFeatures;
pub use health::Health;
pub use kick::{KickAddress, KickBinder, KickSpace, NoKickBinder};

// The README's example runs with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
