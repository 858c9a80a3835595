//! A split queue whose descriptors, rings and indirect tables are anything, at any place. Proves that
//! the queue ends every walk, lends no byte outside of guest memory, and hands each chain out once
//! and takes it back once.

#![no_main]

use fuzz::rings::{self, Story};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|story: Story| rings::check(&story));
