//! What a virtio device is, seen from any transport, and the bus where one device meets one transport
