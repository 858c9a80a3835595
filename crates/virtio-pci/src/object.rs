//! The transport in the type registry: `virtio-pci`, the abstract parent of all proxies, and its bus.
//!
//! A proxy (`virtio-net-pci`) is a type below `virtio-pci` that realizes its model on the
//! [`bus`] which this level has made. Of the machine this level takes guest memory
//! (a service of type `M`), the [`MsiSink`] and the [`KickBinder`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use qdev::{BusState, DeviceLevel, DeviceState, Error, Machine, add_level};
use qom::{Object, OnOffAuto, PropertyInfo, TypeInfo, TypeRegistry, Unbuilt, Value};
use virtio::F;
use virtio_bus::object::VIRTIO_BUS;
use virtio_bus::{ANY_LAYOUT, KickBinder};
use virtqueue::NOTIFY_ON_EMPTY;
use vm_memory::GuestAddressSpace;
use vm_pci::object::{PCI_DEVICE, PciDevice, PciDeviceClass};
use vm_pci::{Express, MsiSink, PciBus, PciFunction};

use crate::{VirtioPci, VirtioPciConfig};

/// The abstract parent of all proxies.
pub const VIRTIO_PCI: &str = "virtio-pci";
/// The type of the bus between a proxy and its model.
pub const VIRTIO_PCI_BUS: &str = "virtio-pci-bus";

/// QEMU's DEV_NVECTORS_UNSPECIFIED: as many vectors as the model needs.
const VECTORS_UNSPECIFIED: u32 = u32::MAX;

/// Registers `virtio-pci` and `virtio-pci-bus`, for machines whose guest memory is `M`.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if that was done already.
pub fn register_types<M>(registry: &mut TypeRegistry) -> Result<(), qom::Error>
where
    M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static,
{
    registry.register(TypeInfo::new(VIRTIO_PCI_BUS, VIRTIO_BUS))?;
    registry.register(
        TypeInfo::new(VIRTIO_PCI, PCI_DEVICE)
            .abstract_type()
            .class_init(|class| {
                class.add_properties(PROPERTIES);
                add_level(class, VirtioPciLevel::<M>(PhantomData));
            }),
    )
}

const PROPERTIES: &[PropertyInfo] = &[
    PropertyInfo::bool("ioeventfd", true).describe("on/off"),
    PropertyInfo::u32("vectors", VECTORS_UNSPECIFIED).check(|value| match value {
        Value::Int(vectors) if *vectors <= 2048 || *vectors == u32::MAX.into() => Ok(()),
        _ => Err("is more than the 2048 vectors that MSI-X has".to_owned()),
    }),
    PropertyInfo::bool("modern-pio-notify", false).describe("on/off"),
    PropertyInfo::bool("page-per-vq", false).describe("on/off"),
    // Ours.
    PropertyInfo::bool("notification_data", false)
        .describe("on/off: offer VIRTIO_F_NOTIFICATION_DATA")
        .our_own(),
    PropertyInfo::bool("notif_config_data", false)
        .describe("on/off: offer VIRTIO_F_NOTIF_CONFIG_DATA")
        .our_own(),
    PropertyInfo::bool("order_platform", false)
        .describe("on/off: offer VIRTIO_F_ORDER_PLATFORM")
        .our_own(),
    PropertyInfo::bool("suspend", false)
        .describe("on/off: offer VIRTIO_F_SUSPEND")
        .our_own(),
    PropertyInfo::on_off_auto("express")
        .describe("on/off/auto: PCI Express form; auto: behind a PCI Express port")
        .our_own(),
    // Of the PCI Express form.
    PropertyInfo::bool("aer", false).describe("on/off"),
    PropertyInfo::bool("ats", false).describe("on/off"),
    PropertyInfo::bool("x-ats-page-aligned", true).describe("on/off"),
    PropertyInfo::bool("x-disable-pcie", false).describe("on/off"),
    PropertyInfo::bool("x-pcie-deverr-init", true).describe("on/off"),
    PropertyInfo::bool("x-pcie-flr-init", true).describe("on/off"),
    PropertyInfo::bool("x-pcie-lnkctl-init", true).describe("on/off"),
    PropertyInfo::bool("x-pcie-pm-init", true).describe("on/off"),
    // It says what a migration stream has.
    PropertyInfo::bool("migrate-extra", true)
        .describe("on/off")
        .unbuilt(ON),
    PropertyInfo::bool("virtio-pci-bus-master-bug-migration", false)
        .describe("on/off")
        .unbuilt(OFF),
    PropertyInfo::bool("x-ignore-backend-features", false).unbuilt(OFF),
];

const OFF: Unbuilt = Unbuilt::Only(&Value::Bool(false));
const ON: Unbuilt = Unbuilt::Only(&Value::Bool(true));

/// The properties by which a user chooses between the legacy and the modern interface. For the
/// `class_init` of a type that is [`Interfaces::Chosen`].
///
/// `disable-legacy=auto` means `off` in a conventional slot and `on` behind a PCI Express port, as in QEMU.
pub const INTERFACE_PROPERTIES: &[PropertyInfo] = &[
    PropertyInfo::on_off_auto("disable-legacy").describe("on/off/auto"),
    PropertyInfo::bool("disable-modern", false),
];

/// Which interfaces the functions of a class have. A part of the class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// The modern one.
    #[default]
    NonTransitional,
    /// Both.
    Transitional,
    /// What the object's [`INTERFACE_PROPERTIES`] say.
    Chosen,
}

impl Interfaces {
    /// Whether `device` has the legacy interface, and the modern one.
    fn of(device: &Arc<Object>) -> Result<(bool, bool), Error> {
        let class = device.class().part::<Self>();
        Ok(match class.copied().unwrap_or_default() {
            Self::NonTransitional => (false, true),
            Self::Transitional => (true, true),
            Self::Chosen => {
                let legacy = match device.get::<OnOffAuto>("disable-legacy")? {
                    OnOffAuto::On => false,
                    OnOffAuto::Off => true,
                    OnOffAuto::Auto => !is_behind_express_port(device),
                };
                (legacy, !device.get::<bool>("disable-modern")?)
            }
        })
    }
}

/// Whether the slot of `device` is that of a PCI Express port, not one of a root bus or a conventional one.
fn is_behind_express_port(device: &Arc<Object>) -> bool {
    let bus = DeviceState::bus_of(device).and_then(|bus| bus.part::<PciBus>());
    bus.is_some_and(|bus| bus.is_express_port())
}

/// The PCI Express form of `device`, if it has one.
fn express(device: &Arc<Object>) -> Result<Option<Express>, Error> {
    let behind_port = is_behind_express_port(device);
    let wanted = match device.get::<OnOffAuto>("express")? {
        OnOffAuto::On => true,
        OnOffAuto::Off => false,
        OnOffAuto::Auto => behind_port,
    };
    if !wanted || device.get::<bool>("x-disable-pcie")? {
        return Ok(None);
    }
    Ok(Some(Express {
        is_integrated: !behind_port,
        function_level_reset: device.get("x-pcie-flr-init")?,
        power_states: device.get("x-pcie-pm-init")?,
        error_reporting: device.get("x-pcie-deverr-init")?,
        link_control: device.get("x-pcie-lnkctl-init")?,
        advanced_error_reporting: device.get("aer")?,
        address_translation: device.get("ats")?,
        page_aligned: device.get("x-ats-page-aligned")?,
    }))
}

/// What the legacy interface of `device` offers: what the model's properties say.
fn legacy_features(device: &Arc<Object>) -> Result<F, Error> {
    let mut features = F::empty();
    for (property, feature) in [
        ("any_layout", ANY_LAYOUT),
        ("notify_on_empty", NOTIFY_ON_EMPTY),
    ] {
        if device.get::<bool>(property)? {
            features |= feature;
        }
    }
    Ok(features)
}

/// The bus that a realized proxy's model goes on.
///
/// # Errors
/// When the `virtio-pci` level of the proxy has not realized.
pub fn bus(proxy: &Object) -> Result<Arc<Object>, Error> {
    let buses = DeviceState::of(proxy)?.buses();
    (buses.into_iter())
        .find(|bus| bus.is_a(VIRTIO_PCI_BUS) && BusState::of(bus).is_ok())
        .ok_or_else(|| Error::NotABus(proxy.type_name().to_string()))
}

/// How many vectors the function has once its model is there; a part of a realized proxy.
struct VectorCount(Box<dyn Fn() -> Option<u16> + Send + Sync>);

/// Says what the proxy's properties came to. For a proxy's realize, once its model is on the [`bus`].
///
/// # Errors
/// None is known.
pub fn settle(proxy: &Arc<Object>) -> Result<(), Error> {
    if let Some(vectors) = proxy.part::<VectorCount>().and_then(|count| count.0()) {
        proxy.settle("vectors", u32::from(vectors))?;
    }
    if proxy.class().property("disable-legacy").is_some() {
        let (legacy, _) = Interfaces::of(proxy)?;
        let disabled = if legacy {
            OnOffAuto::Off
        } else {
            OnOffAuto::On
        };
        proxy.settle("disable-legacy", disabled)?;
    }
    Ok(())
}

struct VirtioPciLevel<M>(PhantomData<fn() -> M>);

impl<M> DeviceLevel for VirtioPciLevel<M>
where
    M: GuestAddressSpace + Send + Sync + fmt::Debug + 'static,
{
    fn realize(&self, device: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
        let class = device.class().part::<PciDeviceClass>();
        let vectors = device.get::<u32>("vectors")?;
        let (legacy, modern) = Interfaces::of(device)?;
        let legacy_features = if legacy {
            legacy_features(device)?
        } else {
            F::empty()
        };
        let pci = VirtioPci::<M>::new(
            VirtioPciConfig {
                vectors: u16::try_from(vectors).ok(),
                class: class.and_then(|class| class.class_id),
                ioeventfd: device.get("ioeventfd")?,
                legacy,
                modern,
                legacy_features,
                page_per_vq: device.get("page-per-vq")?,
                modern_pio_notify: device.get("modern-pio-notify")?,
                notification_data: device.get("notification_data")?,
                notif_config_data: device.get("notif_config_data")?,
                iommu_platform: device.get("iommu_platform")?,
                order_platform: device.get("order_platform")?,
                suspend: device.get("suspend")?,
                multifunction: device.get("multifunction")?,
                express: express(device)?,
            },
            M::clone(&*machine.service::<M>()?),
            machine.service::<dyn MsiSink>()?,
            machine.service::<dyn KickBinder>()?,
        )
        .map_err(Error::other)?;
        let function = PciDevice::of(device)?;
        virtio_bus::object::add_bus(machine, device, VIRTIO_PCI_BUS, Arc::clone(pci.bus()))?;
        function.set_function(Some(Arc::clone(&pci) as Arc<dyn PciFunction>));
        let weak = Arc::downgrade(&pci);
        let vectors = move || weak.upgrade().and_then(|pci| pci.vectors());
        device.set_part(VectorCount(Box::new(vectors)));
        device.share_part(pci);
        Ok(())
    }

    fn unrealize(&self, device: &Arc<Object>, _: &Arc<Machine>) {
        if let Ok(function) = PciDevice::of(device) {
            function.set_function(None);
        }
        device.take_part::<VectorCount>();
        device.take_part::<VirtioPci<M>>();
    }
}
