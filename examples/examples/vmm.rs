//! A VMM.
fn main() {}
