//! What a VMM asks of a card while it runs, and tells it.

use std::sync::Arc;

use net_client::Port;
use virtio::net::F as NetF;
use virtqueue::QueueMemory;

use super::VirtioNet;
use crate::announce::AnnounceParameters;
use crate::shared::lock;
use crate::statistics::{CtrlStatistics, RxStatistics, TxStatistics};
use crate::{FeatureReport, RateLimit};

impl<M: QueueMemory> VirtioNet<M> {
    /// What is offered, what the driver has accepted, and why the rest is not there.
    pub fn feature_report(&self) -> FeatureReport {
        FeatureReport {
            offered: self.offered,
            accepted: lock(&self.state).features,
            withheld: self.withheld.clone(),
        }
    }

    /// How fast frames are given to the driver, from now on.
    pub fn set_rx_limit(&self, limit: RateLimit) {
        self.shared.rx_limit.set(limit);
    }

    /// How fast frames are taken from the driver, from now on.
    pub fn set_tx_limit(&self, limit: RateLimit) {
        self.shared.tx_limit.set(limit);
    }

    /// How fast frames are given to the driver, and taken from it.
    pub fn limits(&self) -> (RateLimit, RateLimit) {
        (self.shared.rx_limit.limit(), self.shared.tx_limit.limit())
    }

    /// Whether frames that the driver sends must have the address as their source that the NIC was made with, from now
    /// on; and the driver may then set no other. One that it has set before stays what frames are received for.
    pub fn set_anti_spoof(&self, on: bool) {
        // No queue starts meanwhile.
        let _state = lock(&self.state);
        self.shared.set_anti_spoof(on);
        for pair in &self.pairs {
            pair.renew_source();
        }
    }

    /// Whether there is a driver that pairs the NIC with another (`VIRTIO_NET_F_STANDBY`), which may be plugged then.
    #[doc(alias = "failover_negotiated")]
    pub fn is_standby(&self) -> bool {
        NetF::from(lock(&self.state).features).contains(NetF::STANDBY)
    }

    /// Asks the driver to announce itself on the link, in so many rounds: after the machine has moved, say. A round
    /// that finds no driver, or one that has not negotiated `VIRTIO_NET_F_GUEST_ANNOUNCE`, comes to nothing; the
    /// backend is sent nothing but what the driver then sends. Called at any time, on any thread; rounds
    /// that go on are forgotten.
    #[doc(alias = "qemu_announce_self")]
    pub fn announce_self(&self, parameters: AnnounceParameters) {
        self.announcer.begin(parameters);
    }

    /// The NIC's end of each link, one for each queue pair.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        self.pairs.iter().map(|pair| pair.port().clone()).collect()
    }

    /// What the receive queue of a pair has done; waits for a turn of it to end.
    pub fn rx_statistics(&self, pair: usize) -> Option<RxStatistics> {
        self.pairs.get(pair).map(|pair| pair.rx_statistics())
    }

    /// What the transmit queue of a pair has done; waits for a turn of it to end.
    pub fn tx_statistics(&self, pair: usize) -> Option<TxStatistics> {
        self.pairs.get(pair).map(|pair| pair.tx_statistics())
    }

    /// What the control queue has done.
    pub fn ctrl_statistics(&self) -> CtrlStatistics {
        self.ctrl.statistics()
    }

    /// A line for each queue, with all that it counts.
    pub fn statistics_text(&self) -> String {
        let mut lines = Vec::new();
        for (i, pair) in self.pairs.iter().enumerate() {
            lines.push(format!("rx{i}: {}", pair.rx_statistics()));
            lines.push(format!("tx{i}: {}", pair.tx_statistics()));
        }
        lines.push(format!("ctrl: {}", self.ctrl.statistics()));
        lines.join("\n")
    }
}
