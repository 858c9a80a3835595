//! The driver goes and comes again: unbind and bind, reboot.

use anyhow::{Result, ensure};

use super::{Case, all_pings_answered, booted_once, pings, values};
use crate::guest::watch::Outcome;

/// Both ends send without end, whether or not anybody answers; `lives` shows that they do, and
/// `unloaded` ends it and sees whether anything is left of it.
///
/// A hundred frames a second each way: under five times as many about every second boot died in the
/// emulated host, which once panicked with a page fault in its own entry to the guest.
macro_rules! under_load {
    () => {
        r#"
function=$(basename "$(readlink -f /sys/class/net/eth0/device/..)")
mac=$(cat /sys/class/net/eth0/address)
host "ip neigh replace 10.0.2.15 lladdr $mac dev tap0 nud permanent"
host 'echo "while :; do ping -q -i 0.01 -s 1400 10.0.2.15; done" >/tmp/load
    sh /tmp/load >/dev/null 2>&1 & echo $! >/tmp/load.pid'
while :; do
    ping -q -c 200 -W 1 -i 0.01 -s 1400 10.0.2.2 || sleep 0.05
done >/dev/null 2>&1 &
load=$!
lives() {
    wait_for 10 "an answer" ping -c 1 -W 1 10.0.2.2
    _before=$(counter rx_packets)
    sleep 0.3
    at_least "frames received in 0.3 s" $(($(counter rx_packets) - _before)) 5
}
lives
unloaded() {
    kill $load
    host 'kill $(cat /tmp/load.pid); killall ping'
    killall ping
    sleep 1
    _before=$(counter rx_packets)
    ping -c 20 -i 0.02 10.0.2.2
    at_most "frames received in the end" $(($(counter rx_packets) - _before)) 60
}
"#
    };
}

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
    bring_up
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
        name: "rebind-load",
        about: "unbound and bound 100 times, in four guests, while both ends send",
        guests: 4,
        guest: concat!(
            under_load!(),
            r#"
cd /sys/bus/pci/drivers/virtio-pci
for round in $(seq 25); do
    echo $function >unbind
    [ ! -e /sys/class/net/eth0 ] || fail "eth0 is still there after unbind"
    echo $function >bind
    bring_up
    lives
    echo "bound: $round"
done
unloaded
"#
        ),
        check: |outcome| {
            booted_once(outcome)?;
            let bound = values(&outcome.output, "bound:").len();
            ensure!(bound == 25, "bound {bound} times, not 25");
            all_pings_answered(outcome, 1, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "rescan",
        about: "removed from the PCI bus and found again, while both ends send",
        guest: concat!(
            under_load!(),
            r#"
resources=$(cat /sys/bus/pci/devices/$function/resource)
for round in 1 2 3 4 5; do
    echo 1 >/sys/bus/pci/devices/$function/remove
    [ ! -e /sys/bus/pci/devices/$function ] || fail "$function is still there after its removal"
    [ ! -e /sys/class/net/eth0 ] || fail "eth0 is still there after its removal"
    echo 1 >/sys/bus/pci/rescan
    wait_for 10 "$function appears" test -e /sys/bus/pci/devices/$function
    bring_up
    lives
    echo "found: $round"
done
echo "$resources"
cat /sys/bus/pci/devices/$function/resource
unloaded
"#
        ),
        check: |outcome| {
            booted_once(outcome)?;
            let found = values(&outcome.output, "found:").len();
            ensure!(found == 5, "found {found} times, not 5");
            all_pings_answered(outcome, 1, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "link-down-up",
        about: "ip link down and up while both ends send: nothing arrives while it is down",
        guest: concat!(
            under_load!(),
            r#"
for round in 1 2 3 4 5 6 7 8 9 10; do
    ip link set eth0 down
    expect operstate "$(cat /sys/class/net/eth0/operstate)" down
    before=$(counter rx_packets)
    sleep 0.3
    expect "frames received while down" $(($(counter rx_packets) - before)) 0
    ip link set eth0 up
    wait_for 10 "carrier" grep -q 1 /sys/class/net/eth0/carrier
    lives
    echo "up: $round"
done
unloaded
"#
        ),
        check: |outcome| {
            booted_once(outcome)?;
            let up = values(&outcome.output, "up:").len();
            ensure!(up == 10, "up {up} times, not 10");
            all_pings_answered(outcome, 1, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "link-seen",
        about: "the monitor's set_link at either end: the guest loses its carrier and gets it back",
        guest: r#"
name=$(basename "$(readlink /sys/class/net/eth0/device)")
config=$name-config
# Without MSI-X there is one interrupt for all.
grep -q " $config\$" /proc/interrupts || config=$name
cd /sys/class/net/eth0
ping -c 20 -i 0.02 10.0.2.2
for end in net0 virtio-net-pci.0; do
    before=$(interrupts $config) changes=$(cat carrier_changes)
    # Nobody can ask for the link from here while it is down.
    host "(sleep 1; monitor set_link $end off; monitor info network; sleep 8
        monitor set_link $end on; monitor info network) >/tmp/set_link 2>&1 &"
    wait_for 20 "the carrier is lost" grep -q 0 carrier
    wait_for 5 "operstate is down" grep -q down operstate
    at_least "interrupts of the configuration" $(($(interrupts $config) - before)) 1
    received=$(counter rx_packets)
    ! ping -c 1 -W 1 10.0.2.2 >/dev/null 2>&1 || fail "a ping is answered while the link is down"
    expect "frames received while down" $(($(counter rx_packets) - received)) 0
    wait_for 30 "the carrier is back" grep -q 1 carrier
    wait_for 5 "operstate is up" grep -q up operstate
    at_least "interrupts of the configuration" $(($(interrupts $config) - before)) 2
    expect "changes of the carrier" $(($(cat carrier_changes) - changes)) 2
    ping -c 20 -i 0.02 10.0.2.2
    sleep 1
    host 'cat /tmp/set_link'
done
"#,
        check: link_was_seen,
        ..Case::PLAIN
    },
    Case {
        name: "pause",
        about: "the monitor's stop and cont, under a stream: nothing moves in between, all goes on after it",
        guest: r#"
iperf3 -c 10.0.2.2 -t 300 --bidir >/tmp/both 2>&1 &
both=$!
sleep 1
for round in 1 2; do
    host "(sleep 1; monitor stop; monitor info status; before=\$(cat /sys/class/net/tap0/statistics/rx_packets)
        ping -c 3 -W 1 10.0.2.15
        echo moved: \$((\$(cat /sys/class/net/tap0/statistics/rx_packets) - before))
        monitor cont; monitor info status; echo over) >/tmp/pause 2>&1 &"
    sleep 2
    wait_for 30 "the pause is over" host 'grep over /tmp/pause'
    host 'cat /tmp/pause'
    rx=$(counter rx_bytes) tx=$(counter tx_bytes)
    sleep 2
    at_least "bytes received after it" $(($(counter rx_bytes) - rx)) 50000
    at_least "bytes sent after it" $(($(counter tx_bytes) - tx)) 50000
done
kill $both
wait $both
sleep 1
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: paused,
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

fn link_was_seen(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    // As the monitor tells it: at each end once.
    for line in [" \\ net0: index=0,type=tap", "virtio-net-pci.0: index=0"] {
        let mut lines = outcome.output.lines().filter(|l| l.starts_with(line));
        ensure!(
            lines.any(|l| l.ends_with(",link=down")),
            "info network shows no link down at '{line}'"
        );
    }
    all_pings_answered(outcome, 3, 20)
}

fn paused(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let status = values(&outcome.output, "VM status:");
    ensure!(
        status == ["paused", "running", "paused", "running"],
        "the monitor told of the states {status:?}"
    );
    let moved = values(&outcome.output, "moved:");
    ensure!(moved == ["0", "0"], "frames sent while paused: {moved:?}");
    let runs = pings(&outcome.output)?;
    ensure!(
        runs == [(3, 0), (3, 0), (20, 20)],
        "sent and answered: {runs:?}"
    );
    Ok(())
}

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
