//! `-netdev tap`.

use std::sync::Arc;

use keyval::Options;
use net_client::{NetClients, Netdev, OpenError, Opener, Port};

use crate::config::TapConfig;
use crate::error::TapError;
use crate::queue::TapQueue;
use crate::tap::Tap;

/// A tap as a netdev: the interface and its queues.
#[derive(Debug)]
pub struct TapNetdev {
    tap: Arc<Tap>,
    /// Owns the clients, to which the ports point only weakly.
    queues: Vec<Arc<TapQueue>>,
    ports: Vec<Arc<Port>>,
}

impl TapNetdev {
    /// Opens a tap; `id` names its ports.
    ///
    /// # Errors
    /// See [`TapError`]; nothing is left behind then.
    #[doc(alias = "net_init_tap")]
    pub fn open(id: &str, config: &TapConfig) -> Result<Arc<Self>, TapError> {
        let tap = Arc::new(Tap::open(config)?);
        let queues = vec![TapQueue::new(id, tap.clone())];
        let ports = queues.iter().map(|queue| queue.port().clone()).collect();
        Ok(Arc::new(Self { tap, queues, ports }))
    }

    /// The interface.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// Its queues, in the order of [`ports`](Netdev::ports).
    pub fn queues(&self) -> &[Arc<TapQueue>] {
        &self.queues
    }
}

impl Netdev for TapNetdev {
    fn kind(&self) -> &str {
        "tap"
    }

    fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    fn info(&self) -> String {
        format!("ifname={},script=no,downscript=no", self.tap.name())
    }
}

/// Makes the kind `tap` known to a netdev table.
pub fn register(netdevs: &NetClients) {
    netdevs.register("tap", Box::new(construct));
    netdevs.describe("tap", crate::help::TAP);
}

fn construct(options: &mut Options) -> Result<Opener, OpenError> {
    let config = TapConfig::from_options(options).map_err(|error| match error {
        crate::config::OptionError::Option(error) => OpenError::from(error),
        crate::config::OptionError::Tap(error) => OpenError::from(error),
    })?;
    Ok(Box::new(move |id| Ok(TapNetdev::open(id, &config)?)))
}
