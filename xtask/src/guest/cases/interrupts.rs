//! How interrupts reach the guest: a vector each queue, shared vectors, the pin.

use super::{Case, all_pings_answered, booted_once};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "msix",
        about: "each queue has a vector of its own, and a processor of the guest's choice",
        guest: r#"
has_capability 17 || fail "the device has no MSI-X"
# One for the configuration, two a pair; the control queue has none.
pairs=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
expect "vectors of MSI-X" "$(ls /sys/class/net/eth0/device/../msi_irqs | wc -l)" $((1 + 2 * pairs))
name=$(basename "$(readlink /sys/class/net/eth0/device)")
# Of the queues of all pairs: a stream has one pair, and whoever sends first says which.
all() { awk -v name="$name-$1" 'index($NF, name) { for (i = 2; i < NF; i++) if ($i ~ /^[0-9]+$/) n += $i }
    END { print n + 0 }' /proc/interrupts; }
rx=$(all input) tx=$(all output)
stream -t 2
stream -t 2 -R
at_least "interrupts of receive queues" $(($(all input) - rx)) 10
at_least "interrupts of send queues" $(($(all output) - tx)) 1
# Moved to the other processor and back, each time under a stream.
irqs=$(awk -v name="$name-input" 'index($NF, name) { sub(":", "", $1); print $1 }' /proc/interrupts)
expect "receive queues with a vector" $(echo $irqs | wc -w) $pairs
on() { awk -v name="$name-input" -v column=$(($1 + 2)) 'index($NF, name) { n += $column } END { print n + 0 }' \
    /proc/interrupts; }
for processor in 1 0 1 0; do
    sent=$(icmp OutEchos) answered=$(icmp InEchoReps)
    ping -q -c 1000 -i 0.002 10.0.2.2 >/dev/null &
    for irq in $irqs; do echo $processor >/proc/irq/$irq/smp_affinity_list; done
    sleep 0.3
    here=$(on $processor) there=$(on $((1 - processor)))
    ping -q -c 20 -i 0.02 10.0.2.2 >/dev/null
    at_least "interrupts on processor $processor" $(($(on $processor) - here)) 10
    # A vector moves with its next interrupt: one of a queue that had none meanwhile still comes to the other.
    at_most "interrupts on the other" $(($(on $((1 - processor))) - there)) $((pairs - 1))
    wait
    at_least "pings in the meantime" $(($(icmp OutEchos) - sent)) 1020
    # Counted by the IP stack: a program's socket has room for few that come at once, and each gets the other's.
    expect "pings without an answer" $(($(icmp OutEchos) - sent - $(icmp InEchoReps) + answered)) 0
done
"#,
        check: booted_once,
        ..Case::PLAIN
    },
    Case {
        name: "msix-shared",
        about: "with vectors=2 the queues share one",
        device: "vectors=2",
        guest: r#"
has_capability 17 || fail "the device has no MSI-X"
expect "vectors of MSI-X" "$(ls /sys/class/net/eth0/device/../msi_irqs | wc -l)" 2
name=$(basename "$(readlink /sys/class/net/eth0/device)")
before=$(interrupts $name-virtqueues)
stream -t 2
stream -t 2 -R
at_least "interrupts of the queues" $(($(interrupts $name-virtqueues) - before)) 10
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: one_run_of_twenty,
        ..Case::PLAIN
    },
    Case {
        name: "intx",
        about: "with vectors=0 the interrupt comes by the pin",
        device: "vectors=0",
        guest: r#"
! has_capability 17 || fail "the device has MSI-X"
name=$(basename "$(readlink /sys/class/net/eth0/device)")
grep "IO-APIC.* $name\$" /proc/interrupts || fail "$name has no line at the IO-APIC"
before=$(interrupts $name)
stream -t 2
stream -t 2 -R
at_least "interrupts" $(($(interrupts $name) - before)) 10
ping -c 20 -i 0.02 10.0.2.2
# Linux switches off a line that interrupts for nothing.
! dmesg | grep -i "nobody cared" || fail "the interrupt came for nothing"
"#,
        check: one_run_of_twenty,
        ..Case::PLAIN
    },
];

fn one_run_of_twenty(outcome: &crate::guest::watch::Outcome) -> anyhow::Result<()> {
    booted_once(outcome)?;
    all_pings_answered(outcome, 1, 20)
}
