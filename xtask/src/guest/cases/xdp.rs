//! Programs in the guest's driver that see each frame first.

use anyhow::{Result, ensure};

use super::{Case, booted_once, pings};
use crate::guest::watch::Outcome;

pub(super) const CASES: &[Case] = &[Case {
    name: "xdp",
    about: "native XDP programs pass, drop and answer in the driver",
    guest: r#"
attach() {
    ip link set dev eth0 xdpdrv obj /xdp/$1.o sec xdp || fail "attaching $1"
    ip -d link show eth0 | grep -q "prog/xdp id" || fail "$1 is not attached in the driver"
    wait_for 10 "carrier" grep -q 1 /sys/class/net/eth0/carrier
    echo "attached: $1"
}
attach pass
ping -q -c 20 -i 0.02 10.0.2.2
# A program sees frames of one page: the driver has the large ones switched off.
before=$(frames rx)
stream -t 2 -R
at_most "received frame under XDP" "$(frame_size rx "$before")" 1514
stream -t 2
ip link set dev eth0 xdpdrv off
attach drop-icmp
ping -q -c 5 -i 0.02 -w 3 10.0.2.2
# What is no ping goes through.
stream -t 2 -R
ip link set dev eth0 xdpdrv off
attach answer-icmp
before=$(icmp InEchos)
host 'ping -q -c 500 -i 0.002 10.0.2.15'
expect "echo requests that reached the stack" $(($(icmp InEchos) - before)) 0
ip link set dev eth0 xdpdrv off
host 'ping -q -c 20 -i 0.02 10.0.2.15'
expect "echo requests that reached the stack" $(($(icmp InEchos) - before)) 20
# Without a program frames may be large again.
before=$(frames rx)
stream -t 2 -R
at_least "received frame without XDP" "$(frame_size rx "$before")" 2000
"#,
    check: programs_ran,
    ..Case::PLAIN
}];

fn programs_ran(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let runs = pings(&outcome.output)?;
    ensure!(
        runs.len() == 4 && runs.get(1).is_some_and(|dropped| dropped.1 == 0),
        "sent and answered, none of the second: {runs:?}"
    );
    let others = [(0, (20, 20)), (2, (500, 500)), (3, (20, 20))];
    for (n, wanted) in others {
        ensure!(
            runs.get(n) == Some(&wanted),
            "sent and answered, not {wanted:?} in place {n}: {runs:?}"
        );
    }
    Ok(())
}
