//! What KVM itself says of it; without KVM these pass with a line that says so.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use virtio_bus::{KickAddress, KickBinder, KickSpace};
use vm_pci::{DevFn, MsiMessage, MsiSink};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::KvmVm;
use super::ioevent::KvmKickBinder;
use super::msi::{KvmMsiSink, Routing};

fn vm() -> Option<Arc<VmFd>> {
    let opened = Kvm::new().and_then(|kvm| kvm.create_vm());
    match opened {
        Ok(vm) => {
            vm.create_irq_chip().unwrap();
            Some(Arc::new(vm))
        }
        Err(error) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "KVM: {error}");
            println!("not tested: KVM: {error}");
            None
        }
    }
}

#[test]
fn a_doorbell_is_bound_once_and_unbound_once() {
    let Some(vm) = vm() else { return };
    let binder = KvmKickBinder::new(vm);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let at = |space, address, len, value| KickAddress {
        space,
        address,
        len,
        value,
    };
    let table = [
        at(KickSpace::Mmio, 0x40_0000_3000, None, None),
        at(KickSpace::Mmio, 0x40_0000_3004, Some(2), None),
        at(KickSpace::Port, 0xc010, Some(2), Some(0)),
        at(KickSpace::Port, 0xc010, Some(2), Some(1)),
    ];
    for at in table {
        binder.bind(at, &kick).unwrap();
        assert!(binder.bind(at, &kick).is_err(), "{at:?} a second time");
    }
    for at in table {
        binder.unbind(at, &kick).unwrap();
        assert!(binder.unbind(at, &kick).is_err(), "{at:?} a second time");
    }
}

#[test]
fn a_signal_waits_while_its_vector_is_masked_and_goes_when_it_is_not() {
    let Some(vm) = vm() else { return };
    let sink = KvmMsiSink::new(Arc::new(Routing::new(vm).unwrap()));
    let vector = sink.vector(DevFn::from_byte(8)).unwrap();
    let message = Some(MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    });
    for _ in 0..3 {
        vector.event_fd().write(1).unwrap();
        // Masking what is masked changes nothing.
        vector.route(None).unwrap();
        vector.route(message).unwrap();
        // KVM takes what waits before it returns, or as soon as its worker runs.
        while vector.event_fd().read().is_ok() {
            vector.event_fd().write(1).unwrap();
            std::thread::yield_now();
        }
        vector.route(message).unwrap();
        vector.route(None).unwrap();
        vector.event_fd().write(1).unwrap();
        assert!(vector.event_fd().read().is_ok(), "nobody reads it now");
    }
}

#[test]
fn routes_are_as_many_as_kvm_has_and_come_back() {
    let Some(vm) = vm() else { return };
    let sink = KvmMsiSink::new(Arc::new(Routing::new(vm).unwrap()));
    let message = Some(MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    });
    for _ in 0..3 {
        let vectors: Vec<_> = (0..100)
            .map(|_| sink.vector(DevFn::from_byte(8)).unwrap())
            .collect();
        for vector in &vectors {
            vector.route(message).unwrap();
        }
    }
}

#[test]
fn a_vm_can_be_reset_before_it_ever_ran() {
    if vm().is_some() {
        KvmVm::new().unwrap().reset().unwrap();
    }
}
