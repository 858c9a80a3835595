//! The VMM as a program: from a command line to an exit status.

mod ending;
mod host_pings;
mod in_process;
mod new_files;
mod run;

pub use ending::Ending;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use payload::BootInfo;

use crate::boot::{BootError, DEFAULT_INFO, Image, LinuxImage, Payload};
use crate::cli::Options;
use crate::devices::DeviceError;
use crate::kvm::{KvmError, KvmVm};
use crate::machine::{MachineError, ManualInterrupts};
use crate::monitor::{Channel, ChannelError};
use crate::netns::{self, NetnsError};
use crate::output::{complain, say};
use crate::signals::EndSignals;

use host_pings::HostPings;
use run::Run;

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
    /// A netdev or device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No processors for it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A `-monitor` option.
    #[error("-monitor {text}: {source}")]
    Monitor {
        /// The option's value.
        text: String,
        /// What is wrong with it.
        source: ChannelError,
    },
    /// The file of `-serial`.
    #[error("-serial file:{}: {source}", path.display())]
    Serial {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The embedded guest has nothing to drive.
    #[error(
        "there is no virtio-net device for the embedded guest to drive \
         (-device virtio-net-pci,netdev=ID); another guest comes with -kernel"
    )]
    NoNic,
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
    let (options, setting, host_pings) = prepare(options)?;
    if let Some(kernel) = &options.kernel {
        let image = Image::Linux(LinuxImage {
            kernel: kernel.clone(),
            initrd: options.initrd.clone(),
            command_line: options.append.clone().unwrap_or_default(),
        });
        return linux(&options, &image, &setting);
    }
    embedded(&options, host_pings, &setting, KvmVm::new())
}

/// As [`run`] without a kernel does where there is no KVM.
///
/// # Errors
/// Whatever keeps the machine from running; nothing of it is left behind.
pub fn run_without_kvm(options: &Options) -> Result<Ending, VmmError> {
    let (options, setting, host_pings) = prepare(options)?;
    let unused = KvmError::unused();
    embedded(&options, host_pings, &setting, Err(unused))
}

/// Fills in the defaults, and prepares the process: it has one thread so far. Says whether the host is to
/// ping the guest.
fn prepare(options: &Options) -> Result<(Options, Setting, bool), VmmError> {
    let mut options = options.clone();
    let by_default =
        options.kernel.is_none() && options.netdevs.is_empty() && options.devices.is_empty();
    if by_default {
        options.netdevs = vec![format!("tap,id=tap0,ip={}/24", DEFAULT_INFO.host)];
        options.devices = vec!["virtio-net-pci,netdev=tap0".into()];
    }
    if options.own_network {
        netns::enter_new()?;
    } else if by_default {
        // The host may have the addresses of the default for something else, or another such run does.
        match netns::enter_new() {
            Err(error) if !netns::may_administer_networks() => return Err(error.into()),
            Err(error) => complain(format_args!("warning: {error}: the host's own is used")),
            Ok(()) => {}
        }
    }
    let signals = EndSignals::take().map_err(VmmError::Host)?;
    let mut channels = Vec::new();
    for text in &options.monitors {
        let channel = Channel::open(text, signals.as_fd());
        let channel = channel.map_err(|source| VmmError::Monitor {
            text: text.clone(),
            source,
        })?;
        channels.extend(channel.map(Arc::new));
    }
    let setting = Setting { signals, channels };
    Ok((options, setting, by_default))
}

/// What a machine shares with the process that it runs in.
#[derive(Debug)]
struct Setting {
    signals: EndSignals,
    channels: Vec<Arc<Channel>>,
}

fn linux(options: &Options, image: &Image, setting: &Setting) -> Result<Ending, VmmError> {
    let kvm = KvmVm::new()?;
    let run = Run::new(options, kvm.interrupts(), setting, None)?;
    run.linux_on_kvm(kvm, image)
}

/// Runs the embedded guest: on KVM if there is one that can, else in this process.
fn embedded(
    options: &Options,
    host_pings: bool,
    setting: &Setting,
    kvm: Result<KvmVm, KvmError>,
) -> Result<Ending, VmmError> {
    // Who has a monitor says himself when it is enough.
    let is_controlled = !setting.channels.is_empty();
    let deadline = || (!is_controlled).then(|| Instant::now() + EMBEDDED_TIME);
    let mut info = DEFAULT_INFO;
    let pings = match host_pings.then(|| HostPings::new(info.guest, info.requests)) {
        Some(Ok(pings)) => Some(pings),
        Some(Err(error)) => {
            say(format_args!("the host cannot ping the guest: {error}"));
            None
        }
        None => None,
    };
    if is_controlled {
        info.requests = BootInfo::ENDLESS;
    } else if pings.is_none() {
        info.requests = 0;
    }

    let why = match kvm {
        Err(error) => error.to_string(),
        Ok(kvm) => {
            let image = Image::Payload(Payload {
                image: PAYLOAD,
                info,
            });
            let run = Run::new(options, kvm.interrupts(), setting, deadline())?;
            let ending = run.embedded_on_kvm(kvm, &image, pings.as_ref())?;
            match ending {
                Ending::CannotRun(why) => why,
                ending => return Ok(ending),
            }
        }
    };
    say(format_args!(
        "{why}: the guest's program runs in this process"
    ));
    let interrupts = ManualInterrupts::new();
    let run = Run::new(options, interrupts.interrupts(), setting, deadline())?;
    run.embedded_in_process(&interrupts, info, pings.as_ref())
}

/// The embedded guest, as the build script made it.
const PAYLOAD: &[u8] = include_bytes!(env!("PAYLOAD_ELF"));

/// How long the embedded guest may take: much, on a host that emulates its processor.
const EMBEDDED_TIME: Duration = Duration::from_secs(120);
