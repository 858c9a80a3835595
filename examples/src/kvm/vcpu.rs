//! The processors: one thread each while they run.
#![expect(
    unsafe_code,
    reason = "a signal is sent to a vCPU's thread, and the exit's union is read by its kind"
)]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::state::{ResetState, set_up_entry, set_up_firmware_state};
use super::{KvmError, asked, cpuid};
use crate::boot::Entry;
use crate::machine::{Event, Machine};

/// A machine's processors, at rest.
#[derive(Debug)]
pub struct Vcpus {
    machine: Arc<Machine>,
    vcpus: Vec<VcpuFd>,
    reset_states: Vec<ResetState>,
}

impl Vcpus {
    pub(super) fn new(
        kvm: &Kvm,
        vm: &VmFd,
        machine: Arc<Machine>,
        count: u8,
    ) -> Result<Self, KvmError> {
        let mut vcpus = Vec::new();
        let mut reset_states = Vec::new();
        for index in 0..count {
            let vcpu = asked("KVM_CREATE_VCPU", vm.create_vcpu(index.into()))?;
            let leaves = cpuid::for_vcpu(kvm, index, count)?;
            asked("KVM_SET_CPUID2", vcpu.set_cpuid2(&leaves))?;
            set_up_firmware_state(&vcpu)?;
            reset_states.push(ResetState::save(kvm, &vcpu, index == 0)?);
            vcpus.push(vcpu);
        }
        Ok(Self {
            machine,
            vcpus,
            reset_states,
        })
    }

    /// Puts all processors back to power-on, the first of them to start at `entry`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn reset(&self, entry: &Entry) -> Result<(), KvmError> {
        for (vcpu, state) in self.vcpus.iter().zip(&self.reset_states) {
            state.restore(vcpu)?;
        }
        match self.vcpus.first() {
            Some(first) => set_up_entry(first, entry),
            None => Ok(()),
        }
    }

    /// Tells KVM that the machine pauses, so that its guest does not take the time for a processor's
    /// that hangs. Called after they have run, before they do so again.
    pub fn mark_paused(&self) {
        for vcpu in &self.vcpus {
            // A guest that has no paravirtual clock cannot be told: then this fails.
            let _ = vcpu.kvmclock_ctrl();
        }
    }

    /// Lets them run. Whatever ends them is reported to the machine's control.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(self) -> io::Result<RunningVcpus> {
        register_kick_signal()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = RunningVcpus {
            machine: self.machine.clone(),
            stop: stop.clone(),
            threads: Vec::new(),
            reset_states: self.reset_states,
        };
        for (index, vcpu) in self.vcpus.into_iter().enumerate() {
            let (machine, stop) = (self.machine.clone(), stop.clone());
            // On failure, dropping `running` stops those that run already.
            let thread = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || run(vcpu, &machine, &stop))?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

/// A machine's processors while they run. Dropping it stops them.
#[derive(Debug)]
pub struct RunningVcpus {
    machine: Arc<Machine>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<VcpuFd>>,
    reset_states: Vec<ResetState>,
}

impl RunningVcpus {
    /// Stops them, each between two instructions. `None` if a thread has panicked: the processors
    /// cannot be run again then.
    pub fn stop(mut self) -> Option<Vcpus> {
        let vcpus = self.stop_threads();
        let reset_states = std::mem::take(&mut self.reset_states);
        (vcpus.len() == reset_states.len()).then(|| Vcpus {
            machine: self.machine.clone(),
            vcpus,
            reset_states,
        })
    }

    fn stop_threads(&mut self) -> Vec<VcpuFd> {
        self.stop.store(true, Ordering::Release);
        for thread in &self.threads {
            // A signal that comes between the thread's look at the flag and its entry into the guest
            // is lost on it, so it is sent until it has worked.
            while !thread.is_finished() {
                // SAFETY: the thread has not been joined, so its id is valid.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.threads
            .drain(..)
            .filter_map(|thread| thread.join().ok())
            .collect()
    }
}

impl Drop for RunningVcpus {
    fn drop(&mut self) {
        self.stop_threads();
    }
}

/// Runs one vCPU until it is told to stop or cannot go on.
fn run(mut vcpu: VcpuFd, machine: &Machine, stop: &AtomicBool) -> VcpuFd {
    let _report = ReportPanic(machine);
    while !stop.load(Ordering::Acquire) {
        let event = match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                machine.port_read(port, data);
                continue;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                machine.port_write(port, data);
                continue;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                machine.mmio_read(address, data);
                continue;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                machine.mmio_write(address, data);
                continue;
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => continue,
            Ok(VcpuExit::Shutdown) => Event::Crash(format!("triple fault{}", place(&vcpu))),
            Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Event::PowerOff,
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => Event::Reset,
                kind => Event::Crash(format!("system event {kind}{}", place(&vcpu))),
            },
            Ok(VcpuExit::InternalError) => Event::CannotRun(internal_error(&mut vcpu)),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Event::CannotRun(format!(
                "KVM cannot enter the guest on host processor {cpu}: hardware reason {reason:#x}"
            )),
            Ok(exit) => Event::Failed(format!("KVM: unexpected exit {exit:?}")),
            Err(errno) => match errno.errno() {
                libc::EINTR | libc::EAGAIN => continue,
                errno => Event::Failed(format!(
                    "KVM_RUN: {}{}",
                    io::Error::from_raw_os_error(errno),
                    place(&vcpu)
                )),
            },
        };
        machine.control().report(event);
        // Nothing more to run here; the owner joins the thread when it acts on the event.
        break;
    }
    vcpu
}

/// Where the vCPU stopped, for messages.
fn place(vcpu: &VcpuFd) -> String {
    vcpu.get_regs()
        .map_or_else(|_| String::new(), |regs| format!(" at rip {:#x}", regs.rip))
}

fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit's reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel fills in this member.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let what = if suberror == KVM_INTERNAL_ERROR_EMULATION {
        "it cannot emulate the instruction".to_owned()
    } else {
        format!("suberror {suberror}")
    };
    format!("KVM internal error: {what}{}", place(vcpu))
}

/// Ends the machine when a vCPU's thread panics.
struct ReportPanic<'a>(&'a Machine);

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .control()
                .report(Event::Failed("a vCPU's thread has panicked".into()));
        }
    }
}

/// The signal that takes a vCPU's thread out of the guest.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn register_kick_signal() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all-zero is a `sigaction` with an empty mask and no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is complete, and its handler does nothing, which is safe in any signal context.
    let set = unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
