//! The model in the type registry: `virtio-net-device`.
//!
//! Of the machine it takes the netdev table ([`NetClients`]) and the context that its queues work on (a
//! service of type `dyn AioContext`), or with `iothreads` those that its queue pairs take turns in getting (of a
//! service of type `dyn AioContexts`). Realized, it is the peer of the netdev that `netdev` names, and has
//! its [`VirtioNet`] and, for its bus, a [`DeviceRef`] among its parts.
//! Its limits (`rx_limit_bytes`, ...) and `anti_spoof` can be set at any time.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use iothread::{AioContext, AioContexts, ContextLease};
use net_client::{NetClients, Port};
use qdev::{Category, DeviceClass, DeviceLevel, Error, MAC_ADDRESS, MacAddr, Machine, add_level};
use qom::{Kind, Object, PropertyError, PropertyInfo, TypeInfo, TypeRegistry, Unbuilt, Value};
use virtio_bus::DeviceRef;
use virtio_bus::object::VIRTIO_DEVICE;
use virtqueue::QueueMemory;

use crate::{RateLimit, VirtioNet, VirtioNetConfig, VirtioNetError};

/// The type of the model.
pub const VIRTIO_NET: &str = "virtio-net-device";

/// Registers `virtio-net-device`, for machines whose guest memory is `M`.
///
/// # Errors
/// [`qom::Error::DuplicateType`] if that was done already.
pub fn register_types<M>(registry: &mut TypeRegistry) -> Result<(), qom::Error>
where
    M: QueueMemory + fmt::Debug,
{
    registry.register(
        TypeInfo::new(VIRTIO_NET, VIRTIO_DEVICE)
            .class_init(|class| {
                class.add_properties(PROPERTIES);
                class.add_properties(UNBUILT);
                class.part_mut::<DeviceClass>().category = Category::Network;
                add_level(class, VirtioNetLevel::<M>(PhantomData));
            })
            .instance_init(|device| Ok(add_reports::<M>(device)?)),
    )
}

/// What can be read of a realized NIC: `features` (a [`FeatureReport`](crate::FeatureReport)), `statistics` (a line for
/// each queue), and `standby` (whether its driver would rather have another).
fn add_reports<M: QueueMemory>(device: &Object) -> Result<(), PropertyError> {
    device.add_computed("features", Kind::Str, |device| {
        let model = device.part::<VirtioNet<M>>()?;
        Some(Value::Str(model.feature_report().to_string().into()))
    })?;
    device.add_computed("statistics", Kind::Str, |device| {
        let model = device.part::<VirtioNet<M>>()?;
        Some(Value::Str(model.statistics_text().into()))
    })?;
    device.add_computed("standby", Kind::Bool, |device| {
        let model = device.part::<VirtioNet<M>>()?;
        Some(Value::Bool(model.is_standby()))
    })
}

const fn on(name: &'static str) -> PropertyInfo {
    PropertyInfo::bool(name, true).describe("on/off")
}

const PROPERTIES: &[PropertyInfo] = &[
    PropertyInfo::custom("mac", &MAC_ADDRESS)
        .describe("Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56"),
    PropertyInfo::str("netdev").describe("ID of a netdev to use as a backend"),
    PropertyInfo::u16("host_mtu", 0),
    PropertyInfo::u16("rx_queue_size", 256),
    PropertyInfo::u16("tx_queue_size", 256),
    PropertyInfo::i32("x-txburst", 256).check(|value| match value {
        Value::Int(1..) => Ok(()),
        _ => Err("takes at least 1".to_owned()),
    }),
    PropertyInfo::str("tx"),
    PropertyInfo::u32("x-txtimer", 150_000),
    PropertyInfo::i32("speed", -1),
    PropertyInfo::str("duplex"),
    PropertyInfo::bool("mq", false).describe("on/off"),
    PropertyInfo::bool("rss", false).describe("on/off"),
    PropertyInfo::bool("hash", false).describe("on/off"),
    on("csum"),
    // The legacy interface's.
    on("gso"),
    on("guest_csum"),
    on("host_tso4"),
    on("host_tso6"),
    on("host_ecn"),
    on("host_ufo"),
    on("guest_tso4"),
    on("guest_tso6"),
    on("guest_ecn"),
    on("guest_ufo"),
    PropertyInfo::bool("guest_rsc_ext", false).describe("on/off"),
    PropertyInfo::u32("rsc_interval", 300_000),
    on("mrg_rxbuf"),
    on("status"),
    on("ctrl_vq"),
    on("ctrl_rx"),
    on("ctrl_rx_extra"),
    on("ctrl_vlan"),
    on("ctrl_mac_addr"),
    on("guest_announce"),
    PropertyInfo::bool("failover", false),
    on("notf_coal").our_own(),
    on("vq_notf_coal").our_own(),
    on("device_stats").our_own(),
    on("guest_hdrlen").our_own(),
    PropertyInfo::bool("hash_tunnel", false)
        .describe("Hashes of tunnels' packets by the packet inside, with rss or hash")
        .our_own(),
    PropertyInfo::bool("anti_spoof", false)
        .describe("Drop frames from another address than the NIC's")
        .changeable(apply_policy)
        .our_own(),
    PropertyInfo::u64("rx_limit_bytes", 0)
        .describe("Bytes a second given to the driver, 0: any")
        .changeable(apply_policy)
        .our_own(),
    PropertyInfo::u64("rx_limit_packets", 0)
        .describe("Frames a second given to the driver, 0: any")
        .changeable(apply_policy)
        .our_own(),
    PropertyInfo::u64("tx_limit_bytes", 0)
        .describe("Bytes a second taken from the driver, 0: any")
        .changeable(apply_policy)
        .our_own(),
    PropertyInfo::u64("tx_limit_packets", 0)
        .describe("Frames a second taken from the driver, 0: any")
        .changeable(apply_policy)
        .our_own(),
    PropertyInfo::u32("limit_burst_ms", 100)
        .describe("Time whose worth may pass at once, ms")
        .changeable(apply_policy)
        .our_own(),
    PropertyInfo::u16("iothreads", 0)
        .describe("I/O threads for the queue pairs, 0: the machine's own")
        .our_own(),
    on("ctrl_guest_offloads"),
    // Later than QEMU 7.2.
    on("host_uso"),
    on("guest_uso4"),
    on("guest_uso6"),
    on("host_tunnel"),
    on("host_tunnel_csum"),
    on("guest_tunnel"),
    on("guest_tunnel_csum"),
];

/// QEMU's, refused by name.
const UNBUILT: &[PropertyInfo] = &[
    PropertyInfo::new("bootindex", Kind::I32).unbuilt(Unbuilt::Only(&Value::Int(-1))),
    // There is no backend with an MTU of its own to bypass.
    PropertyInfo::bool("x-mtu-bypass-backend", true).unbuilt(Unbuilt::Only(&Value::Bool(true))),
];

/// The address that a realized NIC has; a part of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicAddress(pub MacAddr);

/// Makes a realized NIC do what its properties say that can be changed; a part of its object.
struct Policy(Box<ApplyPolicy>);

type ApplyPolicy = dyn Fn(&Object) -> Result<(), PropertyError> + Send + Sync;

fn apply_policy(device: &Object) {
    if let Some(policy) = device.part::<Policy>()
        && let Err(error) = (policy.0)(device)
    {
        // They are there, and of their kind.
        tracing::debug!(%error, "a property cannot be read");
    }
}

struct VirtioNetLevel<M>(PhantomData<fn() -> M>);

impl<M> DeviceLevel for VirtioNetLevel<M>
where
    M: QueueMemory + fmt::Debug,
{
    fn realize(&self, device: &Arc<Object>, machine: &Arc<Machine>) -> Result<(), Error> {
        let ports = backend(device, machine)?;
        let (contexts, leases) = contexts(device, machine, ports.len().max(1))?;
        let mac = match device.get::<Option<MacAddr>>("mac")? {
            // QEMU 7.2: zeros are no address, and a group's is one.
            Some(mac) if mac != MacAddr::default() => mac,
            _ => free_address(machine),
        };
        let model =
            VirtioNet::<M>::new(config(device, mac)?, ports, contexts).map_err(Error::other)?;
        device.settle("mac", mac)?;
        device.set_part(NicAddress(mac));
        device.set_part(Leases(leases));
        device.set_part::<DeviceRef<M>>(model.clone());
        let weak = Arc::downgrade(&model);
        device.set_part(Policy(Box::new(move |device| {
            let Some(model) = weak.upgrade() else {
                return Ok(());
            };
            let (rx, tx) = limits(device)?;
            let before = model.limits();
            // One that stays keeps what has been spent of it.
            if rx != before.0 {
                model.set_rx_limit(rx);
            }
            if tx != before.1 {
                model.set_tx_limit(tx);
            }
            model.set_anti_spoof(device.get("anti_spoof")?);
            Ok(())
        })));
        device.share_part(model);
        Ok(())
    }

    fn unrealize(&self, device: &Arc<Object>, _: &Arc<Machine>) {
        device.take_part::<DeviceRef<M>>();
        device.take_part::<Policy>();
        device.take_part::<VirtioNet<M>>();
        device.take_part::<NicAddress>();
        // After the model: its last work on them is done.
        device.take_part::<Leases>();
    }
}

/// Contexts of the NIC's own, for as long as it is realized; a part of its object.
struct Leases(#[expect(dead_code, reason = "held, not looked at")] Vec<ContextLease>);

type Contexts = Vec<Arc<dyn AioContext>>;

/// A context for each of so many pairs, or one for all; and what keeps those that are the NIC's own.
fn contexts(
    device: &Object,
    machine: &Machine,
    pairs: usize,
) -> Result<(Contexts, Vec<ContextLease>), Error> {
    let count = usize::from(device.get::<u16>("iothreads")?);
    if count == 0 {
        return Ok((vec![machine.service::<dyn AioContext>()?], Vec::new()));
    }
    if count > pairs {
        return Err(Error::other(VirtioNetError::IoThreads {
            threads: count,
            pairs,
        }));
    }
    let service = machine.service::<dyn AioContexts>()?;
    let leases: Vec<_> = (0..count)
        .map(|i| service.context(&format!("virtio-net.{i}")))
        .collect::<Result<_, _>>()
        .map_err(Error::other)?;
    let own = leases.iter().map(|lease| lease.context().clone());
    let contexts = own.cycle().take(pairs).collect();
    Ok((contexts, leases))
}

fn config(device: &Object, mac: MacAddr) -> Result<VirtioNetConfig, Error> {
    let (rx_limit, tx_limit) = limits(device)?;
    // QEMU 7.2: -1 is a speed that is unknown.
    let speed = match device.get::<i32>("speed")? {
        -1 => None,
        speed => {
            let invalid = |_| Error::other(VirtioNetError::Speed(speed.into()));
            Some(u32::try_from(speed).map_err(invalid)?)
        }
    };
    let tx = device.get::<Option<String>>("tx")?;
    let tx = tx.map(|text| text.parse()).transpose();
    let duplex = device.get::<Option<String>>("duplex")?;
    let duplex = duplex.map(|text| text.parse()).transpose();
    Ok(VirtioNetConfig {
        mac: mac.0,
        host_mtu: device.get("host_mtu")?,
        rx_queue_size: device.get("rx_queue_size")?,
        tx_queue_size: device.get("tx_queue_size")?,
        speed,
        duplex: duplex.map_err(Error::other)?,
        mq: device.get("mq")?,
        rss: device.get("rss")?,
        hash: device.get("hash")?,
        hash_tunnel: device.get("hash_tunnel")?,
        tx: tx.map_err(Error::other)?.unwrap_or_default(),
        x_txtimer: device.get("x-txtimer")?,
        x_txburst: u32::try_from(device.get::<i32>("x-txburst")?).unwrap_or(1),
        csum: device.get("csum")?,
        gso: device.get("gso")?,
        guest_csum: device.get("guest_csum")?,
        host_tso4: device.get("host_tso4")?,
        host_tso6: device.get("host_tso6")?,
        host_ecn: device.get("host_ecn")?,
        host_ufo: device.get("host_ufo")?,
        host_uso: device.get("host_uso")?,
        guest_tso4: device.get("guest_tso4")?,
        guest_tso6: device.get("guest_tso6")?,
        guest_ecn: device.get("guest_ecn")?,
        guest_ufo: device.get("guest_ufo")?,
        guest_rsc_ext: device.get("guest_rsc_ext")?,
        rsc_interval: device.get("rsc_interval")?,
        guest_uso4: device.get("guest_uso4")?,
        guest_uso6: device.get("guest_uso6")?,
        host_tunnel: device.get("host_tunnel")?,
        host_tunnel_csum: device.get("host_tunnel_csum")?,
        guest_tunnel: device.get("guest_tunnel")?,
        guest_tunnel_csum: device.get("guest_tunnel_csum")?,
        mrg_rxbuf: device.get("mrg_rxbuf")?,
        status: device.get("status")?,
        ctrl_vq: device.get("ctrl_vq")?,
        ctrl_by_front_end: false,
        ctrl_rx: device.get("ctrl_rx")?,
        ctrl_rx_extra: device.get("ctrl_rx_extra")?,
        ctrl_vlan: device.get("ctrl_vlan")?,
        ctrl_mac_addr: device.get("ctrl_mac_addr")?,
        guest_announce: device.get("guest_announce")?,
        failover: device.get("failover")?,
        anti_spoof: device.get("anti_spoof")?,
        rx_limit,
        tx_limit,
        notf_coal: device.get("notf_coal")?,
        vq_notf_coal: device.get("vq_notf_coal")?,
        device_stats: device.get("device_stats")?,
        guest_hdrlen: device.get("guest_hdrlen")?,
        ctrl_guest_offloads: device.get("ctrl_guest_offloads")?,
        indirect_desc: device.get("indirect_desc")?,
        event_idx: device.get("event_idx")?,
        queue_reset: device.get("queue_reset")?,
        packed: device.get("packed")?,
        in_order: device.get("in_order")?,
    })
}

/// Those of reception and of transmission.
fn limits(device: &Object) -> Result<(RateLimit, RateLimit), PropertyError> {
    let burst = Duration::from_millis(device.get::<u32>("limit_burst_ms")?.into());
    let limit = |bytes, packets| {
        Ok(RateLimit {
            bytes: device.get(bytes)?,
            packets: device.get(packets)?,
            burst,
        })
    };
    Ok((
        limit("rx_limit_bytes", "rx_limit_packets")?,
        limit("tx_limit_bytes", "tx_limit_packets")?,
    ))
}

/// The ports of the netdev that `netdev` names; none without one.
fn backend(device: &Object, machine: &Machine) -> Result<Vec<Arc<Port>>, Error> {
    let Some(id) = device.get::<Option<String>>("netdev")? else {
        return Ok(Vec::new());
    };
    let type_name = device.type_name().to_string();
    let name = "netdev".to_owned();
    let Some(netdev) = machine.service::<NetClients>()?.find(&id) else {
        return Err(Error::Property(PropertyError::NoSuchThing {
            type_name,
            name,
            value: id,
        }));
    };
    if netdev.is_in_use() {
        return Err(Error::Property(PropertyError::InUse {
            type_name,
            name,
            value: id,
        }));
    }
    Ok(netdev.ports().to_vec())
}

/// The first address that no NIC of the machine has, counted up from QEMU's 52:54:00:12:34:56.
#[doc(alias = "qemu_macaddr_default_if_unset")]
fn free_address(machine: &Machine) -> MacAddr {
    let taken: Vec<MacAddr> = (machine.devices().iter())
        .filter_map(|device| machine.resolve(&device.path)?.part::<NicAddress>())
        .map(|address| address.0)
        .collect();
    let number = |last| MacAddr([0x52, 0x54, 0x00, 0x12, 0x34, last]);
    (0x56..=u8::MAX)
        .chain(0..0x56)
        .map(number)
        .find(|mac| !taken.contains(mac))
        .unwrap_or(number(0x56))
}
