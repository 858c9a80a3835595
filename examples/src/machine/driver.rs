//! The machine as a driver sees it that runs in this process, in place of a guest's processor.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_guest::{Platform, Width};
use vm_memory::{Bytes, GuestAddress};

use super::Machine;

/// Makes a driver's accesses to ports, BARs and memory the way a vCPU's would arrive.
///
/// An access to RAM that is not there reads as ones and writes nowhere, as on a bus.
#[derive(Clone, Debug)]
pub struct DriverView {
    machine: Arc<Machine>,
}

impl DriverView {
    /// Sees `machine`.
    pub fn new(machine: Arc<Machine>) -> Self {
        Self { machine }
    }

    /// The machine that is seen.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }
}

impl Platform for DriverView {
    fn mmio_read(&self, address: u64, width: Width) -> u64 {
        let mut bytes = [0; 8];
        if let Some(data) = bytes.get_mut(..usize::from(width.bytes())) {
            self.machine.mmio_read(address, data);
        }
        u64::from_le_bytes(bytes)
    }

    fn mmio_write(&self, address: u64, width: Width, value: u64) {
        if let Some(data) = value.to_le_bytes().get(..usize::from(width.bytes())) {
            self.machine.mmio_write(address, data);
        }
    }

    fn port_read(&self, port: u16, width: Width) -> u32 {
        let mut bytes = [0; 4];
        if let Some(data) = bytes.get_mut(..usize::from(width.bytes())) {
            self.machine.port_read(port, data);
        }
        u32::from_le_bytes(bytes)
    }

    fn port_write(&self, port: u16, width: Width, value: u32) {
        if let Some(data) = value.to_le_bytes().get(..usize::from(width.bytes())) {
            self.machine.port_write(port, data);
        }
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        if self
            .machine
            .memory()
            .read_slice(data, GuestAddress(address))
            .is_err()
        {
            data.fill(0xff);
        }
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        let _ = self
            .machine
            .memory()
            .write_slice(data, GuestAddress(address));
    }

    fn memory_load_u16(&self, address: u64) -> u16 {
        self.machine
            .memory()
            .load(GuestAddress(address), Ordering::Acquire)
            .map_or(u16::MAX, u16::from_le)
    }

    fn memory_store_u16(&self, address: u64, value: u16) {
        let _ =
            self.machine
                .memory()
                .store(value.to_le(), GuestAddress(address), Ordering::Release);
    }

    fn barrier(&self) {
        fence(Ordering::SeqCst);
    }
}
