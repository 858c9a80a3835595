//! The types, and what they are made of.

use std::fmt;
use std::sync::Arc;

use qdev::{Category, DeviceClass, DeviceLevel, Error, Machine, add_level};
use qom::{Object, TypeInfo, TypeRegistry};
use virtio_net::object::VIRTIO_NET as VIRTIO_NET_DEVICE;
use virtio_pci::object::{INTERFACE_PROPERTIES, Interfaces, VIRTIO_PCI};
use vm_memory::GuestAddressSpace;
use vm_pci::object::PciDeviceClass;

/// The abstract parent of the network proxies.
pub const VIRTIO_NET_PCI_BASE: &str = "virtio-net-pci-base";
/// A network device.
pub const VIRTIO_NET_PCI: &str = "virtio-net-pci";
/// Its other name.
pub const VIRTIO_NET: &str = "virtio-net";
/// A network device with the modern interface alone.
pub const VIRTIO_NET_PCI_NON_TRANSITIONAL: &str = "virtio-net-pci-non-transitional";
/// A network device with both interfaces.
pub const VIRTIO_NET_PCI_TRANSITIONAL: &str = "virtio-net-pci-transitional";

/// The name under which a proxy owns its model.
pub const BACKEND: &str = "virtio-backend";

/// A network controller for Ethernet.
const CLASS_NETWORK_ETHERNET: u32 = 0x02_0000;

/// Registers the proxies alone; their parents and models have a function like this in their own crates.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if that was done already.
pub fn register_types(registry: &mut TypeRegistry) -> Result<(), qom::Error> {
    registry.register(
        TypeInfo::new(VIRTIO_NET_PCI_BASE, VIRTIO_PCI)
            .abstract_type()
            .class_init(|class| {
                class.part_mut::<PciDeviceClass>().class_id = Some(CLASS_NETWORK_ETHERNET);
                class.part_mut::<DeviceClass>().category = Category::Network;
                add_level(class, ProxyLevel);
            })
            .instance_init(|proxy| Ok(make_backend(proxy, VIRTIO_NET_DEVICE)?)),
    )?;
    registry.register(
        TypeInfo::new(VIRTIO_NET_PCI, VIRTIO_NET_PCI_BASE)
            .alias(VIRTIO_NET)
            .class_init(|class| {
                class.add_properties(INTERFACE_PROPERTIES);
                *class.part_mut::<Interfaces>() = Interfaces::Chosen;
            }),
    )?;
    registry.register(TypeInfo::new(
        VIRTIO_NET_PCI_NON_TRANSITIONAL,
        VIRTIO_NET_PCI_BASE,
    ))?;
    registry.register(
        TypeInfo::new(VIRTIO_NET_PCI_TRANSITIONAL, VIRTIO_NET_PCI_BASE).class_init(|class| {
            *class.part_mut::<Interfaces>() = Interfaces::Transitional;
        }),
    )
}

/// As [`register_types`], with all types above and behind the proxies that this workspace has, for machines
/// whose guest memory is `M`.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if one of them was registered already.
pub fn register_all<M>(registry: &mut TypeRegistry) -> Result<(), qom::Error>
where
    M: GuestAddressSpace<T: Send + Sync> + Send + Sync + fmt::Debug + 'static,
{
    qdev::register_types(registry)?;
    vm_pci::object::register_types(registry)?;
    virtio_bus::object::register_types(registry)?;
    virtio_pci::object::register_types::<M>(registry)?;
    virtio_net::object::register_types::<M>(registry)?;
    register_types(registry)
}

#[derive(Debug, thiserror::Error)]
#[error("'{0}' has no model")]
struct NoBackend(String);

/// Makes the model of a proxy, by type name. For `instance_init`.
#[doc(alias = "virtio_instance_init_common")]
fn make_backend(proxy: &Arc<Object>, type_name: &str) -> Result<(), qom::Error> {
    let model = proxy.registry().new_object(type_name)?;
    proxy.add_child(BACKEND, model.clone())?;
    proxy.add_aliases(&model)?;
    Ok(())
}

/// Realizes the model on the bus of the transport; its end comes with the bus's.
struct ProxyLevel;

impl DeviceLevel for ProxyLevel {
    fn realize(&self, proxy: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
        let model = proxy
            .child(BACKEND)
            .ok_or_else(|| Error::other(NoBackend(proxy.type_name().to_string())))?;
        let bus = virtio_pci::object::bus(proxy)?;
        machine.realize(&model, Some(&bus))?;
        virtio_pci::object::settle(proxy)
    }
}
