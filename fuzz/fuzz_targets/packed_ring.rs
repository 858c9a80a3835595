//! A packed queue whose ring, indirect tables and event suppression are anything, at any place, of any
//! size. Proves that the queue ends every walk, lends no byte outside of guest memory, hands each chain
//! out once and takes it back once, in order where that was negotiated, and stays inside of its ring.

#![no_main]

use fuzz::packed::{self, Story};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|story: Story| packed::check(&story));
