//! What every function keeps under its one lock, so that no model writes it again.

mod saved;

use std::sync::Arc;

use crate::Error;
use crate::bar::{BarIndex, BarWindow};
use crate::bars::{BarKind, Bars};
use crate::config::{ConfigSpace, PciIdentity};
use crate::express::{Express, ExpressRegisters};
use crate::function::{Attachment, ConfigEffect, Forwarding};
use crate::intx::Intx;
use crate::irq::{IntxPin, MsiSink, MsiVector};
use crate::msix::{Msix, MsixLayout};
use crate::registers::{CAP_MSIX, Command, INTERRUPT_PIN, STATUS, Status};

pub use saved::SavedFunction;

/// Configuration space, BARs, MSI-X and interrupt pin of one function, working together.
///
/// The owner holds it under the function's lock and forwards the calls of
/// [`PciFunction`](crate::PciFunction) to it. Calls into the machine are made under that lock:
/// routes of MSI-X vectors and the level of the pin.
#[derive(Debug)]
pub struct FunctionState {
    config: ConfigSpace,
    bars: Bars,
    msix: Option<(u16, Msix)>,
    express: Option<ExpressRegisters>,
    pin: Option<IntxPin>,
    intx: Arc<Intx>,
    /// While the function is on its bus.
    forwarding: Option<Arc<dyn Forwarding>>,
}

/// What a write into configuration space changed, for the function's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ConfigChange {
    /// What the bus is to be told.
    pub effect: ConfigEffect,
    /// The command register before the write.
    pub old_command: Command,
    /// The command register after the write.
    pub command: Command,
    /// MSI-X was switched on or off.
    pub msix_toggled: bool,
    /// Software wants a function-level reset: the owner resets its own state and calls
    /// [`reset`](FunctionState::reset), all before the write returns. What the other fields say is then past.
    pub function_reset: bool,
    /// The function is in D0; else it must neither reach memory nor interrupt, and decodes nothing.
    pub is_on: bool,
}

impl FunctionState {
    /// A function with `identity`, no BARs, no capabilities and no interrupt pin.
    pub fn new(identity: &PciIdentity) -> Self {
        Self {
            config: ConfigSpace::new(identity),
            bars: Bars::new(),
            msix: None,
            express: None,
            pin: None,
            intx: Arc::default(),
            forwarding: None,
        }
    }

    /// Lets the function drive `pin`.
    pub fn set_interrupt_pin(&mut self, pin: Option<IntxPin>) {
        let register = pin.map_or(0, IntxPin::register);
        self.config.set(INTERRUPT_PIN, &[register]);
        self.pin = pin;
    }

    /// Adds a BAR of `size` bytes, a power of two.
    ///
    /// # Errors
    /// As [`Bars::register`].
    pub fn add_bar(&mut self, bar: BarIndex, kind: BarKind, size: u64) -> Result<(), Error> {
        self.bars.register(&mut self.config, bar, kind, size)
    }

    /// Gives the function its PCI Express form: capabilities for that, for power management and, beyond 256 bytes,
    /// what `express` says. A function that has it answers to function-level resets and power states.
    ///
    /// # Errors
    /// [`Error::NoCapabilityRoom`].
    pub fn add_express(&mut self, express: &Express) -> Result<(), Error> {
        self.express = Some(ExpressRegisters::add(&mut self.config, express)?);
        Ok(())
    }

    /// Adds a capability to the head of the list and returns where it is; see
    /// [`ConfigSpace::add_capability`].
    ///
    /// # Errors
    /// [`Error::NoCapabilityRoom`].
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<u8, Error> {
        self.config.add_capability(id, body)
    }

    /// Adds MSI-X, with its capability, to a function that has the BARs of `layout` already;
    /// returns where the capability is. A second call replaces nothing and fails.
    ///
    /// # Errors
    /// [`Error::MsixPlace`], [`Error::VectorCount`] or [`Error::NoCapabilityRoom`].
    pub fn add_msix(&mut self, layout: MsixLayout) -> Result<u8, Error> {
        let msix = Msix::new(layout)?;
        let places = [
            (layout.table_bar, layout.table().end),
            (layout.pba_bar, layout.pba().end),
        ];
        for (bar, end) in places {
            if self.msix.is_some() || self.bars.size(bar).is_none_or(|size| end > size) {
                return Err(Error::MsixPlace(bar));
            }
        }
        let offset = self
            .config
            .add_capability(CAP_MSIX, &msix.capability_body())?;
        let control = u16::from(offset) + 2;
        self.config.set_write_mask(control, &Msix::CONTROL_WRITABLE);
        self.msix = Some((control, msix));
        Ok(offset)
    }

    /// Connects interrupts: the function goes on its bus.
    ///
    /// # Errors
    /// [`Error::Vector`]; nothing is connected then.
    pub fn connect(&mut self, attachment: &Attachment, sink: &dyn MsiSink) -> Result<(), Error> {
        if let Some((_, msix)) = &mut self.msix {
            msix.connect(sink, attachment.devfn)?;
        }
        if self.pin.is_some() {
            self.intx.connect(attachment.intx.clone());
        }
        self.forwarding = Some(attachment.forwarding.clone());
        Ok(())
    }

    /// Lets go of vectors and line: the function leaves its bus.
    pub fn disconnect(&mut self) {
        self.forwarding = None;
        self.intx.disconnect();
        if let Some((_, msix)) = &mut self.msix {
            msix.disconnect();
        }
    }

    /// Reads configuration space.
    pub fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        let status = STATUS.checked_sub(offset).map(usize::from);
        if let Some(low_byte) = status.and_then(|at| data.get_mut(at))
            && self.intx.pending()
        {
            let [bit, _] = Status::INTERRUPT.bits().to_le_bytes();
            *low_byte |= bit;
        }
    }

    /// Writes configuration space, and lets the write take effect on the BARs, on MSI-X and on
    /// the interrupt pin.
    pub fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigChange {
        let windows_before = self.windows();
        let was_on = self.is_on();
        let power = self.express.map(|express| express.power(&self.config));
        let written = self.config.write(offset, data);
        if let (Some(express), Some(before)) = (self.express, power) {
            express.settle_power(&mut self.config, before);
        }
        let is_on = self.is_on();
        let mut msix_toggled = false;
        if let Some((control, msix)) = &mut self.msix {
            let enabled = msix.enabled();
            msix.set_bus_master(is_on && written.command.contains(Command::BUS_MASTER));
            msix.set_control(self.config.u16(*control));
            msix_toggled = enabled != msix.enabled();
        }
        let switched = was_on != is_on;
        if written.command != written.old_command || msix_toggled || switched {
            self.suppress_intx();
        }
        let moved = written.bars_changed || written.command != written.old_command || switched;
        ConfigChange {
            effect: ConfigEffect {
                windows_changed: moved && self.windows() != windows_before,
            },
            old_command: written.old_command,
            command: written.command,
            msix_toggled,
            function_reset: self
                .express
                .is_some_and(|express| express.resets(offset, data)),
            is_on,
        }
    }

    /// Whether the function is in D0, as it always is without power management.
    pub fn is_on(&self) -> bool {
        self.express
            .is_none_or(|express| express.is_on(&self.config))
    }

    /// The windows that are decoded now: none in D3hot.
    pub fn windows(&self) -> Vec<BarWindow> {
        if self.is_on() {
            self.bars.windows(&self.config)
        } else {
            Vec::new()
        }
    }

    /// Those of the [`windows`](Self::windows) to which accesses come: none while the function is on
    /// no bus, and none that a guest has put over something that is not the bus's. Only there may a
    /// function have the machine watch addresses for it.
    pub fn forwarded_windows(&self) -> Vec<BarWindow> {
        let Some(forwarding) = &self.forwarding else {
            return Vec::new();
        };
        let mut windows = self.windows();
        windows.retain(|window| forwarding.forwards(window));
        windows
    }

    /// Reads from the MSI-X table or pending bits, if the access touches them; see
    /// [`Msix::read`].
    pub fn msix_read(&self, bar: BarIndex, offset: u64, data: &mut [u8]) -> bool {
        let msix = self.msix.as_ref();
        msix.is_some_and(|(_, msix)| msix.read(bar, offset, data))
    }

    /// Writes to the MSI-X table, if the access touches it or the pending bits; see
    /// [`Msix::write`].
    pub fn msix_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) -> bool {
        let msix = self.msix.as_mut();
        msix.is_some_and(|(_, msix)| msix.write(bar, offset, data))
    }

    /// Back to the state after power-on. The owner resets its interrupt status itself; the pin
    /// is released here.
    pub fn reset(&mut self) {
        self.config.reset();
        if let Some((_, msix)) = &mut self.msix {
            msix.reset();
        }
        self.intx.update(|| false);
        self.suppress_intx();
    }

    /// Configuration space, to add to it and to look into it.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Configuration space, to set its bytes and masks. BARs, command register and the MSI-X
    /// capability change through [`config_write`](Self::config_write) alone.
    pub fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// The BARs that the function has.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// The command register.
    pub fn command(&self) -> Command {
        self.config.command()
    }

    /// MSI-X, if the function has it.
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref().map(|(_, msix)| msix)
    }

    /// Whether MSI-X is on: messages are used and the interrupt pin is not.
    pub fn msix_enabled(&self) -> bool {
        self.msix().is_some_and(Msix::enabled)
    }

    /// MSI-X vector `index`; see [`Msix::vector`].
    pub fn vector(&self, index: u16) -> Option<Arc<dyn MsiVector>> {
        self.msix().and_then(|msix| msix.vector(index))
    }

    /// The interrupt pin, to be kept and driven without the function's lock.
    pub fn intx(&self) -> Arc<Intx> {
        self.intx.clone()
    }

    /// Which pin the function drives, if any.
    pub fn interrupt_pin(&self) -> Option<IntxPin> {
        self.pin
    }

    fn suppress_intx(&self) {
        let disabled = self.command().contains(Command::INTX_DISABLE);
        self.intx
            .suppress(disabled || self.msix_enabled() || !self.is_on());
    }
}
