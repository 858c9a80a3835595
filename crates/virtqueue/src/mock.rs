//! A driver for tests, benches and fuzzers: writes split rings into guest memory as a guest does, and,
//! where asked to, as no guest should.
