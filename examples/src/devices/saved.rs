//! A network card's state as bytes, and a fresh card that goes on with it.

use std::sync::{Arc, Weak};

use keyval::Options;
use qom::{Object, PropertyError};
use virtio_pci::{SaveError, SavedPci, VirtioPci};
use vm_pci::object::PciDevice;

use super::{Devices, Nic};
use crate::machine::Memory;

/// Why a card's state was not saved, or not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CannotSave {
    /// There is no such card.
    #[error("Device '{0}' not found")]
    NotFound(String),
    /// What it was made of is not known.
    #[error("'{0}' was not made of an option string")]
    NotMade(String),
    /// Its state, or the card.
    #[error(transparent)]
    State(#[from] SaveError),
    /// The card does not leave, or does not come again.
    #[error("{0}")]
    Device(#[from] qdev::Error),
}

/// What devices were made of, to be made again.
pub(super) type Made = Vec<(Weak<Object>, Box<str>)>;

impl Devices {
    /// Makes the device that a string asks for, which is then known to [`restore_nic`](Self::restore_nic).
    ///
    /// # Errors
    /// See [`qdev::Machine::device_add`]; nothing is left behind.
    pub fn plug(&self, text: &str) -> Result<Arc<Object>, qdev::Error> {
        let options = Options::parse(text, Some("driver"));
        Ok(self.made_of(self.machine.device_add(options)?, text))
    }

    /// Remembers what a device was made of.
    fn made_of(&self, device: Arc<Object>, text: &str) -> Arc<Object> {
        let mut made = super::lock(&self.made);
        made.retain(|(device, _)| device.strong_count() > 0);
        made.push((Arc::downgrade(&device), text.into()));
        device
    }

    /// The state of a network card, which goes on. Devices are [paused](Self::pause) and the processors at rest.
    ///
    /// # Errors
    /// When there is no such card, or it is not paused.
    pub fn save_nic(&self, name: &str) -> Result<Vec<u8>, CannotSave> {
        let nic = self.nic(name)?;
        let function = function_of(&nic.asked, name)?;
        Ok(function.save()?.to_bytes())
    }

    /// Takes a network card out, and puts a fresh one of the same options in its place that goes on with `state`: what
    /// its driver has in memory is left as it is, and so are the card's link and what was set while it ran. Devices are [paused](Self::pause) and the processors at rest.
    ///
    /// # Errors
    /// The card stays as it is where the bytes are no state. Where they are one of another card, the fresh card is as
    /// after power-on.
    pub fn restore_nic(&self, name: &str, state: &[u8]) -> Result<(), CannotSave> {
        let state = SavedPci::from_bytes(state).map_err(SaveError::from)?;
        let Nic {
            asked: device,
            mac,
            ports,
            ..
        } = self.nic(name)?;
        let text = {
            let made = super::lock(&self.made);
            let is_it = |(known, _): &&(Weak<Object>, Box<str>)| {
                (known.upgrade()).is_some_and(|known| Arc::ptr_eq(&known, &device))
            };
            let found = made.iter().find(is_it);
            found.map(|(_, text)| text.clone())
        };
        let text = text.ok_or_else(|| CannotSave::NotMade(name.into()))?;
        // What was chosen for it then is not chosen anew. Of two values the last counts.
        let devfn = PciDevice::of(&device)?.devfn();
        let policy = at_run_time(&device).map_err(qdev::Error::from)?;
        let link_is_up = ports.iter().all(|port| port.link_is_up());
        drop(ports);
        let text = format!("{text},addr={devfn},mac={mac}{policy}");
        let options = Options::parse(&text, Some("driver"));
        let fresh = self.machine.replace(&device, options)?;
        drop(device);
        let device = self.made_of(fresh, &text);
        if !link_is_up {
            let made = self
                .nics()
                .into_iter()
                .find(|nic| Arc::ptr_eq(&nic.asked, &device));
            for port in made.iter().flat_map(|nic| &nic.ports) {
                port.set_link(false);
            }
        }
        let function = function_of(&device, name)?;
        function.pause();
        Ok(function.restore(&state)?)
    }

    fn nic(&self, name: &str) -> Result<Nic, CannotSave> {
        let mut nics = self.nics().into_iter();
        let nic = nics.find(|nic| nic.name == name);
        nic.ok_or_else(|| CannotSave::NotFound(name.into()))
    }
}

/// The properties that can be set on a card that runs, as they are now, to go behind its option string.
fn at_run_time(device: &Object) -> Result<String, PropertyError> {
    let anti_spoof = if device.get("anti_spoof")? {
        "on"
    } else {
        "off"
    };
    let mut text = format!(",anti_spoof={anti_spoof}");
    for limit in [
        "rx_limit_bytes",
        "rx_limit_packets",
        "tx_limit_bytes",
        "tx_limit_packets",
    ] {
        text += &format!(",{limit}={}", device.get::<u64>(limit)?);
    }
    Ok(text)
}

fn function_of(device: &Object, name: &str) -> Result<Arc<VirtioPci<Memory>>, CannotSave> {
    device
        .part()
        .ok_or_else(|| CannotSave::NotFound(name.into()))
}
