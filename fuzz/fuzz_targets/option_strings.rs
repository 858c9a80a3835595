//! Any text as an option string. Proves that parsing and typed takes never panic, that what was
//! parsed can be written down and parsed again, and that a device from any text either is in the
//! machine and leaves it, or has left nothing behind.

#![no_main]

use fuzz::options;
use keyval::Options;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for implied in [None, Some("driver"), Some("type"), Some("id")] {
        let options = Options::parse(text, implied);
        options::check_round_trip(&options);
        options::check_takes(options);
    }
    options::check_device_add(text);
});
