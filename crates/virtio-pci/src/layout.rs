//! What the function looks like: identity, BARs and capabilities, where QEMU has them.

use virtio::Id;
use virtio::pci::CapCfgType;
use vm_pci::registers::{CAP_VENDOR, HEADER_TYPE, MULTI_FUNCTION};
use vm_pci::{BarIndex, BarKind, Express, FunctionState, IntxPin, MsixLayout, PciIdentity};

use crate::function::VirtioPciConfig;
use crate::legacy;

/// BAR 0: the legacy registers. I/O ports.
const LEGACY_BAR: u8 = 0;
/// BAR 1: the MSI-X table and its pending bits. 32-bit memory.
const MSIX_BAR: u8 = 1;
/// BAR 2: one notify register for all queues. I/O ports.
const PIO_NOTIFY_BAR: u8 = 2;
/// BAR 4: the virtio structures. 64-bit memory.
const MODERN_BAR: u8 = 4;
/// Bytes of each structure in BAR 4 but the last, which is as long as the notify registers are.
const REGION_SIZE: u32 = 0x1000;
/// Where the notify registers are in BAR 4.
pub(crate) const NOTIFY_OFFSET: u32 = 0x3000;
/// Bytes of BAR 2.
const PIO_NOTIFY_SIZE: u32 = 4;
/// Queues that the notify structure has registers for.
const NOTIFY_REGISTERS: u32 = 1024;
/// The most queues that a device can have.
pub(crate) const MAX_QUEUES: usize = NOTIFY_REGISTERS as usize;
/// The most MSI-X vectors that a function can have.
pub(crate) const MAX_VECTORS: u16 = 2048;
/// Bytes of a vendor capability before the data window of `virtio_pci_cfg_cap`.
pub(crate) const CAP_LEN: u8 = 16;

/// How a function looks, of all the ways in which it can: what its configuration and the type of its device came
/// to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    id: Id,
    class: Option<u32>,
    vectors: u16,
    /// Bytes of the device's configuration space.
    config_len: usize,
    /// The transitional device id, with the legacy interface.
    legacy: Option<u16>,
    /// With the modern interface.
    modern: bool,
    page_per_vq: bool,
    pio_notify: bool,
    express: Option<Express>,
    multifunction: bool,
}

impl Form {
    /// `None`: the device has no legacy interface to offer, and the configuration has no other.
    pub(crate) fn new(
        config: &VirtioPciConfig,
        id: Id,
        vectors: u16,
        config_len: usize,
    ) -> Option<Self> {
        let legacy = transitional_id(id).filter(|_| config.legacy);
        (legacy.is_some() || config.modern).then_some(Self {
            id,
            class: config.class,
            vectors,
            config_len,
            legacy,
            modern: config.modern,
            page_per_vq: config.page_per_vq,
            pio_notify: config.modern && config.modern_pio_notify,
            // QEMU 7.2: a legacy function has no PCI Express form.
            express: config.express.filter(|_| config.modern),
            multifunction: config.multifunction,
        })
    }

    pub(crate) fn has_legacy(&self) -> bool {
        self.legacy.is_some()
    }

    /// Bytes from one queue's notify register to the next's.
    pub(crate) fn notify_multiplier(&self) -> u32 {
        if self.page_per_vq { 0x1000 } else { 4 }
    }

    /// Bytes of all notify registers in BAR 4.
    pub(crate) fn notify_len(&self) -> u32 {
        self.notify_multiplier() * NOTIFY_REGISTERS
    }

    /// What is in a BAR, other than MSI-X.
    pub(crate) fn contents(&self, bar: BarIndex) -> Option<Contents> {
        match bar.get() {
            LEGACY_BAR if self.legacy.is_some() => Some(Contents::Legacy),
            PIO_NOTIFY_BAR if self.pio_notify => Some(Contents::PioNotify),
            MODERN_BAR if self.modern => Some(Contents::Modern),
            _ => None,
        }
    }

    /// The function: transitional (virtio 1.4, 4.1.2.3) or not (4.1.2.1), with the subsystem ids that QEMU
    /// gives. Returns also where the PCI configuration access capability is, if there is one.
    pub(crate) fn build(&self) -> Result<(FunctionState, Option<u8>), vm_pci::Error> {
        let type_id = u16::from(u8::from(self.id));
        let class = self.class.unwrap_or_else(|| class_of(self.id));
        let mut function = FunctionState::new(&match self.legacy {
            Some(device) => PciIdentity {
                vendor: 0x1af4,
                device,
                revision: 0,
                class,
                subsystem_vendor: 0x1af4,
                subsystem: type_id,
            },
            None => PciIdentity {
                vendor: 0x1af4,
                device: 0x1040 + type_id,
                revision: 1,
                class,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
            },
        });
        function.set_interrupt_pin(Some(IntxPin::A));
        if self.multifunction {
            function.config_mut().set(HEADER_TYPE, &[MULTI_FUNCTION]);
        }
        if let Some(express) = &self.express {
            function.add_express(express)?;
        }
        if self.legacy.is_some() {
            let size = legacy::size(self.vectors != 0, self.config_len);
            function.add_bar(BarIndex::new(LEGACY_BAR)?, BarKind::Io, size)?;
        }
        let window = if self.modern {
            Some(self.add_structures(&mut function)?)
        } else {
            None
        };
        if self.vectors != 0 {
            add_msix(&mut function, self.vectors)?;
        }
        Ok((function, window))
    }

    fn add_structures(&self, function: &mut FunctionState) -> Result<u8, vm_pci::Error> {
        let size = u64::from(NOTIFY_OFFSET + self.notify_len()).next_power_of_two();
        let prefetchable = BarKind::Memory64 { prefetchable: true };
        function.add_bar(BarIndex::new(MODERN_BAR)?, prefetchable, size)?;
        let multiplier = self.notify_multiplier();
        let structures = [
            (CapCfgType::Common, 0, REGION_SIZE, None),
            (CapCfgType::Isr, REGION_SIZE, REGION_SIZE, None),
            (CapCfgType::Device, 2 * REGION_SIZE, REGION_SIZE, None),
            (
                CapCfgType::Notify,
                NOTIFY_OFFSET,
                self.notify_len(),
                Some(multiplier),
            ),
        ];
        for (kind, offset, length, extra) in structures {
            let body = capability(kind, MODERN_BAR, offset, length, extra);
            function.add_capability(CAP_VENDOR, &body)?;
        }
        if self.pio_notify {
            let bar = BarIndex::new(PIO_NOTIFY_BAR)?;
            function.add_bar(bar, BarKind::Io, PIO_NOTIFY_SIZE.into())?;
            let notify = CapCfgType::Notify;
            let body = capability(notify, PIO_NOTIFY_BAR, 0, PIO_NOTIFY_SIZE, Some(0));
            function.add_capability(CAP_VENDOR, &body)?;
        }
        let body = capability(CapCfgType::Pci, 0, 0, 0, Some(0));
        let window = function.add_capability(CAP_VENDOR, &body)?;
        let config = function.config_mut();
        // cap.bar; then cap.offset, cap.length and pci_cfg_data (virtio 1.4, 4.1.4.9).
        config.set_write_mask(u16::from(window) + 4, &[0xff]);
        config.set_write_mask(u16::from(window) + 8, &[0xff; 12]);
        Ok(window)
    }
}

/// What is behind a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// The registers of virtio 1.4, 4.1.4.10.
    Legacy,
    /// The four structures of 4.1.4.
    Modern,
    /// One notify register.
    PioNotify,
}

/// A structure in BAR 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    Common,
    Isr,
    Device,
    Notify,
}

impl Region {
    /// The structure at `offset` in BAR 4, the offset in it, and the bytes from there to its end.
    pub(crate) fn at(offset: u64, form: &Form) -> Option<(Self, u64, usize)> {
        let size = u64::from(REGION_SIZE);
        if let Some(inside) = offset.checked_sub(NOTIFY_OFFSET.into()) {
            let left = u64::from(form.notify_len()).checked_sub(inside)?;
            return Some((Self::Notify, inside, usize::try_from(left).ok()?))
                .filter(|(_, _, left)| *left != 0);
        }
        let region = match offset / size {
            0 => Self::Common,
            1 => Self::Isr,
            _ => Self::Device,
        };
        let inside = offset % size;
        Some((region, inside, usize::try_from(size - inside).ok()?))
    }
}

/// BAR 1: the table from 0 on and the pending bits in the upper half, which grows when the table
/// needs more than half of 4 KiB.
fn add_msix(function: &mut FunctionState, vectors: u16) -> Result<(), vm_pci::Error> {
    let bar = BarIndex::new(MSIX_BAR)?;
    let table = u32::from(vectors) * 16;
    let pba = u32::from(vectors.div_ceil(64)) * 8;
    let pba_offset = table.max(0x800);
    let size = (pba_offset + pba).max(0x1000).next_power_of_two();
    function.add_bar(
        bar,
        BarKind::Memory32 {
            prefetchable: false,
        },
        size.into(),
    )?;
    function.add_msix(MsixLayout {
        vectors,
        table_bar: bar,
        table_offset: 0,
        pba_bar: bar,
        pba_offset,
    })?;
    Ok(())
}

/// A `virtio_pci_cap` behind its first two bytes, with the dword that may follow it (virtio 1.4, 4.1.4).
fn capability(kind: CapCfgType, bar: u8, offset: u32, length: u32, extra: Option<u32>) -> Vec<u8> {
    let len = CAP_LEN + if extra.is_some() { 4 } else { 0 };
    let mut body = vec![len, u8::from(kind), bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra.iter().flat_map(|extra| extra.to_le_bytes()));
    body
}

/// The device id of a transitional device of this type, if it may have a legacy interface (virtio 1.4, 4.1.2);
/// the socket device's is QEMU's.
pub(crate) fn transitional_id(id: Id) -> Option<u16> {
    match id {
        Id::Net => Some(0x1000),
        Id::Block => Some(0x1001),
        Id::Balloon => Some(0x1002),
        Id::Console => Some(0x1003),
        Id::Scsi => Some(0x1004),
        Id::Rng => Some(0x1005),
        Id::NineP => Some(0x1009),
        Id::Vsock => Some(0x1012),
        _ => None,
    }
}

/// The PCI class that QEMU gives a device of this type.
fn class_of(id: Id) -> u32 {
    match id {
        Id::Net => 0x02_0000,
        Id::Block | Id::Scsi => 0x01_0000,
        Id::NineP => 0x00_0200,
        Id::Console => 0x07_8000,
        Id::Gpu => 0x03_8000,
        Id::Input => 0x09_8000,
        Id::Vsock => 0x07_8000,
        Id::Fs => 0x01_8000,
        _ => 0x00_ff00,
    }
}
