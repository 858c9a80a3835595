//! One machine, run until it ends: on KVM over as many boots as its guest asks for, or driven by a
//! program in this process.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use payload::BootInfo;

use super::host_pings::HostPings;
use super::{Ending, VmmError, in_process};
use crate::boot::{Entry, Image};
use crate::cli::Options;
use crate::devices::Devices;
use crate::kvm::{KvmVm, Vcpus};
use crate::machine::{Event, Interrupts, Machine, MachineConfig, ManualInterrupts};
use crate::output::complain;
use crate::readiness::wait_readable;
use crate::signals::EndSignals;
use crate::terminal::{ConsoleOutput, Keyboard, RawTerminal};

/// A machine with its devices, and everything that decides how it runs.
#[derive(Debug)]
pub(super) struct Run<'a> {
    // Devices go before the machine that they are in.
    devices: Devices,
    machine: Arc<Machine>,
    options: &'a Options,
    signals: &'a EndSignals,
    /// When it has taken too long.
    deadline: Option<Instant>,
    /// Set while vCPUs are taken out of whatever they do.
    leaving: Arc<AtomicBool>,
}

impl<'a> Run<'a> {
    /// Makes the machine that `options` describe: netdevs first, then devices, as QEMU does.
    pub(super) fn new(
        options: &'a Options,
        interrupts: Interrupts,
        signals: &'a EndSignals,
        deadline: Option<Instant>,
    ) -> Result<Self, VmmError> {
        let config = MachineConfig {
            ram: options.ram,
            exit_port: options.kernel.is_none().then_some(payload::EXIT_PORT),
        };
        let leaving = Arc::new(AtomicBool::new(false));
        let console = ConsoleOutput::new(leaving.clone()).map_err(VmmError::Host)?;
        let machine = Machine::new(&config, interrupts, Box::new(console))?;
        let devices = Devices::new(&machine)?;
        for netdev in &options.netdevs {
            devices.netdev_add(netdev)?;
        }
        for device in &options.devices {
            devices.device_add(device)?;
        }
        for missing in devices.without_peer() {
            complain(format_args!("warning: {missing} has no peer"));
        }
        devices.complete();
        machine.assign_resources().map_err(VmmError::Pci)?;
        Ok(Self {
            devices,
            machine,
            options,
            signals,
            deadline,
            leaving,
        })
    }

    /// Boots Linux, with the user's terminal on its serial line.
    pub(super) fn linux_on_kvm(&self, mut kvm: KvmVm, image: &Image) -> Result<Ending, VmmError> {
        let vcpus = kvm.vcpus(&self.machine, self.options.vcpus)?;
        // What is wrong with the files is said before the terminal is taken.
        let entry = image.load(self.machine.memory(), self.options.vcpus)?;
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
            in_process::start(&self.machine, interrupts, info).map_err(VmmError::Host)?;
            self.wait().map(Wake::ending).map_err(VmmError::Host)
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
        loop {
            vcpus.reset(&entry)?;
            let running = vcpus.start().map_err(VmmError::Host)?;
            let event = self.wait();
            self.leaving.store(true, Ordering::Relaxed);
            let stopped = running.stop();
            self.leaving.store(false, Ordering::Relaxed);
            let Some(stopped) = stopped else {
                return Ok(Ending::Failed("a vCPU's thread has panicked".into()));
            };
            match event.map_err(VmmError::Host)? {
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
                Event::Quit => Ending::Quit,
            },
        }
    }
}
