//! More than one pair of queues.

use super::{Case, all_pings_answered, booted_once};

pub(super) const CASES: &[Case] = &[Case {
    name: "mq",
    about: "two pairs of queues carry traffic, and ethtool -L changes their number under it",
    vmm_args: Some(
        "-netdev tap,id=net0,ip=10.0.2.2/24,queues=2 \
         -device virtio-net-pci,netdev=net0,mq=on",
    ),
    guest: r#"
combined() { ethtool -l eth0 | awk '/Combined:/ { print $2 }' | tr '\n' ' '; }
expect "pairs at most and now" "$(combined)" "2 2 "
expect "vectors of MSI-X" "$(ls /sys/class/net/eth0/device/../msi_irqs | wc -l)" 5
name=$(basename "$(readlink /sys/class/net/eth0/device)")
counts() { for queue in input.0 input.1 output.0 output.1; do interrupts $name-$queue; done; }
# increases: by how much each has grown since `counts >/tmp/before`.
increases() { counts | paste -d ' ' - /tmp/before | awk '{ print $1 - $2 }'; }
both_busy() {
    set -- $(increases)
    at_least "interrupts of receive queue 0" $1 10
    at_least "interrupts of receive queue 1" $2 10
    at_least "interrupts of send queue 0" $3 1
    at_least "interrupts of send queue 1" $4 1
}
counts >/tmp/before
stream -t 3 -P 8
stream -t 3 -P 8 -R
both_busy
iperf3 -c 10.0.2.2 -t 300 -P 4 --bidir >/tmp/both 2>&1 &
both=$!
sleep 1
for round in 1 2 3 4 5 6 7 8; do
    for number in 1 2; do
        ethtool -L eth0 combined $number || fail "ethtool -L eth0 combined $number"
        expect "pairs" "$(combined)" "2 $number "
        sleep 0.2
        rx=$(counter rx_bytes) tx=$(counter tx_bytes)
        sleep 0.5
        at_least "bytes received with $number" $(($(counter rx_bytes) - rx)) 50000
        at_least "bytes sent with $number" $(($(counter tx_bytes) - tx)) 50000
    done
done
kill $both
wait $both
sleep 1
ethtool -L eth0 combined 1
counts >/tmp/before
stream -t 2 -P 8
stream -t 2 -P 8 -R
set -- $(increases)
expect "interrupts of receive queue 1 with one pair" $2 0
expect "interrupts of send queue 1 with one pair" $4 0
ping -c 50 -i 0.02 10.0.2.2
ethtool -L eth0 combined 2
counts >/tmp/before
stream -t 3 -P 8
stream -t 3 -P 8 -R
both_busy
ping -c 50 -i 0.02 10.0.2.2
"#,
    check: |outcome| {
        booted_once(outcome)?;
        all_pings_answered(outcome, 2, 50)
    },
    ..Case::PLAIN
}];
