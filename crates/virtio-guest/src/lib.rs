//! The driver's half of virtio-pci and virtio-net
