//! The VMM as a program: from a command line to an exit status.

mod ending;
mod in_process;
mod on_kvm;

pub use ending::Ending;
pub use on_kvm::Run;

use std::io;

use crate::boot::{BootError, Image, LinuxImage};
use crate::cli::Options;
use crate::kvm::{KvmError, KvmVm};
use crate::machine::{Machine, MachineConfig, MachineError};
use crate::netns::{self, NetnsError};
use crate::signals::EndSignals;
use crate::terminal::{Keyboard, RawTerminal};

/// Why a machine was not made, or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// No namespace of one's own.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// No processors for it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Nothing to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A BAR does not fit.
    #[error(transparent)]
    Pci(vm_pci::Error),
    /// The host refused something.
    #[error(transparent)]
    Host(io::Error),
}

/// Makes the machine that the options describe, runs it, and takes it down.
///
/// Called by the program's first and only thread.
///
/// # Errors
/// Whatever keeps the machine from running; nothing of it is left behind.
pub fn run(options: &Options) -> Result<Ending, VmmError> {
    if options.own_network {
        netns::enter_new()?;
    }
    let signals = EndSignals::take().map_err(VmmError::Host)?;
    let mut kvm = KvmVm::new()?;
    let config = MachineConfig {
        ram: options.ram,
        exit_port: None,
    };
    let machine = Machine::new(&config, kvm.interrupts(), Box::new(io::stdout()))?;
    let image = Image::Linux(LinuxImage {
        kernel: options.kernel.clone().unwrap_or_default(),
        initrd: options.initrd.clone(),
        command_line: options.append.clone().unwrap_or_default(),
    });
    let run = Run {
        machine: &machine,
        image: &image,
        vcpus: options.vcpus,
        no_reboot: options.no_reboot,
        deadline: None,
        signals: &signals,
    };
    let _terminal = RawTerminal::enter().map_err(VmmError::Host)?;
    let _keyboard = Keyboard::connect(machine.clone()).map_err(VmmError::Host)?;
    run.on_kvm(&mut kvm)
}
