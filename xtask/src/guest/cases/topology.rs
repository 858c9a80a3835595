//! The NIC as a part of something: a bond, a bridge; and what it says when it has moved.

use super::{Case, all_pings_answered, booted_once};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "bond",
        about: "two NICs as one, in turns, with the address and the promiscuous mode of the bond",
        vmm_args: Some(
            "-netdev tap,id=net0,ifname=tap0,script=/tmp/ifup -device virtio-net-pci,netdev=net0 \
             -netdev tap,id=net1,ifname=tap1,script=/tmp/ifup -device virtio-net-pci,netdev=net1",
        ),
        before: r#"
modprobe bridge
ip link add br0 type bridge
ip addr add 10.0.2.2/24 dev br0
ip link set br0 up
printf '#!/bin/sh\n/sbin/ip link set $1 up\n/sbin/ip link set $1 master br0\n' >/tmp/ifup
chmod +x /tmp/ifup
"#,
        guest: r#"
modprobe bonding max_bonds=0
ip addr flush dev eth0
ip link set eth0 down
ip link add bond0 type bond mode active-backup miimon 100
for slave in eth0 eth1; do ip link set $slave master bond0 || fail "$slave is no slave"; done
ip addr add 10.0.2.15/24 dev bond0
ip link set bond0 up
active() { cat /sys/class/net/bond0/bonding/active_slave; }
is_active() { [ "$(active)" = $1 ]; }
wait_for 20 "eth0 is active" is_active eth0
expect "address of eth1" "$(cat /sys/class/net/eth1/address)" "$(cat /sys/class/net/bond0/address)"
ping -c 20 -i 0.02 10.0.2.2
# Frames to a station that the host's bridge has not heard of go out at both taps.
host 'ip neigh replace 10.0.2.77 lladdr 52:54:00:ee:ee:ee dev br0 nud permanent'
strays() { SEEN_ON=$1 seen 'ether dst 52:54:00:ee:ee:ee' 'ping -q -c 50 -i 0.01 -W 1 10.0.2.77'; }
expect "strays at eth0" "$(strays eth0)" 0
ip link set bond0 promisc on
expect "strays at eth0 in promiscuous mode" "$(strays eth0)" 50
expect "strays at the other" "$(strays eth1)" 0
# It moves with the active one.
ip link set bond0 type bond active_slave eth1 || fail "eth1 cannot be made the active one"
expect "active" "$(active)" eth1
ping -c 20 -i 0.02 10.0.2.2
expect "strays at eth1" "$(strays eth1)" 50
expect "strays at the other" "$(strays eth0)" 0
ip link set bond0 promisc off
expect "strays at eth1 after it" "$(strays eth1)" 0
# The link of the active one is lost, and the other takes over.
host "(sleep 1; monitor set_link net1 off) >/dev/null 2>&1 &"
wait_for 20 "eth0 is active again" is_active eth0
ping -c 20 -i 0.02 10.0.2.2
host monitor set_link net1 on
host "(sleep 1; monitor set_link net0 off) >/dev/null 2>&1 &"
wait_for 20 "eth1 is active again" is_active eth1
stream -t 2 --bidir
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 4, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "bridge",
        about: "a bridge in the guest: another station behind the NIC, in its promiscuous mode",
        guest: r#"
modprobe bridge
modprobe veth
mac=$(cat /sys/class/net/eth0/address)
ip link add br0 address $mac type bridge
ip addr del 10.0.2.15/24 dev eth0
ip link set eth0 master br0
ip addr add 10.0.2.15/24 dev br0
ip netns add inner || fail "no network namespace"
ip link add outer type veth peer name station netns inner
ip link set outer master br0
ip link set outer up
ip link set br0 up
# Not by `ip netns exec`, which mounts a sysfs of its own each time.
inside() { nsenter -n/run/netns/inner -F "$@"; }
inside ip addr add 10.0.2.16/24 dev station
inside ip link set station up
wait_for 20 "the bridge forwards" inside ping -c 1 -W 1 10.0.2.2
ping -c 20 -i 0.02 10.0.2.2
inside ping -c 20 -i 0.02 10.0.2.2
host 'ping -c 20 -i 0.02 10.0.2.16'
for direction in "" -R; do
    inside iperf3 -c 10.0.2.2 -t 2 -f k $direction >/tmp/stream 2>&1 || { cat /tmp/stream; fail "iperf3 $direction"; }
    at_least "kbit/s" "$(rate)" 1000
done
# Without the bridge the station's frames do not get past the NIC's filter.
station=$(ip -n inner link show station | awk '/link\/ether/ { print $2 }')
strays() { seen "ether dst $station" 'ping -q -c 50 -i 0.01 -W 1 10.0.2.16'; }
host "ip neigh replace 10.0.2.16 lladdr $station dev tap0 nud permanent"
expect "frames to the station" "$(strays)" 50
# The host cannot be asked meanwhile, as the address is the bridge's.
ip link set eth0 nomaster
ip addr del 10.0.2.15/24 dev br0
ip addr add 10.0.2.15/24 dev eth0
wait_for 20 "an answer" ping -c 1 -W 1 10.0.2.2
expect "frames to the station without the bridge" "$(strays)" 0
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 4, 20)
        },
        ..Case::PLAIN
    },
    Case {
        name: "announce",
        about: "the monitor's announce_self: the guest's gratuitous ARP passes the host's tap",
        guest: r#"
expect GUEST_ANNOUNCE "$(feature 21)" 1
# Of 10.0.2.15, for 10.0.2.15.
announced='arp and arp[14:4] == 0x0a00020f and arp[24:4] == 0x0a00020f'
# The last of five rounds comes after 1.25 s.
announce() { host "monitor announce_self $1; sleep 2"; }
expect "announcements by themselves" "$(host_seen "$announced" sleep 2)" 0
expect "announcements of another card" "$(host_seen "$announced" announce nosuch)" 0
for name in "" virtio-net-pci.0; do
    # Rounds may come faster than a busy guest is at them.
    count=$(host_seen "$announced" announce $name)
    at_least "announcements" $count 3
    at_most "announcements" $count 5
done
# As somebody does who has lost the guest's address to another station.
host 'ip neigh replace 10.0.2.15 lladdr 52:54:00:ee:ee:ee dev tap0 nud stale; sysctl -q net.ipv4.conf.tap0.arp_accept=1'
announce
host 'ip neigh show 10.0.2.15' | grep $(cat /sys/class/net/eth0/address) || fail "the host has not heard of it"
ping -c 20 -i 0.02 10.0.2.2
"#,
        check: |outcome| {
            booted_once(outcome)?;
            all_pings_answered(outcome, 1, 20)
        },
        ..Case::PLAIN
    },
];
