//! The tests of `hostile_guest.rs` with packed rings: the harness knows by the name of the program.

mod hostile_guest;
