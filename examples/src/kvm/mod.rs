//! A machine's processors and interrupt controllers, by KVM.
//!
//! [`KvmVm`] is the VM: its memory slots, the in-kernel PIC, I/O APIC and timer, the table of
//! interrupt routes (`msi`) and the doorbells (`ioevent`). [`Vcpus`] are its processors, one
//! thread each while they run. A reset puts all of it back to a snapshot taken when it was made.

mod cpuid;
mod ioevent;
mod msi;
mod state;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

pub use vcpu::{RunningVcpus, Vcpus};
pub use vm::KvmVm;

use std::io;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("KVM: {what}: {source}")]
pub struct KvmError {
    /// What was asked of it.
    what: &'static str,
    /// What it said.
    source: io::Error,
}

impl KvmError {
    /// For a run that does without KVM though it may be there.
    pub(crate) fn unused() -> Self {
        Self {
            what: "opening /dev/kvm",
            source: io::Error::other("not tried"),
        }
    }
}

/// Names what was asked when KVM refuses it.
fn asked<T>(what: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, KvmError> {
    result.map_err(|errno| KvmError {
        what,
        source: io::Error::from_raw_os_error(errno.errno()),
    })
}
