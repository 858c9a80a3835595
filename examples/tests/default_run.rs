//! What the VMM does with no options.

mod support;

use examples::cli::Options;
use examples::vmm::{self, Ending};
use support::in_own_network;

#[test]
fn with_no_options_every_ping_is_answered() {
    in_own_network("with_no_options_every_ping_is_answered", || {
        let ending = vmm::run(&Options::default()).unwrap();
        assert_eq!(ending, Ending::Status(0));
    });
}

#[test]
fn without_kvm_every_ping_is_answered_too() {
    in_own_network("without_kvm_every_ping_is_answered_too", || {
        let ending = vmm::run_without_kvm(&Options::default()).unwrap();
        assert_eq!(ending, Ending::Status(0));
    });
}
