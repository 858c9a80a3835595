//! The table beside this file: no feature is offered that it says is not. That each test exists, `cargo xtask conformance`
//! checks.

use std::sync::Arc;

use iothread::EventLoop;
use net_client::{Frame, NetClient, Offloads, Port, Received, VnetHeader};
use virtio::net::F as NetF;
use virtio_bus::VirtioDevice;
use virtio_net::{VirtioNet, VirtioNetConfig};
use vm_memory::GuestMemoryMmap;

const TABLE: &str = include_str!("README.md");

/// What the rows say of features that are not offered: the demand, and the feature's name.
fn not_offered() -> Vec<(&'static str, &'static str)> {
    let rows: Vec<_> = (TABLE.lines())
        .filter_map(|line| line.strip_suffix(" |")?.rsplit_once(" | not offered: "))
        .collect();
    assert!(!rows.is_empty());
    rows
}

/// A backend that can do all there is.
#[derive(Debug)]
struct Able;

impl NetClient for Able {
    fn receive(&self, _frame: &Frame<'_>) -> Received {
        Received::Taken
    }

    fn vnet_header(&self) -> Option<&dyn VnetHeader> {
        Some(self)
    }
}

impl VnetHeader for Able {
    fn supported_offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn header_len(&self) -> usize {
        0
    }

    fn set_header_len(&self, _len: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn set_little_endian(&self, _little_endian: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn set_offloads(&self, _offloads: Offloads) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_feature_is_offered_that_is_said_not_to_be() {
    let able = Arc::new(Able);
    let client: Arc<dyn NetClient> = able.clone();
    let port = Port::new("able", Arc::downgrade(&client));
    let config = VirtioNetConfig {
        mq: true,
        rss: true,
        hash: true,
        hash_tunnel: true,
        failover: true,
        host_mtu: 1500,
        speed: Some(1),
        ..Default::default()
    };
    let context = EventLoop::new().unwrap();
    let nic = VirtioNet::<Arc<GuestMemoryMmap<()>>>::new(config, vec![port], vec![context]);
    let nic = nic.unwrap();
    let offered = NetF::from(nic.offered_features());
    for (demand, what) in not_offered() {
        match NetF::all().iter_names().find(|(name, _)| *name == what) {
            Some((_, feature)) => assert!(!offered.intersects(feature), "{what}"),
            None => assert!(what.contains("capabilities"), "{demand}: {what}"),
        }
    }
}
