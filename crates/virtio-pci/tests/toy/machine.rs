//! RAM, a PCI host, and binders that record.

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bus::{KickAddress, KickBinder};
use virtio_pci::{VirtioPci, VirtioPciConfig};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vm_pci::test_utils::{RecordingIrqLines, RecordingMsiSink};
use vm_pci::{DevFn, PciHost, PciHostConfig};
use vmm_sys_util::eventfd::EventFd;

use crate::device::Toy;

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// Where the function is: INTA# of device 3 ends in the fourth line.
pub(crate) const DEVFN: (u8, u8) = (3, 0);
pub(crate) const GSI: u32 = 19;

/// Binds, if it may, and signals what is bound when the machine sees a write.
#[derive(Debug, Default)]
pub(crate) struct Binder {
    pub(crate) bound: Mutex<Vec<(KickAddress, Arc<EventFd>)>>,
    pub(crate) refuse: bool,
}

impl KickBinder for Binder {
    fn bind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        if self.refuse {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut bound = self.bound.lock().unwrap();
        assert!(!bound.iter().any(|(address, _)| *address == at), "{at:?}");
        bound.push((at, Arc::clone(kick)));
        Ok(())
    }

    fn unbind(&self, at: KickAddress, kick: &Arc<EventFd>) -> io::Result<()> {
        let mut bound = self.bound.lock().unwrap();
        let place = (bound.iter())
            .position(|(address, fd)| *address == at && Arc::ptr_eq(fd, kick))
            .ok_or(io::ErrorKind::NotFound)?;
        bound.remove(place);
        Ok(())
    }
}

impl Binder {
    pub(crate) fn addresses(&self) -> Vec<u64> {
        let bound = self.bound.lock().unwrap();
        bound.iter().map(|(at, _)| at.address).collect()
    }
}

pub(crate) struct Machine {
    pub(crate) memory: Memory,
    pub(crate) host: PciHost,
    pub(crate) msi: Arc<RecordingMsiSink>,
    pub(crate) lines: Arc<RecordingIrqLines>,
    pub(crate) binder: Arc<Binder>,
    pub(crate) toy: Arc<Toy>,
    pub(crate) pci: Arc<VirtioPci<Memory>>,
}

impl Machine {
    pub(crate) fn new(config: VirtioPciConfig, binder: Binder) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory = Arc::new(memory);
        let msi = RecordingMsiSink::new();
        let lines = RecordingIrqLines::new();
        let binder = Arc::new(binder);
        let host = PciHost::new(PciHostConfig::default(), lines.clone()).unwrap();
        let toy = Arc::new(Toy::default());
        let pci = VirtioPci::new(config, memory.clone(), msi.clone(), binder.clone()).unwrap();
        pci.bus().plug(toy.clone()).unwrap();
        let devfn = DevFn::new(DEVFN.0, DEVFN.1).unwrap();
        host.bus().attach(devfn, pci.clone()).unwrap();
        host.assign_resources().unwrap();
        Self {
            memory,
            host,
            msi,
            lines,
            binder,
            toy,
            pci,
        }
    }

    pub(crate) fn usual() -> Self {
        Self::with(VirtioPciConfig::default())
    }

    pub(crate) fn with(config: VirtioPciConfig) -> Self {
        Self::new(config, Binder::default())
    }
}
