//! The PCI proxies under the names that `-device` takes: each a virtio model behind a virtio-pci transport.
//!
//! A proxy does nothing itself. When it is made, it makes its model as the child `virtio-backend` and has
//! aliases for the model's properties; when it is realized, it realizes the model on the bus that its
//! transport has made.
//!
//! | name | is |
//! |---|---|
//! | `virtio-net-pci` | `virtio-net-device`; modern, since there is no legacy interface to choose |
//! | `virtio-net-pci-non-transitional` | the same, with nothing to choose |
//! | `virtio-net-pci-transitional` | refused as not supported |

pub mod object;
