//! A PC without firmware: RAM, the PCI host, ports, and what raises interrupts.
//!
//! A [`Machine`] has no processor. On KVM, [`Vcpus`](crate::kvm::Vcpus) run on it; in a test, or
//! where there is no KVM, whoever holds it reads and writes its ports and memory, and looks at its
//! [`ManualInterrupts`]. Ports and memory are dispatched by vm-device's `IoManager`.

mod cmos;
mod control;
mod driver;
mod interrupts;
pub mod layout;
pub mod memory;
mod pci;
mod power;
mod run_state;
mod serial;

pub use control::{Control, Event};
pub use driver::DriverView;
pub use interrupts::{Interrupts, ManualInterrupts};
pub use memory::Memory;
pub use run_state::{CannotPause, RunPhase, RunState};
pub use serial::SerialPort;

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use vm_device::bus::{self, MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_pci::{Aperture, PciHost, PciHostConfig};

use cmos::Cmos;
use pci::{PciConfigPorts, PciWindow};
use power::{ExitPort, KeyboardController, PmPorts};

/// A PC without processors.
pub struct Machine {
    memory: Memory,
    interrupts: Interrupts,
    control: Arc<Control>,
    pci: Arc<PciHost>,
    serial: Arc<SerialPort>,
    pm: Arc<PmPorts>,
    /// Fixed once the machine is made: BARs move inside of the PCI host.
    io: IoManager,
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Bytes of RAM, a multiple of the page size.
    pub ram: u64,
    /// The port through which the embedded guest ends with a status, if it is to have one.
    pub exit_port: Option<u16>,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The host has not got the memory.
    #[error("cannot allocate {bytes} bytes of guest memory: {source}")]
    Memory {
        /// How much was asked for.
        bytes: u64,
        /// What the host said.
        source: io::Error,
    },
    /// A descriptor cannot be had.
    #[error("cannot make an event descriptor: {0}")]
    Descriptor(#[from] io::Error),
    /// The PCI host refuses its address map.
    #[error(transparent)]
    Pci(#[from] vm_pci::Error),
    /// Two devices claim the same addresses.
    #[error("address map: {0}")]
    Map(#[from] bus::Error),
}

impl Machine {
    /// Makes a machine whose serial port writes to `console`.
    ///
    /// # Errors
    /// When the host has not got what it takes.
    pub fn new(
        config: &MachineConfig,
        interrupts: Interrupts,
        console: Box<dyn Write + Send>,
    ) -> Result<Arc<Self>, MachineError> {
        let memory = memory::allocate(config.ram).map_err(|source| MachineError::Memory {
            bytes: config.ram,
            source,
        })?;
        let control = Arc::new(Control::new()?);
        let pci = Arc::new(PciHost::new(pci_config(), interrupts.lines.clone())?);
        let serial = Arc::new(SerialPort::new(console)?);
        let pm = Arc::new(PmPorts::new(control.clone()));

        let mut io = IoManager::new();
        let ports = |base, len| PioRange::new(PioAddress(base), len);
        io.register_pio(ports(layout::SERIAL_PORT, 8)?, serial.clone())?;
        io.register_pio(ports(layout::PM_BASE, layout::PM_LEN)?, pm.clone())?;
        io.register_pio(ports(layout::CMOS_PORT, 2)?, Arc::new(Cmos::default()))?;
        io.register_pio(
            ports(layout::I8042_COMMAND_PORT, 1)?,
            Arc::new(KeyboardController::new(control.clone())),
        )?;
        if let Some(port) = config.exit_port {
            io.register_pio(ports(port, 1)?, Arc::new(ExitPort(control.clone())))?;
        }
        let config_ports = layout::PCI_CONFIG_PORTS;
        io.register_pio(
            ports(config_ports.start, config_ports.end - config_ports.start)?,
            Arc::new(PciConfigPorts::new(pci.clone(), control.clone())),
        )?;
        let window = Arc::new(PciWindow(pci.clone()));
        let [io_start, io_len] = [
            layout::PCI_IO.start,
            layout::PCI_IO.end - layout::PCI_IO.start,
        ]
        .map(|number| u16::try_from(number).unwrap_or(0));
        io.register_pio(ports(io_start, io_len)?, window.clone())?;
        for range in [layout::PCI_MMIO32, layout::PCI_ECAM, layout::PCI_MMIO64] {
            let range = MmioRange::new(MmioAddress(range.start), range.end - range.start)?;
            io.register_mmio(range, window.clone())?;
        }

        Ok(Arc::new(Self {
            memory,
            interrupts,
            control,
            pci,
            serial,
            pm,
            io,
        }))
    }

    /// RAM.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What raises interrupts, and binds doorbells.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// Where events that end or restart the machine are reported.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The PCI host.
    pub fn pci(&self) -> &Arc<PciHost> {
        &self.pci
    }

    /// The first serial port.
    pub fn serial(&self) -> &Arc<SerialPort> {
        &self.serial
    }

    /// Reads `data.len()` ports from `port` on as one access; ones where there is nothing.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        if self.io.pio_read(PioAddress(port), data).is_err() {
            data.fill(0xff);
        }
    }

    /// Writes ports, as one access.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        // A write to nothing goes nowhere.
        let _ = self.io.pio_write(PioAddress(port), data);
    }

    /// Reads memory that is not RAM; ones where there is nothing.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        if self.io.mmio_read(MmioAddress(address), data).is_err() {
            data.fill(0xff);
        }
    }

    /// Writes memory that is not RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        // A write to nothing goes nowhere.
        let _ = self.io.mmio_write(MmioAddress(address), data);
    }

    /// Back to power-on, all processors being at rest: devices reset, RAM empty, events forgotten.
    /// PCI functions are reset before, by [`Devices::reset`](crate::devices::Devices::reset), as they
    /// are in its tree. They have no addresses then, until
    /// [`assign_resources`](Self::assign_resources).
    ///
    /// # Errors
    /// When the host cannot empty the RAM.
    pub fn reset(&self) -> io::Result<()> {
        self.pci.reset_registers();
        self.pm.reset();
        self.serial.reset();
        self.control.clear();
        memory::clear(&self.memory)
    }

    /// Gives each BAR an address and each function its interrupt line, and switches decoding on, as
    /// firmware does before it boots.
    ///
    /// # Errors
    /// When a BAR does not fit.
    pub fn assign_resources(&self) -> Result<(), vm_pci::Error> {
        self.pci.assign_resources()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("pci", &self.pci)
            .field("interrupts", &self.interrupts)
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}

fn pci_config() -> PciHostConfig {
    let aperture =
        |range: std::ops::Range<u64>| Aperture::new(range.start, range.end - range.start);
    PciHostConfig {
        ecam: aperture(layout::PCI_ECAM),
        mmio32: aperture(layout::PCI_MMIO32),
        mmio64: aperture(layout::PCI_MMIO64),
        io: aperture(layout::PCI_IO),
        intx_gsis: [0, 1, 2, 3].map(|pin| layout::PCI_FIRST_GSI + pin),
    }
}
