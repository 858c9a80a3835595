//! The driver goes and comes again: unbind and bind, reboot.

use anyhow::{Result, ensure};

use super::{Case, all_pings_answered, booted_once, values};
use crate::guest::watch::Outcome;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "rebind",
        about: "the driver is unbound and bound, with pings after each bind",
        guest: r#"
function=$(basename "$(readlink -f /sys/class/net/eth0/device/..)")
cd /sys/bus/pci/drivers/virtio-pci
ping -c 5 -i 0.02 10.0.2.2
for round in 1 2 3; do
    echo $function >unbind
    [ ! -e /sys/class/net/eth0 ] || fail "eth0 is still there after unbind"
    echo "unbound: $round"
    echo $function >bind
    wait_for 10 "eth0 appears" test -e /sys/class/net/eth0
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    wait_for 10 "carrier" grep -q 1 /sys/class/net/eth0/carrier
    ping -c 5 -i 0.02 10.0.2.2
done
"#,
        check: |outcome| {
            booted_once(outcome)?;
            let unbound = values(&outcome.output, "unbound:").len();
            ensure!(unbound == 3, "unbound {unbound} times, not 3");
            all_pings_answered(outcome, 4, 5)
        },
        ..Case::PLAIN
    },
    Case {
        name: "reboot",
        about: "the guest reboots and pings again",
        // The host counts, since nothing in the guest outlives a reboot.
        guest: r#"
ping -c 10 -i 0.02 10.0.2.2
boot=$(host 'echo x >>/tmp/boots; wc -l </tmp/boots')
echo "boot: $boot"
[ "$boot" != 1 ] || reboot
"#,
        check: rebooted,
        ..Case::PLAIN
    },
];

fn rebooted(outcome: &Outcome) -> Result<()> {
    ensure!(
        outcome.boots == 2,
        "the guest booted {} times, not twice",
        outcome.boots
    );
    let boots = values(&outcome.output, "boot:");
    ensure!(boots == ["1", "2"], "the guest told of the boots {boots:?}");
    all_pings_answered(outcome, 2, 10)
}
