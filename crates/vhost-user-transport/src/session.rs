//! One front end's requests.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::GpuBackend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandler};

use crate::early::Enable;
use crate::error::Refusal;
use crate::inflight;
use crate::memory::MAX_REGIONS;
use crate::notify::eventfd;
use crate::ring::{Addresses, Ring};
use crate::transport::{Plugged, VhostUserTransport};

/// Answers the requests of one connection.
#[derive(Debug)]
pub(crate) struct Session {
    transport: Arc<VhostUserTransport>,
    /// Why the last request was refused.
    refusal: Mutex<Option<Refusal>>,
    /// SET_FEATURES came.
    has_features: AtomicBool,
    /// REPLY_ACK was chosen.
    replies: AtomicBool,
}

impl Session {
    pub(crate) fn new(transport: Arc<VhostUserTransport>) -> Self {
        Self {
            transport,
            refusal: Mutex::default(),
            has_features: AtomicBool::new(false),
            replies: AtomicBool::new(false),
        }
    }

    /// The next message, if it is one that may come early, and does.
    pub(crate) fn take_early(&self, stream: &mut UnixStream) -> io::Result<Option<Enable>> {
        if self.has_features.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Enable::take(stream)
    }

    /// SET_VRING_ENABLE before SET_FEATURES.
    pub(crate) fn enable_early(&self, stream: &mut UnixStream, enable: Enable) -> Result<()> {
        self.set_vring_enable(enable.ring, enable.enabled)?;
        let can_reply = self.replies.load(Ordering::Relaxed);
        (enable.acknowledge(stream, can_reply)).map_err(Error::SocketBroken)
    }

    /// Why the connection is to end, if it was a request's fault.
    pub(crate) fn take_refusal(&self) -> Option<Refusal> {
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Does what a request asks of the device. What is wrong with it is kept for whoever serves, since
    /// the protocol's own errors have no room for it.
    fn with<R>(
        &self,
        work: impl FnOnce(&mut Plugged) -> std::result::Result<R, Refusal>,
    ) -> Result<R> {
        let mut state = self.transport.lock();
        let Some(plugged) = &mut *state else {
            return Err(Error::ReqHandlerError(io::ErrorKind::NotConnected.into()));
        };
        work(plugged).map_err(|refusal| {
            let error = Error::ReqHandlerError(io::Error::other(refusal.to_string()));
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            error
        })
    }

    /// The same of one ring.
    fn with_ring<R>(
        &self,
        index: u32,
        work: impl FnOnce(&mut Plugged, usize) -> std::result::Result<R, Refusal>,
    ) -> Result<R> {
        self.with(|plugged| {
            let at = position(plugged, index)?;
            work(plugged, at)
        })
    }

    /// The same of the settings of one ring that does not run.
    fn set_up<R>(
        &self,
        index: u32,
        request: &'static str,
        work: impl FnOnce(&mut Ring) -> std::result::Result<R, Refusal>,
    ) -> Result<R> {
        self.with(|plugged| {
            let at = position(plugged, index)?;
            let rings = plugged.rings.len();
            let ring = plugged.rings.get_mut(at);
            let ring = ring.ok_or(Refusal::NoRing { index, rings })?;
            if ring.running {
                return Err(Refusal::Running { index, request });
            }
            work(ring)
        })
    }

    fn refuse<R>(&self, what: &'static str) -> Result<R> {
        self.with(|_| Err(Refusal::Unsupported(what)))
    }
}

fn position(plugged: &Plugged, index: u32) -> std::result::Result<usize, Refusal> {
    let rings = plugged.rings.len();
    usize::try_from(index)
        .ok()
        .filter(|at| *at < rings)
        .ok_or(Refusal::NoRing { index, rings })
}

impl VhostUserBackendReqHandler for Session {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    /// Long obsolete; what is left of it is that the rings stop.
    fn reset_owner(&self) -> Result<()> {
        self.with(|plugged| {
            plugged.stop_device();
            Ok(())
        })
    }

    fn reset_device(&self) -> Result<()> {
        self.with(|plugged| {
            plugged.reset_device();
            Ok(())
        })
    }

    fn get_features(&self) -> Result<u64> {
        self.with(|plugged| Ok(plugged.offered()))
    }

    fn set_features(&self, features: u64) -> Result<()> {
        self.has_features.store(true, Ordering::Relaxed);
        self.with(|plugged| plugged.set_features(features))
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.with(|plugged| plugged.regions.set(regions, files))?;
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.set_up(index, "SET_VRING_NUM", |ring| {
            let max_size = ring.max_size;
            ring.size = u16::try_from(num)
                .ok()
                .filter(|size| (1..=max_size).contains(size))
                .ok_or(Refusal::Size {
                    index,
                    size: num,
                    max_size,
                })?;
            Ok(())
        })
    }

    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return self.refuse("logging of ring accesses");
        }
        let addresses = Some(Addresses {
            descriptor,
            available,
            used,
        });
        self.with_ring(index, |plugged, at| match plugged.rings.get_mut(at) {
            // Front ends say it again when they turn logging on and off.
            Some(ring) if ring.running && ring.addresses == addresses => Ok(()),
            Some(ring) if !ring.running => {
                ring.addresses = addresses;
                Ok(())
            }
            _ => Err(Refusal::Running {
                index,
                request: "SET_VRING_ADDR",
            }),
        })
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.set_up(index, "SET_VRING_BASE", |ring| {
            ring.base = Some(base);
            Ok(())
        })
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        self.with_ring(index, |plugged, at| {
            Ok(VhostUserVringState::new(index, plugged.stop(at)))
        })
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        const REQUEST: &str = "SET_VRING_KICK";
        self.set_up(index.into(), REQUEST, |ring| {
            let index = index.into();
            let file = fd.ok_or(Refusal::Polling {
                index,
                request: REQUEST,
            })?;
            let kick = eventfd(file).ok_or(Refusal::NotAnEventFd {
                index,
                request: REQUEST,
            })?;
            ring.kick = Some(Arc::new(kick));
            Ok(())
        })?;
        self.with(|plugged| plugged.start(index))
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.with_ring(index.into(), |plugged, at| {
            let fd = optional_eventfd(index, "SET_VRING_CALL", fd)?;
            if let Some(ring) = plugged.rings.get(at) {
                ring.call.set(fd);
            }
            Ok(())
        })
    }

    fn set_vring_err(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.with_ring(index.into(), |plugged, at| {
            let fd = optional_eventfd(index, "SET_VRING_ERR", fd)?;
            plugged.reports().set_error_fd(at, fd);
            Ok(())
        })
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()? | VhostUserProtocolFeatures::REPLY_ACK;
        let excess = features & !offered.bits();
        let replies = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        self.replies.store(replies, Ordering::Relaxed);
        self.with(|_| {
            if excess != 0 {
                return Err(Refusal::Features {
                    chosen: features,
                    excess,
                });
            }
            Ok(())
        })
    }

    /// Rings, as Cloud Hypervisor counts; QEMU, which counts pairs, is content with at least as many.
    fn get_queue_num(&self) -> Result<u64> {
        self.with(|plugged| Ok(plugged.rings.len() as u64))
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.with_ring(index, |plugged, at| {
            plugged.enable(at, enable);
            Ok(())
        })
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.with(|plugged| {
            let (at, count) = config_range(plugged, offset, size)?;
            let mut data = vec![0; count];
            plugged.device.read_config(at, &mut data);
            Ok(data)
        })
    }

    fn set_config(&self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.with(|plugged| {
            let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let (at, _) = config_range(plugged, offset, size)?;
            plugged.device.write_config(at, data);
            Ok(())
        })
    }

    fn set_gpu_socket(&self, _gpu_backend: GpuBackend) -> Result<()> {
        self.refuse("GPU_SET_SOCKET")
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.refuse("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&self, inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.with(|plugged| {
            let rings = plugged.rings.len();
            let largest = plugged.rings.iter().map(|ring| ring.max_size).max();
            let (queues, size) = (inflight.num_queues, inflight.queue_size);
            if queues == 0 || usize::from(queues) > rings || size == 0 || Some(size) > largest {
                return Err(Refusal::Inflight(format!(
                    "{queues} queues of {size} entries were asked for, of {rings}"
                )));
            }
            inflight::make(inflight)
        })
    }

    fn set_inflight_fd(&self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        self.with(|plugged| plugged.set_inflight(inflight, file))
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.with(|plugged| plugged.regions.add(region, fd))?;
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.with(|plugged| plugged.regions.remove(region))
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        self.refuse("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&self) -> Result<()> {
        self.refuse("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        self.refuse("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        self.refuse("SET_LOG_BASE")
    }
}

/// The range of configuration space that a request names, if there is such.
fn config_range(
    plugged: &Plugged,
    offset: u32,
    size: u32,
) -> std::result::Result<(usize, usize), Refusal> {
    let len = plugged.device.config_len();
    let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    range
        .filter(|(at, count)| at.checked_add(*count).is_some_and(|end| end <= len))
        .ok_or(Refusal::Config { offset, size, len })
}

fn optional_eventfd(
    index: u8,
    request: &'static str,
    file: Option<File>,
) -> std::result::Result<Option<vmm_sys_util::eventfd::EventFd>, Refusal> {
    let index = index.into();
    file.map(|file| eventfd(file).ok_or(Refusal::NotAnEventFd { index, request }))
        .transpose()
}
