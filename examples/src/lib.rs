//! A virtual machine monitor composed of the crates, as an example and as the machine that the
//! tests drive.
//!
//! | module | holds |
//! |---|---|
//! | [`machine`] | a PC without processors: RAM, PCI host, ports, interrupts |
//! | [`kvm`] | processors and interrupt controllers by KVM |
//! | [`boot`] | what is in RAM before the first instruction |
//! | [`terminal`] | the user's terminal as the machine's serial line |

pub mod boot;
pub mod kvm;
pub mod machine;
