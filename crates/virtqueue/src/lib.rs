//! The device's half of a virtqueue
