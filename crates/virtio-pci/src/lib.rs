//! The virtio-pci transport
