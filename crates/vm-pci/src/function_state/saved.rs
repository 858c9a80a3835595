//! A function's registers, read out as a whole and set as a whole.

use vmstate::{Error, Reader, Section, Writer};

use super::FunctionState;
use crate::msix::SavedMsix;
use crate::registers::{CONFIG_SIZE, Command};

/// Of the section that [`SavedFunction::write`] writes.
const VERSION: u16 = 1;
/// That section.
const SECTION: &str = "pci";

/// What software has set in a function: configuration space with its BARs, and MSI-X.
///
/// The interrupt pin is not in it: it follows the interrupt status, which is the model's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFunction {
    /// Configuration space.
    pub config: Box<[u8; CONFIG_SIZE as usize]>,
    /// MSI-X, if the function has it.
    pub msix: Option<SavedMsix>,
}

impl SavedFunction {
    /// Adds the section `pci`.
    pub fn write(&self, to: &mut Writer) {
        let Self { config, msix } = self;
        to.section(SECTION, VERSION, |fields| {
            fields.array(config);
            fields.option(msix.as_ref(), |fields, msix| msix.write(fields));
        });
    }

    /// Takes the section `pci`.
    ///
    /// # Errors
    /// When it is missing, or not as [`write`](Self::write) writes it.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Error> {
        let mut section = from.section(SECTION, VERSION)?;
        let config = Box::new(section.array("config")?);
        let msix = |section: &mut Section<'_>| SavedMsix::read(section);
        let msix = section.option("msix", msix)?;
        section.finish()?;
        Ok(Self { config, msix })
    }
}

impl FunctionState {
    /// What software has set. Nothing must drive the function's vectors meanwhile.
    pub fn save(&self) -> SavedFunction {
        SavedFunction {
            config: Box::new(*self.config.bytes()),
            msix: self.msix().map(super::Msix::save),
        }
    }

    /// Sets what software has set in a function that was made as this one, which is as after power-on and on its bus:
    /// BARs decode, messages are routed, and the vectors that were pending are.
    ///
    /// The owner restores its interrupt status and tells the bus of the windows
    /// ([`Forwarding::windows_changed`](crate::Forwarding::windows_changed)).
    ///
    /// # Errors
    /// [`Error::Refused`] when the function was made otherwise; nothing has changed then.
    pub fn restore(&mut self, saved: &SavedFunction) -> Result<(), Error> {
        let refused = |field, reason| Err(Error::refused(SECTION, field, reason));
        match (&self.msix, &saved.msix) {
            (Some((_, msix)), Some(saved)) => msix.check(saved)?,
            (None, None) => {}
            (Some(_), None) => return refused("msix", "not saved, and the function has it"),
            (None, Some(_)) => return refused("msix", "saved, and the function has none"),
        }
        if let Err(at) = self.config.restore(&saved.config) {
            return refused(
                "config",
                &format!("the function is another: the byte at {at:#x} is not the same"),
            );
        }
        let is_on = self.is_on();
        let command = self.command();
        if let (Some((control, msix)), Some(saved)) = (&mut self.msix, &saved.msix) {
            msix.restore(saved);
            msix.set_bus_master(is_on && command.contains(Command::BUS_MASTER));
            msix.set_control(self.config.u16(*control));
        }
        self.suppress_intx();
        Ok(())
    }
}
