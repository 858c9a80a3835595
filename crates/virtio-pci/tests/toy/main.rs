//! A device that is no network card, and a driver that goes through configuration space and BARs:
//! `virtio-bus` and `virtio-pci` carry any model.
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]

mod device;
mod driver;
mod machine;

mod express;
mod hostile;
mod legacy;
mod lifecycle;
mod looks;
mod suspend;
mod transfer;
