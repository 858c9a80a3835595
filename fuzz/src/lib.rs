//! What the fuzz targets share.
//!
//! | module | holds |
//! |---|---|
//! | `options` | what must hold of every option string |
//! | `rig` | a PCI host with a virtio device on it, and what must hold between any two accesses |
//! | `rings` | guest memory with arbitrary rings in it, and what must hold of a queue on them |
//! | `toy` | a virtio device of two queues |

pub mod options;
pub mod rig;
pub mod rings;
pub mod toy;
