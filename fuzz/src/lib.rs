//! What the fuzz targets share.
//!
//! | module | holds |
//! |---|---|
//! | `headers` | the header in front of each frame, both ways, with what must become of it |
//! | `holder` | the holder of a queue, who keeps books on it |
//! | `net` | a network card on arbitrary rings |
//! | `packed` | guest memory with an arbitrary packed ring in it |
//! | `peer` | a net client that takes, keeps or refuses frames |
//! | `options` | what must hold of every option string |
//! | `rig` | a PCI host with a virtio device on it, and what must hold between any two accesses |
//! | `rings` | guest memory with arbitrary split rings in it |
//! | `toy` | a virtio device of two queues |

pub mod headers;
pub(crate) mod holder;
pub mod net;
pub mod options;
pub mod packed;
pub mod peer;
pub mod rig;
pub mod rings;
pub mod toy;
