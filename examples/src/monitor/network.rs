//! `info network`: who is connected with whom.

use std::fmt::Write;
use std::sync::Arc;

use net_client::{Netdev, Port};

use crate::devices::Devices;

/// What QEMU prints, and `link=down` at the end of the line of whatever has its link set down.
#[doc(alias = "hmp_info_network")]
pub(super) fn info_network(devices: &Devices) -> String {
    let mut text = String::new();
    let netdevs = devices.netdevs();
    let all: Vec<_> = (netdevs.ids().into_iter())
        .filter_map(|id| Some((netdevs.find(&id)?, id)))
        .collect();
    for (netdev, id) in &all {
        for (index, port) in netdev.ports().iter().enumerate() {
            if port.peer().is_none() {
                text.push_str(&netdev_line(&**netdev, id, index, port));
            }
        }
    }
    for nic in devices.nics() {
        for (index, port) in nic.ports.iter().enumerate() {
            // Writing to a `String` does not fail.
            let _ = writeln!(
                text,
                "{}: index={index},type=nic,model={},macaddr={}{}",
                nic.name,
                nic.model,
                nic.mac,
                link(port)
            );
            let peer = port.peer();
            let behind = all.iter().find_map(|(netdev, id)| {
                let is_peer =
                    |port: &Arc<Port>| peer.as_ref().is_some_and(|peer| Arc::ptr_eq(peer, port));
                let index = netdev.ports().iter().position(is_peer)?;
                Some((netdev, id, index))
            });
            if let (Some((netdev, id, index)), Some(peer)) = (behind, &peer) {
                text.push_str(" \\ ");
                text.push_str(&netdev_line(&**netdev, id, index, peer));
            }
        }
    }
    let filters = devices.filters();
    if !filters.is_empty() {
        text.push_str("filters:\n");
    }
    for filter in filters {
        let _ = writeln!(text, "  - {filter}");
    }
    text
}

fn netdev_line(netdev: &dyn Netdev, id: &str, index: usize, port: &Port) -> String {
    let info = netdev.info();
    let comma = if info.is_empty() { "" } else { "," };
    format!(
        "{id}: index={index},type={}{comma}{info}{}\n",
        netdev.kind(),
        link(port)
    )
}

fn link(port: &Port) -> &'static str {
    if port.link_is_up() { "" } else { ",link=down" }
}
