//! The device: life cycle, and its queues' coming and going.

mod run_time;
mod saved;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use iothread::AioContext;
use net_client::{Offloads, Port};
use virtio::net::F as NetF;
use virtio::{F, FeatureBits, Id};
use virtio_bus::{
    ActivateError, Activation, ActiveQueue, FeaturesRefused, NotActivated, Transport, VirtioDevice,
};
use virtqueue::{QueueIndex, QueueMemory, QueueState, VirtQueue};

use crate::announce::{AnnounceParameters, Announcer};
use crate::config::ConfigSpace;
use crate::ctrl::Ctrl;
use crate::error::{VirtioNetError, check};
use crate::features::{guest_offloads, implied, legacy_features, offered};
use crate::filter::{Filter, Mac};
use crate::hash::Hashing;
use crate::pair::{Pair, set_offloads, set_queue_pairs};
use crate::role::{Role, role};
use crate::rsc::Families;
use crate::shared::{Shared, lock};
use crate::{VirtioNetConfig, Withheld};

pub use saved::{SavedCoalescing, SavedCounters, SavedFilter, SavedLimit, SavedNet, SavedSteering};

/// Entries of the control queue, as QEMU has it.
const CTRL_QUEUE_SIZE: u16 = 64;
/// A virtio network card.
///
/// Owns its queue pairs and their ports; the transport, the peers and the contexts know it, or parts of it,
/// by `Weak` only. Dropping it stops it, wherever it stood.
#[doc(alias = "VirtIONet")]
pub struct VirtioNet<M: QueueMemory> {
    offered: F,
    /// What drivers from before virtio 1.0 are offered beside that.
    legacy: F,
    withheld: Vec<(F, Withheld)>,
    config_space: ConfigSpace,
    /// What the NIC's address is at reset.
    mac: Mac,
    queue_sizes: Vec<u16>,
    ctrl_by_front_end: bool,
    shared: Arc<Shared>,
    pairs: Vec<Arc<Pair<M>>>,
    ctrl: Arc<Ctrl<M>>,
    announcer: Arc<Announcer>,
    /// Taken before any queue's lock, and not by the data path. Held while a queue is stopped.
    state: Mutex<State<M>>,
}

/// Where the device is in its life.
#[derive(Default)]
struct State<M> {
    features: F,
    /// Guest memory, from DRIVER_OK to reset.
    memory: Option<M>,
    paused: bool,
    /// What a device that was restored does when it goes on.
    on_resume: OnResume,
}

/// What a driver is told whose device has been restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OnResume {
    /// To announce itself on the link, which is perhaps another one.
    announce: bool,
    /// To look at the link.
    link: bool,
}

impl<M: QueueMemory> VirtioNet<M> {
    /// Makes a NIC that is the peer of `ports`, the backend's, one for each queue pair, 256 at most; with
    /// no port it has one pair, whose frames go nowhere. Of several pairs the driver uses only the first, unless
    /// `config.mq` is on and it asks for more.
    ///
    /// Pair `i` and its peer work on `contexts[i]`, or all on the only one; the control queue on the first.
    ///
    /// # Errors
    /// When a value of `config` is out of range, or a port cannot become a peer; nothing is connected then.
    #[doc(alias = "virtio_net_device_realize")]
    pub fn new(
        config: VirtioNetConfig,
        ports: Vec<Arc<Port>>,
        contexts: Vec<Arc<dyn AioContext>>,
    ) -> Result<Arc<Self>, VirtioNetError> {
        let count = ports.len().max(1);
        check(&config, count, contexts.len())?;
        let Some(first_context) = contexts.first() else {
            return Err(VirtioNetError::Contexts {
                contexts: 0,
                pairs: count,
            });
        };
        let _span = tracing::debug_span!("virtio_net_realize", pairs = count).entered();
        let shared = Arc::new(Shared::new(&config, first_context));
        let pairs: Vec<_> = (0..count)
            .map(|i| {
                let name = format!("virtio-net.{i}");
                let context = contexts.get(i).unwrap_or(first_context).clone();
                Pair::new(name, shared.clone(), &config, context, i == 0)
            })
            .collect();
        Pair::introduce(&pairs);
        // On failure the pairs are dropped, and with them what is connected so far.
        for (i, (pair, port)) in pairs.iter().zip(&ports).enumerate() {
            let context = contexts.get(i).unwrap_or(first_context);
            Port::connect(pair.port(), port, context)?;
        }
        let link_up = pairs.iter().zip(&ports).all(|(_, port)| port.link_is_up());
        shared.set_link(link_up);
        // What the least able of the backend's queues can do.
        let backend = pairs
            .iter()
            .map(|pair| pair.backend_offloads())
            .reduce(|a, b| Some(a?.both(b?)))
            .flatten();
        let (offered, withheld) = offered(&config, backend);
        let net = NetF::from(offered);
        let usable = if net.intersects(NetF::MQ | NetF::RSS) {
            count
        } else {
            1
        };
        let mut queue_sizes = [config.rx_queue_size, config.tx_queue_size].repeat(usable);
        if net.contains(NetF::CTRL_VQ) {
            queue_sizes.push(CTRL_QUEUE_SIZE);
        }
        // At most 256 pairs by what came before.
        let max_pairs = u16::try_from(usable).unwrap_or(u16::MAX);
        let this = Arc::new(Self {
            offered,
            legacy: legacy_features(&config, offered),
            withheld,
            config_space: ConfigSpace::new(&config, net, max_pairs),
            mac: config.mac,
            ctrl_by_front_end: config.ctrl_by_front_end,
            queue_sizes,
            ctrl: Ctrl::new(shared.clone(), pairs.clone(), first_context.clone()),
            announcer: Announcer::new(shared.clone(), first_context.clone()),
            shared,
            pairs,
            state: Mutex::new(State {
                features: F::empty(),
                memory: None,
                paused: false,
                on_resume: OnResume::default(),
            }),
        });
        tracing::info!(features = %this.feature_report(), "made");
        Ok(this)
    }

    /// Runs one queue. On failure it comes back.
    fn start(
        &self,
        state: &State<M>,
        loan: ActiveQueue,
        queue: VirtQueue<M>,
    ) -> Result<(), (ActiveQueue, io::Error)> {
        let features = NetF::from(state.features);
        let running = !state.paused;
        match role(loan.index, features, self.pairs.len()) {
            Some(Role::Rx(i)) if let Some(pair) = self.pairs.get(i) => {
                pair.start_rx(loan, queue, features, running)
            }
            Some(Role::Tx(i)) if let Some(pair) = self.pairs.get(i) => {
                pair.start_tx(loan, queue, features, running)
            }
            Some(Role::Ctrl) => self.ctrl.start(loan, queue, features, running),
            _ => Err((loan, io::ErrorKind::NotFound.into())),
        }
    }

    fn make_queue(
        &self,
        state: &State<M>,
        loan: &ActiveQueue,
        memory: &M,
    ) -> Result<VirtQueue<M>, ActivateError> {
        let queue = VirtQueue::new(&loan.config, loan.state, state.features, memory.clone());
        let queue = queue.map_err(|source| ActivateError::Queue {
            index: loan.index,
            source: Box::new(source),
        })?;
        Ok(match &loan.in_flight {
            Some(record) => queue.with_record(record.clone()),
            None => queue,
        })
    }

    /// Stops all queues and takes them out, by rising index.
    fn stop_all(&self) -> Vec<ActiveQueue> {
        let mut queues = Vec::new();
        for pair in &self.pairs {
            // Both at once: the peer is asked once for what it has of either.
            pair.quiesce(true, true);
            queues.extend(pair.stop_rx());
            queues.extend(pair.stop_tx());
        }
        queues.extend(self.ctrl.stop());
        queues.sort_by_key(|queue| queue.index);
        queues
    }

    /// No frame from before reaches the driver that comes next.
    fn forget_arriving(&self) {
        for pair in &self.pairs {
            pair.forget_arriving();
        }
    }

    /// The filters are those of a driver that has said nothing yet.
    fn forget_filters(&self, vlans: bool) {
        let filter = Filter::new(self.mac, vlans);
        self.shared.filter.change(|old| *old = filter);
    }

    /// No hash is made of any frame, as before a driver asks for it.
    fn forget_hashing(&self) {
        self.shared
            .change_hashing(|hashing| *hashing = Hashing::new());
    }

    /// Only the first pair is in use, as before a driver asks for more.
    fn use_first_pair(&self) {
        if let Err(error) = set_queue_pairs(&self.pairs, 1) {
            // The first pair is in use all the time: nothing is asked for that can be refused.
            tracing::debug!(%error, "backend keeps queues");
        }
    }
}

impl<M: QueueMemory> VirtioDevice<M> for VirtioNet<M> {
    fn device_type(&self) -> Id {
        Id::Net
    }

    fn queue_max_sizes(&self) -> Vec<u16> {
        self.queue_sizes.clone()
    }

    /// QEMU 7.2: enough for all queues that the backend's could have, in use or not.
    fn default_vectors(&self) -> usize {
        self.pairs.len() * 2 + 2
    }

    fn offered_features(&self) -> F {
        self.offered
    }

    fn legacy_features(&self) -> F {
        self.legacy
    }

    fn plugged(&self, transport: Weak<dyn Transport>) {
        self.shared.set_transport(Some(transport));
    }

    fn unplugged(&self) {
        self.shared.set_transport(None);
    }

    fn config_len(&self) -> usize {
        self.config_space.len()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mac = self.shared.filter.now().mac;
        self.config_space
            .read(mac, self.shared.status(), offset, data);
    }

    /// "When using the legacy interface, mac is driver-writable which provided a way for drivers to update the MAC
    /// without negotiating VIRTIO_NET_F_CTRL_MAC_ADDR" (virtio 1.4, 5.1.4).
    fn write_config(&self, offset: usize, data: &[u8]) {
        let state = lock(&self.state);
        let better = NetF::VERSION_1 | NetF::CTRL_MAC_ADDR;
        if NetF::from(state.features).intersects(better) || self.shared.source().is_some() {
            return;
        }
        self.shared.filter.change(|filter| {
            for (to, from) in filter.mac.iter_mut().skip(offset).zip(data) {
                *to = *from;
            }
        });
    }

    fn negotiate(&self, features: F) -> Result<(), FeaturesRefused> {
        let refuse = |reason| FeaturesRefused {
            features: features.bits().to_ne(),
            reason,
        };
        let _span = tracing::debug_span!("virtio_net_negotiate").entered();
        let features = implied(features, self.offered);
        let net = NetF::from(features);
        let required = if self.ctrl_by_front_end {
            net - NetF::MQ
        } else {
            net
        };
        if !required.requirements_satisfied() {
            return Err(refuse("a feature is chosen without one that it needs"));
        }
        let mut state = lock(&self.state);
        self.forget_arriving();
        for pair in &self.pairs {
            pair.set_up_backend(net)
                .map_err(|_| refuse("the backend cannot carry the header"))?;
        }
        set_offloads(&self.pairs, guest_offloads(net))
            .map_err(|_| refuse("the backend refuses the offloads"))?;
        let written = self.shared.filter.now().mac;
        self.forget_filters(net.contains(NetF::CTRL_VLAN));
        if !net.contains(NetF::VERSION_1) {
            // A legacy driver writes configuration before anything is negotiated.
            self.shared.filter.change(|filter| filter.mac = written);
        }
        self.forget_hashing();
        *lock(&self.shared.families) = Families::of(net);
        state.features = features;
        drop(state);
        tracing::info!(features = %self.feature_report(), "negotiated");
        Ok(())
    }

    fn activate(&self, activation: Activation<M>) -> Result<(), NotActivated> {
        let Activation {
            features,
            memory,
            queues,
        } = activation;
        let mut state = lock(&self.state);
        state.features = implied(features, self.offered);
        let mut made = Vec::with_capacity(queues.len());
        for loan in &queues {
            match self.make_queue(&state, loan, &memory) {
                Ok(queue) => made.push(queue),
                Err(error) => return Err(NotActivated { queues, error }),
            }
        }
        let mut waiting = queues.into_iter().zip(made);
        while let Some((loan, queue)) = waiting.next() {
            if let Err((loan, source)) = self.start(&state, loan, queue) {
                let mut queues = self.stop_all();
                queues.push(loan);
                queues.extend(waiting.map(|(loan, _)| loan));
                queues.sort_by_key(|queue| queue.index);
                let error = ActivateError::Host {
                    what: "watch the kick of a queue",
                    source,
                };
                return Err(NotActivated { queues, error });
            }
        }
        self.shared
            .set_announcing(NetF::from(features).contains(NetF::GUEST_ANNOUNCE));
        state.memory = Some(memory);
        Ok(())
    }

    fn start_queue(&self, queue: ActiveQueue) -> Result<(), NotActivated> {
        let state = lock(&self.state);
        let Some(memory) = &state.memory else {
            let error = ActivateError::Host {
                what: "start a queue of a device that does not run",
                source: io::ErrorKind::NotConnected.into(),
            };
            return Err(NotActivated {
                queues: vec![queue],
                error,
            });
        };
        let made = match self.make_queue(&state, &queue, memory) {
            Ok(made) => made,
            Err(error) => {
                return Err(NotActivated {
                    queues: vec![queue],
                    error,
                });
            }
        };
        self.start(&state, queue, made)
            .map_err(|(queue, source)| NotActivated {
                queues: vec![queue],
                error: ActivateError::Host {
                    what: "watch the kick of a queue",
                    source,
                },
            })
    }

    fn stop_queue(&self, index: QueueIndex) -> Option<ActiveQueue> {
        let state = lock(&self.state);
        match role(index, NetF::from(state.features), self.pairs.len())? {
            Role::Rx(i) => self.pairs.get(i)?.stop_rx(),
            Role::Tx(i) => self.pairs.get(i)?.stop_tx(),
            Role::Ctrl => self.ctrl.stop(),
        }
    }

    /// A pair is in use while its receive queue is: front ends say the same of both of its queues.
    fn set_queue_enabled(&self, index: QueueIndex, enabled: bool) {
        let state = lock(&self.state);
        let features = NetF::from(state.features);
        if let Some(Role::Rx(i)) = role(index, features, self.pairs.len())
            && let Some(pair) = self.pairs.get(i)
            && let Err(error) = pair.set_enabled(enabled)
        {
            tracing::warn!(pair = i, %error, "backend cannot take a queue into use");
        }
    }

    #[doc(alias = "virtio_net_reset")]
    fn reset(&self) -> Vec<ActiveQueue> {
        let mut state = lock(&self.state);
        let queues = self.stop_all();
        let State {
            features,
            memory,
            // Of the machine, not of the driver.
            paused: _,
            on_resume,
        } = &mut *state;
        *on_resume = OnResume::default();
        *features = F::empty();
        *memory = None;
        self.forget_arriving();
        self.forget_filters(false);
        self.forget_hashing();
        *lock(&self.shared.coalescing) = Default::default();
        *lock(&self.shared.families) = Families::default();
        self.shared.set_announcing(false);
        self.use_first_pair();
        // A driver that comes next has negotiated nothing yet. That the backend refuses to do less for
        // it is of no consequence: it is told again at negotiation.
        if let Err(error) = set_offloads(&self.pairs, Offloads::default()) {
            tracing::debug!(%error, "backend refuses to go without offloads");
        }
        queues
    }

    fn pause(&self) {
        let mut state = lock(&self.state);
        state.paused = true;
        self.ctrl.set_running(false);
        for pair in &self.pairs {
            pair.quiesce(true, true);
        }
    }

    fn resume(&self) {
        let mut state = lock(&self.state);
        state.paused = false;
        for pair in &self.pairs {
            pair.resume();
        }
        for pair in &self.pairs {
            pair.look();
        }
        self.ctrl.set_running(true);
        let OnResume { announce, link } = std::mem::take(&mut state.on_resume);
        drop(state);
        if link {
            self.shared.config_changed();
        }
        if announce {
            self.announce_self(AnnounceParameters::default());
        }
    }

    fn queue_state(&self, index: QueueIndex) -> Option<QueueState> {
        let state = lock(&self.state);
        match role(index, NetF::from(state.features), self.pairs.len())? {
            Role::Rx(i) => self.pairs.get(i)?.rx_state(),
            Role::Tx(i) => self.pairs.get(i)?.tx_state(),
            Role::Ctrl => self.ctrl.state(),
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        Some(self.saved().to_bytes())
    }

    fn restore(&self, state: &[u8]) -> Result<(), vmstate::Error> {
        self.take_over(&SavedNet::from_bytes(state)?)
    }
}

impl<M: QueueMemory> Drop for VirtioNet<M> {
    fn drop(&mut self) {
        // Buffers on loan to a peer come back before their queues go; then the links end.
        drop(self.stop_all());
        self.use_first_pair();
        for pair in &self.pairs {
            pair.port().disconnect();
        }
    }
}

impl<M: QueueMemory> fmt::Debug for VirtioNet<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioNet")
            .field("offered", &self.offered)
            .field("pairs", &self.pairs)
            .finish_non_exhaustive()
    }
}
