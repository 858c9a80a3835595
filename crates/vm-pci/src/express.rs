//! The PCI Express form of a function: the capabilities that say what it can beyond a conventional one.
//!
//! Power management (PCI Bus Power Management 1.2; PCI Express 6.0, 7.5.2) has D0 and D3hot, and a function keeps
//! its state over D3hot (No_Soft_Reset). The link is said to be there and is nobody's concern.

use crate::Error;
use crate::config::ConfigSpace;
use crate::registers::{CAP_EXPRESS, CAP_POWER_MANAGEMENT};

/// What a function in PCI Express form has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// The function is on a root bus: an integrated endpoint, with no link.
    pub is_integrated: bool,
    /// Function-level reset. [QEMU: `x-pcie-flr-init`]
    pub function_level_reset: bool,
    /// Software may switch between D0 and D3hot. [QEMU: `x-pcie-pm-init`]
    pub power_states: bool,
    /// Software may switch on what is to be reported of errors, which never happen. [QEMU: `x-pcie-deverr-init`]
    pub error_reporting: bool,
    /// Software may write link control. [QEMU: `x-pcie-lnkctl-init`]
    pub link_control: bool,
    /// Advanced error reporting, whose registers are there and never have anything to say. [QEMU: `aer`]
    pub advanced_error_reporting: bool,
    /// Address translation services: software may tell the function that an IOMMU answers translation requests.
    /// It makes none, since guest memory is handed to it as the IOMMU shows it. [QEMU: `ats`]
    pub address_translation: bool,
    /// Translated addresses are aligned to pages. [QEMU: `x-ats-page-aligned`]
    pub page_aligned: bool,
}

impl Default for Express {
    /// As QEMU has it behind a root port.
    fn default() -> Self {
        Self {
            is_integrated: false,
            function_level_reset: true,
            power_states: true,
            error_reporting: true,
            link_control: true,
            advanced_error_reporting: false,
            address_translation: false,
            page_aligned: true,
        }
    }
}

/// Where the capabilities of a function in PCI Express form are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpressRegisters {
    device_control: u16,
    power_control: u16,
    has_reset: bool,
}

/// Device capabilities: role-based error reporting.
const ROLE_BASED_ERRORS: u32 = 1 << 15;
/// Device capabilities: function-level reset.
const FLR_CAPABLE: u32 = 1 << 28;
/// Device control: begin a function-level reset; reads 0.
const INITIATE_FLR: u8 = 1 << 7;
/// Link: 2.5 GT/s, one lane.
const LINK: u32 = 0x11;
/// Link capabilities: L0s.
const LINK_L0S: u32 = 0x400;
/// Device capabilities 2: prefixes at the end of a packet, one of them; 2 bits.
const END_TO_END_PREFIX: u32 = 0x30_0000;
/// Power management control: the state.
const POWER_STATE: u8 = 3;
/// The state in which a function does nothing but answer in configuration space.
const D3_HOT: u8 = 3;
/// Power management control: what was set before D3hot is there after it.
const NO_SOFT_RESET: u8 = 1 << 3;

/// Extended capability id: advanced error reporting.
const EXT_AER: u16 = 0x0001;
/// Extended capability id: address translation services.
const EXT_ATS: u16 = 0x000f;

impl ExpressRegisters {
    /// Adds the capabilities to a function that has none yet.
    pub(crate) fn add(config: &mut ConfigSpace, express: &Express) -> Result<Self, Error> {
        let at = u16::from(config.add_capability(CAP_EXPRESS, &body(express))?);
        let device_control = at + 8;
        if express.error_reporting {
            config.set_write_mask(device_control, &[0x0f]);
        }
        if express.link_control && !express.is_integrated {
            config.set_write_mask(at + 0x10, &[0xc0]);
        }
        // End-to-end prefix blocking.
        config.set_write_mask(at + 0x29, &[0x80]);
        let body = [3, 0, NO_SOFT_RESET, 0, 0, 0];
        let power = u16::from(config.add_capability(CAP_POWER_MANAGEMENT, &body)?);
        if express.advanced_error_reporting {
            add_aer(config)?;
        }
        if express.address_translation {
            let page_aligned = u8::from(express.page_aligned) << 5;
            let at = config.add_extended_capability(EXT_ATS, 1, &[page_aligned, 0, 0, 0])?;
            config.set_write_mask(at + 6, &[0x1f, 0x80]);
        }
        let power_control = power + 4;
        if express.power_states {
            config.set_write_mask(power_control, &[POWER_STATE]);
        }
        Ok(Self {
            device_control,
            power_control,
            has_reset: express.function_level_reset,
        })
    }

    /// Whether a write begins a function-level reset.
    pub(crate) fn resets(&self, offset: u16, data: &[u8]) -> bool {
        let byte = (self.device_control + 1)
            .checked_sub(offset)
            .map(usize::from);
        let written = byte.and_then(|at| data.get(at));
        self.has_reset && written.is_some_and(|byte| byte & INITIATE_FLR != 0)
    }

    /// After a write: a state that there is not leaves the old one ("data is discarded and no state change
    /// occurs").
    pub(crate) fn settle_power(&self, config: &mut ConfigSpace, before: u8) {
        let now = config.byte(self.power_control);
        if !matches!(now & POWER_STATE, 0 | D3_HOT) {
            let kept = now & !POWER_STATE | before & POWER_STATE;
            config.store(self.power_control, &[kept]);
        }
    }

    /// The power management control register's low byte.
    pub(crate) fn power(&self, config: &ConfigSpace) -> u8 {
        config.byte(self.power_control)
    }

    /// Whether the function is in D0.
    pub(crate) fn is_on(&self, config: &ConfigSpace) -> bool {
        self.power(config) & POWER_STATE == 0
    }
}

/// The capability behind its two-byte header, 60 bytes in all (PCI Express 6.0, 7.5.3).
fn body(express: &Express) -> [u8; 58] {
    let kind: u16 = if express.is_integrated { 9 } else { 0 };
    let mut device = ROLE_BASED_ERRORS;
    if express.function_level_reset {
        device |= FLR_CAPABLE;
    }
    let mut body = [0; 58];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in body.iter_mut().skip(at - 2).zip(bytes) {
            *to = *from;
        }
    };
    put(2, &(2 | kind << 4).to_le_bytes());
    put(4, &device.to_le_bytes());
    if !express.is_integrated {
        put(0xc, &(LINK | LINK_L0S).to_le_bytes());
        put(0x12, &LINK.to_le_bytes());
    }
    put(0x24, &END_TO_END_PREFIX.to_le_bytes());
    body
}

/// Advanced error reporting (PCI Express 6.0, 7.8.4), with the values that QEMU 7.2 has after power-on.
fn add_aer(config: &mut ConfigSpace) -> Result<(), Error> {
    /// The uncorrectable errors that there are.
    const UNCORRECTABLE: u32 = 0x03ff_f030;
    /// The correctable ones.
    const CORRECTABLE: u32 = 0x0000_f1c1;
    let values = [0, 0, 0x0046_2030, 0, 0xe000, 0xa0_u32];
    let mut body = [0; 0x44];
    for (to, from) in body.chunks_exact_mut(4).zip(values) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    let at = config.add_extended_capability(EXT_AER, 2, &body)?;
    config.set_clear_mask(at + 4, &UNCORRECTABLE.to_le_bytes());
    config.set_write_mask(at + 8, &UNCORRECTABLE.to_le_bytes());
    config.set_write_mask(at + 0xc, &UNCORRECTABLE.to_le_bytes());
    config.set_clear_mask(at + 0x10, &CORRECTABLE.to_le_bytes());
    config.set_write_mask(at + 0x14, &CORRECTABLE.to_le_bytes());
    config.set_write_mask(at + 0x18, &[0x40, 0x01]);
    Ok(())
}
