//! The transport: its bus, and the device as a front end has set it up.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{self, BackendReqHandler};
use virtio::{F, le128};
use virtio_bus::{
    Activation, ActiveQueue, BusTransport, DeviceRef, NotActivated, PlugError, Transport,
    VirtioBus, signal,
};
use virtqueue::QueueIndex;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use crate::error::{Refusal, ServeError};
use crate::inflight::Inflight;
use crate::memory::{Memory, Regions};
use crate::notify::Reports;
use crate::ring::{Ring, base};
use crate::session::Session;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: the feature bit by which a front end says that it knows more of the
/// protocol than its first version.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A virtio device's transport to another process's driver: the back end of a vhost-user connection.
///
/// Made once, with a device plugged into its [`bus`](Self::bus), it serves one front end after the
/// other; what is behind the device (a tap) stays open all the time.
#[derive(Debug)]
pub struct VhostUserTransport {
    bus: VirtioBus<Memory>,
    serving: AtomicBool,
    /// The transport's one lock: held while the device is called, never by the data path.
    state: Mutex<Option<Plugged>>,
}

/// All that there is only with a device.
#[derive(Debug)]
pub(crate) struct Plugged {
    pub(crate) device: DeviceRef<Memory>,
    reports: Arc<Reports>,
    memory: Memory,
    pub(crate) regions: Regions,
    pub(crate) rings: Vec<Ring>,
    /// Where the front end keeps what is in flight.
    pub(crate) inflight: Option<Inflight>,
    /// What the front end chose, `PROTOCOL_FEATURES` included.
    pub(crate) features: u64,
    /// The device was told of them.
    negotiated: bool,
    /// The device has got guest memory.
    active: bool,
}

impl VhostUserTransport {
    /// Makes a transport with an empty bus.
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            bus: VirtioBus::new("virtio-bus", me.clone() as Weak<dyn BusTransport<Memory>>),
            serving: AtomicBool::new(false),
            state: Mutex::new(None),
        })
    }

    /// The bus that the device is plugged into.
    pub fn bus(&self) -> &VirtioBus<Memory> {
        &self.bus
    }

    /// Serves the front end at the other end of `stream` until it leaves, on the caller's thread. The
    /// device itself works on its own contexts. Afterwards it is reset, and its guest memory is let go.
    ///
    /// To end it from elsewhere, shut the stream down.
    ///
    /// # Errors
    /// When the front end breaks the protocol or asks for what cannot be, when there is no device, or
    /// when another front end is being served. That the front end closes the connection is none.
    pub fn serve(self: &Arc<Self>, stream: UnixStream) -> Result<(), ServeError> {
        if self.serving.swap(true, Ordering::AcqRel) {
            return Err(ServeError::Occupied);
        }
        let result = self.serve_only(stream);
        if let Some(plugged) = &mut *self.lock() {
            plugged.reset();
        }
        self.serving.store(false, Ordering::Release);
        result
    }

    fn serve_only(self: &Arc<Self>, stream: UnixStream) -> Result<(), ServeError> {
        if self.lock().is_none() {
            return Err(ServeError::NoDevice);
        }
        let session = Arc::new(Session::new(self.clone()));
        let socket = |error| ServeError::Protocol(vhost_user::Error::SocketError(error));
        let mut early = stream.try_clone().map_err(socket)?;
        let mut requests = BackendReqHandler::from_stream(stream, session.clone());
        loop {
            let served = match session.take_early(&mut early) {
                Ok(Some(enable)) => session.enable_early(&mut early, enable),
                Ok(None) => requests.handle_request(),
                Err(error) => Err(vhost_user::Error::SocketBroken(error)),
            };
            let Err(error) = served else {
                continue;
            };
            if let Some(refusal) = session.take_refusal() {
                return Err(ServeError::Refused(refusal));
            }
            return match error {
                vhost_user::Error::Disconnected => Ok(()),
                // It has left without waiting for an answer.
                vhost_user::Error::SocketBroken(error) if has_left(&error) => Ok(()),
                error => Err(ServeError::Protocol(error)),
            };
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Plugged>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusTransport<Memory> for VhostUserTransport {
    fn device_plugged(&self, device: &DeviceRef<Memory>) -> Result<(), PlugError> {
        let sizes = device.queue_max_sizes();
        if sizes.len() > usize::from(u8::MAX) + 1 {
            return Err(PlugError::Unsuitable(format!(
                "a vhost-user device has at most 256 rings, not {}",
                sizes.len()
            )));
        }
        let reports = Arc::new(Reports::new(sizes.len()));
        let transport: Weak<dyn Transport> =
            Arc::downgrade(&(reports.clone() as Arc<dyn Transport>));
        device.plugged(transport);
        let memory = Memory::new(GuestMemoryMmap::new());
        *self.lock() = Some(Plugged {
            device: device.clone(),
            reports,
            regions: Regions::new(memory.clone()),
            memory,
            rings: sizes.into_iter().map(Ring::new).collect(),
            inflight: None,
            features: 0,
            negotiated: false,
            active: false,
        });
        Ok(())
    }

    fn device_unplugged(&self, device: &DeviceRef<Memory>) {
        if let Some(mut plugged) = self.lock().take() {
            plugged.reset();
        }
        device.unplugged();
    }
}

impl Plugged {
    /// What a front end is offered: of the device's features those that fit into the protocol's 64 bits
    /// and are not the matter of a transport with registers.
    pub(crate) fn offered(&self) -> u64 {
        let withheld = F::ACCESS_PLATFORM
            | F::ORDER_PLATFORM
            | F::SR_IOV
            | F::NOTIFICATION_DATA
            | F::NOTIF_CONFIG_DATA
            | F::ADMIN_VQ
            | F::SUSPEND;
        let bits = (self.device.offered_features() - withheld).bits().to_ne();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the upper half is out of the protocol's reach"
        )]
        let low = bits as u64;
        low | PROTOCOL_FEATURES
    }

    /// SET_FEATURES.
    pub(crate) fn set_features(&mut self, chosen: u64) -> Result<(), Refusal> {
        let excess = chosen & !self.offered();
        if excess != 0 {
            return Err(Refusal::Features { chosen, excess });
        }
        if self.rings.iter().any(|ring| ring.running) {
            if chosen == self.features {
                return Ok(());
            }
            return Err(Refusal::FeaturesRunning {
                old: self.features,
                new: chosen,
            });
        }
        self.stop_device();
        self.features = chosen;
        let features = self.device_features();
        (self.device.negotiate(features)).map_err(|error| Refusal::Device(error.to_string()))?;
        self.negotiated = true;
        // A front end of the protocol's first version has nothing to enable a ring with. Another may have done
        // so already.
        let always = chosen & PROTOCOL_FEATURES == 0;
        for index in 0..self.rings.len() {
            let enabled = self.rings.get(index).is_some_and(|ring| ring.enabled);
            self.enable(index, always || enabled);
        }
        Ok(())
    }

    /// SET_VRING_ENABLE.
    pub(crate) fn enable(&mut self, index: usize, enabled: bool) {
        if let Some(ring) = self.rings.get_mut(index)
            && let Ok(queue) = u16::try_from(index)
        {
            ring.enabled = enabled;
            self.device.set_queue_enabled(QueueIndex(queue), enabled);
        }
    }

    /// Runs a ring that has got its kick.
    pub(crate) fn start(&mut self, index: u8) -> Result<(), Refusal> {
        if !self.negotiated {
            return Err(Refusal::NotSetUp {
                index: index.into(),
                missing: "SET_FEATURES",
            });
        }
        let packed = self.is_packed();
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return Ok(());
        };
        let map = self.memory.memory();
        let queue = ring.activation(
            index.into(),
            packed,
            &self.regions,
            self.inflight.as_ref(),
            &*map,
        )?;
        let kick = queue.kick.clone();
        let started = if self.active {
            self.device.start_queue(queue)
        } else {
            self.device.activate(Activation {
                features: features(self.features),
                memory: self.memory.clone(),
                queues: vec![queue],
            })
        };
        started.map_err(|NotActivated { error, .. }| Refusal::Device(error.to_string()))?;
        self.active = true;
        ring.running = true;
        signal(&kick);
        Ok(())
    }

    /// GET_VRING_BASE: stops a ring, and says where it stands.
    pub(crate) fn stop(&mut self, index: usize) -> u32 {
        let packed = self.is_packed();
        let Some(ring) = self.rings.get_mut(index) else {
            return 0;
        };
        if std::mem::take(&mut ring.running)
            && let Ok(queue) = u16::try_from(index)
            && let Some(ActiveQueue { state, .. }) = self.device.stop_queue(QueueIndex(queue))
        {
            ring.base = Some(base(state, packed));
            if let Some(inflight) = &self.inflight {
                inflight.stopped(queue, packed);
            }
        }
        ring.kick = None;
        ring.base(packed)
    }

    /// As before the first front end.
    pub(crate) fn reset(&mut self) {
        self.stop_device();
        self.features = 0;
        for (index, ring) in self.rings.iter_mut().enumerate() {
            // The device may still hold the old one for as long as it takes to let go of it.
            ring.call.set(None);
            *ring = Ring::new(ring.max_size);
            self.reports.set_error_fd(index, None);
        }
        self.regions.clear();
        self.inflight = None;
    }

    /// SET_INFLIGHT_FD.
    pub(crate) fn set_inflight(
        &mut self,
        passed: &VhostUserInflight,
        file: File,
    ) -> Result<(), Refusal> {
        if let Some(index) = self.rings.iter().position(|ring| ring.running) {
            return Err(Refusal::Running {
                index: u32::try_from(index).unwrap_or(u32::MAX),
                request: "SET_INFLIGHT_FD",
            });
        }
        self.inflight = Some(Inflight::new(passed, file)?);
        Ok(())
    }

    /// RESET_DEVICE: the driver begins anew.
    pub(crate) fn reset_device(&mut self) {
        let packed = self.is_packed();
        self.stop_device();
        for ring in &mut self.rings {
            ring.base = None;
        }
        if let Some(inflight) = &self.inflight {
            inflight.forget(packed);
        }
    }

    /// Stops all rings, and has the device forget what was negotiated.
    pub(crate) fn stop_device(&mut self) {
        for queue in self.device.reset() {
            if let Some(ring) = self.rings.get_mut(usize::from(queue.index.0)) {
                ring.base = Some(base(queue.state, self.features & F_RING_PACKED != 0));
            }
        }
        for ring in &mut self.rings {
            ring.running = false;
            ring.kick = None;
        }
        self.negotiated = false;
        self.active = false;
    }

    pub(crate) fn reports(&self) -> &Reports {
        &self.reports
    }

    fn is_packed(&self) -> bool {
        self.features & F_RING_PACKED != 0
    }

    fn device_features(&self) -> F {
        features(self.features)
    }
}

/// Whether an error of a socket says that there is nobody at its other end.
fn has_left(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// `VIRTIO_F_RING_PACKED`, among 64.
const F_RING_PACKED: u64 = 1 << 34;

/// What the device is told of the features that a front end chose.
fn features(chosen: u64) -> F {
    F::from_bits_retain(le128::from_ne(u128::from(chosen & !PROTOCOL_FEATURES)))
}
