//! More than one pair of queues.

use super::{Case, all_pings_answered, booted_once};

pub(super) const CASES: &[Case] = &[MQ, RSS, RING_SIZE, COALESCING];

const MQ: Case = Case {
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
};

/// What a legacy interface lacks is seen on a modern one, whatever the whole call asks for.
const RSS: Case = Case {
    name: "rss",
    about: "ethtool -X steers flows to queues by table, key and kind of flow; -L under it",
    vmm_args: Some(
        "-netdev tap,id=net0,ip=10.0.2.2/24,queues=2 \
         -device virtio-net-pci,netdev=net0,mq=on,rss=on,hash=on,disable-modern=off",
    ),
    guest: r#"
expect "MQ, RSS, HASH_REPORT" "$(feature 22) $(feature 60) $(feature 57)" "1 1 1"
received() { ethtool -S eth0 | awk -v key="rx_queue_$1_packets:" '$1 == key { print $2 }'; }
table() { ethtool -x eth0 | awk '/^ *[0-9]+: / { for (i = 2; i <= NF; i++) n[$i]++ } END { print n[0] + 0, n[1] + 0 }'; }
# Eight flows to the guest; how many frames came by each queue.
flows() {
    sleep 0.5
    _zero=$(received 0) _one=$(received 1)
    stream -t 2 -P 8 -R
    _zero=$(($(received 0) - _zero)) _one=$(($(received 1) - _one))
    echo "frames by queue: $_zero $_one"
}
by_both() { flows; at_least "by queue 0" $_zero 50; at_least "by queue 1" $_one 50; }
# What is of no kind that is hashed, ARP say, comes by queue 0.
by_queue_0() { flows; at_least "by queue 0" $_zero 100; expect "by queue 1" $_one 0; }
by_queue_1() { flows; at_least "by queue 1" $_one 100; at_most "by queue 0" $_zero 10; }
expect "entries of the table" "$(table)" "64 64"
# Without it this driver keeps to itself what kinds of flow are asked for.
ethtool -K eth0 rxhash on || fail "ethtool -K rxhash on"
by_both
ethtool -X eth0 equal 1 || fail "ethtool -X equal 1"
expect "entries of the table" "$(table)" "128 0"
by_queue_0
ethtool -X eth0 weight 0 1 || fail "ethtool -X weight 0 1"
expect "entries of the table" "$(table)" "0 128"
by_queue_1
ethtool -X eth0 equal 2
key=$(seq 11 50 | tr '\n' ':' | sed 's/:$//')
ethtool -X eth0 hkey $key || fail "ethtool -X hkey"
ethtool -x eth0 | grep -q "^$key" || fail "the key is another"
by_both
# With a key of zeros each hash is 0.
ethtool -X eth0 hkey $(echo $key | sed 's/[0-9]*/00/g')
by_queue_0
ethtool -X eth0 hkey $key
# By addresses alone all flows are one.
ethtool -N eth0 rx-flow-hash tcp4 sd || fail "ethtool -N rx-flow-hash tcp4 sd"
flows
at_most "frames by the lesser queue" $((_zero < _one ? _zero : _one)) 10
ethtool -N eth0 rx-flow-hash tcp4 sdfn
by_both
ethtool -K eth0 rxhash off || fail "ethtool -K rxhash off"
by_queue_0
ethtool -K eth0 rxhash on
by_both
# Under streams: the table, and the number of pairs, for which no entry may name a queue that goes.
iperf3 -c 10.0.2.2 -t 300 -P 4 --bidir >/tmp/both 2>&1 &
both=$!
sleep 1
for round in 1 2 3; do
    for table in "equal 1" "weight 0 1" "equal 2"; do
        ethtool -X eth0 $table || fail "ethtool -X $table"
        pass_both_ways
    done
    ethtool -X eth0 equal 1
    for number in 1 2; do
        ethtool -L eth0 combined $number || fail "ethtool -L combined $number"
        pass_both_ways
    done
done
kill $both
wait $both
sleep 1
ethtool -X eth0 equal 2
by_both
ping -c 50 -i 0.02 10.0.2.2
"#,
    check: |outcome| {
        booted_once(outcome)?;
        all_pings_answered(outcome, 1, 50)
    },
    ..Case::PLAIN
};

const RING_SIZE: Case = Case {
    name: "ring-size",
    about: "ethtool -G resets rings and gives them other sizes, under streams",
    device: "disable-modern=off",
    guest: r#"
expect RING_RESET "$(feature 40)" 1
rings() { ethtool -g eth0 | awk '/^Current/ { now = 1 } now && /^[RT]X:/ { print $2 }' | tr '\n' ' '; }
expect "entries of receive and send ring" "$(rings)" "256 256 "
iperf3 -c 10.0.2.2 -t 300 --bidir >/tmp/both 2>&1 &
both=$!
sleep 1
for round in 1 2 3; do
    for sizes in "64 256" "64 64" "256 32" "32 128" "256 256"; do
        ethtool -G eth0 rx ${sizes% *} tx ${sizes#* } || fail "ethtool -G $sizes"
        expect "entries of receive and send ring" "$(rings)" "$sizes "
        pass_both_ways
    done
done
kill $both
wait $both
sleep 1
ping -c 50 -i 0.02 10.0.2.2
"#,
    check: |outcome| {
        booted_once(outcome)?;
        all_pings_answered(outcome, 1, 50)
    },
    ..Case::PLAIN
};

const COALESCING: Case = Case {
    name: "coalescing",
    about: "ethtool -C holds interrupts back for so long, or for so many frames",
    device: "disable-modern=off",
    guest: r#"
expect NOTF_COAL "$(feature 53)" 1
name=$(basename "$(readlink /sys/class/net/eth0/device)")
all() { awk -v name="$name-$1" 'index($NF, name) { for (i = 2; i < NF; i++) if ($i ~ /^[0-9]+$/) n += $i }
    END { print n + 0 }' /proc/interrupts; }
# fastest: the shortest time that one of some pings took, in ms.
fastest() { ping -c 20 -i 0.05 10.0.2.2 | awk -F '[=/ ]+' '/round-trip/ { print int($6) }'; }
# With tx-frames 0 this driver would take its send queues' interrupts away.
set_to() { ethtool -C eth0 "$@" || fail "ethtool -C $*"; }
set_to rx-usecs 50000 rx-frames 1000 tx-usecs 0 tx-frames 1
at_least "ms for a ping with rx-usecs 50000" "$(fastest)" 40
# One frame is enough, however long the time is.
set_to rx-usecs 3000000 rx-frames 1 tx-usecs 0 tx-frames 1
at_most "ms for a ping with rx-frames 1" "$(fastest)" 1000
# Streams go on, with far fewer interrupts than frames: some fifty a second.
set_to rx-usecs 20000 rx-frames 10000 tx-usecs 0 tx-frames 1
before=$(all input) frames=$(counter rx_packets)
stream -t 3 -R
at_least "frames received" $(($(counter rx_packets) - frames)) 200
at_most "interrupts of receive queues" $(($(all input) - before)) 400
set_to rx-usecs 0 rx-frames 0 tx-usecs 20000 tx-frames 10000
before=$(all output)
stream -t 3
at_most "interrupts of send queues" $(($(all output) - before)) 400
set_to rx-usecs 0 rx-frames 0 tx-usecs 0 tx-frames 1
at_most "ms for a ping without" "$(fastest)" 40
stream -t 2 --bidir
ping -c 50 -i 0.02 10.0.2.2
"#,
    check: |outcome| {
        booted_once(outcome)?;
        all_pings_answered(outcome, 1, 50)
    },
    ..Case::PLAIN
};
