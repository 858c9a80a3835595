//! Doorbells: a guest's write that signals a descriptor inside the kernel.
#![expect(
    unsafe_code,
    reason = "kvm-ioctls has no call for \"this width, any value\", so the ioctl is made here"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use virtio_bus::{KickAddress, KickBinder, KickSpace};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::vm::matches_any_length;

/// Binds notify registers with `KVM_IOEVENTFD`.
#[derive(Debug)]
pub(super) struct KvmKickBinder {
    vm: Arc<VmFd>,
    any_length: bool,
}

impl KvmKickBinder {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        let any_length = matches_any_length(&vm);
        Self { vm, any_length }
    }

    fn ioctl(&self, at: KickAddress, kick: &EventFd, flags: u32) -> io::Result<()> {
        let Some(request) = request(at, kick, flags, self.any_length) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // SAFETY: the descriptor is a VM's, and the kernel only reads `request`, which is the
        // structure of this ioctl and lives across the call.
        let done = unsafe { ioctl_with_ref(&*self.vm, KVM_IOEVENTFD(), &request) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl KickBinder for KvmKickBinder {
    fn bind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        self.ioctl(at, kick, 0)
    }

    fn unbind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        self.ioctl(at, kick, 1 << kvm_ioeventfd_flag_nr_deassign)
    }
}

/// The ioctl's argument, or `None` for what KVM cannot match.
fn request(
    at: KickAddress,
    kick: &EventFd,
    mut flags: u32,
    any_length: bool,
) -> Option<kvm_ioeventfd> {
    let len = match at.len {
        Some(len) => u32::from(len),
        // Length 0 is any (KVM_CAP_IOEVENTFD_ANY_LENGTH), and then any value.
        None if any_length && at.value.is_none() => 0,
        None => return None,
    };
    if at.space == KickSpace::Port {
        flags |= 1 << kvm_ioeventfd_flag_nr_pio;
    }
    if at.value.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    Some(kvm_ioeventfd {
        datamatch: at.value.unwrap_or(0),
        addr: at.address,
        len,
        fd: kick.as_raw_fd(),
        flags,
        ..Default::default()
    })
}

ioctl_iow_nr!(KVM_IOEVENTFD, kvm_bindings::KVMIO, 0x79, kvm_ioeventfd);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_was_asked() {
        let kick = EventFd::new(0).unwrap();
        let at = |space, len, value| KickAddress {
            space,
            address: 0x1000,
            len,
            value,
        };
        // Space, width, value, whether any width can be matched; length and flags.
        let table = [
            (KickSpace::Mmio, None, None, true, Some((0, 0))),
            (KickSpace::Mmio, None, None, false, None),
            (KickSpace::Mmio, None, Some(1), true, None),
            (KickSpace::Mmio, Some(2), None, false, Some((2, 0))),
            (KickSpace::Port, Some(2), Some(3), true, Some((2, 0b011))),
        ];
        for (space, len, value, any_length, expected) in table {
            let request = request(at(space, len, value), &kick, 0, any_length);
            assert_eq!(
                request.map(|request| (request.len, request.flags)),
                expected,
                "{space:?} {len:?} {value:?} {any_length}"
            );
        }
    }
}
