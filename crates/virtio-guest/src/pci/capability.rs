//! The capability list, and the virtio structures it points at.

use virtio::pci::CapCfgType;

use super::{CAPABILITIES_POINTER, STATUS};
use crate::{Error, PciAddress, Platform, Width};

/// One entry of the capability list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub id: u8,
    /// Where it begins in configuration space.
    pub offset: u8,
}

impl Capability {
    /// Id of a capability that only its vendor explains: virtio's.
    pub const VENDOR: u8 = 0x09;
    /// Id of PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// Id of MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Walks the capability list of a function.
///
/// Ends after an error: a pointer into the header, or more entries than fit into 256 bytes, which
/// only a loop can have.
#[derive(Debug)]
pub struct Capabilities<'p, P> {
    platform: &'p P,
    function: PciAddress,
    next: u8,
    left: u8,
}

impl<'p, P: Platform> Capabilities<'p, P> {
    /// Starts at the first capability, the one that was linked last.
    pub fn new(platform: &'p P, function: PciAddress) -> Self {
        let status = platform.config_read(function, STATUS, Width::U16);
        let next = if status & STATUS_HAS_CAPABILITIES == 0 {
            0
        } else {
            read_u8(platform, function, CAPABILITIES_POINTER)
        };
        Self {
            platform,
            function,
            next,
            left: MOST_CAPABILITIES,
        }
    }
}

impl<P: Platform> Iterator for Capabilities<'_, P> {
    type Item = Result<Capability, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        // The two low bits are reserved (PCI Local Bus 3.0, 6.7).
        let offset = self.next & !3;
        if offset == 0 {
            return None;
        }
        if offset < 0x40 || self.left == 0 {
            self.next = 0;
            return Some(Err(Error::BadCapabilityList));
        }
        self.left -= 1;
        self.next = read_u8(self.platform, self.function, u16::from(offset) + 1);
        let id = read_u8(self.platform, self.function, offset.into());
        Some(Ok(Capability { id, offset }))
    }
}

/// A virtio capability: which structure, and where it lies (virtio 1.4, 4.1.4).
#[doc(alias = "virtio_pci_cap")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioCapability {
    /// Where the capability itself lies in configuration space.
    pub position: u8,
    /// Which structure it describes.
    pub cfg_type: CapCfgType,
    /// The base address register; above 5 it is reserved and the capability to be ignored.
    pub bar: u8,
    /// Where the structure begins in the BAR.
    pub offset: u32,
    /// How long it is.
    pub length: u32,
    /// For notifications, the bytes from one queue's register to the next one's; else 0.
    pub notify_off_multiplier: u32,
}

impl VirtioCapability {
    /// Reads a vendor capability as virtio's; `None` if it is too short to be one.
    pub fn read<P: Platform>(
        platform: &P,
        function: PciAddress,
        capability: Capability,
    ) -> Option<Self> {
        let position = capability.offset;
        let at = |field: u16| {
            u16::from(position)
                .checked_add(field)
                .filter(|at| *at < 0xfd)
        };
        let byte = |field| at(field).map(|at| read_u8(platform, function, at));
        let dword = |field| at(field).map(|at| platform.config_read(function, at, Width::U32));

        let cap_len = byte(2)?;
        let cfg_type = CapCfgType::from(byte(3)?);
        let least = match cfg_type {
            CapCfgType::Notify | CapCfgType::Pci => 20,
            _ => 16,
        };
        if capability.id != Capability::VENDOR || cap_len < least {
            return None;
        }
        Some(Self {
            position,
            cfg_type,
            bar: byte(4)?,
            offset: dword(8)?,
            length: dword(12)?,
            notify_off_multiplier: match cfg_type {
                CapCfgType::Notify => dword(16)?,
                _ => 0,
            },
        })
    }
}

/// Status register: there is a capability list.
const STATUS_HAS_CAPABILITIES: u32 = 1 << 4;

/// As many as fit between the header (64 bytes) and the end of 256 bytes, four bytes each.
const MOST_CAPABILITIES: u8 = 48;

fn read_u8<P: Platform>(platform: &P, function: PciAddress, offset: u16) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "read with one byte")]
    let byte = platform.config_read(function, offset, Width::U8) as u8;
    byte
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FUNCTION, Fake};

    fn ids(fake: &Fake) -> ([u8; 8], Option<Error>) {
        let mut ids = [0; 8];
        for (i, capability) in Capabilities::new(fake, FUNCTION).enumerate() {
            match capability {
                Ok(capability) => {
                    if let Some(id) = ids.get_mut(i) {
                        *id = capability.id;
                    }
                }
                Err(error) => return (ids, Some(error)),
            }
        }
        (ids, None)
    }

    #[test]
    fn the_list_is_walked_in_its_order() {
        assert_eq!(ids(&Fake::new()), ([0x11, 9, 9, 9, 9, 9, 0, 0], None));
    }

    #[test]
    fn a_function_without_the_status_bit_has_no_list() {
        let fake = Fake::new();
        fake.set_config(STATUS, &[0, 0]);
        assert_eq!(ids(&fake), ([0; 8], None));
    }

    #[test]
    fn a_list_that_loops_or_points_into_the_header_ends_with_an_error() {
        for target in [Fake::FIRST_CAPABILITY, 0x10] {
            let fake = Fake::new();
            fake.set_config(u16::from(Fake::FIRST_CAPABILITY) + 1, &[target]);
            assert_eq!(
                ids(&fake).1,
                Some(Error::BadCapabilityList),
                "next is {target:#x}"
            );
        }
    }

    #[test]
    fn a_vendor_capability_that_is_too_short_is_not_virtio() {
        let fake = Fake::new();
        let notify = Capabilities::new(&fake, FUNCTION)
            .flatten()
            .find(|c| {
                VirtioCapability::read(&fake, FUNCTION, *c)
                    .is_some_and(|c| c.cfg_type == CapCfgType::Notify)
            })
            .unwrap();
        fake.set_config(u16::from(notify.offset) + 2, &[16]);
        assert_eq!(VirtioCapability::read(&fake, FUNCTION, notify), None);
    }
}
