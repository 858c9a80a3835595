//! A paused function as bytes, and back.

use virtio_bus::SavedCore;
use vm_memory::GuestAddressSpace;
use vm_pci::SavedFunction;
use vmstate::{Error, Reader, Writer};

use crate::interrupts::SavedInterrupts;
use crate::plugged::Plugged;

/// The section of what is virtio-pci's own.
pub(crate) const SECTION: &str = "virtio-pci";
const VERSION: u16 = 1;

/// Why a function was not saved, or not restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The function is not paused.
    #[error("the device is not paused")]
    NotPaused,
    /// No device is plugged.
    #[error("the function has no device")]
    NoDevice,
    /// It is on no PCI bus, where alone it has something to restore.
    #[error("the function is on no bus")]
    NotOnABus,
    /// The device is of a type that cannot be saved.
    #[error("the device cannot be saved")]
    Unsupported,
    /// The saved state is broken, or that of another device.
    #[error(transparent)]
    State(#[from] Error),
}

/// All that a guest has set in a function and its device, and where they stand.
///
/// Guest memory is not in it, rings included; nor is what the VMM has chosen, as a host does that creates
/// the function again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedPci {
    /// Configuration space and MSI-X.
    pub function: SavedFunction,
    /// Interrupts.
    pub interrupts: SavedInterrupts,
    /// Status, features, queues.
    pub core: SavedCore,
    /// What [`VirtioDevice::save`](virtio_bus::VirtioDevice::save) made.
    pub device: Vec<u8>,
}

impl SavedPci {
    /// As bytes, in the framing of [`vmstate`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self {
            function,
            interrupts,
            core,
            device,
        } = self;
        let SavedInterrupts {
            isr,
            config_vector,
            queue_vectors,
        } = interrupts;
        let mut writer = Writer::new();
        function.write(&mut writer);
        core.write(&mut writer);
        writer.section(SECTION, VERSION, |fields| {
            fields.u8(*isr);
            fields.u16(*config_vector);
            fields.list(queue_vectors, |fields, vector| fields.u16(*vector));
            fields.bytes(device);
        });
        writer.into_bytes()
    }

    /// From [`to_bytes`](Self::to_bytes). Whether it fits a function shows when it is
    /// [restored](crate::VirtioPci::restore).
    ///
    /// # Errors
    /// When the bytes are not what this version writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let function = SavedFunction::read(&mut reader)?;
        let core = SavedCore::read(&mut reader)?;
        let mut section = reader.section(SECTION, VERSION)?;
        let interrupts = SavedInterrupts {
            isr: section.u8("isr")?,
            config_vector: section.u16("config_vector")?,
            queue_vectors: section.list("queue_vectors", usize::from(u16::MAX), |section| {
                section.u16("queue_vectors")
            })?,
        };
        let device = section.bytes("device")?.to_vec();
        section.finish()?;
        reader.finish()?;
        Ok(Self {
            function,
            interrupts,
            core,
            device,
        })
    }
}

impl<M: GuestAddressSpace> Plugged<M> {
    /// `None` for a device that cannot be saved.
    pub(crate) fn save(&self) -> Option<SavedPci> {
        Some(SavedPci {
            function: self.function.save(),
            interrupts: self.interrupts.save(),
            core: self.core.save()?,
            device: self.core.device().save()?,
        })
    }
}
