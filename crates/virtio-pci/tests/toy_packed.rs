//! Of the tests of `toy/` those that are about what queues do, with packed rings: the driver knows by the name of the
//! program.
//!
//! Without `legacy` and `looks`: a legacy driver has split rings, and what is looked at has none.
#![expect(clippy::unwrap_used, reason = "a test ends when its scaffold fails")]
#![allow(
    dead_code,
    reason = "the rest of the toy's tests uses the rest of its scaffold"
)]

#[path = "toy/device.rs"]
mod device;
#[path = "toy/driver.rs"]
mod driver;
#[path = "toy/machine.rs"]
mod machine;

#[path = "toy/express.rs"]
mod express;
#[path = "toy/hostile.rs"]
mod hostile;
#[path = "toy/lifecycle.rs"]
mod lifecycle;
#[path = "toy/suspend.rs"]
mod suspend;
#[path = "toy/transfer.rs"]
mod transfer;
