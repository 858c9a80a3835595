//! The guest sleeps and wakes.

use super::{Case, all_pings_answered, booted_once};

pub(super) const CASES: &[Case] = &[Case {
    name: "suspend",
    about: "the guest suspends to idle, is woken by its serial line, and its driver begins anew",
    guest: r#"
wakeup=$(find /sys/devices -path '*tty/ttyS0/power/wakeup')
echo enabled >$wakeup
for round in 1 2 3; do
    host "(sleep 3; i=0; while [ \$i -lt 20 ]; do echo >/tmp/serial; sleep 1; i=\$((i + 1)); done) >/dev/null 2>&1 &
        echo \$! >/tmp/typist"
    before=$(cut -d ' ' -f 1 /proc/uptime)
    resumed=$(dmesg | grep -c 'PM: suspend exit')
    echo freeze >/sys/power/state || fail "the kernel does not suspend"
    expect "returns from suspend" $(($(dmesg | grep -c 'PM: suspend exit') - resumed)) 1
    host 'kill $(cat /tmp/typist)'
    wait_for 10 "carrier" grep -q 1 /sys/class/net/eth0/carrier
    ping -c 20 -i 0.02 10.0.2.2
    stream -t 2 --bidir
done
"#,
    check: |outcome| {
        booted_once(outcome)?;
        all_pings_answered(outcome, 3, 20)
    },
    ..Case::PLAIN
}];
