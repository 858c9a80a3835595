//! The tests of `hostile_guest.rs` with packed rings: the driver knows by the name of the program.

mod hostile_guest;

use hostile_guest::{device, driver, machine};
