//! A virtual machine monitor composed of the crates, as an example and as the machine that the
//! tests drive.
//!
//! | module | holds |
//! |---|---|
//! | [`machine`] | a PC without processors: RAM, PCI host, ports, interrupts |
//! | [`kvm`] | processors and interrupt controllers by KVM |
//! | [`boot`] | what is in RAM before the first instruction |
//! | [`devices`] | netdevs and devices from option strings |
//! | [`cli`] | the command line |
//! | [`monitor`] | a control of the running machine, in the words of QEMU's human monitor |
//! | [`terminal`] | the user's terminal as the machine's serial line |
//! | [`readiness`] | waiting for descriptors |
//! | [`signals`] | the signals that ask the process to end |
//! | [`output`] | what the program says |
//! | [`ping`] | echo requests to a guest |
//! | [`vmm`] | all of it as a program |
//! | [`log`] | warnings and errors on standard error |
//! | [`netns`] | a network namespace of the process's own |

pub mod boot;
pub mod cli;
pub mod devices;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod monitor;
pub mod netns;
pub mod output;
pub mod ping;
pub mod readiness;
pub mod signals;
pub mod terminal;
pub mod vmm;

/// The README's code, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
