//! What the function looks like: identity, BARs and capabilities, where QEMU has them.

use virtio::Id;
use virtio::pci::CapCfgType;
use vm_pci::registers::CAP_VENDOR;
use vm_pci::{BarIndex, BarKind, FunctionState, IntxPin, MsixLayout, PciIdentity};

/// BAR 1: the MSI-X table and its pending bits. 32-bit memory.
const MSIX_BAR: u8 = 1;
/// BAR 4: the virtio structures. 64-bit memory.
const MODERN_BAR: u8 = 4;
/// Bytes of each structure in BAR 4.
const REGION_SIZE: u32 = 0x1000;
/// Bytes of BAR 4: four structures.
const MODERN_SIZE: u64 = 0x4000;
/// Where the notify registers are in BAR 4.
pub(crate) const NOTIFY_OFFSET: u64 = 0x3000;
/// Bytes from one queue's notify register to the next's.
pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;
/// Queues that the notify structure has registers for.
pub(crate) const MAX_QUEUES: usize = (REGION_SIZE / NOTIFY_MULTIPLIER) as usize;
/// The most MSI-X vectors that a function can have.
pub(crate) const MAX_VECTORS: u16 = 2048;
/// Bytes of a vendor capability before the data window of `virtio_pci_cfg_cap`.
pub(crate) const CAP_LEN: u8 = 16;

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
    pub(crate) fn at(offset: u64) -> Option<(Self, u64, usize)> {
        let size = u64::from(REGION_SIZE);
        let region = match offset / size {
            0 => Self::Common,
            1 => Self::Isr,
            2 => Self::Device,
            3 => Self::Notify,
            _ => return None,
        };
        let inside = offset % size;
        Some((region, inside, usize::try_from(size - inside).ok()?))
    }

    fn offset(self) -> u32 {
        match self {
            Self::Common => 0,
            Self::Isr => REGION_SIZE,
            Self::Device => 2 * REGION_SIZE,
            Self::Notify => 3 * REGION_SIZE,
        }
    }
}

/// BAR 4, which is a BAR.
pub(crate) fn modern_bar() -> Result<BarIndex, vm_pci::Error> {
    BarIndex::new(MODERN_BAR)
}

/// The function of a device of type `id`: not transitional (virtio 1.4, 4.1.2.1), with the subsystem
/// ids that QEMU gives. Returns also where the PCI configuration access capability is.
pub(crate) fn build(
    id: Id,
    class: Option<u32>,
    vectors: u16,
) -> Result<(FunctionState, u8), vm_pci::Error> {
    let mut function = FunctionState::new(&PciIdentity {
        vendor: 0x1af4,
        device: 0x1040 + u16::from(u8::from(id)),
        revision: 1,
        class: class.unwrap_or_else(|| class_of(id)),
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    function.set_interrupt_pin(Some(IntxPin::A));
    function.add_bar(
        modern_bar()?,
        BarKind::Memory64 { prefetchable: true },
        MODERN_SIZE,
    )?;
    let structures = [
        (CapCfgType::Common, Region::Common),
        (CapCfgType::Isr, Region::Isr),
        (CapCfgType::Device, Region::Device),
        (CapCfgType::Notify, Region::Notify),
    ];
    for (kind, region) in structures {
        let extra = match region {
            Region::Notify => Some(NOTIFY_MULTIPLIER),
            _ => None,
        };
        let body = capability(kind, MODERN_BAR, region.offset(), REGION_SIZE, extra);
        function.add_capability(CAP_VENDOR, &body)?;
    }
    let window =
        function.add_capability(CAP_VENDOR, &capability(CapCfgType::Pci, 0, 0, 0, Some(0)))?;
    let config = function.config_mut();
    // cap.bar; then cap.offset, cap.length and pci_cfg_data (virtio 1.4, 4.1.4.9).
    config.set_write_mask(u16::from(window) + 4, &[0xff]);
    config.set_write_mask(u16::from(window) + 8, &[0xff; 12]);
    if vectors != 0 {
        add_msix(&mut function, vectors)?;
    }
    Ok((function, window))
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
