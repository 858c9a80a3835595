//! Any accesses to configuration space, BARs and ports, of any width, between whatever a driver may
//! do with the rings of a toy or of a network card. Proves that nothing panics, that registers of an enabled queue do not move,
//! that a reset takes all queues back, and that kicks are bound only where the guest sees them.

#![no_main]

use fuzz::rig::{self, Story};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|story: Story| rig::check(&story));
