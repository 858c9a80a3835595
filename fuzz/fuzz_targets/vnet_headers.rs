//! Frames with any header, of any length, in any pieces, both ways, with any offloads negotiated. Proves
//! that exactly those frames of a driver's pass that the specification lets pass, with what counts of
//! their headers and no more, and that what comes in lies in the driver's buffers as they say.

#![no_main]

use fuzz::headers::{self, Story};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|story: Story| headers::check(&story));
