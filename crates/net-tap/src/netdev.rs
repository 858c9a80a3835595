//! `-netdev tap`.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;

use keyval::Options;
use net_client::{NetClients, Netdev, OpenError, Opener, Port};

use crate::config::{EngineKind, TapConfig};
use crate::error::TapError;
use crate::queue::TapQueue;
use crate::tap::Tap;

/// A tap as a netdev: the interface and its queues.
///
/// The first queue is enabled from the start. The others rest until
/// [`set_enabled`](net_client::NetClient::set_enabled), so that a peer that uses one queue gets all frames.
#[derive(Debug)]
pub struct TapNetdev {
    taps: Vec<Arc<Tap>>,
    /// Owns the clients, to which the ports point only weakly.
    queues: Vec<Arc<TapQueue>>,
    ports: Vec<Arc<Port>>,
    info: String,
    downscript: Option<String>,
}

impl TapNetdev {
    /// Opens a tap; `id` names its ports. Then its script is run.
    ///
    /// # Errors
    /// See [`TapError`]; nothing is left behind then.
    #[doc(alias = "net_init_tap")]
    pub fn open(id: &str, config: &TapConfig) -> Result<Arc<Self>, TapError> {
        let taps = Tap::open(config)?;
        let info = info(config, taps.first());
        let mut netdev = Self::build(id, taps, info, config.engine)?;
        if let Some(script) = &config.script {
            run_script(script, netdev.tap().name())?;
        }
        // From here on whatever the script did is undone.
        netdev.downscript.clone_from(&config.downscript);
        Ok(Arc::new(netdev))
    }

    /// Uses taps or macvtaps that are open already, one a queue, all of one interface; `id` names the
    /// ports. Frames are moved by [`EngineKind::Auto`].
    ///
    /// # Errors
    /// When there is none, or the kernel refuses to let those but the first rest.
    pub fn from_taps(id: &str, taps: Vec<Tap>) -> Result<Arc<Self>, TapError> {
        let numbers: Vec<String> = taps
            .iter()
            .map(|tap| tap.as_fd().as_raw_fd().to_string())
            .collect();
        let info = format!("fd={}", numbers.join(":"));
        Ok(Arc::new(Self::build(id, taps, info, EngineKind::Auto)?))
    }

    fn build(id: &str, taps: Vec<Tap>, info: String, engine: EngineKind) -> Result<Self, TapError> {
        if taps.is_empty() {
            return Err(TapError::NoQueues);
        }
        let taps: Vec<Arc<Tap>> = taps.into_iter().map(Arc::new).collect();
        let queues: Vec<_> = taps
            .iter()
            .map(|tap| TapQueue::with(id, tap.clone(), engine))
            .collect::<Result<_, _>>()?;
        for queue in queues.iter().skip(1) {
            queue.enable(false)?;
        }
        let ports = queues.iter().map(|queue| queue.port().clone()).collect();
        Ok(Self {
            taps,
            queues,
            ports,
            info,
            downscript: None,
        })
    }

    /// The interface, by its first queue.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.taps[0]
    }

    /// Its queues, in the order of [`ports`](Netdev::ports).
    pub fn queues(&self) -> &[Arc<TapQueue>] {
        &self.queues
    }
}

impl Drop for TapNetdev {
    fn drop(&mut self) {
        if let Some(script) = &self.downscript
            && let Err(error) = run_script(script, self.tap().name())
        {
            tracing::error!(%error, "the tap's downscript");
        }
    }
}

/// What it is made of, as `info network` prints it.
fn info(config: &TapConfig, tap: Option<&Tap>) -> String {
    let numbers: Vec<String> = config.fds.iter().map(ToString::to_string).collect();
    let script = |script: &Option<String>| script.as_deref().unwrap_or("no").to_owned();
    match &*numbers {
        [] => format!(
            "ifname={},script={},downscript={}",
            tap.map_or("", Tap::name),
            script(&config.script),
            script(&config.downscript)
        ),
        [one] => format!("fd={one}"),
        many => format!("fds={}", many.join(":")),
    }
}

/// Runs a script with the interface's name, and waits for its end.
#[doc(alias = "launch_script")]
fn run_script(script: &str, interface: &str) -> Result<(), TapError> {
    let status = Command::new(script)
        .arg(interface)
        .status()
        .map_err(|source| TapError::Launch {
            script: script.into(),
            source,
        })?;
    if status.success() {
        return Ok(());
    }
    Err(TapError::Script {
        script: script.into(),
        status: status.into_raw(),
    })
}

impl Netdev for TapNetdev {
    fn kind(&self) -> &str {
        "tap"
    }

    fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    fn info(&self) -> String {
        self.info.clone()
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
