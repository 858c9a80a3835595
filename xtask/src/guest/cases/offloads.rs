//! Features that the driver or the user switches off: each way a frame can lie in buffers.

use anyhow::Result;

use super::{Case, all_pings_answered, booted_once};
use crate::guest::watch::Outcome;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "offloads",
        about: "ethtool -K switches offloads under traffic, and frames follow",
        guest: r#"
is() { ethtool -k eth0 | awk -v name="$1:" '$1 == name { print $2 }'; }
# Switches, and sees that both streams go on under it.
set_to() {
    _rx=$(counter rx_bytes) _tx=$(counter tx_bytes)
    ethtool -K eth0 $1 $2 || fail "ethtool -K eth0 $1 $2"
    expect "$1" "$(is $1)" $2
    [ -n "$both" ] || return 0
    sleep 0.3
    at_least "bytes received" $(($(counter rx_bytes) - _rx)) 100000
    at_least "bytes sent" $(($(counter tx_bytes) - _tx)) 100000
}
iperf3 -c 10.0.2.2 -t 300 --bidir -f k >/tmp/both 2>&1 &
both=$!
sleep 1
# Linux has each only with some of those that are switched off after it, and on before it.
for round in 1 2 3; do
    for name in rx-gro-hw generic-receive-offload tcp-segmentation-offload tx-checksumming scatter-gather; do
        set_to $name off
    done
    for name in scatter-gather tx-checksumming tcp-segmentation-offload generic-receive-offload rx-gro-hw; do
        set_to $name on
    done
    set_to generic-segmentation-offload on
done
kill $both
wait $both
both=
# With a peer that may send large frames, frames are larger than the MTU allows.
before=$(frames rx)
stream -t 2 -R
at_least "received frame with rx-gro-hw" "$(frame_size rx "$before")" 2000
before=$(frames tx)
stream -t 2
at_least "sent frame with TSO" "$(frame_size tx "$before")" 2000
set_to rx-gro-hw off
before=$(frames rx)
stream -t 2 -R
at_most "received frame without rx-gro-hw" "$(frame_size rx "$before")" 1514
set_to tcp-segmentation-offload off
set_to generic-segmentation-offload off
before=$(frames tx)
stream -t 2
at_most "sent frame without TSO" "$(frame_size tx "$before")" 1514
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "each-offload",
        about: "ethtool -K switches each offload that the driver lets one switch, and both streams go on",
        guest: r#"
is() { ethtool -k eth0 | awk -v name="$1:" '$1 == name { print $2 }'; }
names=$(ethtool -k eth0 | awk 'NR > 1 && !/fixed/ { sub(":", "", $1); print $1 }')
at_least "offloads that can be switched" $(echo $names | wc -w) 12
iperf3 -c 10.0.2.2 -t 300 --bidir >/tmp/both 2>&1 &
both=$!
sleep 1
for name in $names; do
    was=$(is $name)
    [ $was = on ] && other=off || other=on
    for value in $other $was; do
        rx=$(counter rx_bytes) tx=$(counter tx_bytes)
        ethtool -K eth0 $name $value || fail "ethtool -K eth0 $name $value"
        expect $name "$(is $name)" $value
        sleep 0.3
        at_least "bytes received" $(($(counter rx_bytes) - rx)) 50000
        at_least "bytes sent" $(($(counter tx_bytes) - tx)) 50000
    done
done
kill $both
wait $both
sleep 1
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "no-mrg-rxbuf",
        about: "with mrg_rxbuf=off a received frame lies in one chain",
        device: "mrg_rxbuf=off",
        guest: concat!("expect MRG_RXBUF \"$(feature 15)\" 0\n", all_ways!()),
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "no-event-idx",
        about: "with event_idx=off notifications go by flags",
        device: "event_idx=off",
        guest: concat!("expect EVENT_IDX \"$(feature 29)\" 0\n", all_ways!()),
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "no-indirect",
        about: "with indirect_desc=off a frame's descriptors lie in the ring",
        device: "indirect_desc=off",
        guest: concat!("expect INDIRECT_DESC \"$(feature 28)\" 0\n", all_ways!()),
        check: last_pings,
        ..Case::PLAIN
    },
    Case {
        name: "bare",
        about: "with all of these and the offloads off, the oldest way",
        device: "mrg_rxbuf=off,event_idx=off,indirect_desc=off,csum=off,guest_csum=off,host_tso4=off,\
                 host_tso6=off,host_ecn=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,ctrl_vq=off",
        guest: concat!(
            "expect \"bits 0 to 17\" \"$(cut -c 1-18 /sys/class/net/eth0/device/features)\" \
             000001000000000010\n",
            all_ways!()
        ),
        check: last_pings,
        ..Case::PLAIN
    },
];

pub(crate) fn last_pings(outcome: &Outcome) -> Result<()> {
    booted_once(outcome)?;
    let runs = super::pings(&outcome.output)?.len();
    all_pings_answered(outcome, runs.max(1), 20)
}
