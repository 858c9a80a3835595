//! The VM: memory slots, interrupt controllers and lines.
#![expect(unsafe_code, reason = "memory slots are given to KVM by host address")]

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vm_pci::IrqLines;
use vmm_sys_util::eventfd::EventFd;

use super::ioevent::KvmKickBinder;
use super::msi::{KvmMsiSink, Routing};
use super::vcpu::Vcpus;
use super::{KvmError, asked};
use crate::machine::layout::{KVM_IDENTITY_MAP, KVM_TSS, SERIAL_GSI};
use crate::machine::{Interrupts, Machine, Memory};

/// One VM of KVM's, with an in-kernel PIC, I/O APIC and timer.
#[derive(Debug)]
pub struct KvmVm {
    kvm: Kvm,
    vm: Arc<VmFd>,
    routing: Arc<Routing>,
    /// The machine's RAM, kept for as long as KVM has its addresses.
    memory: Option<Memory>,
    reset_state: ChipState,
}

impl KvmVm {
    /// Opens `/dev/kvm` and makes a VM with no memory and no vCPU.
    ///
    /// # Errors
    /// When there is no KVM to be had, or it cannot do what a PC needs.
    pub fn new() -> Result<Self, KvmError> {
        let kvm = asked("opening /dev/kvm", Kvm::new())?;
        let vm = Arc::new(asked("KVM_CREATE_VM", kvm.create_vm())?);
        asked(
            "KVM_SET_IDENTITY_MAP_ADDR",
            vm.set_identity_map_address(KVM_IDENTITY_MAP),
        )?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "usize has 64 bits on x86-64"
        )]
        asked("KVM_SET_TSS_ADDR", vm.set_tss_address(KVM_TSS as usize))?;
        asked("KVM_CREATE_IRQCHIP", vm.create_irq_chip())?;
        let pit = kvm_pit_config {
            // Port 0x61 too, which belongs to the timer's third channel.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        asked("KVM_CREATE_PIT2", vm.create_pit2(pit))?;
        let routing = Arc::new(Routing::new(vm.clone())?);
        let reset_state = ChipState::save(&vm)?;
        Ok(Self {
            kvm,
            vm,
            routing,
            memory: None,
            reset_state,
        })
    }

    /// What a machine on this VM is made with.
    pub fn interrupts(&self) -> Interrupts {
        Interrupts {
            msi: Arc::new(KvmMsiSink::new(self.routing.clone())),
            lines: Arc::new(KvmLines(self.vm.clone())),
            kicks: Arc::new(KvmKickBinder::new(self.vm.clone())),
        }
    }

    /// Gives the VM the machine's RAM and the interrupt line of its serial port, and makes `count`
    /// processors for it.
    ///
    /// # Errors
    /// When KVM refuses any of it.
    pub fn vcpus(&mut self, machine: &Arc<Machine>, count: u8) -> Result<Vcpus, KvmError> {
        self.map(machine.memory())?;
        self.bind_edge(machine.serial().irq(), SERIAL_GSI)?;
        Vcpus::new(&self.kvm, &self.vm, machine.clone(), count)
    }

    /// Puts the interrupt controllers and the timer back to how they were made.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn reset(&self) -> Result<(), KvmError> {
        self.reset_state.restore(&self.vm)
    }

    fn map(&mut self, memory: &Memory) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped for as long as `memory` lives, which `self` keeps beside
            // the VM; regions of one `GuestMemoryMmap` do not overlap, nor do the slots then.
            let set = unsafe { self.vm.set_user_memory_region(slot) };
            asked("KVM_SET_USER_MEMORY_REGION", set)?;
        }
        self.memory = Some(memory.clone());
        Ok(())
    }

    fn bind_edge(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        asked("KVM_IRQFD", self.vm.register_irqfd(event, gsi))
    }
}

/// Whether KVM matches ioeventfds without regard to the width of the write.
pub(super) fn matches_any_length(vm: &VmFd) -> bool {
    vm.check_extension_raw(u64::from(KVM_CAP_IOEVENTFD_ANY_LENGTH)) > 0
}

#[derive(Debug)]
struct KvmLines(Arc<VmFd>);

impl IrqLines for KvmLines {
    fn set(&self, gsi: u32, asserted: bool) {
        // The line exists: the I/O APIC is there from the start, and its inputs keep their routes.
        let _ = self.0.set_irq_line(gsi, asserted);
    }
}

/// The state of the three interrupt controllers and the timer.
struct ChipState {
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl ChipState {
    fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let mut chips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for chip in &mut chips {
            asked("KVM_GET_IRQCHIP", vm.get_irqchip(chip))?;
        }
        let pit = asked("KVM_GET_PIT2", vm.get_pit2())?;
        Ok(Self { chips, pit })
    }

    fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        for chip in &self.chips {
            asked("KVM_SET_IRQCHIP", vm.set_irqchip(chip))?;
        }
        asked("KVM_SET_PIT2", vm.set_pit2(&self.pit))
    }
}

impl std::fmt::Debug for ChipState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The register files are unions, which have no text of their own.
        f.debug_struct("ChipState").finish_non_exhaustive()
    }
}
