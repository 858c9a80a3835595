//! One machine, run until it ends: on KVM over as many boots as its guest asks for, or driven by a
//! program in this process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use payload::BootInfo;

use super::host_pings::HostPings;
use super::new_files::NewFiles;
use super::{Ending, Setting, VmmError, in_process};
use crate::boot::{Entry, Image};
use crate::cli::{Options, Serial};
use crate::devices::{DeviceError, Devices};
use crate::kvm::{KvmVm, Vcpus};
use crate::machine::{Event, Interrupts, Machine, MachineConfig, ManualInterrupts, RunState};
use crate::monitor::{Console, Monitor};
use crate::output::complain;
use crate::readiness::wait_readable;
use crate::signals::EndSignals;
use crate::terminal::{ConsoleOutput, Keyboard, RawTerminal};

/// A machine with its devices, and everything that decides how it runs.
#[derive(Debug)]
pub(super) struct Run<'a> {
    // What works on the devices goes before them, and they before the machine that they are in.
    _monitors: Vec<Monitor>,
    devices: Arc<Devices>,
    machine: Arc<Machine>,
    options: &'a Options,
    signals: &'a EndSignals,
    run_state: Arc<RunState>,
    /// When it has taken too long.
    deadline: Option<Instant>,
    /// Set while vCPUs are taken out of whatever they do.
    leaving: Arc<AtomicBool>,
    new_files: NewFiles,
}

impl<'a> Run<'a> {
    /// Makes the machine that `options` describe: netdevs first, then devices, as QEMU does.
    pub(super) fn new(
        options: &'a Options,
        interrupts: Interrupts,
        setting: &'a Setting,
        deadline: Option<Instant>,
    ) -> Result<Self, VmmError> {
        let config = MachineConfig {
            ram: options.ram,
            exit_port: options.kernel.is_none().then_some(payload::EXIT_PORT),
        };
        let leaving = Arc::new(AtomicBool::new(false));
        let new_files = NewFiles::default();
        let serial_file = match &options.serial {
            Serial::File(path) => Some(path.as_path()),
            Serial::None | Serial::Stdio => None,
        };
        let serial = new_files.made_by(serial_file, || serial_end(options, &leaving))?;
        let machine = Machine::new(&config, interrupts, serial)?;
        let devices = Arc::new(Devices::new(&machine)?);
        for netdev in &options.netdevs {
            devices.netdev_add(netdev)?;
        }
        for object in &options.objects {
            let parsed = keyval::Options::parse(object, Some("qom-type"));
            let file = parsed.get("file").map(Path::new);
            let made = new_files.made_by(file, || devices.object_add(object));
            made.map_err(|source| DeviceError::Filter {
                text: object.clone(),
                source,
            })?;
        }
        for device in &options.devices {
            devices.device_add(device)?;
        }
        if options.kernel.is_none() && devices.nics().is_empty() {
            return Err(VmmError::NoNic);
        }
        for missing in devices.without_peer() {
            complain(format_args!("warning: {missing} has no peer"));
        }
        devices.complete();
        machine.assign_resources().map_err(VmmError::Pci)?;
        let run_state = Arc::new(RunState::new(machine.control().clone(), options.paused));
        let console = Console {
            devices: devices.clone(),
            control: machine.control().clone(),
            run_state: run_state.clone(),
        };
        let monitors = (setting.channels.iter())
            .map(|channel| Monitor::start(channel.clone(), console.clone()))
            .collect::<io::Result<_>>()
            .map_err(VmmError::Host)?;
        Ok(Self {
            _monitors: monitors,
            devices,
            machine,
            options,
            signals: &setting.signals,
            run_state,
            deadline,
            leaving,
            new_files,
        })
    }

    /// Boots Linux, with the user's terminal on its serial line.
    pub(super) fn linux_on_kvm(&self, mut kvm: KvmVm, image: &Image) -> Result<Ending, VmmError> {
        let vcpus = kvm.vcpus(&self.machine, self.options.vcpus)?;
        // What is wrong with the files is said before the terminal is taken.
        let entry = image.load(self.machine.memory(), self.options.vcpus)?;
        if self.options.serial != Serial::Stdio {
            return self.on_kvm(&kvm, vcpus, image, entry);
        }
        let _terminal = RawTerminal::enter().map_err(VmmError::Host)?;
        let _keyboard = Keyboard::connect(self.machine.clone()).map_err(VmmError::Host)?;
        self.on_kvm(&kvm, vcpus, image, entry)
    }

    /// Boots the embedded guest, pinged meanwhile if it is to be.
    pub(super) fn embedded_on_kvm(
        &self,
        mut kvm: KvmVm,
        image: &Image,
        pings: Option<&HostPings>,
    ) -> Result<Ending, VmmError> {
        let vcpus = kvm.vcpus(&self.machine, self.options.vcpus)?;
        let entry = image.load(self.machine.memory(), self.options.vcpus)?;
        let body = || self.on_kvm(&kvm, vcpus, image, entry);
        match pings {
            Some(pings) => pings.during(body),
            None => body(),
        }
    }

    /// Runs the embedded guest's program on a thread of this process, pinged meanwhile if it is to be.
    pub(super) fn embedded_in_process(
        &self,
        interrupts: &Arc<ManualInterrupts>,
        info: BootInfo,
        pings: Option<&HostPings>,
    ) -> Result<Ending, VmmError> {
        let body = || {
            while self.run_state.wants_pause() {
                match self.wait().map_err(VmmError::Host)? {
                    Wake::Event(Event::RunState) => {}
                    wake => return Ok(wake.ending()),
                }
            }
            self.new_files.keep();
            self.run_state.runs_for_good();
            in_process::start(&self.machine, interrupts, info).map_err(VmmError::Host)?;
            loop {
                match self.wait().map_err(VmmError::Host)? {
                    // Asked for just before nobody could any more.
                    Wake::Event(Event::RunState) => {}
                    wake => return Ok(wake.ending()),
                }
            }
        };
        match pings {
            Some(pings) => pings.during(body),
            None => body(),
        }
    }

    /// Boots the machine, and again after each reset, until it ends.
    fn on_kvm(
        &self,
        kvm: &KvmVm,
        mut vcpus: Vcpus,
        image: &Image,
        mut entry: Entry,
    ) -> Result<Ending, VmmError> {
        self.new_files.keep();
        loop {
            vcpus.reset(&entry)?;
            let (wake, stopped) = self.boot(vcpus)?;
            let Some(stopped) = stopped else {
                return Ok(Ending::Failed("a vCPU's thread has panicked".into()));
            };
            match wake {
                Wake::Event(Event::Reset) if !self.options.no_reboot => {}
                wake => return Ok(wake.ending()),
            }
            self.devices.reset();
            self.machine.reset().map_err(VmmError::Host)?;
            kvm.reset()?;
            self.machine.assign_resources().map_err(VmmError::Pci)?;
            entry = image.load(self.machine.memory(), self.options.vcpus)?;
            vcpus = stopped;
        }
    }

    /// Lets the processors run, but for the time that the machine is paused, until something ends this
    /// boot. Gives them back, if none of their threads has panicked.
    fn boot(&self, mut vcpus: Vcpus) -> Result<(Wake, Option<Vcpus>), VmmError> {
        loop {
            let wake = if self.run_state.wants_pause() {
                self.devices.pause();
                vcpus.mark_paused();
                self.run_state.is_paused();
                self.wait()
            } else {
                self.devices.resume();
                let running = vcpus.start().map_err(VmmError::Host)?;
                self.run_state.runs();
                let wake = self.wait();
                self.leaving.store(true, Ordering::Relaxed);
                let stopped = running.stop();
                self.leaving.store(false, Ordering::Relaxed);
                let Some(stopped) = stopped else {
                    return Ok((wake.map_err(VmmError::Host)?, None));
                };
                vcpus = stopped;
                wake
            };
            match wake.map_err(VmmError::Host)? {
                Wake::Event(Event::RunState) => {}
                wake => return Ok((wake, Some(vcpus))),
            }
        }
    }

    /// Waits until something ends this boot.
    fn wait(&self) -> io::Result<Wake> {
        let control = self.machine.control();
        loop {
            if let Some(event) = control.take() {
                return Ok(Wake::Event(event));
            }
            if let Some(signal) = self.signals.next() {
                return Ok(Wake::Signal(signal));
            }
            let left = self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(Wake::Deadline);
            }
            wait_readable([control.wake_fd(), self.signals.as_fd()], left)?;
        }
    }
}

/// Whoever waits for the machine is told that it is over, before what they work on goes.
impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.run_state.has_ended();
    }
}

/// Where the serial line ends.
fn serial_end(
    options: &Options,
    leaving: &Arc<AtomicBool>,
) -> Result<Box<dyn Write + Send>, VmmError> {
    Ok(match &options.serial {
        Serial::None => Box::new(io::sink()),
        Serial::Stdio => {
            let console = ConsoleOutput::new(leaving.clone());
            Box::new(console.map_err(VmmError::Host)?)
        }
        Serial::File(path) => {
            let file = File::create(path).map_err(|source| VmmError::Serial {
                path: path.clone(),
                source,
            })?;
            Box::new(file)
        }
    })
}

/// What ended a boot.
enum Wake {
    Event(Event),
    Signal(i32),
    Deadline,
}

impl Wake {
    fn ending(self) -> Ending {
        match self {
            Self::Signal(signal) => Ending::Signal(signal),
            Self::Deadline => Ending::TimedOut,
            Self::Event(event) => match event {
                Event::PowerOff | Event::Reset => Ending::PoweredOff,
                Event::GuestExit(status) => Ending::Status(status),
                Event::Crash(why) => Ending::Crashed(why),
                Event::CannotRun(why) => Ending::CannotRun(why),
                Event::Failed(why) => Ending::Failed(why),
                // The latter ends no boot.
                Event::Quit | Event::RunState => Ending::Quit,
            },
        }
    }
}
