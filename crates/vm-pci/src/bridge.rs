//! The host bridge's own function.

use std::sync::Mutex;

use crate::bar::{BarIndex, BarWindow};
use crate::config::PciIdentity;
use crate::function::{Attachment, ConfigEffect, PciFunction};
use crate::function_state::FunctionState;
use crate::lock::Locked;

/// The function at 00.0 that software recognises the host by: a header with class 06.00.00 and no
/// BARs, capabilities or interrupt.
///
/// It says 8086:0d57, as Firecracker's and Cloud Hypervisor's do: no operating system has a quirk
/// for that id, as they have for the chipsets that QEMU's machines say they are.
#[derive(Debug)]
pub(crate) struct HostBridge {
    state: Mutex<FunctionState>,
}

impl HostBridge {
    pub(crate) fn new() -> Self {
        let identity = PciIdentity {
            vendor: 0x8086,
            device: 0x0d57,
            class: 0x06_00_00,
            ..PciIdentity::default()
        };
        Self {
            state: Mutex::new(FunctionState::new(&identity)),
        }
    }
}

impl PciFunction for HostBridge {
    fn attached(&self, _: Attachment) -> Result<(), crate::Error> {
        Ok(())
    }

    fn detached(&self) {}

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.state.locked().config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> ConfigEffect {
        self.state.locked().config_write(offset, data).effect
    }

    fn windows(&self) -> Vec<BarWindow> {
        Vec::new()
    }

    fn bar_read(&self, _: BarIndex, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _: BarIndex, _: u64, _: &[u8]) {}

    fn reset(&self) {
        self.state.locked().reset();
    }
}
