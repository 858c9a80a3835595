//! Finding what a function has: its structures through capabilities, or the legacy interface's ports.

use virtio::pci::CapCfgType;

use super::{Structure, VirtioPciTransport};
use crate::pci::common::COMMON_LENGTH;
use crate::pci::{
    Bar, BarKind, COMMAND_BUS_MASTER, COMMAND_IO, COMMAND_MEMORY, Capabilities, Capability, Msix,
    VENDOR_VIRTIO, VirtioCapability, change_command, identity, legacy,
};
use crate::{Error, PciAddress, Platform};

impl<P: Platform> VirtioPciTransport<P> {
    /// Finds the structures of the function at `function`, and lets it decode its BARs and reach
    /// memory. The device's own state is not touched.
    ///
    /// Of several capabilities of a type the first usable one counts, as the specification asks. A
    /// function that has none, but a legacy device's id and ports, is used through those.
    ///
    /// # Errors
    ///
    /// If it is no virtio function, its capability list is malformed, a structure that every
    /// driver needs is missing, or its BARs have no addresses.
    pub fn probe(platform: P, function: PciAddress) -> Result<Self, Error> {
        if identity(&platform, function).0 != VENDOR_VIRTIO {
            return Err(Error::NotVirtio(function));
        }

        let (mut common, mut notify, mut isr, mut device) = (None, None, None, None);
        let (mut window, mut msix) = (None, None);
        let mut notify_off_multiplier = 0;
        let mut unassigned = None;
        for capability in Capabilities::new(&platform, function) {
            let capability = capability?;
            if capability.id == Capability::MSIX {
                msix = Msix::read(&platform, function, capability).ok();
            }
            let Some(virtio) = VirtioCapability::read(&platform, function, capability) else {
                continue;
            };
            let slot = match virtio.cfg_type {
                CapCfgType::Common if virtio.length >= COMMON_LENGTH => &mut common,
                CapCfgType::Notify if virtio.length >= 2 => &mut notify,
                CapCfgType::Isr if virtio.length >= 1 => &mut isr,
                CapCfgType::Device => &mut device,
                CapCfgType::Pci => {
                    window = window.or(Some(virtio.position));
                    continue;
                }
                _ => continue,
            };
            // BAR numbers above 5 are reserved: ignore such a capability (4.1.4.1).
            let Some(bar) = Bar::read(&platform, function, virtio.bar) else {
                continue;
            };
            if bar.address == 0 {
                unassigned = Some(virtio.bar);
            } else if slot.is_none() {
                *slot = Some(Structure {
                    bar: virtio.bar,
                    offset: virtio.offset,
                    length: virtio.length,
                    io: bar.kind == BarKind::Io,
                    address: bar.address.wrapping_add(virtio.offset.into()),
                });
                if virtio.cfg_type == CapCfgType::Notify {
                    notify_off_multiplier = virtio.notify_off_multiplier;
                }
            }
        }

        let has_structures = common.is_some() || notify.is_some() || unassigned.is_some();
        if !has_structures && legacy::find(&platform, function).is_some() {
            return Self::probe_legacy(platform, function);
        }
        let missing = |cfg_type| match unassigned {
            Some(bar) => Error::BarUnassigned(bar),
            None => Error::MissingCapability(u8::from(cfg_type)),
        };
        let common = common.ok_or_else(|| missing(CapCfgType::Common))?;
        let notify = notify.ok_or_else(|| missing(CapCfgType::Notify))?;
        change_command(
            &platform,
            function,
            COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER,
            0,
        );
        Ok(Self {
            platform,
            function,
            common,
            notify,
            notify_off_multiplier,
            isr,
            device,
            window,
            through_window: false,
            msix,
            legacy: false,
        })
    }

    /// As [`probe`](Self::probe), for the legacy interface, whether or not there is another.
    ///
    /// # Errors
    ///
    /// [`Error::NotVirtio`] without a legacy interface, [`Error::BarUnassigned`], and
    /// [`Error::BadCapabilityList`].
    pub fn probe_legacy(platform: P, function: PciAddress) -> Result<Self, Error> {
        let bar = legacy::find(&platform, function)
            .filter(|_| identity(&platform, function).0 == VENDOR_VIRTIO)
            .ok_or(Error::NotVirtio(function))?;
        if bar.address == 0 {
            return Err(Error::BarUnassigned(0));
        }
        let mut msix = None;
        for capability in Capabilities::new(&platform, function) {
            let capability = capability?;
            if capability.id == Capability::MSIX {
                msix = Msix::read(&platform, function, capability).ok();
            }
        }
        change_command(
            &platform,
            function,
            COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER,
            0,
        );
        let registers = Structure {
            bar: 0,
            offset: 0,
            length: u32::MAX,
            io: true,
            address: bar.address,
        };
        Ok(Self {
            platform,
            function,
            common: registers,
            notify: registers,
            notify_off_multiplier: 0,
            isr: None,
            device: None,
            window: None,
            through_window: false,
            msix,
            legacy: true,
        })
    }
}
