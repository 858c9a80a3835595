//! PCI functions, their configuration space, BARs, capabilities and interrupts, the bus and the
//! host bridge.

mod address;
mod aperture;
mod assign;
mod bar;
mod bars;
mod bridge;
mod bus;
mod config;
mod error;
mod function;
mod function_state;
mod host;
mod intx;
mod irq;
mod lock;
mod msix;
pub mod registers;
#[cfg(feature = "test-utils")]
pub mod test_utils;
mod windows;

pub use address::DevFn;
pub use aperture::Aperture;
pub use bar::{BarIndex, BarSpace, BarWindow};
pub use bars::{BarKind, Bars};
pub use bus::PciBus;
pub use config::{ConfigSpace, ConfigWritten, PciIdentity};
pub use error::Error;
pub use function::{Attachment, ConfigEffect, PciFunction};
pub use function_state::{ConfigChange, FunctionState};
pub use host::{PciHost, PciHostConfig};
pub use intx::Intx;
pub use irq::{IntxLine, IntxPin, IrqLines, MsiMessage, MsiSink, MsiVector};
pub use msix::{Msix, MsixLayout};
