//! PCI functions, their configuration space, BARs, capabilities and interrupts, the bus and the
//! host bridge.

mod address;
mod bar;
mod error;
mod function;
mod irq;

pub use address::DevFn;
pub use bar::{BarIndex, BarSpace, BarWindow};
pub use error::Error;
pub use function::{Attachment, ConfigEffect, PciFunction};
pub use irq::{IntxLine, MsiMessage, MsiSink, MsiVector};
