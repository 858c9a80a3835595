//! What the fuzz targets share.
//!
//! | module | holds |
//! |---|---|
//! | `headers` | the header in front of each frame, both ways, with what must become of it |
//! | `net` | a network card on arbitrary rings |
//! | `peer` | a net client that takes, keeps or refuses frames |
//! | `options` | what must hold of every option string |
//! | `rig` | a PCI host with a virtio device on it, and what must hold between any two accesses |
//! | `rings` | guest memory with arbitrary rings in it, and what must hold of a queue on them |
//! | `toy` | a virtio device of two queues |

pub mod headers;
pub mod net;
pub mod options;
pub mod peer;
pub mod rig;
pub mod rings;
pub mod toy;
