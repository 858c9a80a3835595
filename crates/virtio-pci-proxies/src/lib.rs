//! The PCI proxies under the names that -device takes
