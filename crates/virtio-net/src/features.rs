//! What is offered, of what is configured and the backend can.

use net_client::Offloads;
use virtio::net::F as NetF;
use virtio::{F, le128};

use crate::{VirtioNetConfig, Withheld};

/// An offload with the feature that lets the driver send such frames, and the one that lets it receive
/// them. The second's bit is also the offload's in `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` (virtio 1.4,
/// 5.1.9.5.9).
struct Offload {
    host: NetF,
    guest: NetF,
    get: fn(&Offloads) -> bool,
    set: fn(&mut Offloads),
}

const OFFLOADS: [Offload; 9] = [
    Offload {
        host: NetF::CSUM,
        guest: NetF::GUEST_CSUM,
        get: |o| o.csum,
        set: |o| o.csum = true,
    },
    Offload {
        host: NetF::HOST_TSO4,
        guest: NetF::GUEST_TSO4,
        get: |o| o.tso4,
        set: |o| o.tso4 = true,
    },
    Offload {
        host: NetF::HOST_TSO6,
        guest: NetF::GUEST_TSO6,
        get: |o| o.tso6,
        set: |o| o.tso6 = true,
    },
    Offload {
        host: NetF::HOST_ECN,
        guest: NetF::GUEST_ECN,
        get: |o| o.ecn,
        set: |o| o.ecn = true,
    },
    Offload {
        host: NetF::HOST_UFO,
        guest: NetF::GUEST_UFO,
        get: |o| o.ufo,
        set: |o| o.ufo = true,
    },
    // Sending has one feature for both, which takes a backend that can do both.
    Offload {
        host: NetF::HOST_USO,
        guest: NetF::GUEST_USO4,
        get: |o| o.uso4,
        set: |o| o.uso4 = true,
    },
    Offload {
        host: NetF::HOST_USO,
        guest: NetF::GUEST_USO6,
        get: |o| o.uso6,
        set: |o| o.uso6 = true,
    },
    Offload {
        host: NetF::HOST_UDP_TUNNEL_GSO,
        guest: NetF::GUEST_UDP_TUNNEL_GSO,
        get: |o| o.udp_tunnel,
        set: |o| o.udp_tunnel = true,
    },
    Offload {
        host: NetF::HOST_UDP_TUNNEL_GSO_CSUM,
        guest: NetF::GUEST_UDP_TUNNEL_GSO_CSUM,
        get: |o| o.udp_tunnel_csum,
        set: |o| o.udp_tunnel_csum = true,
    },
];

/// Features that need others (virtio 1.4, 5.1.3.1), as far as they are offered: a feature, and the set of
/// which it needs one. In an order in which what is needed comes first.
const REQUIREMENTS: [(NetF, NetF); 36] = [
    (NetF::HOST_TSO4, NetF::CSUM),
    (NetF::HOST_TSO6, NetF::CSUM),
    (NetF::HOST_ECN, NetF::HOST_TSO4.union(NetF::HOST_TSO6)),
    (NetF::HOST_UFO, NetF::CSUM),
    (NetF::HOST_USO, NetF::CSUM),
    (NetF::GUEST_TSO4, NetF::GUEST_CSUM),
    (NetF::GUEST_TSO6, NetF::GUEST_CSUM),
    (NetF::GUEST_ECN, NetF::GUEST_TSO4.union(NetF::GUEST_TSO6)),
    // 5.1.3.1 names the driver's large frames. The device's are what it is about: 5.1.9.4 has it imply one of them.
    (NetF::RSC_EXT, NetF::HOST_TSO4.union(NetF::HOST_TSO6)),
    (NetF::RSC_EXT, NetF::GUEST_TSO4.union(NetF::GUEST_TSO6)),
    (NetF::GUEST_UFO, NetF::GUEST_CSUM),
    (NetF::GUEST_USO4, NetF::GUEST_CSUM),
    (NetF::GUEST_USO6, NetF::GUEST_CSUM),
    (NetF::HOST_UDP_TUNNEL_GSO, NetF::HOST_TSO4),
    (NetF::HOST_UDP_TUNNEL_GSO, NetF::HOST_TSO6),
    (NetF::HOST_UDP_TUNNEL_GSO, NetF::HOST_USO),
    (NetF::HOST_UDP_TUNNEL_GSO_CSUM, NetF::HOST_UDP_TUNNEL_GSO),
    (NetF::GUEST_UDP_TUNNEL_GSO, NetF::GUEST_TSO4),
    (NetF::GUEST_UDP_TUNNEL_GSO, NetF::GUEST_TSO6),
    (NetF::GUEST_UDP_TUNNEL_GSO, NetF::GUEST_USO4),
    (NetF::GUEST_UDP_TUNNEL_GSO, NetF::GUEST_USO6),
    (NetF::GUEST_UDP_TUNNEL_GSO_CSUM, NetF::GUEST_UDP_TUNNEL_GSO),
    (NetF::CTRL_GUEST_OFFLOADS, NetF::CTRL_VQ),
    (NetF::CTRL_RX, NetF::CTRL_VQ),
    (NetF::CTRL_RX_EXTRA, NetF::CTRL_VQ),
    (NetF::CTRL_VLAN, NetF::CTRL_VQ),
    (NetF::CTRL_MAC_ADDR, NetF::CTRL_VQ),
    (NetF::MQ, NetF::CTRL_VQ),
    (NetF::RSS, NetF::CTRL_VQ),
    (NetF::HASH_REPORT, NetF::CTRL_VQ),
    (NetF::HASH_TUNNEL, NetF::RSS.union(NetF::HASH_REPORT)),
    (NetF::NOTF_COAL, NetF::CTRL_VQ),
    (NetF::VQ_NOTF_COAL, NetF::CTRL_VQ),
    (NetF::DEVICE_STATS, NetF::CTRL_VQ),
    (NetF::GUEST_ANNOUNCE, NetF::CTRL_VQ),
    // It is asked in `status`.
    (NetF::GUEST_ANNOUNCE, NetF::STATUS),
];

/// The features to offer with a backend that can do `backend`, or carries no header at all (`None`); and why
/// others are not.
#[doc(alias = "virtio_net_get_features")]
pub(crate) fn offered(
    config: &VirtioNetConfig,
    backend: Option<Offloads>,
) -> (F, Vec<(F, Withheld)>) {
    let table = [
        (true, NetF::MAC | NetF::VERSION_1),
        (config.status, NetF::STATUS),
        (config.host_mtu != 0, NetF::MTU),
        (config.csum, NetF::CSUM),
        (config.guest_csum, NetF::GUEST_CSUM),
        (config.host_tso4, NetF::HOST_TSO4),
        (config.host_tso6, NetF::HOST_TSO6),
        (config.host_ecn, NetF::HOST_ECN),
        (config.guest_tso4, NetF::GUEST_TSO4),
        (config.guest_tso6, NetF::GUEST_TSO6),
        (config.guest_ecn, NetF::GUEST_ECN),
        (config.host_ufo, NetF::HOST_UFO),
        (config.guest_ufo, NetF::GUEST_UFO),
        (config.guest_rsc_ext, NetF::RSC_EXT),
        (config.host_uso, NetF::HOST_USO),
        (config.guest_uso4, NetF::GUEST_USO4),
        (config.guest_uso6, NetF::GUEST_USO6),
        (config.host_tunnel, NetF::HOST_UDP_TUNNEL_GSO),
        (config.host_tunnel_csum, NetF::HOST_UDP_TUNNEL_GSO_CSUM),
        (config.guest_tunnel, NetF::GUEST_UDP_TUNNEL_GSO),
        (config.guest_tunnel_csum, NetF::GUEST_UDP_TUNNEL_GSO_CSUM),
        (config.mrg_rxbuf, NetF::MRG_RXBUF),
        (config.mq, NetF::MQ),
        (config.rss, NetF::RSS),
        (config.hash, NetF::HASH_REPORT),
        (config.hash_tunnel, NetF::HASH_TUNNEL),
        (
            config.speed.is_some() || config.duplex.is_some(),
            NetF::SPEED_DUPLEX,
        ),
        (config.ctrl_rx, NetF::CTRL_RX),
        (config.ctrl_rx_extra, NetF::CTRL_RX_EXTRA),
        (config.ctrl_vlan, NetF::CTRL_VLAN),
        (config.ctrl_mac_addr, NetF::CTRL_MAC_ADDR),
        (config.guest_announce, NetF::GUEST_ANNOUNCE),
        (config.notf_coal, NetF::NOTF_COAL),
        (config.vq_notf_coal, NetF::VQ_NOTF_COAL),
        (config.device_stats, NetF::DEVICE_STATS),
        (config.guest_hdrlen, NetF::GUEST_HDRLEN),
        (config.failover, NetF::STANDBY),
        (config.ctrl_vq, NetF::CTRL_VQ),
        (config.ctrl_guest_offloads, NetF::CTRL_GUEST_OFFLOADS),
        (config.indirect_desc, NetF::INDIRECT_DESC),
        (config.event_idx, NetF::EVENT_IDX),
        (config.queue_reset, NetF::RING_RESET),
        (config.packed, NetF::RING_PACKED),
        (config.in_order, NetF::IN_ORDER),
    ];
    let mut features = NetF::empty();
    let mut withheld = Vec::new();
    for (wanted, feature) in table {
        if wanted {
            features |= feature;
        } else {
            withheld.push((feature.into(), Withheld::SwitchedOff));
        }
    }
    let mut withhold = |features: &mut NetF, gone: NetF, reason| {
        for feature in (*features & gone).iter() {
            withheld.push((feature.into(), reason));
        }
        *features -= gone;
    };
    let can = backend.unwrap_or_default();
    for offload in &OFFLOADS {
        if !(offload.get)(&can) {
            let reason = match backend {
                Some(_) => Withheld::Backend,
                None => Withheld::NoHeader,
            };
            withhold(&mut features, offload.host | offload.guest, reason);
        }
    }
    if config.ctrl_by_front_end {
        features -= NetF::CTRL_VQ;
    }
    for (feature, needs) in REQUIREMENTS {
        // Of several pairs the front end has the control queue.
        let elsewhere = config.ctrl_by_front_end && feature == NetF::MQ;
        if !features.intersects(needs) && !elsewhere {
            withhold(&mut features, feature, Withheld::Needs(needs.into()));
        }
    }
    if !features.intersects(guest_offload_features()) {
        let needs = Withheld::Needs(guest_offload_features().into());
        withhold(&mut features, NetF::CTRL_GUEST_OFFLOADS, needs);
    }
    (features.into(), withheld)
}

/// `VIRTIO_NET_F_GSO`: the device takes large frames of any kind, which was said so before there was a feature for
/// each (virtio 1.4, 5.1.3.2).
#[doc(alias = "VIRTIO_NET_F_GSO")]
pub(crate) const GSO: F = F::from_bits_retain(le128::from_ne(1 << 6));

/// What it stands for: the kinds that drivers of its time can send.
const GSO_MEANS: NetF = NetF::HOST_TSO4.union(NetF::HOST_TSO6).union(NetF::HOST_ECN);

/// The features to offer with the legacy interface beside `offered`.
pub(crate) fn legacy_features(config: &VirtioNetConfig, offered: F) -> F {
    if config.gso && NetF::from(offered).contains(GSO_MEANS) {
        GSO
    } else {
        F::empty()
    }
}

/// What a driver has chosen, by the features that this crate asks for: [`GSO`] is its parts. Without checksums there
/// are no large frames, whatever was chosen.
pub(crate) fn implied(chosen: F, offered: F) -> F {
    let net = NetF::from(chosen);
    if !chosen.contains(GSO) || net.contains(NetF::VERSION_1) {
        return chosen;
    }
    let means = GSO_MEANS | NetF::from(offered) & NetF::HOST_UFO;
    let rest = chosen - GSO;
    if net.contains(NetF::CSUM) {
        rest | F::from(means)
    } else {
        rest
    }
}

/// What a driver that has negotiated `features` copes with in frames that it receives.
pub(crate) fn guest_offloads(features: NetF) -> Offloads {
    let mut offloads = Offloads::default();
    for offload in &OFFLOADS {
        if features.contains(offload.guest) {
            (offload.set)(&mut offloads);
        }
    }
    offloads
}

/// The features that [`guest_offloads`] makes `offloads` of.
pub(crate) fn features_of(offloads: &Offloads) -> NetF {
    OFFLOADS
        .iter()
        .filter(|offload| (offload.get)(offloads))
        .fold(NetF::empty(), |all, offload| all | offload.guest)
}

/// All features that say what a driver copes with in frames that it receives.
pub(crate) fn guest_offload_features() -> NetF {
    OFFLOADS
        .iter()
        .fold(NetF::empty(), |all, offload| all | offload.guest)
}

/// What a driver that has negotiated `features` may say that it copes with, by command. QEMU 7.2: whether segments are put
/// together is said there too, by the bit of that feature.
pub(crate) fn settable_offloads(features: NetF) -> NetF {
    features & (guest_offload_features() | NetF::RSC_EXT)
}

/// Bytes of the header in front of each frame (virtio 1.4, 5.1.6): `num_buffers` is there with either of
/// two features, the fields of the hash with that of hashes, and behind them those of tunnels.
pub(crate) fn header_len(features: NetF) -> usize {
    if features.intersects(NetF::HOST_UDP_TUNNEL_GSO | NetF::GUEST_UDP_TUNNEL_GSO) {
        24
    } else if features.contains(NetF::HASH_REPORT) {
        20
    } else if features.intersects(NetF::VERSION_1 | NetF::MRG_RXBUF) {
        12
    } else {
        10
    }
}

#[cfg(test)]
mod tests {
    use virtio::FeatureBits;

    use super::*;

    const ALL: Offloads = Offloads::ALL;
    const HOST_TUNNEL: NetF = NetF::HOST_UDP_TUNNEL_GSO.union(NetF::HOST_UDP_TUNNEL_GSO_CSUM);
    const GUEST_TUNNEL: NetF = NetF::GUEST_UDP_TUNNEL_GSO.union(NetF::GUEST_UDP_TUNNEL_GSO_CSUM);

    #[test]
    fn a_backend_without_a_header_leaves_no_offload() {
        let features = NetF::from(offered(&VirtioNetConfig::default(), None).0);
        let expected = NetF::MAC
            | NetF::VERSION_1
            | NetF::STATUS
            | NetF::MRG_RXBUF
            | NetF::CTRL_VQ
            | NetF::CTRL_RX
            | NetF::CTRL_RX_EXTRA
            | NetF::CTRL_VLAN
            | NetF::CTRL_MAC_ADDR
            | NetF::GUEST_ANNOUNCE
            | NetF::NOTF_COAL
            | NetF::VQ_NOTF_COAL
            | NetF::DEVICE_STATS
            | NetF::GUEST_HDRLEN
            | NetF::INDIRECT_DESC
            | NetF::EVENT_IDX
            | NetF::RING_RESET;
        assert_eq!(features, expected);
    }

    #[test]
    fn gso_is_offered_to_legacy_drivers_where_it_is_true_and_means_its_parts() {
        let config = VirtioNetConfig::default();
        let (all, _) = offered(&config, Some(ALL));
        assert_eq!(legacy_features(&config, all), GSO);
        let off = VirtioNetConfig {
            gso: false,
            ..Default::default()
        };
        assert_eq!(legacy_features(&off, all), F::empty());
        for missing in GSO_MEANS.iter() {
            let without = all - F::from(missing);
            assert_eq!(legacy_features(&config, without), F::empty(), "{missing:?}");
        }
        let means = GSO_MEANS | NetF::HOST_UFO;
        // (chosen beside GSO, what that is)
        let table = [
            (NetF::CSUM, NetF::CSUM | means),
            (NetF::CSUM | NetF::HOST_TSO4, NetF::CSUM | means),
            (NetF::MAC, NetF::MAC),
            (NetF::empty(), NetF::empty()),
        ];
        for (chosen, expected) in table {
            let chosen = F::from(chosen);
            assert_eq!(implied(chosen | GSO, all), F::from(expected), "{chosen:?}");
            assert_eq!(implied(chosen, all), chosen);
        }
        let without = all - F::from(NetF::HOST_UFO);
        let chosen = implied(F::from(NetF::CSUM) | GSO, without);
        assert_eq!(chosen, F::from(NetF::CSUM | GSO_MEANS));
    }

    #[test]
    fn no_feature_is_offered_without_what_it_needs_whatever_is_switched_off() {
        let switches: [fn(&mut VirtioNetConfig); 14] = [
            |c| c.csum = false,
            |c| c.guest_csum = false,
            |c| c.host_tso4 = false,
            |c| c.host_tso6 = false,
            |c| c.host_ecn = false,
            |c| c.guest_tso4 = false,
            |c| c.guest_tso6 = false,
            |c| c.guest_ecn = false,
            |c| {
                c.host_ufo = false;
                c.host_uso = false;
            },
            |c| {
                c.guest_ufo = false;
                c.guest_uso4 = false;
            },
            |c| {
                c.ctrl_rx = false;
                c.ctrl_mac_addr = false;
            },
            |c| c.ctrl_vlan = false,
            |c| c.ctrl_vq = false,
            |c| c.ctrl_guest_offloads = false,
        ];
        for set in 0..1_u32 << switches.len() {
            let mut config = VirtioNetConfig {
                mq: true,
                rss: true,
                hash: true,
                ..Default::default()
            };
            for (i, switch) in switches.iter().enumerate() {
                if set & 1 << i != 0 {
                    switch(&mut config);
                }
            }
            let features = NetF::from(offered(&config, Some(ALL)).0);
            assert!(features.requirements_satisfied(), "{config:?}");
            assert!(features.recommendations_satisfied(), "{config:?}");
        }
    }

    #[test]
    fn each_offload_is_taken_away_where_the_backend_cannot() {
        let table = [
            (
                Offloads { csum: false, ..ALL },
                // What needs checksums goes with them.
                NetF::CSUM
                    | NetF::GUEST_CSUM
                    | NetF::HOST_TSO4
                    | NetF::HOST_TSO6
                    | NetF::HOST_ECN
                    | NetF::GUEST_TSO4
                    | NetF::GUEST_TSO6
                    | NetF::GUEST_ECN
                    | NetF::HOST_UFO
                    | NetF::GUEST_UFO
                    | NetF::HOST_USO
                    | NetF::GUEST_USO4
                    | NetF::GUEST_USO6
                    | HOST_TUNNEL
                    | GUEST_TUNNEL
                    | NetF::CTRL_GUEST_OFFLOADS,
            ),
            (
                Offloads { tso4: false, ..ALL },
                NetF::HOST_TSO4 | NetF::GUEST_TSO4 | HOST_TUNNEL | GUEST_TUNNEL,
            ),
            (
                Offloads { tso6: false, ..ALL },
                NetF::HOST_TSO6 | NetF::GUEST_TSO6 | HOST_TUNNEL | GUEST_TUNNEL,
            ),
            (
                Offloads { ecn: false, ..ALL },
                NetF::HOST_ECN | NetF::GUEST_ECN,
            ),
            (
                Offloads { ufo: false, ..ALL },
                NetF::HOST_UFO | NetF::GUEST_UFO,
            ),
            (
                Offloads { uso4: false, ..ALL },
                NetF::HOST_USO | NetF::GUEST_USO4 | HOST_TUNNEL | GUEST_TUNNEL,
            ),
            (
                Offloads { uso6: false, ..ALL },
                NetF::HOST_USO | NetF::GUEST_USO6 | HOST_TUNNEL | GUEST_TUNNEL,
            ),
            (
                Offloads {
                    udp_tunnel: false,
                    ..ALL
                },
                HOST_TUNNEL | GUEST_TUNNEL,
            ),
            (
                Offloads {
                    udp_tunnel_csum: false,
                    ..ALL
                },
                NetF::HOST_UDP_TUNNEL_GSO_CSUM | NetF::GUEST_UDP_TUNNEL_GSO_CSUM,
            ),
        ];
        let all = NetF::from(offered(&VirtioNetConfig::default(), Some(ALL)).0);
        for (backend, gone) in table {
            let features = NetF::from(offered(&VirtioNetConfig::default(), Some(backend)).0);
            assert_eq!(all - features, gone, "{backend:?}");
        }
    }

    #[test]
    fn what_is_configured_is_offered_and_nothing_else() {
        type Change = fn(&mut VirtioNetConfig);
        let table: [(Change, NetF, bool); 9] = [
            (|c| c.packed = true, NetF::RING_PACKED, true),
            (|c| c.in_order = true, NetF::IN_ORDER, true),
            (|c| c.mq = true, NetF::MQ, true),
            (|c| c.speed = Some(0), NetF::SPEED_DUPLEX, true),
            (
                |c| c.duplex = Some(crate::Duplex::Half),
                NetF::SPEED_DUPLEX,
                true,
            ),
            (|c| c.ctrl_rx = false, NetF::CTRL_RX, false),
            (|c| c.ctrl_rx_extra = false, NetF::CTRL_RX_EXTRA, false),
            (|c| c.ctrl_vlan = false, NetF::CTRL_VLAN, false),
            (|c| c.ctrl_mac_addr = false, NetF::CTRL_MAC_ADDR, false),
        ];
        let default = NetF::from(offered(&VirtioNetConfig::default(), Some(ALL)).0);
        for (change, feature, on) in table {
            let mut config = VirtioNetConfig::default();
            change(&mut config);
            let features = NetF::from(offered(&config, Some(ALL)).0);
            assert_eq!(features ^ default, feature, "{config:?}");
            assert_eq!(features.contains(feature), on, "{config:?}");
        }
    }

    #[test]
    fn the_header_is_as_long_as_its_features() {
        let table = [
            (NetF::empty(), 10),
            (NetF::MRG_RXBUF, 12),
            (NetF::VERSION_1, 12),
            (NetF::VERSION_1 | NetF::MRG_RXBUF, 12),
            (NetF::VERSION_1 | NetF::HASH_REPORT, 20),
            (NetF::VERSION_1 | NetF::HOST_UDP_TUNNEL_GSO, 24),
            (NetF::GUEST_UDP_TUNNEL_GSO | NetF::HASH_REPORT, 24),
        ];
        for (features, len) in table {
            assert_eq!(header_len(features), len, "{features:?}");
        }
    }
}
