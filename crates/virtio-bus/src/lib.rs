//! What a virtio device is, seen from any transport, and the bus where one device meets one
//! transport.

mod device;
mod kick;

pub use device::{
    ActivateError, Activation, ActiveQueue, DeviceRef, FeaturesRefused, GuestNotifier,
    NotActivated, Transport, VirtioDevice,
};
pub use kick::{KickAddress, KickBinder, KickSpace, NoKickBinder};
