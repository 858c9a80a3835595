//! Other kinds of the device, and of its driver.

use super::Case;
use super::offloads::last_pings;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "packed",
        about: "with packed=on the rings are packed",
        device: "packed=on,disable-modern=off",
        guest: concat!("expect RING_PACKED \"$(feature 34)\" 1\n", all_ways!()),
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "modern",
        about: "with disable-legacy=on there is nothing of the legacy interface",
        device: "disable-legacy=on,disable-modern=off",
        guest: concat!(
            r#"
function=$(readlink -f /sys/class/net/eth0/device/..)
expect "device and revision" "$(cat $function/device) $(cat $function/revision)" "0x1041 0x01"
expect VERSION_1 "$(feature 32)" 1
has_capability 9 || fail "the device has no modern interface"
"#,
            all_ways!()
        ),
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "legacy",
        about: "with disable-modern=on there is only the legacy interface",
        device: "disable-modern=on,disable-legacy=off",
        guest: concat!(
            r#"
function=$(readlink -f /sys/class/net/eth0/device/..)
expect "device and revision" "$(cat $function/device) $(cat $function/revision)" "0x1000 0x00"
expect VERSION_1 "$(feature 32)" 0
! has_capability 9 || fail "the device has a modern interface"
"#,
            all_ways!()
        ),
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "transitional",
        about: "one device, driven through its modern interface, its legacy one, and the modern again",
        device: "disable-legacy=off,disable-modern=off",
        guest: concat!(
            r#"
function=$(readlink -f /sys/class/net/eth0/device/..)
expect "device and revision" "$(cat $function/device) $(cat $function/revision)" "0x1000 0x00"
has_capability 9 || fail "the device has no modern interface"
expect VERSION_1 "$(feature 32)" 1
ping -c 20 -i 0.02 10.0.2.2
rmmod virtio_pci
modprobe virtio_pci force_legacy=1
bring_up
expect VERSION_1 "$(feature 32)" 0
"#,
            all_ways!(),
            r#"
rmmod virtio_pci
modprobe virtio_pci
bring_up
expect VERSION_1 "$(feature 32)" 1
ping -c 20 -i 0.02 10.0.2.2
"#
        ),
        check: last_pings,
        ..Case::PLAIN
    },
];
