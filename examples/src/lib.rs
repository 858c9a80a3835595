//! The machine that the examples and their tests run devices on.
