//! A machine run on KVM, over as many boots as its guest asks for.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Ending, VmmError};
use crate::boot::Image;
use crate::kvm::KvmVm;
use crate::machine::{Event, Machine};
use crate::readiness::wait_readable;
use crate::signals::EndSignals;

/// A machine with everything that decides how it runs.
#[derive(Debug)]
pub struct Run<'a> {
    /// The machine, its devices plugged.
    pub machine: &'a Arc<Machine>,
    /// What it boots.
    pub image: &'a Image,
    /// Processors.
    pub vcpus: u8,
    /// Whether a reset ends it.
    pub no_reboot: bool,
    /// When it has taken too long.
    pub deadline: Option<Instant>,
    /// What asks the process to end.
    pub signals: &'a EndSignals,
}

impl Run<'_> {
    /// Boots the machine on `kvm`, again after each reset, until it ends.
    ///
    /// # Errors
    /// When it cannot be booted or run.
    pub fn on_kvm(&self, kvm: &mut KvmVm) -> Result<Ending, VmmError> {
        let mut vcpus = kvm.vcpus(self.machine, self.vcpus)?;
        loop {
            self.machine.assign_resources().map_err(VmmError::Pci)?;
            let entry = self.image.load(self.machine.memory(), self.vcpus)?;
            vcpus.reset(&entry)?;
            let running = vcpus.start().map_err(VmmError::Host)?;
            let event = self.wait();
            let Some(stopped) = running.stop() else {
                return Ok(Ending::Failed("a vCPU's thread has panicked".into()));
            };
            match event.map_err(VmmError::Host)? {
                Wake::Event(Event::Reset) if !self.no_reboot => {}
                wake => return Ok(wake.ending()),
            }
            self.machine.reset().map_err(VmmError::Host)?;
            kvm.reset()?;
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
