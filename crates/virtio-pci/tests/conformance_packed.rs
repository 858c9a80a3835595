//! The tests of `conformance.rs` with packed rings: the driver knows by the name of the program.

mod conformance;

use conformance::{device, driver, machine};
