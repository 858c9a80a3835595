//! A vCPU's registers: as they are after power-on, and as a boot loader leaves them.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_debugregs, kvm_fpu,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{KvmError, asked};
use crate::boot::Entry;

/// Everything a guest can change about a vCPU, as it was when the vCPU was made.
pub(super) struct ResetState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    xcrs: Option<kvm_xcrs>,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    mp_state: kvm_mp_state,
}

impl ResetState {
    /// Takes the state of a vCPU that has not run; `first`: the one that starts by itself.
    pub(super) fn save(kvm: &Kvm, vcpu: &VcpuFd, first: bool) -> Result<Self, KvmError> {
        let list = asked("KVM_GET_MSR_INDEX_LIST", kvm.get_msr_index_list())?;
        let msrs = list
            .as_slice()
            .iter()
            .filter(|index| !CLOCK_MSRS.contains(index))
            .filter_map(|&index| read_msr(vcpu, index))
            .collect();
        Ok(Self {
            regs: asked("KVM_GET_REGS", vcpu.get_regs())?,
            sregs: asked("KVM_GET_SREGS", vcpu.get_sregs())?,
            fpu: asked("KVM_GET_FPU", vcpu.get_fpu())?,
            // Hosts without XSAVE have none.
            xcrs: vcpu.get_xcrs().ok(),
            debug: asked("KVM_GET_DEBUGREGS", vcpu.get_debug_regs())?,
            events: asked("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?,
            lapic: asked("KVM_GET_LAPIC", vcpu.get_lapic())?,
            msrs,
            mp_state: kvm_mp_state {
                mp_state: if first {
                    KVM_MP_STATE_RUNNABLE
                } else {
                    KVM_MP_STATE_UNINITIALIZED
                },
            },
        })
    }

    /// Puts all of it back.
    pub(super) fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        asked("KVM_SET_MP_STATE", vcpu.set_mp_state(self.mp_state))?;
        asked("KVM_SET_REGS", vcpu.set_regs(&self.regs))?;
        // The APIC's base and mode come with the segment registers, so its own come after them.
        asked("KVM_SET_SREGS", vcpu.set_sregs(&self.sregs))?;
        asked("KVM_SET_LAPIC", vcpu.set_lapic(&self.lapic))?;
        asked("KVM_SET_FPU", vcpu.set_fpu(&self.fpu))?;
        if let Some(xcrs) = &self.xcrs {
            asked("KVM_SET_XCRS", vcpu.set_xcrs(xcrs))?;
        }
        asked("KVM_SET_DEBUGREGS", vcpu.set_debug_regs(&self.debug))?;
        for &entry in &self.msrs {
            // One by one: some that KVM lets one read it does not let one write.
            if let Ok(msrs) = Msrs::from_entries(&[entry]) {
                let _ = vcpu.set_msrs(&msrs);
            }
        }
        asked("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&self.events))
    }
}

impl std::fmt::Debug for ResetState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResetState").finish_non_exhaustive()
    }
}

/// What firmware does on every processor: write-back memory by default, and the pins of the legacy
/// interrupt controller and NMI wired to the local APIC.
pub(super) fn set_up_firmware_state(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries = [
        kvm_msr_entry {
            index: MSR_MTRR_DEF_TYPE,
            data: MTRR_ENABLED | MTRR_WRITE_BACK,
            ..Default::default()
        },
        kvm_msr_entry {
            index: MSR_MISC_ENABLE,
            data: MISC_ENABLE_FAST_STRING,
            ..Default::default()
        },
    ];
    for entry in entries {
        // An emulated processor may lack either, and does without.
        if let Ok(msrs) = Msrs::from_entries(&[entry]) {
            let _ = vcpu.set_msrs(&msrs);
        }
    }
    let mut lapic = asked("KVM_GET_LAPIC", vcpu.get_lapic())?;
    set_delivery_mode(&mut lapic, LAPIC_LVT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, LAPIC_LVT1, DELIVERY_NMI);
    asked("KVM_SET_LAPIC", vcpu.set_lapic(&lapic))
}

/// Makes the first processor start at `entry` in 64-bit mode with flat segments.
pub(super) fn set_up_entry(vcpu: &VcpuFd, entry: &Entry) -> Result<(), KvmError> {
    let mut sregs = asked("KVM_GET_SREGS", vcpu.get_sregs())?;
    sregs.gdt.base = entry.gdt;
    sregs.gdt.limit = entry.gdt_limit;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    let code = flat_segment(entry.code_selector, SEGMENT_CODE, true);
    let data = flat_segment(entry.data_selector, SEGMENT_DATA, false);
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    // A busy 64-bit TSS, which Intel's entry checks want.
    sregs.tr.type_ = SEGMENT_BUSY_TSS;
    sregs.tr.s = 0;
    sregs.tr.present = 1;
    sregs.cr3 = entry.page_table;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    asked("KVM_SET_SREGS", vcpu.set_sregs(&sregs))?;

    let regs = kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rbp: entry.rsp,
        rsi: entry.rsi,
        rdi: entry.rdi,
        rflags: RFLAGS_ALWAYS_ONE,
        ..Default::default()
    };
    asked("KVM_SET_REGS", vcpu.set_regs(&regs))
}

fn flat_segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn read_msr(vcpu: &VcpuFd, index: u32) -> Option<kvm_msr_entry> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry {
        index,
        ..Default::default()
    }])
    .ok()?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().copied(),
        _ => None,
    }
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes: &mut [_] = &mut lapic.regs[register..register + 4];
    let mut value = 0;
    for (shift, byte) in bytes.iter().enumerate() {
        value |= u32::from(byte.cast_unsigned()) << (8 * shift);
    }
    value = value & !0x700 & !LVT_MASKED | mode << 8;
    for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *byte = new.cast_signed();
    }
}

/// Counters that go on over a reset.
const CLOCK_MSRS: [u32; 2] = [
    0x10,  // IA32_TIME_STAMP_COUNTER
    0x6e0, // IA32_TSC_DEADLINE
];
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;
const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
const LVT_MASKED: u32 = 1 << 16;
const DELIVERY_NMI: u32 = 4;
const DELIVERY_EXTINT: u32 = 7;
const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;
const SEGMENT_BUSY_TSS: u8 = 0xb;
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_ALWAYS_ONE: u64 = 2;
