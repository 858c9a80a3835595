//! What CPUID tells a guest: what KVM can do on this host, with the topology of this machine.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, asked};

/// The leaves of vCPU `index` of `count`: one package, one core each, the index as APIC id.
pub(super) fn for_vcpu(kvm: &Kvm, index: u8, count: u8) -> Result<CpuId, KvmError> {
    let mut cpuid = asked(
        "KVM_GET_SUPPORTED_CPUID",
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES),
    )?;
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    let (apic_id, cores) = (u32::from(index), u32::from(count));
    let core_bits = cores.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (LEAF_FEATURES, _) => {
                entry.ebx = entry.ebx & 0x0000_ffff | cores << 16 | apic_id << 24;
                entry.ecx |= ECX_HYPERVISOR;
                if deadline_timer {
                    entry.ecx |= ECX_TSC_DEADLINE;
                }
                if cores > 1 {
                    entry.edx |= EDX_HTT;
                }
            }
            // Caches: levels one and two belong to a core, what is above to the package.
            (LEAF_CACHES, _) if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { (1 << core_bits) - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << core_bits) - 1) << 26;
            }
            (LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2, level) => {
                entry.edx = apic_id;
                (entry.eax, entry.ebx, entry.ecx) = match level {
                    0 => (0, 1, TOPOLOGY_SMT << 8),
                    1 => (core_bits, cores, TOPOLOGY_CORE << 8 | 1),
                    _ => (0, 0, level & 0xff),
                };
            }
            (LEAF_AMD_SIZES, _) => {
                entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (cores - 1);
            }
            (LEAF_AMD_CACHES, _) if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { cores - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            (LEAF_AMD_TOPOLOGY, _) => {
                entry.eax = apic_id;
                entry.ebx = apic_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    Ok(cpuid)
}

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const TOPOLOGY_SMT: u32 = 1;
const TOPOLOGY_CORE: u32 = 2;
