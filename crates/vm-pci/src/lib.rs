//! PCI functions, their configuration space, BARs, capabilities and interrupts, the bus and the host bridge
