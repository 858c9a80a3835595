//! The bus in the tree of devices.

#![expect(
    clippy::unwrap_used,
    reason = "what a test sets up is there, or the test fails"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use qdev::{DeviceLevel, Machine, add_level};
use qom::{Object, TypeInfo, TypeRegistry};
use vm_pci::object::{PCI_DEVICE, PciDevice, add_bus, register_types};
use vm_pci::test_utils::RecordingIrqLines;
use vm_pci::{
    Attachment, BarIndex, BarWindow, ConfigEffect, DevFn, Error, PciFunction, PciHost,
    PciHostConfig,
};

/// Counts its resets.
#[derive(Debug, Default)]
struct Counted(AtomicUsize);

impl Counted {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl PciFunction for Counted {
    fn attached(&self, _: Attachment) -> Result<(), Error> {
        Ok(())
    }

    fn detached(&self) {}

    fn config_read(&self, _: u16, _: &mut [u8]) {}

    fn config_write(&self, _: u16, _: &[u8]) -> ConfigEffect {
        ConfigEffect::default()
    }

    fn windows(&self) -> Vec<BarWindow> {
        Vec::new()
    }

    fn bar_read(&self, _: BarIndex, _: u64, _: &mut [u8]) {}

    fn bar_write(&self, _: BarIndex, _: u64, _: &[u8]) {}

    fn reset(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Makes the function of a `counted-pci`, and keeps it for the test.
#[derive(Clone, Default)]
struct CountedLevel(Arc<Mutex<Vec<Arc<Counted>>>>);

impl DeviceLevel for CountedLevel {
    fn realize(&self, device: &Arc<Object>, _: &Arc<Machine>) -> Result<(), qdev::Error> {
        let function = Arc::new(Counted::default());
        self.0.lock().unwrap().push(function.clone());
        PciDevice::of(device)?.set_function(Some(function));
        Ok(())
    }
}

#[test]
fn a_reset_of_the_tree_resets_each_function_once_those_of_the_machine_as_well() {
    let level = CountedLevel::default();
    let mut registry = TypeRegistry::new();
    qdev::register_types(&mut registry).unwrap();
    register_types(&mut registry).unwrap();
    let role = level.clone();
    registry
        .register(
            TypeInfo::new("counted-pci", PCI_DEVICE)
                .class_init(move |class| add_level(class, role.clone())),
        )
        .unwrap();
    let machine = Machine::new(registry.share()).unwrap();
    let host = PciHost::new(PciHostConfig::default(), RecordingIrqLines::new()).unwrap();
    let bus = add_bus(&machine, machine.object(), "pci.0", host.bus().clone()).unwrap();
    let own = Arc::new(Counted::default());
    host.bus()
        .attach(DevFn::new(5, 0).unwrap(), own.clone())
        .unwrap();
    let device = machine.device_add(keyval::Options::parse("counted-pci", Some("driver")));
    let device = device.unwrap();
    let function = level.0.lock().unwrap()[0].clone();
    let resets = || (function.take(), own.take());

    machine.reset();
    assert_eq!(resets(), (1, 1), "the machine");
    machine.reset_bus(&bus);
    assert_eq!(resets(), (1, 1), "the bus");
    machine.reset_device(&device);
    assert_eq!(resets(), (1, 0), "the device");
    host.reset();
    assert_eq!(resets(), (1, 1), "the host, without the tree");
    host.reset_registers();
    assert_eq!(resets(), (0, 0), "what is the host's alone");
}
