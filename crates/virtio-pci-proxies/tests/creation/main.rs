//! From two option strings to a PCI function whose NIC has the netdev as its peer, and back.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends when its scaffold fails"
)]

mod machine;

mod failures;
mod looks;
mod order;
mod properties;
mod tap;
mod threads;
mod tree;
