//! Any accesses to configuration space, BARs and ports, of any width, between whatever a driver may
//! do with the rings. Proves that nothing panics, that registers of an enabled queue do not move,
//! that a reset takes all queues back, and that kicks are bound only where the guest sees them.

#![no_main]

use fuzz::rig::{Op, Rig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|ops: Vec<Op>| {
    let rig = Rig::new();
    for op in &ops {
        rig.run(op);
    }
    rig.reset_and_check();
});
