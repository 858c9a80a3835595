//! A network card on any rings, with a peer of any mood: frames, buffers and commands in memory that
//! is written at random, frames lent and reads pending while queues stop and the card is reset.
//! Proves that nothing panics or hangs, that the peer gets frames of lengths and headers that can be,
//! and that after a reset every queue is back once and no buffer is still lent.

#![no_main]

use fuzz::net::{self, Story};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|story: Story| net::check(&story));
